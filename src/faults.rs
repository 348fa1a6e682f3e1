//! Faults on purpose: always compiled, so that the program that ships is the one that is tested; refused unless
//! `DDK_ALLOW_FAULTS=1` is in the environment.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use ddk_actors::PortError;
use ddk_run::SaveHook;

use crate::hint::Hint;

/// How long a stall lasts.
const STALL: Duration = Duration::from_millis(400);

/// The system's number of an input or output error.
const EIO: i32 = 5;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Panic,
    Stall,
    NotANumber,
    OutOfMemory,
    Unreadable,
    NoSpace,
    InputOutput,
    Kill,
}

const KINDS: [(&str, Kind); 8] = [
    ("panic", Kind::Panic),
    ("stall", Kind::Stall),
    ("nan", Kind::NotANumber),
    ("oom", Kind::OutOfMemory),
    ("unreadable", Kind::Unreadable),
    ("enospc", Kind::NoSpace),
    ("eio", Kind::InputOutput),
    ("kill", Kind::Kill),
];

/// Where it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A loader, at the n-th row that it reads.
    Loader,
    /// A teacher, at a step.
    Teacher,
    /// The student, at a step.
    Student,
    /// The save of a step, at its n-th system call.
    Save,
}

const PLACES: [(&str, Place); 4] = [
    ("loader", Place::Loader),
    ("teacher", Place::Teacher),
    ("student", Place::Student),
    ("save", Place::Save),
];

#[derive(Debug)]
struct Fault {
    kind: Kind,
    place: Place,
    at: u64,
    /// Times that it goes by before it strikes: the call of a save.
    calls_left: AtomicU64,
}

/// The faults of a run; each strikes once.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Reads a plan such as `["panic student 5", "kill save 8 3"]`.
    pub fn parse(plan: &[String]) -> Result<Arc<Self>> {
        if !plan.is_empty() && std::env::var("DDK_ALLOW_FAULTS").as_deref() != Ok("1") {
            return Err(anyhow!("`faults.plan` is set, but faults are not allowed"))
                .hint("faults are for tests: remove [faults], or set DDK_ALLOW_FAULTS=1")
                .usage();
        }
        let faults = plan.iter().map(|entry| {
            parse(entry)
                .ok_or_else(|| anyhow!("`faults.plan` holds \"{entry}\", expected KIND PLACE NUMBER [CALL], such as \"panic student 5\""))
                .usage()
        });
        Ok(Arc::new(Self(faults.collect::<Result<_>>()?)))
    }

    /// What goes wrong at this place now, if anything.
    fn strike(&self, place: Place, at: u64) -> Option<Kind> {
        self.0
            .iter()
            .filter(|fault| fault.place == place && fault.at == at)
            .find(|fault| {
                let count_down = |left: u64| left.checked_sub(1);
                let before =
                    fault
                        .calls_left
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down);
                before == Ok(1)
            })
            .map(|fault| fault.kind)
    }

    /// Strikes in a worker. True where the number that the worker computes is to be none.
    pub fn worker(&self, place: Place, at: u64) -> Result<bool, PortError> {
        match self.strike(place, at) {
            None => Ok(false),
            Some(Kind::NotANumber) => Ok(true),
            Some(Kind::Stall) => {
                std::thread::sleep(STALL);
                Ok(false)
            }
            Some(Kind::OutOfMemory) => Err(PortError::OutOfMemory("on purpose".to_owned())),
            Some(Kind::Unreadable) => Err(PortError::Data(
                "on purpose: row 0 cannot be read".to_owned(),
            )),
            Some(Kind::Kill) => kill(),
            #[allow(clippy::panic)] // on purpose
            Some(Kind::Panic | Kind::NoSpace | Kind::InputOutput) => panic!("on purpose"),
        }
    }

    /// Strikes in the saves.
    pub fn save_hook(self: &Arc<Self>) -> SaveHook {
        let faults = Arc::clone(self);
        Arc::new(move |step| match faults.strike(Place::Save, step) {
            None => Ok(()),
            Some(Kind::Kill) => kill(),
            Some(Kind::NoSpace) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(Kind::Stall) => {
                std::thread::sleep(STALL);
                Ok(())
            }
            #[allow(clippy::panic)] // on purpose
            Some(Kind::Panic) => panic!("on purpose"),
            Some(_) => Err(io::Error::from_raw_os_error(EIO)),
        })
    }
}

fn parse(entry: &str) -> Option<Fault> {
    let words: Vec<&str> = entry.split_whitespace().collect();
    let (kind, place, at, call) = match words[..] {
        [kind, place, at] => (kind, place, at, "1"),
        [kind, place, at, call] => (kind, place, at, call),
        _ => return None,
    };
    let kind = KINDS.iter().find(|(name, _)| *name == kind)?.1;
    let place = PLACES.iter().find(|(name, _)| *name == place)?.1;
    Some(Fault {
        kind,
        place,
        at: at.parse().ok()?,
        calls_left: AtomicU64::new(call.parse().ok().filter(|call| *call > 0)?),
    })
}

/// Ends the process between two instructions: nothing is flushed, nothing is dropped.
fn kill() -> ! {
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_strikes_once_at_its_call() {
        let faults = Faults(vec![
            parse("eio save 8 3").unwrap(),
            parse("nan student 2").unwrap(),
        ]);
        assert_eq!(faults.worker(Place::Student, 1), Ok(false));
        assert_eq!(faults.worker(Place::Student, 2), Ok(true));
        assert_eq!(faults.worker(Place::Student, 2), Ok(false));
        let hook = Arc::new(faults).save_hook();
        let struck: Vec<bool> = (0..5).map(|_| hook(8).is_err()).collect();
        assert_eq!(struck, [false, false, true, false, false]);
        for bad in [
            "panic",
            "panic student",
            "panic student x",
            "melt student 3",
            "panic moon 3",
            "panic save 1 0",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
