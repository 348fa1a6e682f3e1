//! Lists all values of the settings with their keys, and compares two sets of settings.

use std::collections::BTreeMap;

use toml::Value;

use crate::{Error, Key, Settings};

/// One value of the settings.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Dotted path, such as `domains.math.files`.
    pub path: String,
    /// Declaration of its key.
    pub key: &'static Key,
    /// The value as TOML.
    pub value: Value,
}

/// A value that differs between two sets of settings.
#[derive(Debug, Clone)]
pub struct Change {
    /// Dotted path, such as `domains.math.files`.
    pub path: String,
    /// Declaration of its key.
    pub key: &'static Key,
    /// The value before and after; `None` if it is not set.
    pub values: [Option<Value>; 2],
}

impl Change {
    /// Whether this is a limit that has grown.
    pub fn grows(&self) -> bool {
        let numbers = self.values.each_ref();
        let [before, after] = numbers.map(|value| value.as_ref()?.as_integer());
        self.key.may_grow && before.is_some() && after > before
    }

    /// Whether a run may resume with this change.
    pub fn is_allowed_on_resume(&self) -> bool {
        self.key.may_differ || self.grows()
    }

    /// Both values as they appear in a configuration.
    pub fn shown(&self) -> [String; 2] {
        let not_set = || "not set".to_owned();
        let values = self.values.each_ref();
        values.map(|value| value.as_ref().map_or_else(not_set, Value::to_string))
    }
}

impl Settings {
    /// All values, sorted by path.
    ///
    /// # Errors
    /// If a value cannot be written as TOML.
    pub fn values(&self) -> Result<Vec<Setting>, Error> {
        let table = Value::try_from(self).map_err(|error| Error::not_written(&error))?;
        let mut values = Vec::new();
        flatten(table, &[], &mut values);
        values.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(values)
    }
}

fn flatten(value: Value, path: &[&str], values: &mut Vec<Setting>) {
    if let Value::Table(table) = value {
        for (name, value) in table {
            flatten(value, &[path, &[&name]].concat(), values);
        }
    } else if let Some(key) = Key::of(path) {
        let path = path.join(".");
        values.push(Setting { path, key, value });
    }
}

/// All values that differ, sorted by path.
///
/// # Errors
/// If a value cannot be written as TOML.
pub fn diff(before: &Settings, after: &Settings) -> Result<Vec<Change>, Error> {
    let mut changes = BTreeMap::new();
    for (side, settings) in [before, after].into_iter().enumerate() {
        for Setting { path, key, value } in settings.values()? {
            let values = [None, None];
            let change = changes.entry(path.clone());
            let change = change.or_insert(Change { path, key, values });
            change.values[side] = Some(value);
        }
    }
    let changes = changes.into_values();
    let changes = changes.filter(|change| change.values[0] != change.values[1]);
    Ok(changes.collect())
}
