//! Settings of a command line.

use anyhow::{Result, anyhow};
use ddk_settings::Loaded;

use crate::{args::ConfigArgs, hint::Hint};

/// The settings of a command line.
pub fn load(args: &ConfigArgs) -> Result<Loaded> {
    Ok(ddk_settings::load(
        &args.files,
        &args.set.set,
        std::env::vars(),
    )?)
}

/// The value of a key that training needs.
///
/// # Errors
/// The key is not set.
pub fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value
        .ok_or_else(|| anyhow!("`{key}` is missing: training needs it"))
        .usage()
}
