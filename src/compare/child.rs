//! This program once more, as a child whose signals come through its parent.

use std::{
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use crate::{hint::Hint, progress::say};

/// Runs `ddk` with these arguments to its end, standard error shared. `what`: its name in messages. The exit code where it was
/// stopped by a signal that came to this program.
pub(super) fn run(arguments: &[String], what: &str) -> Result<Option<ExitCode>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (status, told) = runtime.block_on(async {
        // Listened to before the child is there: from now on a signal cannot end this program alone.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut child = start(arguments)?;
        let id = child.id();
        let mut waited = tokio::task::spawn_blocking(move || child.wait());
        let mut told = None;
        let status: ExitStatus = loop {
            let number = tokio::select! {
                status = &mut waited => break status.context("the wait for a run broke off")??,
                _ = interrupt.recv() => libc::SIGINT,
                _ = terminate.recv() => libc::SIGTERM,
            };
            told = Some(number);
            // SAFETY: a plain system call. The child is not reaped before `waited` is done, so the number is still its own.
            let _ = unsafe { libc::kill(id.cast_signed(), number) };
        };
        anyhow::Ok((status, told))
    })?;
    // Saved, ended by the signal itself (a model in the making), or done before it came.
    let stopped = |number: i32| {
        [Some(128 + number), Some(0)].contains(&status.code()) || status.signal() == Some(number)
    };
    if let Some(number) = told.filter(|number| stopped(*number)) {
        say("the comparison is stopped; the same command goes on from there");
        return Ok(Some(ExitCode::from((128 + number) as u8)));
    }
    if status.success() {
        return Ok(None);
    }
    let end = match status.signal() {
        Some(number) => format!("it was ended by signal {number}"),
        None => format!("exit code {}", status.code().unwrap_or_default()),
    };
    Err(anyhow!("{what}: {end}"))
        .hint("what went wrong is said above; the same command goes on from there")
}

fn start(arguments: &[String]) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    // Its own group, so that a Ctrl-C comes to it once, through us.
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    // SAFETY: only one system call that is safe between fork and exec; it asks for SIGTERM when this program is gone, so that a
    // run is saved and ends with its comparison, however that ends.
    unsafe {
        command.pre_exec(|| {
            let done = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            match done {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command.spawn().context("cannot start ddk once more")
}
