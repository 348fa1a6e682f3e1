//! `ddk config`: prints the settings in use, or their schema.

use std::io::Write;

use anyhow::Result;
use ddk_jobs::{config::load, output::print_json};
use ddk_settings::{Origins, Settings};
use toml::Value;

use crate::cli::ConfigCommand;

/// Prints the settings in use or their schema.
///
/// # Errors
/// If the settings cannot be loaded, or if `out` cannot be written.
pub fn run(command: &ConfigCommand, out: &mut dyn Write) -> Result<()> {
    match command {
        ConfigCommand::Schema => print_json(&ddk_settings::schema(), out)?,
        ConfigCommand::Show {
            config,
            origin,
            changed,
        } => {
            let loaded = load(config)?;
            if !origin && !changed {
                write!(out, "{}", loaded.settings.to_toml()?)?;
                return Ok(());
            }
            let mut values = loaded.settings.values()?;
            if *changed {
                let changes = ddk_settings::diff(&Settings::default(), &loaded.settings)?;
                values.retain(|setting| changes.iter().any(|change| change.path == setting.path));
            }
            let values = values.into_iter();
            let values = values.map(|setting| (setting.path, on_one_line(&setting.value)));
            let values: Vec<_> = values.collect();
            let widths = values.iter().map(|(key, value)| key.len() + value.len());
            let width = "* ".len() + " = ".len() + widths.max().unwrap_or(0).min(60);
            for (key, value) in values {
                if !origin {
                    writeln!(out, "{key} = {value}")?;
                    continue;
                }
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

/// A value as TOML without line breaks, so that it stays in its column.
fn on_one_line(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains('\n') => {
            // JSON's escapes are also TOML's.
            serde_json::Value::from(text.as_str()).to_string()
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(on_one_line).collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_line_breaks_stays_on_one_line_and_means_the_same() {
        let text = "a \"quoted\"\n\tline\\, and \u{1}another\n";
        let nested = Value::from(vec![Value::from(text), Value::from(vec![1, 2])]);
        for value in [
            Value::from(text),
            nested,
            Value::from("plain"),
            Value::from(0.5),
        ] {
            let line = on_one_line(&value);
            assert!(!line.contains('\n'), "{line}");
            let read: toml::Table = format!("key = {line}").parse().unwrap();
            assert_eq!(read["key"], value);
        }
    }
}
