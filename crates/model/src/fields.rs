//! Typed reads from JSON files such as `config.json`, with errors that name the file and the key.

use std::{fs, path::Path};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::ModelError;

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = fs::read_to_string(path).map_err(ModelError::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| ModelError::malformed(path, error))
}

/// A JSON object from a `config.json`, and the path of the file.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) raw: &'a Map<String, Value>,
    pub(crate) path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(crate) fn malformed(&self, reason: String) -> ModelError {
        ModelError::malformed(self.path, reason)
    }

    pub(crate) fn unsupported(
        &self,
        what: &'static str,
        value: impl Into<String>,
        supported: impl Into<String>,
    ) -> ModelError {
        ModelError::Unsupported {
            path: self.path.to_owned(),
            what,
            value: value.into(),
            supported: supported.into(),
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
        let at_least_1 = |value: &Value| value.as_i64().filter(|size| *size >= 1).map(Some);
        self.read(key, None, "a whole number of at least 1", at_least_1)
    }

    pub(crate) fn number(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        self.read(key, default, "a number", Value::as_f64)
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        self.read(key, default, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, key: &str, default: &'a str) -> Result<&'a str, ModelError> {
        self.read(key, default, "a string", Value::as_str)
    }

    /// Reads a nested object.
    pub(crate) fn inner(&self, key: &str) -> Result<Option<Fields<'a>>, ModelError> {
        let (expected, path) = ("an object or null", self.path);
        self.read(key, None, expected, |value| {
            let raw = value.as_object()?;
            Some(Some(Fields { raw, path }))
        })
    }

    /// Reads a value with `read`, which returns `None` if it is not what is `expected`.
    fn read<T>(
        &self,
        key: &str,
        default: T,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        read(value)
            .ok_or_else(|| self.malformed(format!("`{key}` is {value}: expected {expected}")))
    }

    /// The head size for a configuration that does not set one.
    pub(crate) fn even_share(&self, hidden_size: i64, heads: i64) -> Result<i64, ModelError> {
        if hidden_size % heads != 0 {
            return Err(self.malformed(format!(
                "the hidden size {hidden_size} is not a multiple of the {heads} heads"
            )));
        }
        Ok(hidden_size / heads)
    }
}
