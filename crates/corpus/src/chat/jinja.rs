//! Makes minijinja behave like the Jinja environment of transformers.

use std::ops::Range;

use jiff::{civil::Date, fmt::strtime};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value,
    value::{Kwargs, Rest, ValueKind},
};
use minijinja_contrib::pycompat;

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    /// The byte ranges that `{% generation %}` marks; `None` if the template has no such tag.
    pub(super) marked: Option<Vec<Range<usize>>>,
}

/// The date that `strftime_now` formats. With the current date, a corpus would change from day to day. Llama 3's
/// templates fall back to this date.
const TODAY: Date = jiff::civil::date(2024, 7, 26);

/// Characters that enclose what `{% generation %}` marks. Unicode reserves them for such internal use.
const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// Returns an environment with these templates, or why one is invalid.
pub(super) fn environment(
    templates: impl IntoIterator<Item = (String, String)>,
) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_formatter(|out, _, value| Ok(out.write_str(&python_str(value))?));
    environment.set_unknown_method_callback(method);
    environment.add_filter("ddk_generation", |text: &str| format!("{BEGIN}{text}{END}"));
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: Value| python_str(&value));
    environment.add_filter("trim", |value: Value, of: Option<String>| {
        let text = python_str(&value);
        match of {
            Some(of) => text.trim_matches(|letter| of.contains(letter)).to_owned(),
            None => text.trim().to_owned(),
        }
    });
    // Python's strings and dictionaries are sequences too, by Jinja's definition.
    environment.add_test("sequence", |value: Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map
        )
    });
    // None is not iterable, unlike in minijinja.
    environment.add_test("iterable", |value: Value| {
        value.kind() == ValueKind::String || (!value.is_none() && value.try_iter().is_ok())
    });
    environment.add_function("raise_exception", |message: String| {
        Err::<(), _>(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        let midnight = TODAY.at(0, 0, 0, 0);
        strtime::format(&format, midnight)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    for (name, source) in templates {
        let source = with_filters(&source.replace("\r\n", "\n"));
        environment
            .add_template_owned(name, source)
            .map_err(|error| describe(&error))?;
    }
    Ok(environment)
}

/// Describes an error in a template, or an exception that it raises.
pub(super) fn describe(error: &Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the chat template)"),
        None => what,
    }
}

/// Replaces the tags `generation` and `endgeneration`, which minijinja lacks, by tags with the same effect on the white
/// space around them.
fn with_filters(source: &str) -> String {
    let (mut replaced, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(place) = rest.find("{%") {
        let (before, tag) = rest.split_at(place + 2);
        replaced.push_str(before);
        rest = tag;
        let Some((inside, after)) = tag.split_once("%}") else {
            break;
        };
        let name =
            inside.trim_matches(|letter: char| letter.is_whitespace() || "-+".contains(letter));
        let with = match name {
            "generation" => "filter ddk_generation",
            "endgeneration" => "endfilter",
            _ => continue,
        };
        replaced.push_str(&inside.replacen(name, &format!(" {with} "), 1));
        replaced.push_str("%}");
        rest = after;
    }
    replaced.push_str(rest);
    replaced
}

/// Whether a text contains a character that [`unmark`] would take for a mark.
pub(super) fn has_marks(text: &str) -> bool {
    text.contains([BEGIN, END])
}

/// Takes the marks out of the text that a template with the tag `generation` renders.
pub(super) fn unmark(rendered: &str) -> Rendered {
    let mut marked = Vec::new();
    let (mut text, mut begin) = (String::with_capacity(rendered.len()), 0);
    for part in rendered.split_inclusive([BEGIN, END]) {
        text.push_str(part.trim_end_matches([BEGIN, END]));
        if part.ends_with(BEGIN) {
            begin = text.len();
        } else if part.ends_with(END) && begin < text.len() {
            marked.push(begin..text.len());
        }
    }
    Rendered {
        text,
        marked: Some(marked),
    }
}

/// Whether a template has the tag `generation`.
pub(super) fn can_mark(source: &str) -> bool {
    with_filters(source).contains("filter ddk_generation")
}

/// Methods of Python's strings that minijinja-contrib lacks.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [argument]) = (value.as_str(), args)
        && let Some(argument) = argument.as_str()
    {
        let parts = |first: &str, second: &str, third: &str| {
            Ok(Value::from(vec![
                first.to_owned(),
                second.to_owned(),
                third.to_owned(),
            ]))
        };
        match name {
            "removeprefix" => return Ok(text.strip_prefix(argument).unwrap_or(text).into()),
            "removesuffix" => return Ok(text.strip_suffix(argument).unwrap_or(text).into()),
            "partition" => {
                return match text.split_once(argument) {
                    Some((before, after)) => parts(before, argument, after),
                    None => parts(text, "", ""),
                };
            }
            "rpartition" => {
                return match text.rsplit_once(argument) {
                    Some((before, after)) => parts(before, argument, after),
                    None => parts("", "", text),
                };
            }
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// A value as Python's `str` writes it.
fn python_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, value);
            out
        }
    }
}

/// Writes a value as Python's `repr` does.
fn write_repr(out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool if value.is_true() => out.push_str("True"),
        ValueKind::Bool => out.push_str("False"),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &item);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key);
                out.push_str(": ");
                write_repr(out, &value.get_item(&key).unwrap_or_default());
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// Writes a string in quotes, as Python does.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if letter == quote => out.extend(['\\', quote]),
            _ if letter.is_ascii_control() => out.push_str(&format!("\\x{:02x}", letter as u32)),
            _ => out.push(letter),
        }
    }
    out.push(quote);
}

/// A number as Python's `repr` and `json.dumps` write it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(number) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if !number.is_finite() {
        return match number {
            _ if number.is_nan() => "nan".to_owned(),
            _ if number > 0.0 => "inf".to_owned(),
            _ => "-inf".to_owned(),
        };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// How `json.dumps` lays out its output.
struct Layout {
    ensure_ascii: bool,
    /// The white space of one level; `None` writes everything on one line.
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

/// The filter `tojson` of transformers: Python's `json.dumps`, without escapes for HTML.
fn to_json(value: Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Option<Value> {
        let given = positional.get(index).cloned();
        let given = given.or_else(|| named.get::<Option<Value>>(name).ok().flatten());
        given.filter(|value| !value.is_none())
    };
    let indent = argument(1, "indent").map(|indent| match indent.as_usize() {
        Some(spaces) => " ".repeat(spaces),
        None => indent.as_str().unwrap_or_default().to_owned(),
    });
    let separator = |index: usize, default: &str| {
        let pair = argument(2, "separators");
        let own = pair.and_then(|pair| pair.get_item_by_index(index).ok());
        own.and_then(|own| own.as_str().map(str::to_owned))
            .unwrap_or_else(|| default.to_owned())
    };
    let layout = Layout {
        ensure_ascii: argument(0, "ensure_ascii").is_some_and(|value| value.is_true()),
        between_items: separator(0, if indent.is_some() { "," } else { ", " }),
        after_key: separator(1, ": "),
        indent,
        sort_keys: argument(3, "sort_keys").is_some_and(|value| value.is_true()),
    };
    named.assert_all_used()?;
    let mut out = String::new();
    write_json(&mut out, &value, &layout, 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&match &*number(value) {
            "nan" => "NaN".to_owned(),
            "inf" => "Infinity".to_owned(),
            "-inf" => "-Infinity".to_owned(),
            number => number.to_owned(),
        }),
        ValueKind::String => write_json_string(out, value.as_str().unwrap_or_default(), layout)?,
        kind @ (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => {
            let is_map = kind == ValueKind::Map;
            let mut items: Vec<Value> = value.try_iter()?.collect();
            if layout.sort_keys && is_map {
                items.sort_by_key(python_str);
            }
            out.push(if is_map { '{' } else { '[' });
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(&layout.between_items);
                }
                new_line(out, depth + 1);
                if is_map {
                    write_json_string(out, &python_str(item), layout)?;
                    out.push_str(&layout.after_key);
                    write_json(out, &value.get_item(item)?, layout, depth + 1)?;
                } else {
                    write_json(out, item, layout, depth + 1)?;
                }
            }
            if !items.is_empty() {
                new_line(out, depth);
            }
            out.push(if is_map { '}' } else { ']' });
        }
        kind => {
            let message = format!("a value of type {kind} is not JSON");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

fn write_json_string(out: &mut String, text: &str, layout: &Layout) -> Result<(), Error> {
    let quoted = serde_json::to_string(text)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?;
    if !layout.ensure_ascii {
        out.push_str(&quoted);
        return Ok(());
    }
    for letter in quoted.chars() {
        if letter.is_ascii() && letter != '\u{7f}' {
            out.push(letter);
        } else {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python writes (jinja2 3.1.6, with the filters of transformers 5.20).
    #[test]
    fn values_are_written_as_python_does() {
        for (source, expected) in [
            (
                "{{ none }} {{ true }} {{ 1.0 }} {{ 3 }} {{ missing }}|",
                "None True 1.0 3 |",
            ),
            ("{{ [1, 'a', \"it's\", none] }}", "[1, 'a', \"it's\", None]"),
            ("{{ {'a': {'b': false}} }}", "{'a': {'b': False}}"),
            (
                "{{ 1e16 }} {{ 0.0001 }} {{ 0.00001 }} {{ 123456.5 }}",
                "1e+16 0.0001 1e-05 123456.5",
            ),
            (
                "{{ {'a': [1, '<é\\u0001\"'], 'b': 1e22} | tojson }}",
                "{\"a\": [1, \"<é\\u0001\\\"\"], \"b\": 1e+22}",
            ),
            (
                "{{ 'é🙂' | tojson(ensure_ascii=true) }}",
                "\"\\u00e9\\ud83d\\ude42\"",
            ),
            (
                "{{ {'b': 1, 'a': []} | tojson(indent=2, sort_keys=true) }}",
                "{\n  \"a\": [],\n  \"b\": 1\n}",
            ),
            (
                "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':')) }}",
                "{\"b\":1,\"a\":2}",
            ),
            ("{{ none | trim }} {{ ' a ' | trim }}|", "None a|"),
            (
                "{{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is iterable }} {{ none is iterable }}",
                "True True False False",
            ),
            (
                "{{ 'a-b-c'.partition('-')[2] }} {{ 'a-b-c'.rpartition('-')[0] }}",
                "b-c a-b",
            ),
            (
                "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }}",
                "bc ab",
            ),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            (
                "{% for i in range(3) %}\n    {% if i == 1 %}{% continue %}{% endif %}\n{{ i }}\n{% endfor %}\n",
                "0\n2\n",
            ),
        ] {
            let templates = [("a".to_owned(), source.to_owned())];
            let environment = environment(templates).unwrap();
            let rendered = environment.get_template("a").unwrap().render(());
            assert_eq!(rendered.unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn generation_tags_become_filters_with_the_same_white_space_control() {
        assert_eq!(
            with_filters(
                "{%- generation -%}a{% endgeneration %}{% if generation %}{%+ generation%}"
            ),
            "{%-  filter ddk_generation  -%}a{%  endfilter  %}{% if generation %}{%+  filter ddk_generation %}"
        );
        assert!(can_mark("{%generation%}") && !can_mark("{# generation #}"));
    }
}
