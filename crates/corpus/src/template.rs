//! Builds the text of a record from a template of its fields.

use std::{collections::BTreeSet, mem};

use serde_json::Value;

/// A text with fields in it: `{question}\n{answer}`. A dot selects a field of an object; `{{` and `}}` are literal
/// braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The path of each field, and the text before it.
    fields: Vec<(String, String)>,
    /// The text after the last field.
    rest: String,
    source: String,
}

impl Template {
    /// Creates a template of a single field.
    pub fn field(path: &str) -> Self {
        Self {
            fields: vec![(path.to_owned(), String::new())],
            rest: String::new(),
            source: format!("{{{path}}}"),
        }
    }

    /// Parses a template.
    ///
    /// # Errors
    /// If the template has an unbalanced brace, an empty field name, or no field at all.
    pub fn parse(source: &str) -> Result<Self, String> {
        let (mut fields, mut text, mut rest) = (Vec::new(), String::new(), source);
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
            if field.is_empty() {
                return Err("`{}` names no field".to_owned());
            }
            fields.push((field.to_owned(), mem::take(&mut text)));
            rest = after;
        }
        text.push_str(rest);
        if fields.is_empty() {
            return Err("it has no field, such as {text}".to_owned());
        }
        Ok(Self {
            fields,
            rest: text,
            source: source.to_owned(),
        })
    }

    /// Minimum bytes of a line that holds a record with all fields of the template, including the line break.
    pub(crate) fn shortest_line(&self) -> u64 {
        let paths = self.fields.iter().map(|(path, _)| path);
        let keys: BTreeSet<&str> = paths.filter_map(|path| path.split('.').next()).collect();
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
        for (path, text) in &self.fields {
            filled.push_str(text);
            filled.push_str(field(record, path)?);
        }
        filled.push_str(&self.rest);
        Ok(filled)
    }
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
}
