//! This program once more, as a child whose signals come through its parent.

use std::{
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, anyhow};
use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

use crate::{
    hint::Hint,
    progress::{lock, say},
    signals::{self, Signals},
};

/// Runs `ddk` with these arguments to its end, standard error shared. `what`: its name in messages. A signal
/// that comes to this program stops both.
pub(super) fn run(arguments: &[String], what: &str, signals: &Signals) -> Result<()> {
    let slot = signals::Child::default();
    // From now on a signal cannot end this program alone.
    if let Some(signal) = signals.forward(&slot) {
        return Err(stopped(signal));
    }
    let mut child = {
        // A signal that comes meanwhile waits for the child to be there.
        let mut id = lock(&slot);
        let child = start(arguments)?;
        *id = Some(Pid::from_child(&child));
        child
    };
    let status = wait(&mut child, &slot)?;
    // Saved, ended by the signal itself, or done before it came.
    let is_stop = |signal: &signals::Signal| {
        let code = i32::from(signal.exit_code());
        [Some(code), Some(0)].contains(&status.code()) || status.signal() == Some(code - 128)
    };
    if let Some(signal) = signals.came().filter(is_stop) {
        return Err(stopped(signal));
    }
    if status.success() {
        return Ok(());
    }
    let end = match status.signal() {
        Some(number) => format!("killed by signal {number}"),
        None => format!("exit code {}", status.code().unwrap_or_default()),
    };
    Err(anyhow!("{what}: {end}")).hint("see the error above; the same command resumes from there")
}

fn stopped(signal: signals::Signal) -> anyhow::Error {
    say("the comparison stopped; the same command resumes from there");
    signal.ended()
}

/// Waits for the child's end. Its id stays its own until it is reaped, and nobody signals it any more then.
fn wait(child: &mut Child, slot: &Arc<Mutex<Option<Pid>>>) -> Result<ExitStatus> {
    let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(Pid::from_child(child)), seen) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a run"),
        }
    }
    *lock(slot) = None;
    child.wait().context("cannot wait for a run")
}

fn start(arguments: &[String]) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    // Its own group, so that a Ctrl-C comes to it once, through us.
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let parent = process::id();
    // SAFETY: between fork and exec these are two system calls, which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(move || {
            // A run is saved and ends with its comparison, however that ends.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            // The comparison may have ended before it was asked for.
            let is_here = rustix::process::getppid()
                .is_some_and(|id| id.as_raw_nonzero().get().unsigned_abs() == parent);
            is_here.then_some(()).ok_or_else(|| Errno::SRCH.into())
        });
    }
    command.spawn().context("cannot start another ddk process")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The id is taken away between the end and the reaping: whoever signals meanwhile signals a child that
    /// has ended, never another process with its number.
    #[test]
    fn the_id_is_gone_before_the_child_is_reaped() {
        let mut child = Command::new("true").spawn().unwrap();
        let id = Pid::from_child(&child);
        let slot = Arc::new(Mutex::new(Some(id)));
        let guard = slot.lock().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&mut child, &slot));
            let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(id), seen).unwrap();
            // It has ended, and as long as the slot is held its number is its own.
            assert!(std::path::Path::new(&format!("/proc/{}", id.as_raw_nonzero())).exists());
            assert!(!waiting.is_finished());
            rustix::process::test_kill_process(id).unwrap();
            drop(guard);
            assert!(waiting.join().unwrap().unwrap().success());
        });
        assert_eq!(*slot.lock().unwrap(), None);
        assert!(rustix::process::test_kill_process(id).is_err());
    }
}
