//! Errors as the user sees them: the chain of causes, a hint, and the exit code.

use std::path::Path;

use anyhow::{Result, anyhow};
use ddk_run::RunFolder;

/// Exit codes, as documented in `ddk --help`.
pub mod exit {
    /// The requested work failed.
    pub const ERROR: u8 = 1;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 2;
}

/// Ends the program with this exit code. The code that returns it has already told the user why.
#[derive(Debug, thiserror::Error)]
#[error("ended with exit code {0}")]
pub struct Ended(pub u8);

/// Returns whether the work ended without an error to report, for example because of a signal.
pub fn has_ended(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Ended>().is_some()
}

/// A hint, attached to an error as its outermost context.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Advice {
    message: String,
    hint: String,
}

/// Marks an error as the user's (exit code 2).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Adds a hint to a failed result.
pub trait Hint<T> {
    /// Adds a hint that says what to do about the error.
    ///
    /// # Errors
    /// The same error, with the hint.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
    /// Marks the error as one of usage or configuration.
    ///
    /// # Errors
    /// The same error, marked.
    fn usage(self) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Hint<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| with_hint(error, hint))
    }

    fn usage(self) -> anyhow::Result<T> {
        self.map_err(usage)
    }
}

/// Checks that a run was started in a folder.
///
/// # Errors
/// If the folder holds no run.
pub fn must_hold_a_run(folder: &Path) -> Result<()> {
    let usual = Path::new("runs").join(folder);
    let hint = if RunFolder::holds_a_run(&usual) {
        format!("did you mean {}?", usual.display())
    } else {
        "pass the folder of a run, such as runs/demo".to_owned()
    };
    must_hold("", folder, &hint)
}

/// Works like [`must_hold_a_run`], with a hint, and with a purpose for the message, such as `" to fork"`.
pub(crate) fn must_hold(purpose: &str, folder: &Path, hint: &str) -> Result<()> {
    if RunFolder::holds_a_run(folder) {
        return Ok(());
    }
    let missing = anyhow!("there is no run in {}{purpose}", folder.display());
    Err(usage(with_hint(missing, hint)))
}

/// Adds a hint to an error.
pub fn with_hint(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
    let error = error.into();
    let message = error.to_string();
    error.context(Advice {
        message,
        hint: hint.into(),
    })
}

/// Marks an error as one of usage or configuration.
pub fn usage(error: impl Into<anyhow::Error>) -> anyhow::Error {
    let error = error.into();
    let message = error.to_string();
    error.context(Usage(message))
}

/// Quotes a path for a shell, if it needs that.
pub(crate) fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%".contains(&byte);
    if !path.is_empty() && path.bytes().all(is_plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

/// Formats an error for the terminal: what failed, why, and what to do.
pub fn render(error: &anyhow::Error) -> String {
    format!("error: {}", with_causes(error, "\n  caused by: "))
}

/// Formats an error as a list entry.
pub fn render_line(error: &anyhow::Error) -> String {
    with_causes(error, ": ")
}

fn with_causes(error: &anyhow::Error, separator: &str) -> String {
    let causes = error.chain().map(|cause| cause.to_string());
    let mut causes: Vec<String> = causes.map(|text| text.replace('\n', "\n  ")).collect();
    // A wrapper that only repeats its source (a hint, a transparent error) is not a separate cause.
    causes.dedup();
    let mut text = causes.join(separator);
    if let Some(advice) = error.downcast_ref::<Advice>() {
        text.push_str(&format!("\nhint: {}", advice.hint));
    }
    text
}

/// Returns the exit code for an error: that of [`Ended`], 2 if the command line or the configuration is wrong,
/// otherwise 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(Ended(code)) = error.downcast_ref() {
        return *code;
    }
    let usage = error.downcast_ref::<Usage>().is_some()
        || error.downcast_ref::<ddk_settings::Error>().is_some();
    if usage { exit::USAGE } else { exit::ERROR }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_chain_comes_first_and_the_hint_last() {
        let error = Err::<(), _>(std::io::Error::other("no such device"))
            .context("cannot read rows.bin")
            .hint("prepare the corpus again")
            .context("the run stopped")
            .unwrap_err();
        assert_eq!(
            render(&error),
            "error: the run stopped\n  caused by: cannot read rows.bin\n  caused by: no such device\nhint: \
             prepare the corpus again"
        );
        assert_eq!(exit_code(&error), exit::ERROR);
        assert_eq!(
            exit_code(&Err::<(), _>(error).usage().unwrap_err()),
            exit::USAGE
        );
    }
}
