//! `ddk config`: the settings in use, or their schema.

use std::io::Write;

use anyhow::Result;
use ddk_jobs::{config::load, output::print_json};
use ddk_settings::Origins;

use crate::cli::ConfigCommand;

pub fn run(command: &ConfigCommand, out: &mut dyn Write) -> Result<()> {
    match command {
        ConfigCommand::Schema => print_json(&ddk_settings::schema(), out)?,
        ConfigCommand::Show { config, origin } => {
            let loaded = load(config)?;
            if !origin {
                write!(out, "{}", loaded.settings.to_toml()?)?;
                return Ok(());
            }
            let values = loaded.settings.values()?.into_iter();
            let values: Vec<_> = values
                .map(|setting| (setting.path, setting.value.to_string()))
                .collect();
            let width = values
                .iter()
                .map(|(key, value)| key.len() + value.len())
                .max()
                .unwrap_or(0);
            for (key, value) in values {
                let origin = loaded.origins.of(&key);
                let padding = (width.min(60)).saturating_sub(key.len() + value.len());
                let mark = if origin == Origins::DEFAULT {
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
