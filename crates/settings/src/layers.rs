//! Merges the layers: the method's choices, files in order, the environment, `--set`.

use std::{collections::BTreeMap, fmt::Display, fs, ops::Range, path::PathBuf};

use config::{Config, ConfigError, Map, Source, ValueKind};
use serde::Deserialize;
use serde_json::Value as Json;
use toml::{
    Spanned, Value,
    de::{DeTable, DeValue},
};

use crate::{
    Key, Method, Settings,
    error::{Error, Problem},
    keys::names_in,
    renamed, rules,
};

/// Prefix of environment variables that are settings: `DDK__OPTIMIZER__LR=1e-4`.
const PREFIX: &str = "DDK__";
/// Why a token must not be an argument, and where to put it.
const TOKEN_IN_ARGUMENTS: &str = "a token on the command line is visible to every user of the machine (ps): set \
     DDK__TELEMETRY__TOKEN in the environment, or write `telemetry.token` into a configuration file";

/// Settings, and where each one came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Where each value came from.
    pub origins: Origins,
}

/// Origins by key: `my.toml:12`, `environment DDK__RUN__SEED`, `--set run.seed=1`, `method ddk`.
#[derive(Debug, Clone, Default)]
pub struct Origins(BTreeMap<String, String>);

impl Origins {
    /// The origin of a value that no layer sets.
    pub const DEFAULT: &str = "default";

    /// The origin of a key's value; for a table, the origin of its first value.
    pub fn of(&self, key: &str) -> &str {
        let inside = format!("{key}.");
        let first = || {
            let first = self.0.range(inside.clone()..).next();
            first.filter(|(found, _)| found.starts_with(&inside))
        };
        let found = self.0.get_key_value(key).or_else(first);
        found.map_or(Self::DEFAULT, |(_, origin)| origin)
    }

    /// Whether a layer sets this key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

/// Merges the layers and validates the result. `sets` are `key=value`. Of `environment`, only `DDK__` variables count.
///
/// # Errors
/// Returns all problems, each with its place, key and value.
pub fn load(
    files: &[PathBuf],
    sets: &[String],
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, Error> {
    let mut layers = Vec::new();
    let mut problems = Vec::new();
    let mut add = |layer: Result<Layer, Error>| match layer {
        Ok(layer) => layers.push(layer),
        Err(error) => problems.extend(error.0),
    };
    for path in files {
        let name = path.display();
        add(match fs::read_to_string(path) {
            Ok(text) => Layer::read(&text, name.to_string(), true),
            Err(error) => Err(Error::one(
                name.to_string(),
                format!("cannot be read: {error}"),
            )),
        });
    }
    let environment = environment.into_iter();
    let mut variables: Vec<_> = environment
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    variables.sort();
    for (name, value) in variables {
        let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
        add(assigned(&key, &value, format!("environment {name}")));
    }
    for text in sets {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let layer = assigned(key.trim(), value.trim(), format!("--set {text}"));
        add(layer.and_then(Layer::without_secrets));
    }
    if !problems.is_empty() {
        return Err(Error(problems));
    }
    merge(layers)
}

impl Settings {
    /// Returns these settings with new values for some keys, given as dotted paths.
    ///
    /// # Errors
    /// If a key or a value is wrong.
    pub fn with(&self, values: &BTreeMap<String, Json>) -> Result<Self, Error> {
        let mut layers = vec![Layer::read(
            &self.to_toml()?,
            "the settings".to_owned(),
            false,
        )?];
        for (key, value) in values {
            // Only strings are written differently in JSON and TOML.
            let text = match value {
                Json::String(text) => Value::from(text.as_str()).to_string(),
                other => other.to_string(),
            };
            let name = format!("{key}={}", value.as_str().unwrap_or(&text));
            layers.push(Layer::read(&format!("{key} = {text}"), name, false)?);
        }
        Ok(merge(layers)?.settings)
    }
}

fn merge(mut layers: Vec<Layer>) -> Result<Loaded, Error> {
    let method = layers.iter().rev().find_map(|layer| layer.0.get("method"));
    if let Some(Ok(method)) = method.map(|name| name.to_string().parse::<Method>()) {
        let lines = method
            .choices()
            .map(|(key, value)| format!("{key} = \"{value}\"\n"));
        let name = format!("method {method}");
        layers.insert(0, Layer::read(&lines.concat(), name, false)?);
    }
    let failed = |error: &dyn Display| Error::one("the merged configuration", error.to_string());
    let layers = layers.into_iter();
    let merged = layers.fold(Config::builder(), |builder, layer| {
        builder.add_source(layer)
    });
    let merged = merged.build().map_err(|error| failed(&error))?.cache;
    let mut origins = Origins::default();
    let merged = plain(merged, "", &mut origins);
    let mut settings = Settings::deserialize(merged).map_err(|error| failed(&error))?;
    rules::check(&mut settings, &origins)?;
    Ok(Loaded { settings, origins })
}

/// Creates a layer with one key. A value that is not TOML (`run.name=demo`) is a string. A secret is always a
/// string, even if it is all digits.
fn assigned(key: &str, value: &str, name: String) -> Result<Layer, Error> {
    if key.is_empty() || value.is_empty() {
        return Err(Error::one(
            name,
            "expected key=value, for example run.seed=1",
        ));
    }
    let as_is = format!("{key} = {value}");
    let path: Vec<&str> = key.split('.').collect();
    let is_secret = Key::of(&path).is_some_and(|key| key.secret);
    let text = if !is_secret && as_is.parse::<toml::Table>().is_ok() {
        as_is
    } else {
        format!("{key} = {}", Value::from(value))
    };
    Layer::read(&text, name, false)
}

/// Values with their origins. Later layers override earlier ones key by key and replace whole arrays.
#[derive(Debug, Clone)]
struct Layer(Map<String, config::Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

impl Layer {
    /// Parses a layer and checks its names and types.
    fn read(text: &str, name: String, is_file: bool) -> Result<Self, Error> {
        let mut reader = Reader {
            text,
            name,
            is_file,
            problems: Vec::new(),
        };
        let parsed = DeTable::parse(text).map(|table| reader.table(table.get_ref(), &[]));
        let values = match parsed {
            // Report unknown names before wrong types.
            Ok(values) if reader.problems.is_empty() => {
                toml::from_str::<Settings>(text).map(|_| values)
            }
            other => other,
        };
        match values {
            Ok(values) if reader.problems.is_empty() => return Ok(Self(values)),
            Ok(_) => {}
            Err(error) => reader.problem(error.span().unwrap_or_default(), error.message(), None),
        }
        Err(Error(reader.problems))
    }

    /// Refuses a secret. The error omits the origin, because it contains the secret.
    fn without_secrets(self) -> Result<Self, Error> {
        let mut written = Origins::default();
        let values = ValueKind::Table(self.0.clone());
        plain(config::Value::new(None, values), "", &mut written);
        let is_secret = |key: &&String| {
            let path: Vec<&str> = key.split('.').collect();
            Key::of(&path).is_some_and(|key| key.secret)
        };
        match written.0.keys().find(is_secret) {
            Some(key) => Err(Error::one(format!("--set {key}"), TOKEN_IN_ARGUMENTS)),
            None => Ok(self),
        }
    }
}

/// Separates values from their origins.
fn plain(value: config::Value, path: &str, origins: &mut Origins) -> Value {
    let origin = value.origin().unwrap_or_default().to_owned();
    if !matches!(value.kind, ValueKind::Table(_)) && !path.is_empty() {
        origins.0.insert(path.to_owned(), origin);
    }
    match value.kind {
        ValueKind::Table(table) => {
            let separator = if path.is_empty() { "" } else { "." };
            let values = table.into_iter().map(|(name, value)| {
                let value = plain(value, &format!("{path}{separator}{name}"), origins);
                (name, value)
            });
            Value::Table(values.collect())
        }
        ValueKind::Array(values) => {
            let values = values.into_iter();
            Value::Array(values.map(|value| plain(value, "", origins)).collect())
        }
        ValueKind::I64(number) => number.into(),
        ValueKind::Float(number) => number.into(),
        ValueKind::Boolean(yes) => yes.into(),
        text => text.to_string().into(),
    }
}

/// Reads the text of a layer.
struct Reader<'a> {
    text: &'a str,
    /// The file, the variable or the option.
    name: String,
    is_file: bool,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &[&str]) -> Map<String, config::Value> {
        let known = names_in(path);
        let values = table.iter().map(|(name, value)| {
            let key = name.get_ref().as_ref();
            let is_root = path.is_empty();
            let path = [path, &[key]].concat();
            let is_known = known.contains(&"*") || known.contains(&key);
            // If a table stands in place of a value, serde reports a wrong type.
            let is_table = known.is_empty() || (is_root && renamed::was_table(key));
            match renamed::new_name(&path) {
                Some(renamed) if !is_known => self.problem(name.span(), &renamed, None),
                None if !is_known && !is_table => {
                    let message = format!("unknown field `{key}`");
                    self.problem(name.span(), &message, Some(nearest(key, &known)));
                }
                _ => {}
            }
            let origin = self.place(name.span());
            (key.to_owned(), self.value(value, &path, &origin))
        });
        values.collect()
    }

    fn value(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        path: &[&str],
        origin: &String,
    ) -> config::Value {
        let kind = match value.get_ref() {
            DeValue::Table(table) => ValueKind::Table(self.table(table, path)),
            DeValue::Array(values) => {
                let values = values.iter();
                ValueKind::Array(
                    values
                        .map(|value| self.value(value, path, origin))
                        .collect(),
                )
            }
            DeValue::Integer(number) => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                if parsed.is_err() {
                    let message = format!("{number} is too large, expected {} at most", i64::MAX);
                    self.problem(value.span(), &message, None);
                }
                ValueKind::I64(parsed.unwrap_or_default())
            }
            DeValue::Float(number) => ValueKind::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(yes) => ValueKind::Boolean(*yes),
            DeValue::Datetime(time) => ValueKind::String(time.to_string()),
            DeValue::String(text) => {
                let choices = Key::of(path).map_or(&[][..], |key| &key.choices);
                if !choices.is_empty() && !choices.iter().any(|choice| choice == text) {
                    let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
                    let message = format!("unknown variant `{text}`");
                    self.problem(value.span(), &message, Some(nearest(text, &choices)));
                }
                ValueKind::String(text.to_string())
            }
        };
        config::Value::new(Some(origin), kind)
    }

    fn place(&self, span: Range<usize>) -> String {
        let before = &self.text[..span.start.min(self.text.len())];
        if self.is_file {
            format!("{}:{}", self.name, before.matches('\n').count() + 1)
        } else {
            self.name.clone()
        }
    }

    fn problem(&mut self, span: Range<usize>, message: &str, suggestion: Option<String>) {
        let place = self.place(span.clone());
        let message = if self.is_file {
            format!("{message}\n{}", underline(self.text, span))
        } else {
            message.to_owned()
        };
        self.problems.push(Problem {
            place,
            message,
            suggestion,
        });
    }
}

fn underline(text: &str, span: Range<usize>) -> String {
    let start = text[..span.start.min(text.len())]
        .rfind('\n')
        .map_or(0, |at| at + 1);
    let end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let width = span.end.min(end).saturating_sub(span.start).max(1);
    let indent = text[start..span.start.min(end)].chars().count();
    let (line, spaces, marks) = (&text[start..end], " ".repeat(indent), "^".repeat(width));
    format!("  | {line}\n  | {spaces}{marks}")
}

/// Suggests the valid name nearest to an unknown one.
fn nearest(unknown: &str, names: &[&str]) -> String {
    let alike = |name: &&str| strsim::jaro_winkler(unknown, name);
    let nearest = names.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match nearest.filter(|name| alike(name) > 0.75) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are {}", names.join(", ")),
    }
}
