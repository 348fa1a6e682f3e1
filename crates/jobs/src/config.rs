//! Settings of a command line.

use anyhow::Result;
use ddk_settings::Loaded;

use crate::args::ConfigArgs;

/// The settings of a command line.
pub fn load(args: &ConfigArgs) -> Result<Loaded> {
    Ok(ddk_settings::load(
        &args.files,
        &args.set.set,
        std::env::vars(),
    )?)
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
