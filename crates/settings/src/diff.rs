//! All values of settings, each with its key, and what differs between two.

use std::collections::BTreeMap;

use toml::Value;

use crate::{Error, Key, Settings};

/// A value of settings.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The dotted way to it.
    pub path: String,
    /// The key that it is of.
    pub key: &'static Key,
    /// It.
    pub value: Value,
}

/// A value that differs.
#[derive(Debug, Clone)]
pub struct Change {
    /// The dotted way to it.
    pub path: String,
    /// The key that it is of.
    pub key: &'static Key,
    /// What it was, if it was set.
    pub before: Option<Value>,
    /// What it is, if it is set.
    pub after: Option<Value>,
}

impl Change {
    /// Whether it is a limit that has grown.
    pub fn grows(&self) -> bool {
        let number = |value: &Option<Value>| value.as_ref().and_then(Value::as_integer);
        let grown = || Some(number(&self.after)? > number(&self.before)?);
        self.key.may_grow && grown() == Some(true)
    }

    /// Whether a run goes on with it.
    pub fn is_allowed_on_resume(&self) -> bool {
        self.key.may_differ || self.grows()
    }

    /// Both values, as a configuration has them.
    pub fn shown(&self) -> [String; 2] {
        let shown = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "not set".to_owned(),
        };
        [shown(&self.before), shown(&self.after)]
    }
}

impl Settings {
    /// All values, sorted by their keys.
    ///
    /// # Errors
    /// Where a value cannot be written as TOML.
    pub fn values(&self) -> Result<Vec<Setting>, Error> {
        let table = Value::try_from(self).map_err(|error| Error::not_written(&error))?;
        let mut values = Vec::new();
        flatten(table, &mut Vec::new(), &mut values);
        values.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(values)
    }
}

fn flatten(value: Value, path: &mut Vec<String>, values: &mut Vec<Setting>) {
    if let Value::Table(table) = value {
        for (name, value) in table {
            path.push(name);
            flatten(value, path, values);
            path.pop();
        }
        return;
    }
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    values.extend(Key::of(&names).map(|key| Setting {
        path: names.join("."),
        key,
        value,
    }));
}

/// All values that differ, sorted by their keys.
///
/// # Errors
/// Where a value cannot be written as TOML.
pub fn diff(before: &Settings, after: &Settings) -> Result<Vec<Change>, Error> {
    let mut changes = BTreeMap::new();
    for setting in before.values()? {
        let Setting { path, key, value } = setting;
        let change = Change {
            path: path.clone(),
            key,
            before: Some(value),
            after: None,
        };
        changes.insert(path, change);
    }
    for setting in after.values()? {
        let Setting { path, key, value } = setting;
        let change = Change {
            path: path.clone(),
            key,
            before: None,
            after: None,
        };
        changes.entry(path).or_insert(change).after = Some(value);
    }
    let changes = changes.into_values();
    Ok(changes
        .filter(|change| change.before != change.after)
        .collect())
}
