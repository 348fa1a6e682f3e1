//! The table of keys, read from the JSON schema that the declarations of the sections generate.

use std::{iter, str::Split, sync::LazyLock};

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use toml::Value;

use crate::Settings;

/// The JSON schema of a configuration file.
pub fn schema() -> Json {
    let mut schema = schemars::schema_for!(Settings).to_value();
    // The keys state their defaults themselves.
    let tables = schema["properties"].as_object_mut().into_iter();
    let tables = tables.flat_map(|tables| tables.values_mut().filter_map(Json::as_object_mut));
    for table in tables.filter(|table| table.get("default").is_some_and(Json::is_object)) {
        table.remove("default");
    }
    schema
}

/// A table of the configuration.
#[derive(Debug)]
pub struct Section {
    /// Its name; empty for the keys before the first table. `*` stands for a name that the user chooses.
    pub path: String,
    /// Its documentation.
    pub doc: String,
    /// Its keys, in the order of declaration.
    pub keys: Vec<Key>,
}

/// A key of the configuration, as its field declares it.
#[derive(Debug)]
pub struct Key {
    /// Dotted path. `*` stands for a name that the user chooses, as in `domains.*.files`.
    pub path: String,
    /// Its documentation.
    pub doc: String,
    /// Its value if no layer sets it.
    pub default: Option<Value>,
    /// The allowed words; empty if the key is not a choice among words.
    pub choices: Vec<String>,
    /// An example for the reference.
    pub example: Option<Value>,
    /// Whether `ddk ctl set` and SIGHUP can change it while a run trains.
    pub live: bool,
    /// Whether a run may resume with another value.
    pub may_differ: bool,
    /// Whether a run may resume with a larger value.
    pub may_grow: bool,
    /// The divisor that `ddk compare --quick` applies.
    pub quick: Option<u64>,
    /// Whether DDK must not show the value.
    pub secret: bool,
    bounds: [Option<f64>; 4],
    expected: Option<String>,
}

/// The bounds in a schema. They apply to a number, or to the length of a list or string.
const BOUNDS: [&[&str]; 4] = [
    &["minimum", "minItems", "minLength"],
    &["maximum"],
    &["exclusiveMinimum"],
    &["exclusiveMaximum"],
];

/// All tables, in the order of declaration.
pub fn sections() -> &'static [Section] {
    static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
        let inline = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
        let schema = inline.into_generator().into_root_schema_for::<Settings>();
        tables("", schema.as_value(), schema.as_value(), false)
    });
    &SECTIONS
}

/// All keys.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    sections().iter().flat_map(|section| &section.keys)
}

/// The names that a table may contain; `*` if the user chooses them.
pub(crate) fn names_in(table: &[&str]) -> Vec<&'static str> {
    let names = keys().filter_map(|key| after(&key.path, table)?.next());
    let mut names: Vec<&str> = names.collect();
    // The keys of a table, and those of each table in it, follow each other.
    names.dedup();
    names
}

/// Whether a dotted path, in which `*` stands for any name, matches these segments.
pub(crate) fn matches(pattern: &str, path: &[&str]) -> bool {
    after(pattern, path).is_some_and(|mut rest| rest.next().is_none())
}

/// The segments of a dotted path after those that match `start`; `None` if it does not start so.
fn after<'a>(pattern: &'a str, start: &[&str]) -> Option<Split<'a, char>> {
    let mut segments = pattern.split('.');
    for name in start {
        let segment = segments.next()?;
        (segment == "*" || segment == *name).then_some(())?;
    }
    Some(segments)
}

impl Key {
    /// Finds the key of a value by the segments of its path.
    pub fn of(path: &[&str]) -> Option<&'static Self> {
        keys().find(|key| matches(&key.path, path))
    }

    /// Whether a value is within the bounds.
    pub fn accepts(&self, value: &Value) -> bool {
        let number = match value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            Value::Array(values) => values.len() as f64,
            Value::String(text) => text.len() as f64,
            _ => return true,
        };
        let [min, max, over, under] = self.bounds;
        number.is_finite()
            && min.is_none_or(|min| number >= min)
            && max.is_none_or(|max| number <= max)
            && over.is_none_or(|over| number > over)
            && under.is_none_or(|under| number < under)
    }

    /// The bounds in words; empty if there are none.
    pub fn expected(&self) -> String {
        if let Some(expected) = &self.expected {
            return expected.clone();
        }
        match self.bounds {
            [Some(min), Some(max), _, _] => format!("{min} to {max}"),
            [Some(min), _, _, Some(under)] => format!("{min} or more and less than {under}"),
            [Some(min), ..] => format!("{min} or more"),
            [_, Some(max), Some(over), _] => format!("greater than {over} and at most {max}"),
            [_, _, Some(0.0), _] => "a positive number".to_owned(),
            [_, _, Some(over), _] => format!("a number greater than {over}"),
            _ => String::new(),
        }
    }

    /// The row of docs/settings.md. `whole_section` is true if all keys of the section may differ; the section then
    /// says so itself.
    pub(crate) fn row(&self, whole_section: bool) -> String {
        let name = self.path.trim_end_matches(".*");
        let name = name.rsplit('.').next().unwrap_or(name);
        // As JSON, because a TOML string may span several lines.
        let shown =
            |value: &Value| format!("`{}`", serde_json::to_string(value).unwrap_or_default());
        let default = self.default.as_ref().filter(|value| self.accepts(value));
        let default = default.map(shown).unwrap_or_default();
        let mut about = self.doc.clone();
        let expected = self.expected();
        if !expected.is_empty() && expected != "0 or more" {
            about.push_str(&format!(" Allowed: {expected}."));
        }
        let choices = self.choices.iter().map(|choice| format!("`{choice}`"));
        let choices: Vec<String> = choices.collect();
        if choices.iter().any(|choice| !about.contains(choice)) {
            about.push_str(&format!(" One of {}.", choices.join(", ")));
        }
        if self.live {
            about.push_str(" Live: `ddk ctl set` and SIGHUP change it while a run trains.");
        } else if self.may_differ && !whole_section {
            about.push_str(" A run may resume with another value.");
        } else if self.may_grow {
            about.push_str(" A run may resume with a larger value.");
        }
        if let Some(example) = &self.example {
            about.push_str(&format!(" Example: {}.", shown(example)));
        }
        format!("| `{name}` | {default} | {} |\n", about.replace('|', "\\|"))
    }
}

/// Reads a table, then the tables in it.
fn tables(path: &str, declared: &Json, table: &Json, may_differ: bool) -> Vec<Section> {
    let (mut keys, mut inner) = (Vec::new(), Vec::new());
    for (name, declared) in table["properties"].as_object().into_iter().flatten() {
        let own = declared["x-may-differ-on-resume"].as_bool();
        let may_differ = own.unwrap_or(may_differ);
        let separator = if path.is_empty() { "" } else { "." };
        let mut path = format!("{path}{separator}{name}");
        // What is optional is either this or null.
        let mut value = declared["anyOf"].get(0).unwrap_or(declared);
        if value["additionalProperties"].is_object() {
            path.push_str(".*");
            value = &value["additionalProperties"];
        }
        if value["properties"].is_object() {
            inner.extend(tables(&path, declared, value, may_differ));
        } else {
            keys.push(key(path, declared, value, may_differ));
        }
    }
    let section = Section {
        path: path.to_owned(),
        doc: text(declared, "description").unwrap_or_default(),
        keys,
    };
    iter::once(section).chain(inner).collect()
}

fn key(path: String, declared: &Json, value: &Json, may_differ: bool) -> Key {
    let toml = |json: &Json| Value::try_from(json).ok();
    let words = value["oneOf"].as_array().into_iter().flatten();
    let words = words.filter_map(|word| text(word, "const"));
    let live = declared["x-live"] == true;
    Key {
        path,
        doc: text(declared, "description").unwrap_or_default(),
        default: toml(&declared["default"]),
        choices: words.collect(),
        example: toml(&declared["examples"][0]),
        live,
        may_differ: may_differ || live,
        may_grow: declared["x-may-grow"] == true,
        quick: declared["x-quick"].as_u64(),
        secret: declared["x-secret"] == true,
        // A map uses the bounds of its entries.
        bounds: BOUNDS.map(|names| {
            let mut found = names
                .iter()
                .flat_map(|name| [&declared[name], &value[name]]);
            found.find_map(Json::as_f64)
        }),
        expected: text(declared, "x-expected"),
    }
}

/// A string in the schema, on one line.
fn text(value: &Json, name: &str) -> Option<String> {
    let words = value[name].as_str()?.split_whitespace();
    Some(words.collect::<Vec<_>>().join(" "))
}
