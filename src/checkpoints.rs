//! `ddk checkpoints`: which checkpoints a run has.

use std::io::Write;

use anyhow::{Result, anyhow};
use ddk_run::{CheckpointStore, RunFolder};

use crate::{cli, hint::Hint};

pub fn run(args: &cli::Checkpoints, out: &mut dyn Write) -> Result<()> {
    if !RunFolder::holds_a_run(&args.run) {
        return Err(anyhow!("{} holds no run", args.run.display()))
            .hint("name the folder of a run, such as runs/demo")
            .usage();
    }
    let folder = args.run.join("checkpoints");
    if !folder.exists() {
        writeln!(out, "the run has no checkpoint yet")?;
        return Ok(());
    }
    let entries = CheckpointStore::look(&folder).list()?;
    writeln!(out, "{:>10}  {:>12}  state", "step", "MB")?;
    for entry in entries {
        match entry.status {
            Ok(bytes) => writeln!(
                out,
                "{:>10}  {:>12.1}  verified",
                entry.step,
                bytes as f64 / 1e6
            )?,
            Err(reason) => writeln!(out, "{:>10}  {:>12}  damaged: {reason}", entry.step, "")?,
        }
    }
    Ok(())
}
