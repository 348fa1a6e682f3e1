//! `ddk config`: prints the settings in use, or their schema.

use std::io::Write;

use anyhow::Result;
use ddk_jobs::{config::load, output::print_json};
use ddk_settings::Origins;

use crate::cli::ConfigCommand;

/// Prints the settings in use or their schema.
///
/// # Errors
/// If the settings cannot be loaded, or if `out` cannot be written.
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
            let values = values.map(|setting| (setting.path, setting.value.to_string()));
            let values: Vec<_> = values.collect();
            let widths = values.iter().map(|(key, value)| key.len() + value.len());
            let width = "* ".len() + " = ".len() + widths.max().unwrap_or(0).min(60);
            for (key, value) in values {
                let origin = loaded.origins.of(&key);
                let is_default = origin == Origins::DEFAULT;
                let mark = if is_default { "  " } else { "* " };
                let setting = format!("{mark}{key} = {value}");
                writeln!(out, "{setting:width$}   {origin}")?;
            }
        }
    }
    Ok(())
}
