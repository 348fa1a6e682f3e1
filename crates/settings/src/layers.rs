//! Merges the layers: the method's choices, files in order, the environment, `--set`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::PathBuf,
};

use config::{Config, File, FileFormat};
use serde_json::Value as Json;
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use crate::{
    Key, Method, Settings,
    error::{Error, Problem},
    keys::names_in,
    renamed, rules,
    suggest::{dtype, is_end, suggested},
    wording::wrong_type,
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
        let mut origins = self.0.iter();
        let found = origins.find(|(found, _)| *found == key || found.starts_with(&inside));
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
        let name = path.display().to_string();
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| Error::one(&name, format!("cannot be read: {error}")));
        let ending = path.extension().and_then(|ending| ending.to_str());
        let text = match ending {
            Some("yaml" | "yml" | "json") if text.is_ok() => Err(Error::one(&name, NOT_TOML)),
            _ => text,
        };
        add(text.and_then(|text| Layer::read(&text, name, true)));
    }
    let environment = environment.into_iter();
    let variables = environment.filter(|(name, _)| name.starts_with(PREFIX));
    for (name, value) in variables.collect::<BTreeSet<_>>() {
        let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
        add(assigned(&key, &value, format!("environment {name}")));
    }
    for text in sets {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let layer = assigned(key.trim(), value.trim(), format!("--set {text}"));
        add(layer.and_then(Layer::without_secrets));
    }
    Error::unless_none(problems)?;
    merge(layers)
}

/// The error of a file of another format.
const NOT_TOML: &str = "DDK reads TOML: `ddk init` writes a configuration, and docs/from-trl.md translates the keys \
                        of other trainers";

/// Checks the names and types in a file's text, but no bounds or rules.
pub(crate) fn check_names(text: &str, name: &str) -> Result<(), Error> {
    Layer::read(text, name.to_owned(), true).map(|_| ())
}

impl Settings {
    /// Returns these settings with new values for some keys, given as dotted paths.
    ///
    /// # Errors
    /// If a key or a value is wrong.
    pub fn with(&self, values: &BTreeMap<String, Json>) -> Result<Self, Error> {
        let own = Layer::read(&self.to_toml()?, "the settings".to_owned(), false)?;
        let mut layers = vec![own];
        for (key, value) in values {
            // Only strings are written differently in JSON and TOML.
            let text = match value {
                Json::String(text) => Value::from(text.as_str()).to_string(),
                other => other.to_string(),
            };
            let name = format!("{key}={}", value.as_str().unwrap_or(&text));
            layers.push(Layer::read(&format!("{key} = {text}"), name, false)?);
        }
        let mut settings = merge(layers)?.settings;
        settings.places.clone_from(&self.places);
        Ok(settings)
    }
}

/// Merges the layers' values. Later layers override earlier ones key by key and replace whole arrays.
fn values_of(layers: &[Layer]) -> Result<Table, Error> {
    let builder = layers.iter().fold(Config::builder(), |builder, layer| {
        builder.add_source(File::from_str(&layer.text, FileFormat::Toml))
    });
    let merged = builder.build().and_then(Config::try_deserialize);
    merged.map_err(|error| Error::one("the merged configuration", error.to_string()))
}

fn merge(mut layers: Vec<Layer>) -> Result<Loaded, Error> {
    let values = values_of(&layers)?;
    let method = values.get("method").and_then(Value::as_str);
    if let Some(Ok(method)) = method.map(str::parse::<Method>) {
        let choices = method.choices();
        let lines = choices.map(|(key, value)| format!("{key} = \"{value}\"\n"));
        let name = format!("method {method}");
        layers.insert(0, Layer::read(&lines.concat(), name, false)?);
    }
    let settings = values_of(&layers)?.try_into::<Settings>();
    let mut settings =
        settings.map_err(|error| Error::one("the merged configuration", error.to_string()))?;
    let mut origins = Origins::default();
    for layer in layers {
        origins.0.extend(layer.origins.0);
    }
    rules::check(&mut settings, &origins)?;
    Ok(Loaded { settings, origins })
}

/// Creates a layer with one key. A value that is not TOML (`run.name=demo`) is a string. A secret is always a
/// string, even if it is all digits.
fn assigned(key: &str, value: &str, name: String) -> Result<Layer, Error> {
    if key.is_empty() || value.is_empty() {
        let expected = "expected key=value, for example run.seed=1";
        return Err(Error::one(name, expected));
    }
    let as_is = format!("{key} = {value}");
    let text = if !is_secret(key) && as_is.parse::<Table>().is_ok() {
        as_is
    } else {
        format!("{key} = {}", Value::from(value))
    };
    Layer::read(&text, name, false)
}

fn is_secret(key: &str) -> bool {
    let path: Vec<&str> = key.split('.').collect();
    Key::of(&path).is_some_and(|key| key.secret)
}

/// The text of a layer, with the origins of its values.
struct Layer {
    text: String,
    origins: Origins,
}

impl Layer {
    /// Parses a layer and checks its names and types.
    fn read(text: &str, name: String, is_file: bool) -> Result<Self, Error> {
        let mut reader = Reader {
            text,
            name,
            is_file,
            origins: Origins::default(),
            problems: Vec::new(),
            values: Vec::new(),
        };
        let names = DeTable::parse(text).map(|table| reader.table(table.get_ref(), &[]));
        // Report unknown names before wrong types.
        if reader.problems.is_empty()
            && let Err(error) = names.and_then(|()| toml::from_str::<Settings>(text))
        {
            let span = error.span().unwrap_or_default();
            let at = span.start;
            let key = reader.values.iter().find(|(value, _)| value.contains(&at));
            let message = wrong_type(error.message(), key.map(|(_, key)| *key));
            reader.problem(span, &message, "");
        }
        let (text, origins) = (text.to_owned(), reader.origins);
        Error::unless_none(reader.problems).map(|()| Self { text, origins })
    }

    /// Refuses a secret. The error omits the origin, because it contains the secret.
    fn without_secrets(self) -> Result<Self, Error> {
        match self.origins.0.keys().find(|key| is_secret(key)) {
            Some(key) => Err(Error::one(format!("--set {key}"), TOKEN_IN_ARGUMENTS)),
            None => Ok(self),
        }
    }
}

/// Reads the text of a layer.
struct Reader<'a> {
    text: &'a str,
    /// The file, the variable or the option.
    name: String,
    is_file: bool,
    origins: Origins,
    problems: Vec<Problem>,
    /// The keys of the values, by their places in the text.
    values: Vec<(Range<usize>, &'static Key)>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &[&str]) {
        let known = names_in(path);
        for (name, value) in table {
            let key = name.get_ref().as_ref();
            let is_root = path.is_empty();
            let path = [path, &[key]].concat();
            let is_known = known.contains(&"*") || known.contains(&key);
            // If a table stands in place of a value, serde reports a wrong type.
            let is_table = known.is_empty() || (is_root && renamed::was_table(key));
            match renamed::new_name(&path) {
                Some(renamed) if !is_known => self.problem(name.span(), &renamed, ""),
                None if !is_known && !is_table => {
                    let message = format!("unknown field `{key}`");
                    let here = known.iter().filter(|name| is_end(name, key));
                    let above = !is_root && Key::of(&[key]).is_some();
                    let above = above.then(|| " (it belongs above the first [table])".to_owned());
                    let suggestion = above
                        .or_else(|| did_you_mean(here))
                        .or_else(|| elsewhere(key));
                    let suggestion = suggestion.unwrap_or_else(|| nearest(key, &known));
                    self.problem(name.span(), &message, &suggestion);
                }
                _ => {}
            }
            if !value.get_ref().is_table() {
                self.values
                    .extend(Key::of(&path).map(|key| (value.span(), key)));
                let origin = self.place(name.span());
                self.origins.0.insert(path.join("."), origin);
            }
            self.value(value, &path);
        }
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, path: &[&str]) {
        match value.get_ref() {
            DeValue::Table(table) => self.table(table, path),
            DeValue::Array(values) => values.iter().for_each(|value| self.value(value, path)),
            DeValue::Integer(number) => {
                if i64::from_str_radix(number.as_str(), number.radix()).is_err() {
                    let message = format!("{number} is too large, expected {} at most", i64::MAX);
                    self.problem(value.span(), &message, "");
                }
            }
            DeValue::String(text) => {
                let choices = Key::of(path).map_or(&[][..], |key| &key.choices);
                if !choices.is_empty() && !choices.iter().any(|choice| choice == text) {
                    let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
                    let message = format!("unknown value `{text}`");
                    let suggestion = match renamed::new_word(path, text) {
                        Some(new) => format!(" (it is now `{new}`)"),
                        None => dtype(text, &choices).unwrap_or_else(|| nearest(text, &choices)),
                    };
                    self.problem(value.span(), &message, &suggestion);
                }
            }
            DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {}
        }
    }

    fn place(&self, span: Range<usize>) -> String {
        let before = &self.text[..span.start.min(self.text.len())];
        if self.is_file {
            format!("{}:{}", self.name, before.matches('\n').count() + 1)
        } else {
            self.name.clone()
        }
    }

    fn problem(&mut self, span: Range<usize>, message: &str, suggestion: &str) {
        let place = self.place(span.clone());
        let line = self.is_file.then(|| underline(self.text, span));
        let message = format!("{message}{}{suggestion}", line.unwrap_or_default());
        self.problems.push(Problem { place, message });
    }
}

/// The line below a message that shows what it is about.
fn underline(text: &str, span: Range<usize>) -> String {
    let start = text[..span.start.min(text.len())]
        .rfind('\n')
        .map_or(0, |at| at + 1);
    let end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let width = span.end.min(end).saturating_sub(span.start).max(1);
    let indent = text[start..span.start.min(end)].chars().count();
    let (line, spaces, marks) = (&text[start..end], " ".repeat(indent), "^".repeat(width));
    format!("\n  | {line}\n  | {spaces}{marks}")
}

/// Suggests the keys with this name in other tables.
fn elsewhere(unknown: &str) -> Option<String> {
    did_you_mean(suggested(unknown).iter())
}

/// Asks whether the user meant one of these names; `None` if there are none.
fn did_you_mean<'a>(names: impl Iterator<Item = &'a &'a str>) -> Option<String> {
    let keys: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let (last, others) = keys.split_last()?;
    Some(match others {
        [] => format!(" (did you mean {last}?)"),
        others => format!(" (did you mean {} or {last}?)", others.join(", ")),
    })
}

/// Suggests the valid name nearest to an unknown one.
fn nearest(unknown: &str, names: &[&str]) -> String {
    let alike = |name: &&str| strsim::jaro_winkler(unknown, name);
    let nearest = names.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match nearest.filter(|name| alike(name) > 0.75) {
        Some(name) => format!(" (did you mean `{name}`?)"),
        None => format!(" (there are {})", names.join(", ")),
    }
}
