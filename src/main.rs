//! `ddk`: the program. It reads the command line, joins the parts, and prints; algorithms live in the crates.

mod checkpoints;
mod cli;
mod config;
mod data;
mod generate;
mod init;
mod mixture;
mod serve;
mod watch;

use std::{io::Write, process::ExitCode};

use clap::Parser;
use cli::{Cli, Command};
use ddk_jobs::{
    bench, check, compare, demo, eval, export, hint, prepare, pretrain, report, signals::Signals,
    train,
};

fn main() -> ExitCode {
    ddk_torch::keep_freed_memory();
    ddk_torch::prepare_cublas();
    let cli = Cli::parse();
    let mut out = std::io::stdout().lock();
    let signals = Signals::listen;
    let done = match &cli.command {
        Command::Demo(args) => signals().and_then(|signals| demo::run(args, &signals, &mut out)),
        Command::Init(args) => init::run(args).map(|()| ExitCode::SUCCESS),
        Command::Check(args) => check::run(args, &mut out),
        Command::Bench(args) => signals()
            .and_then(|signals| bench::run(args, &signals, &mut out))
            .map(|()| ExitCode::SUCCESS),
        Command::Prepare(args) => signals()
            .and_then(|signals| prepare::run(args, &signals))
            .map(|()| ExitCode::SUCCESS),
        Command::Data(args) => data::run(args, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Pretrain(args) => signals().and_then(|signals| pretrain::run(args, &signals)),
        Command::Train(args) => signals().and_then(|signals| train::run(args, &signals, &mut out)),
        Command::Compare(args) => {
            signals().and_then(|signals| compare::run(args, &signals, &mut out))
        }
        Command::Watch(args) => watch::run(args, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve::run(args).map(|()| ExitCode::SUCCESS),
        Command::Eval(args) => signals()
            .and_then(|signals| eval::run(args, &signals, &mut out))
            .map(|()| ExitCode::SUCCESS),
        Command::Checkpoints(args) => checkpoints::run(args, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => report::run(args).map(|()| ExitCode::SUCCESS),
        Command::Export(args) => signals()
            .and_then(|signals| export::run(args, &signals))
            .map(|()| ExitCode::SUCCESS),
        Command::Generate(args) => generate::run(args, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Config(args) => config::run(args, &mut out).map(|()| ExitCode::SUCCESS),
        Command::Mixture(args) => mixture::run(args, &mut out).map(|()| ExitCode::SUCCESS),
    };
    match done.and_then(|code| Ok(out.flush().map(|()| code)?)) {
        Ok(code) => code,
        // A reader that has gone away (`ddk … | head`) is no error of ours.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", hint::render(&error));
            ExitCode::from(hint::exit_code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
