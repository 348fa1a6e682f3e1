//! What to type instead of an option that DDK does not have: other trainers have `--resume`, and an option per setting.

use std::{env, io::Write};

use clap::{
    CommandFactory,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::cli::Cli;

/// How to resume a run.
const AGAIN: &str = "`ddk train` resumes by itself: repeat the command that started the run";

/// Prints what is wrong with the command line, and ends the process.
pub fn refuse(mut error: clap::Error) -> ! {
    let hint = hint(&error);
    if error.kind() == ErrorKind::UnknownArgument {
        // clap suggests to pass the option as a value.
        error.remove(ContextKind::Suggested);
    }
    if hint.is_some() {
        // clap suggests what looks alike, such as --no-resume, or `ddk serve` instead of `ddk resume`.
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
    }
    // Nothing is left to do if standard error is closed.
    let _ = error.print();
    if let Some(hint) = hint {
        let _ = writeln!(std::io::stderr(), "hint: {hint}");
    }
    std::process::exit(error.exit_code())
}

/// Returns what to do instead of an unknown command or option.
fn hint(error: &clap::Error) -> Option<String> {
    if let Some(ContextValue::String(command)) = error.get(ContextKind::InvalidSubcommand) {
        return (command == "resume").then(|| AGAIN.to_owned());
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let given = Given::read();
    let Some(name) = unknown.strip_prefix("--") else {
        let is_argument = error.kind() == ErrorKind::UnknownArgument && !unknown.starts_with('-');
        return given.model(unknown).filter(|_| is_argument);
    };
    if name.contains('.') {
        return given.setting(name);
    }
    let name = name.replace('_', "-");
    given.positional(&name).or_else(|| match name.as_str() {
        "resume" | "resume-from-checkpoint" => Some(given.resume(&name)),
        "dry-run" => Some("`ddk check` says what a run needs, and starts nothing".to_owned()),
        "checkpoint" if given.has("step") => {
            Some("checkpoints are chosen by their step: --step N".to_owned())
        }
        "host" | "port" if given.names() == ["serve"] => {
            let own = |option, default: &str| given.value(option).unwrap_or(default).to_owned();
            let (host, port) = (own("host", "127.0.0.1"), own("port", "9470"));
            Some(format!("pass both as one address: --address {host}:{port}"))
        }
        _ => given.setting(&name),
    })
}

/// The words of the command line.
struct Given {
    words: Vec<String>,
    /// The command, or the innermost subcommand.
    command: clap::Command,
    /// Number of words that name it.
    depth: usize,
}

impl Given {
    fn read() -> Self {
        let words: Vec<String> = env::args().skip(1).collect();
        let (mut command, mut depth) = (Cli::command(), 0);
        while let Some(inner) = words
            .get(depth)
            .and_then(|word| command.find_subcommand(word).cloned())
        {
            (command, depth) = (inner, depth + 1);
        }
        Self {
            words,
            command,
            depth,
        }
    }

    fn names(&self) -> &[String] {
        &self.words[..self.depth]
    }

    /// Returns the value that follows an option.
    fn value(&self, option: &str) -> Option<&str> {
        let option = format!("--{option}");
        let at = self
            .words
            .iter()
            .position(|word| word.split('=').next() == Some(&option))?;
        match self.words[at].split_once('=') {
            Some((_, value)) => Some(value),
            None => {
                let next = self.words.get(at + 1).filter(|word| !word.starts_with('-'));
                next.map(String::as_str)
            }
        }
    }

    fn has(&self, id: &str) -> bool {
        let mut arguments = self.command.get_arguments();
        arguments.any(|argument| argument.get_id() == id)
    }

    /// How to name a model that stands where `ddk generate` takes no argument.
    fn model(&self, folder: &str) -> Option<String> {
        let is_named = self.value("model").or(self.value("config")).is_some();
        let is_model = self.names() == ["generate"] && !is_named;
        is_model.then(|| format!("name the model with an option: --model {folder}"))
    }

    /// How to pass the configuration or the run, which other programs take as an option.
    fn positional(&self, option: &str) -> Option<String> {
        let (id, what, example) = match option {
            "config" => ("files", "configuration", "my.toml"),
            "run" | "run-dir" => ("run", "folder of the run", "runs/my"),
            _ => return None,
        };
        let value = self.value(option).unwrap_or(example);
        let command = self.names().join(" ");
        self.has(id)
            .then(|| format!("the {what} is positional: ddk {command} {value}"))
    }

    /// How to resume a run.
    fn resume(&self, option: &str) -> String {
        // Of other trainers: runs/my/checkpoint-500.
        let value = self.value(option).unwrap_or_default();
        let step = value.rsplit("checkpoint-").next().unwrap_or_default();
        match step.parse::<u64>() {
            Ok(step) => {
                format!("{AGAIN}; to go back to an earlier checkpoint, add --resume-from {step}")
            }
            Err(_) => AGAIN.to_owned(),
        }
    }

    /// How to pass a setting.
    fn setting(&self, option: &str) -> Option<String> {
        if !self.has("set") {
            return None;
        }
        let is_key = ddk_settings::keys().any(|key| key.path == option);
        let keys = if is_key {
            vec![option]
        } else {
            ddk_settings::suggested(option)
        };
        let keys = keys.into_iter();
        let keys: Vec<String> = keys.map(|key| format!("--set {key}=VALUE")).collect();
        (!keys.is_empty()).then(|| format!("settings are passed with --set: {}", keys.join(" or ")))
    }
}
