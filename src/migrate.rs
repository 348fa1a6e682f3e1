//! `ddk migrate`: rewrites a configuration that has earlier names of keys.

use std::{
    fs::{self, File},
    io::Write,
};

use anyhow::{Context, Result, anyhow};
use ddk_jobs::{hint::Hint, progress::say};
use ddk_settings::{migrate, without_secrets};
use similar::TextDiff;

use crate::cli::Migrate;

/// Prints the changes as a diff, or makes them.
///
/// # Errors
/// If the file cannot be read or written, or if a key or a value cannot be converted.
pub fn run(args: &Migrate, out: &mut dyn Write) -> Result<()> {
    let name = args.config.display().to_string();
    let cannot_read = || format!("cannot read {name}");
    // Replace the file that a link points to, not the link.
    let path = fs::canonicalize(&args.config).with_context(cannot_read)?;
    let old = fs::read_to_string(&path).with_context(cannot_read)?;
    let new = migrate(&old, &name)?;
    if new.changes.is_empty() {
        say(&format!("{name} has no earlier names: nothing to change"));
        return Ok(());
    }
    let (shown_old, shown_new) = (without_secrets(&old), without_secrets(&new.text));
    let diff = TextDiff::from_lines(&shown_old, &shown_new);
    write!(out, "{}", diff.unified_diff().header(&name, &name))?;
    let count = new.changes.len();
    if !args.write {
        say(&format!(
            "{count} changes; `ddk migrate {name} --write` makes them"
        ));
        return Ok(());
    }
    let kept = path.with_added_extension("old");
    if kept.exists() {
        return Err(anyhow!(
            "{} exists, but the old text goes there",
            kept.display()
        ))
        .hint("move that file away, then run this command again")
        .usage();
    }
    // A copy has the mode of the file, which may protect a token. The temporary file of a replacement would not.
    let temporary = path.with_added_extension("new");
    let copied = fs::copy(&path, &kept).and_then(|_| fs::copy(&path, &temporary));
    let written = copied.and_then(|_| {
        let mut file = File::options()
            .write(true)
            .truncate(true)
            .open(&temporary)?;
        file.write_all(new.text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    });
    written.with_context(|| format!("cannot replace {name}"))?;
    say(&format!(
        "{count} changes are in {name}; the old text is in {}",
        kept.display()
    ));
    Ok(())
}
