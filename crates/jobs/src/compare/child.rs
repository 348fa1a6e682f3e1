//! Runs this program as a child that receives signals through its parent.

use std::{
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;
use rustix::{
    io::{Errno, retry_on_intr},
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

use crate::{
    hint::Hint,
    progress::say,
    signals::{self, Answer, Signals},
};

/// Runs `ddk` with these arguments to its end, with shared standard error. `what`: its name in messages. A signal
/// to this program stops both.
pub(super) fn run(arguments: &[String], what: &str, signals: &Signals) -> Result<()> {
    let slot = signals::Child::default();
    // From now on a signal cannot end this program alone.
    if let Some(signal) = signals.answer_by(Answer::Child(Arc::clone(&slot))) {
        return Err(stopped(signal));
    }
    let mut child = {
        // A signal that arrives in the meantime waits until the child exists.
        let mut id = slot.lock();
        let child = start(arguments)?;
        *id = Some(Pid::from_child(&child));
        child
    };
    let status = wait(&mut child, &slot)?;
    // The child saved and ended, was killed by the signal, or finished before it arrived.
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

/// Waits for the child to end. Removes its id before reaping it, so that no signal can reach another process.
fn wait(child: &mut Child, slot: &Arc<Mutex<Option<Pid>>>) -> Result<ExitStatus> {
    let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let id = Pid::from_child(child);
    retry_on_intr(|| waitid(WaitId::Pid(id), seen)).context("cannot wait for a run")?;
    *slot.lock() = None;
    child.wait().context("cannot wait for a run")
}

fn start(arguments: &[String]) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    // A separate process group, so that the child receives Ctrl-C once, through us.
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let parent = process::id();
    // SAFETY: between fork and exec these are two system calls, which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(move || {
            // However the comparison ends, the child saves and ends with it.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
            // The comparison may have ended before this call.
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

    /// The id is removed after the child ends and before it is reaped. A signal in between reaches the ended child,
    /// never another process with the same id.
    #[test]
    fn the_id_is_gone_before_the_child_is_reaped() {
        let mut child = Command::new("true").spawn().unwrap();
        let id = Pid::from_child(&child);
        let slot = Arc::new(Mutex::new(Some(id)));
        let guard = slot.lock();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&mut child, &slot));
            let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(id), seen).unwrap();
            // The child has ended, but its id is still its own while the slot is locked.
            assert!(std::path::Path::new(&format!("/proc/{}", id.as_raw_nonzero())).exists());
            assert!(!waiting.is_finished());
            rustix::process::test_kill_process(id).unwrap();
            drop(guard);
            assert!(waiting.join().unwrap().unwrap().success());
        });
        assert_eq!(*slot.lock(), None);
        assert!(rustix::process::test_kill_process(id).is_err());
    }
}
