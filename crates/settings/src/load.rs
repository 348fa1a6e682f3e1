//! The layers: defaults, what the method stands for, files in order, the environment, `--set`.

use std::{fs, path::PathBuf};

use config::{Config, File, FileFormat};

use crate::{
    Options, Settings, document,
    error::Error,
    origin::{Origin, Origins},
    validate::validate,
};

const DEFAULTS: &str = include_str!("defaults.toml");
/// Variables of the environment that are settings begin so: `DDK__STUDENT__LR=1e-4`.
const PREFIX: &str = "DDK__";
/// Why a token is no argument, and where it goes.
const TOKEN_IN_ARGUMENTS: &str = "a token on the command line is visible to every user of the machine (ps): set \
     DDK__TELEMETRY__TOKEN in the environment, or write `telemetry.token` into a configuration file";

/// Settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Where each value came from.
    pub origins: Origins,
}

/// Layers and validates. `sets` are `key=value`; of `environment`, variables that begin with `DDK__` count.
///
/// # Errors
/// Everything that is wrong, each with its place, key and value.
pub fn load(
    files: &[PathBuf],
    sets: &[String],
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, Error> {
    let mut origins = Origins::default();
    let mut layers = vec![DEFAULTS.to_owned()];
    let mut problems = Vec::new();
    for path in files {
        match read(path) {
            Ok(text) => {
                let place = |line| Origin::File(path.clone(), line);
                match document::check(&text, &place, &mut origins) {
                    Ok(()) => layers.push(text),
                    Err(error) => problems.extend(error.0),
                }
            }
            Err(error) => problems.extend(error.0),
        }
    }
    let mut variables: Vec<(String, String)> = environment
        .into_iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    variables.sort();
    let variables = variables.into_iter().map(|(name, value)| {
        let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
        (key, value, Origin::Environment(name))
    });
    let sets = sets.iter().map(|text| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (
            key.trim().to_owned(),
            value.trim().to_owned(),
            Origin::Set(text.clone()),
        )
    });
    for (key, value, origin) in variables.chain(sets) {
        let place = |_| origin.clone();
        if key.is_empty() || value.is_empty() {
            problems.extend(
                Error::one(
                    origin.to_string(),
                    "expected key=value, for example run.seed=1",
                )
                .0,
            );
            continue;
        }
        let text = assignment(&key, &value);
        if matches!(origin, Origin::Set(_)) && sets_the_token(&text) {
            // Without the origin: that holds the secret.
            let place = "--set telemetry.token".to_owned();
            problems.extend(Error::one(place, TOKEN_IN_ARGUMENTS).0);
            continue;
        }
        match document::check(&text, &place, &mut origins) {
            Ok(()) => layers.push(text),
            Err(error) => problems.extend(error.0),
        }
    }
    if !problems.is_empty() {
        return Err(Error(problems));
    }
    let mut options = merge(&layers)?;
    if let Some(method) = options.method {
        layers.insert(1, method.layer());
        options = merge(&layers)?;
        origins.record_method(method);
    }
    let settings = validate(options, &origins)?;
    Ok(Loaded { settings, origins })
}

fn read(path: &PathBuf) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| {
        Error::one(
            path.display().to_string(),
            format!("cannot be read: {error}"),
        )
    })
}

/// A line of TOML. A value that is not one (`run.name=demo`) is a string, and a token is, even if it is all digits.
fn assignment(key: &str, value: &str) -> String {
    let as_is = format!("{key} = {value}");
    if key != "telemetry.token" && toml::from_str::<toml::Table>(&as_is).is_ok() {
        return as_is;
    }
    format!("{key} = {}", toml::Value::String(value.to_owned()))
}

/// Whether a layer sets `telemetry.token`, in whatever spelling.
fn sets_the_token(text: &str) -> bool {
    let table: Option<toml::Table> = toml::from_str(text).ok();
    table.is_some_and(|table| {
        let telemetry = table.get("telemetry");
        telemetry.is_some_and(|telemetry| telemetry.get("token").is_some())
    })
}

/// Later layers override earlier ones, key by key; arrays replace each other.
fn merge(layers: &[String]) -> Result<Options, Error> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(File::from_str(layer, FileFormat::Toml));
    }
    let failed =
        |error: &dyn std::fmt::Display| Error::one("the merged configuration", error.to_string());
    // Through a plain JSON value, because config's own deserializer turns "10" into 10.
    let merged: serde_json::Value = builder
        .build()
        .and_then(Config::try_deserialize)
        .map_err(|error| failed(&error))?;
    serde_path_to_error::deserialize(merged).map_err(|error| failed(&error))
}
