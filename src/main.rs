//! The `ddk` program: reads the command line, runs the subcommand and prints. The algorithms are in the crates.

mod checkpoints;
mod cli;
mod client;
mod config;
mod ctl;
mod data;
mod generate;
mod init;
mod migrate;
mod mixture;
mod serve;
mod shell;
mod tips;
mod watch;

use std::{
    io::{self, StdoutLock, Write},
    process::ExitCode,
};

use clap::Parser;
use cli::{Cli, Command};
use ddk_jobs::{
    bench, check, compare, demo, display, eval, export, hint, label, prepare, pretrain, report,
    shrink, signals::Signals, train,
};

fn main() -> ExitCode {
    ddk_torch::keep_freed_memory();
    ddk_torch::prepare_cublas();
    let cli = Cli::try_parse().unwrap_or_else(|error| tips::refuse(error));
    let mut out = Output(std::io::stdout().lock());
    let done = run(&cli.command, &mut out);
    display::clear();
    match done.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that closes the pipe early (`ddk … | head`) is not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            if !hint::has_ended(&error) {
                let _ = writeln!(std::io::stderr(), "{}", hint::render(&error));
            }
            ExitCode::from(hint::exit_code(&error))
        }
    }
}

fn run(command: &Command, out: &mut dyn Write) -> anyhow::Result<()> {
    let signals = Signals::listen;
    match command {
        Command::Demo(args) => demo::run(args, &signals()?, out),
        Command::Init(args) => init::run(args),
        Command::Check(args) => check::run(args, out),
        Command::Bench(args) => bench::run(args, &signals()?, out),
        Command::Prepare(args) => prepare::run(args, &signals()?),
        Command::Data(args) => data::run(args, out),
        Command::Pretrain(args) => pretrain::run(args, &signals()?),
        Command::Shrink(args) => shrink::run(args, &signals()?, out),
        Command::Label(args) => label::run(args, &signals()?),
        Command::Train(args) => train::run(args, &signals()?, out),
        Command::Compare(args) => compare::run(args, &signals()?, out),
        Command::Watch { run } => watch::run(run, out),
        Command::Ctl(args) => ctl::run(args, out),
        Command::Serve(args) => serve::run(args),
        Command::Eval(args) => eval::run(args, &signals()?, out),
        Command::Checkpoints { run } => checkpoints::run(run, out),
        Command::Report(args) => report::run(args),
        Command::Export(args) => export::run(args, &signals()?),
        Command::Generate(args) => generate::run(args, out),
        Command::Config(args) => config::run(args, out),
        Command::Migrate(args) => migrate::run(args, out),
        Command::Mixture(args) => mixture::run(args, out),
        Command::Completions { shell } => shell::completions(*shell, out),
        Command::Man { out: folder } => shell::man(folder),
    }
}

/// Standard output. The bar makes way for it.
struct Output<'a>(StdoutLock<'a>);

impl Write for Output<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        display::clear();
        self.0.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
