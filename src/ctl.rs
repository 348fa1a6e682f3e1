//! `ddk ctl`: sends commands to a run in training.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ddk_jobs::{hint::Hint, output::print_json};
use ddk_run::{
    RunView,
    control::{Answer, Command, Reply, SOCKET, short_path},
    view::RunStatus,
};
use serde_json::Value;

use crate::{cli, client::Client, serve};

/// How long to wait for the status of a run that can also be read from its files.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends a command to a run and prints the answer.
///
/// # Errors
/// If the command is wrong, if the run cannot be reached or refuses it, or if `out` cannot be written.
pub fn run(args: &cli::Ctl, out: &mut dyn Write) -> Result<()> {
    let command = command(&args.command)?;
    let answer = if args.run.contains("://") {
        Client::new(&args.run, serve::token()?)?.command(&command)?
    } else {
        ask(Path::new(&args.run), &command)?
    };
    if answer.reply.is_none() {
        return Err(anyhow!("{}", answer.message));
    }
    if args.json {
        return print_json(&answer, out);
    }
    Ok(writeln!(out, "{}", answer.message)?)
}

fn command(command: &cli::CtlCommand) -> Result<Command> {
    Ok(match command {
        cli::CtlCommand::Status => Command::Status,
        cli::CtlCommand::Checkpoint => Command::Checkpoint,
        cli::CtlCommand::Evaluate => Command::Evaluate,
        cli::CtlCommand::Pause => Command::Pause,
        cli::CtlCommand::Resume => Command::Resume,
        cli::CtlCommand::Stop => Command::Stop,
        cli::CtlCommand::Set { values } => {
            let value =
                |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            let pair = |pair: &String| {
                let parts = pair.split_once('=');
                let (key, text) = parts.with_context(|| format!("{pair} is not KEY=VALUE"))?;
                Ok((key.trim().to_owned(), value(text.trim())))
            };
            let values: Result<_> = values.iter().map(pair).collect();
            let values = values.usage()?;
            Command::Set { values }
        }
    })
}

/// Returns the status from the process that works on the run in `folder`, if there is one on this machine and it
/// answers in time.
pub fn status(folder: &Path) -> Option<RunStatus> {
    let stream = connect(folder).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    match exchange(folder, &stream, &Command::Status).ok()?.reply? {
        Reply::Status(status) => Some(*status),
        _ => None,
    }
}

fn connect(folder: &Path) -> io::Result<UnixStream> {
    let (_open, short) = short_path(folder)?;
    UnixStream::connect(short.join(SOCKET))
}

/// Asks the process that trains the run in `folder`.
fn ask(folder: &Path, command: &Command) -> Result<Answer> {
    ddk_jobs::hint::must_hold_a_run(folder)?;
    let connected = connect(folder);
    let gone = [ErrorKind::ConnectionRefused, ErrorKind::NotFound];
    let failed = || format!("cannot reach {}", folder.join(SOCKET).display());
    let stream = match connected {
        // No process: the socket does not exist, or a killed process left it behind.
        Err(error) if gone.contains(&error.kind()) => return without_process(folder, command),
        connected => connected.with_context(failed)?,
    };
    exchange(folder, &stream, command)
}

/// Sends a command and reads the answer.
fn exchange(folder: &Path, mut stream: &UnixStream, command: &Command) -> Result<Answer> {
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(anyhow!(
            "the process that trains {} ended before it answered",
            folder.display()
        ));
    }
    Ok(serde_json::from_str(&answer)?)
}

/// Answers `status` from the files of the run. Every other command needs a process.
fn without_process(folder: &Path, command: &Command) -> Result<Answer> {
    let status = RunView::read(folder).status(None);
    if *command == Command::Status {
        return Ok(Ok(Reply::Status(Box::new(status))).into());
    }
    Err(anyhow!(
        "no process is training the run in {}: it is {}",
        folder.display(),
        status.state
    ))
    .hint("start one: `ddk train` with the run's configuration")
}
