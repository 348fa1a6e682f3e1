//! `ddk config`, and the loading of settings that all commands share.

use std::io::Write;

use anyhow::Result;
use ddk_settings::{Loaded, Origin};

use crate::cli::{ConfigArgs, ConfigCommand};

/// The settings of a command line.
pub fn load(args: &ConfigArgs) -> Result<Loaded> {
    Ok(ddk_settings::load(
        &args.files,
        &args.set.set,
        std::env::vars(),
    )?)
}

pub fn run(command: &ConfigCommand, out: &mut dyn Write) -> Result<()> {
    match command {
        ConfigCommand::Schema => {
            writeln!(
                out,
                "{}",
                serde_json::to_string_pretty(&ddk_settings::schema())?
            )?;
        }
        ConfigCommand::Show { config, origin } => {
            let loaded = load(config)?;
            let text = loaded.settings.to_toml();
            if !origin {
                write!(out, "{text}")?;
                return Ok(());
            }
            let mut values = Vec::new();
            flatten(&toml::Value::Table(toml::from_str(&text)?), "", &mut values);
            let width = values
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .max()
                .unwrap_or(0);
            for (key, value) in values {
                let origin = loaded.origins.of(&key);
                let padding = (width.min(60)).saturating_sub(key.len() + value.len());
                let mark = if origin == Origin::Default {
                    "  "
                } else {
                    "* "
                };
                writeln!(
                    out,
                    "{mark}{key} = {value}{}   {origin}",
                    " ".repeat(padding)
                )?;
            }
        }
    }
    Ok(())
}

/// Every value with its dotted key.
pub fn flatten(value: &toml::Value, prefix: &str, values: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                flatten(value, &path, values);
            }
        }
        other => values.push((prefix.to_owned(), other.to_string())),
    }
}
