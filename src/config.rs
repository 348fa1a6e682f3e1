//! `ddk config`: the settings in use, or their schema.

use std::io::Write;

use anyhow::Result;
use ddk_jobs::config::{flatten, load};
use ddk_settings::Origin;

use crate::cli::ConfigCommand;

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
