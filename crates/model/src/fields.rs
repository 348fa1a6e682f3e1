//! Typed reads from a `config.json`, with errors that name the file and the key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::ModelError;

/// A JSON object from a `config.json`, and the path of the file.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) raw: &'a Map<String, Value>,
    pub(crate) path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(crate) fn malformed(&self, reason: String) -> ModelError {
        ModelError::Malformed {
            path: self.path.to_owned(),
            reason,
        }
    }

    pub(crate) fn unsupported(
        &self,
        what: &'static str,
        value: impl Into<String>,
        supported: &'static str,
    ) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            what,
            value: value.into(),
            supported,
        }
    }

    /// The value of a key; null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw.get(key).filter(|value| !value.is_null())
    }

    /// Reads a size, which must be at least 1.
    pub(crate) fn size(&self, key: &str) -> Result<i64, ModelError> {
        self.optional_size(key)?
            .ok_or_else(|| self.malformed(format!("`{key}` is missing")))
    }

    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<i64>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_i64() {
            Some(size) if size >= 1 => Ok(Some(size)),
            _ => Err(self.malformed(format!(
                "`{key}` is {value}: expected a whole number of at least 1"
            ))),
        }
    }

    pub(crate) fn number(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .as_f64()
            .ok_or_else(|| self.malformed(format!("`{key}` is {value}: expected a number")))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| self.malformed(format!("`{key}` is {value}: expected true or false")))
    }

    pub(crate) fn text(&self, key: &str, default: &'a str) -> Result<&'a str, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .as_str()
            .ok_or_else(|| self.malformed(format!("`{key}` is {value}: expected a string")))
    }

    /// Reads a nested object.
    pub(crate) fn inner(&self, key: &str) -> Result<Option<Fields<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(raw)) => Ok(Some(Fields {
                raw,
                path: self.path,
            })),
            Some(other) => {
                Err(self.malformed(format!("`{key}` is {other}: expected an object or null")))
            }
        }
    }
}
