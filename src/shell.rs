//! `ddk completions` and `ddk man`: what shells and `man` read about the command line.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

/// Prints the completion script of a shell.
///
/// # Errors
/// If `out` cannot be written.
pub fn completions(shell: Shell, out: &mut dyn Write) -> Result<()> {
    // The generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ddk", &mut script);
    out.write_all(&script)?;
    Ok(())
}

/// Writes a man page per command into a folder.
///
/// # Errors
/// If the folder or a page cannot be written.
pub fn man(folder: &Path) -> Result<()> {
    let written = fs::create_dir_all(folder).and_then(|()| {
        let command = Cli::command().disable_help_subcommand(true);
        clap_mangen::generate_to(command, folder)
    });
    written.with_context(|| format!("cannot write man pages into {}", folder.display()))
}
