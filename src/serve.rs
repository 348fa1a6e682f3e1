//! `ddk serve`: serves the pages of all runs in a folder.

use anyhow::{Result, anyhow};
use ddk_jobs::{
    hint::{Hint, usage, with_hint},
    progress::say,
};
use ddk_settings::Token;
use ddk_telemetry::{ServeError, Site};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli;

/// Variable with the token that the server requires, as in `ddk train`. There is no option for it, because every
/// user of the machine could read that.
pub const TOKEN: &str = "DDK__TELEMETRY__TOKEN";

/// Minimum length of a token that resists guessing.
const TOKEN_LENGTH: usize = 16;

/// Serves the pages of all runs in a folder until the process is told to stop.
///
/// # Errors
/// If there is no such folder, if the token is not usable, or if the server cannot start.
pub fn run(args: &cli::Serve) -> Result<()> {
    if !args.runs.is_dir() {
        return Err(anyhow!("{} is not a folder", args.runs.display()))
            .hint("pass the folder that contains the run folders: run.output_dir in their configurations")
            .usage();
    }
    let token = token()?;
    let mut site = Site::of_runs(&args.runs);
    site.token = token;
    let server = ddk_telemetry::serve(args.address, site).map_err(|error| match error {
        ServeError::NeedsToken(_) => usage(with_hint(
            error,
            format!("set {TOKEN} to a token of at least {TOKEN_LENGTH} characters, for example the output of \
                     `openssl rand -hex 16`"),
        )),
        other => with_hint(other, "choose another address and port with --address"),
    })?;
    say(&format!(
        "the runs in {}: http://{}/",
        args.runs.display(),
        server.address()
    ));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

/// Returns the token from the environment, if there is one.
///
/// # Errors
/// If the token is too short, or contains characters other than letters, digits, `-`, `.`, `_` and `~`.
pub fn token() -> Result<Option<String>> {
    match std::env::var(TOKEN) {
        Ok(token) if !Token::new(token.clone()).is_usable() => Err(anyhow!(
            "{TOKEN} is not usable, expected {TOKEN_LENGTH} characters or more, of letters, digits, `-`, `.`, \
             `_` and `~`"
        ))
        .usage(),
        Ok(token) => Ok(Some(token)),
        Err(_) => Ok(None),
    }
}
