//! Builds the text of a record from a template of its fields.

use std::{collections::BTreeSet, mem};

use serde_json::Value;

/// A text with fields in it: `{question}\n{answer}`. A dot selects a field of an object; `{{` and `}}` are literal
/// braces. `{?input} … {/}` is left out of records without a text in the field `input`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The path of a field.
    Field(String),
    /// Parts that need a text in this field.
    If(String, Vec<Part>),
}

impl Template {
    /// Creates a template of a single field.
    pub fn field(path: &str) -> Self {
        Self {
            parts: vec![Part::Field(path.to_owned())],
            source: format!("{{{path}}}"),
        }
    }

    /// Parses a template.
    ///
    /// # Errors
    /// If the template has an unbalanced brace, an empty field name, a condition that does not end or has another one
    /// in it, or no field outside of conditions.
    pub fn parse(source: &str) -> Result<Self, String> {
        let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), source);
        // The field of the condition that is open, and the parts before it.
        let mut open: Option<(String, Vec<Part>)> = None;
        while let Some(place) = rest.find(['{', '}']) {
            text.push_str(&rest[..place]);
            let (brace, after) = rest[place..].split_at(1);
            if let Some(after) = after.strip_prefix(brace) {
                text.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err("`}` closes nothing (write `}}` for a brace)".to_owned());
            }
            let Some((field, after)) = after.split_once('}') else {
                return Err(format!("`{{{after}` is not closed"));
            };
            if field.is_empty() || field == "?" {
                return Err(format!("`{{{field}}}` names no field"));
            }
            if !text.is_empty() {
                parts.push(Part::Text(mem::take(&mut text)));
            }
            rest = after;
            if field == "/" {
                let Some((condition, before)) = open.take() else {
                    return Err("`{/}` ends nothing: `{?field}` begins a condition".to_owned());
                };
                let inner = mem::replace(&mut parts, before);
                parts.push(Part::If(condition, inner));
            } else if let Some(condition) = field.strip_prefix('?') {
                if let Some((outer, _)) = &open {
                    return Err(format!(
                        "`{{?{condition}}}` is inside `{{?{outer}}}`: end that with `{{/}}` before it"
                    ));
                }
                open = Some((condition.to_owned(), mem::take(&mut parts)));
            } else {
                parts.push(Part::Field(field.to_owned()));
            }
        }
        if let Some((condition, _)) = open {
            return Err(format!("`{{?{condition}}}` does not end: write `{{/}}`"));
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        if !parts.iter().any(|part| matches!(part, Part::Field(_))) {
            return Err("it has no field, such as {text}".to_owned());
        }
        Ok(Self {
            parts,
            source: source.to_owned(),
        })
    }

    /// Minimum bytes of a line that holds a record with all required fields of the template, including the line break.
    pub(crate) fn shortest_line(&self) -> u64 {
        let paths = self.parts.iter().filter_map(|part| match part {
            Part::Field(path) => path.split('.').next(),
            _ => None,
        });
        let keys: BTreeSet<&str> = paths.collect();
        // `{"a":"","b":""}` and the line break.
        let pairs: usize = keys.iter().map(|key| key.len() + 5).sum();
        (2 + pairs + keys.len().saturating_sub(1) + 1) as u64
    }

    /// The template as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the text of a record, or why it has none.
    pub(crate) fn fill(&self, record: &Value) -> Result<String, String> {
        let mut filled = String::new();
        fill(&self.parts, record, &mut filled)?;
        Ok(filled)
    }
}

fn fill(parts: &[Part], record: &Value, filled: &mut String) -> Result<(), String> {
    for part in parts {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Field(path) => filled.push_str(field(record, path)?),
            Part::If(path, inner) => {
                let text = value(record, path).and_then(Value::as_str);
                if text.is_some_and(|text| !text.trim().is_empty()) {
                    fill(inner, record, filled)?;
                }
            }
        }
    }
    Ok(())
}

/// Returns a string field of a record.
pub(crate) fn field<'a>(record: &'a Value, path: &str) -> Result<&'a str, String> {
    value(record, path)
        .ok_or_else(|| format!("no field `{path}`"))?
        .as_str()
        .ok_or_else(|| format!("the field `{path}` is not a string"))
}

/// Whether a field equals `expected`, as a string, a number or a Boolean.
pub(crate) fn says(record: &Value, path: &str, expected: &str) -> bool {
    match value(record, path) {
        Some(Value::String(text)) => text == expected,
        Some(Value::Number(number)) => number.to_string() == expected,
        Some(Value::Bool(truth)) => expected == if *truth { "true" } else { "false" },
        _ => false,
    }
}

/// Returns a field of a record.
pub(crate) fn value<'a>(record: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(record, |value, key| value.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_filled_in_and_what_is_wrong_is_said() {
        let record = serde_json::json!({ "q": "why?", "a": { "b": "so" }, "n": 3 });
        let template = Template::parse("Q: {q}\n{{A}}: {a.b}").unwrap();
        assert_eq!(template.fill(&record).unwrap(), "Q: why?\n{A}: so");
        assert_eq!(Template::field("a.b").fill(&record).unwrap(), "so");
        for (source, wrong) in [
            ("{q", "not closed"),
            ("q}", "closes nothing"),
            ("{}", "no field"),
            ("q", "no field"),
            ("{?}{q}{/}", "no field"),
            ("{?q}{q}", "does not end"),
            ("{q}{/}", "ends nothing"),
            ("{?q}{?a}{/}{/}", "inside"),
            ("{?q}{q}{/}", "no field"),
        ] {
            assert!(
                Template::parse(source).unwrap_err().contains(wrong),
                "{source}"
            );
        }
        assert_eq!(
            Template::field("n").fill(&record).unwrap_err(),
            "the field `n` is not a string"
        );
        assert_eq!(
            Template::field("z").fill(&record).unwrap_err(),
            "no field `z`"
        );
        assert_eq!(
            template.shortest_line(),
            "{\"q\":\"\",\"a\":\"\"}\n".len() as u64
        );
        assert!(says(&record, "a.b", "so") && says(&record, "n", "3"));
        assert!(!says(&record, "n", "4") && !says(&record, "a", "so"));
    }
    #[test]
    fn a_condition_leaves_out_what_needs_a_text() {
        let template = Template::parse("{i}{?o.p}\n\n{o.p}{/}\n").unwrap();
        for (record, expected) in [
            (
                serde_json::json!({ "i": "do", "o": { "p": "this" } }),
                "do\n\nthis\n",
            ),
            (
                serde_json::json!({ "i": "do", "o": { "p": " \n" } }),
                "do\n",
            ),
            (serde_json::json!({ "i": "do", "o": { "p": null } }), "do\n"),
            (serde_json::json!({ "i": "do", "o": { "p": 3 } }), "do\n"),
            (serde_json::json!({ "i": "do" }), "do\n"),
        ] {
            assert_eq!(template.fill(&record).unwrap(), expected);
        }
        assert_eq!(template.shortest_line(), "{\"i\":\"\"}\n".len() as u64);
    }
}
