//! Injects faults for tests. The code is always compiled, so that the tested program is the one that ships. It
//! rejects faults unless `DDK_ALLOW_FAULTS=1` is in the environment.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ddk_actors::{PortError, Work};
use ddk_run::SaveHook;
use parking_lot::Mutex;
use rustix::io::Errno;
use strum::EnumString;

use crate::{hint::Hint, phase::Phase, progress::say};

/// How long a stall lasts.
const STALL: Duration = Duration::from_millis(400);

/// How often a hang checks whether it is over.
const LOOK: Duration = Duration::from_millis(10);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// The worker panics.
    Panic,
    /// It pauses for a while.
    Stall,
    /// It waits until the process is told to stop, to test what happens then.
    Hang,
    /// It computes NaN.
    Nan,
    /// Its device is out of memory.
    Oom,
    /// Its data cannot be read.
    Unreadable,
    /// The disk is full.
    Enospc,
    /// The disk fails.
    Eio,
    /// The process is killed.
    Kill,
}

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Place {
    /// A loader, at the n-th sequence that it reads.
    Loader,
    /// The batcher, at a step.
    Batcher,
    /// A teacher, at a step.
    Teacher,
    /// The student, at a step.
    Student,
    /// The student, at the n-th evaluation of this process.
    Evaluation,
    /// Saving the checkpoint of a step, at its n-th system call.
    Save,
    /// The n-th time that this process begins a phase.
    #[strum(disabled)]
    Phase(Phase),
}

impl Kind {
    /// Returns whether this fault can happen at that place.
    fn happens_at(self, place: Place) -> bool {
        match self {
            Self::Panic | Self::Stall | Self::Kill => true,
            Self::Hang => matches!(place, Place::Phase(_) | Place::Evaluation),
            Self::Nan | Self::Oom => {
                matches!(place, Place::Teacher | Place::Student | Place::Evaluation)
            }
            Self::Unreadable => place == Place::Loader,
            Self::Enospc | Self::Eio => place == Place::Save,
        }
    }
}

#[derive(Debug)]
struct Fault {
    /// The entry as written.
    entry: String,
    kind: Kind,
    place: Place,
    at: u64,
    /// Calls left until it strikes, counted down from the entry's CALL.
    calls_left: AtomicU64,
}

/// The faults of a run; each strikes once.
#[derive(Debug, Default)]
pub struct Faults {
    faults: Vec<Fault>,
    /// Phases begun so far.
    begun: Mutex<Vec<Phase>>,
}

impl Faults {
    /// Reads a plan such as `["panic student 5", "kill save 8 3"]`.
    pub(crate) fn parse(plan: &[String]) -> Result<Arc<Self>> {
        if !plan.is_empty() && std::env::var("DDK_ALLOW_FAULTS").as_deref() != Ok("1") {
            return Err(anyhow!(
                "`fault_injection.plan` is set, but faults are not allowed"
            ))
            .hint("faults are for tests: remove [fault_injection], or set DDK_ALLOW_FAULTS=1")
            .usage();
        }
        let faults = plan.iter().map(|entry| {
            let expected = "KIND PLACE NUMBER [CALL], such as \"panic student 5\"";
            let wrong =
                || format!("`fault_injection.plan` contains \"{entry}\", expected {expected}");
            parse(entry).with_context(wrong).usage()
        });
        Ok(Arc::new(Self {
            faults: faults.collect::<Result<_>>()?,
            begun: Mutex::default(),
        }))
    }

    /// Returns the fault that strikes at this place now, if any.
    fn strike(&self, place: Place, at: u64) -> Option<Kind> {
        let strikes = |fault: &&Fault| {
            let order = Ordering::SeqCst;
            let count_down = |left: u64| left.checked_sub(1);
            let left = || fault.calls_left.fetch_update(order, order, count_down);
            fault.place == place && fault.at == at && left() == Ok(1)
        };
        let fault = self.faults.iter().find(strikes)?;
        say(&format!("fault on purpose: {}", fault.entry));
        Some(fault.kind)
    }

    /// Injects the fault that is planned for the start of a phase, if any.
    ///
    /// # Errors
    /// None: a fault that is planned for a phase panics, stalls, hangs or kills the process.
    pub fn phase(&self, phase: Phase) -> Result<(), PortError> {
        let begun = {
            let mut begun = self.begun.lock();
            begun.push(phase);
            begun.iter().filter(|other| **other == phase).count()
        };
        self.worker(Place::Phase(phase), begun as u64).map(drop)
    }

    /// Injects the fault that is planned for this point of a worker, if any. Returns true if the number that the worker
    /// computes should become NaN.
    ///
    /// # Errors
    /// The injected error, if the planned fault is running out of memory or an unreadable sequence.
    pub fn worker(&self, place: Place, at: u64) -> Result<bool, PortError> {
        self.worker_until(place, at, &|| false)
    }

    /// Works like [`Self::worker`], but a hang ends when the worker is `told` to stop.
    ///
    /// # Errors
    /// As for [`Self::worker`].
    pub fn worker_until(
        &self,
        place: Place,
        at: u64,
        told: &dyn Fn() -> bool,
    ) -> Result<bool, PortError> {
        let Some(kind) = self.strike(place, at) else {
            return Ok(false);
        };
        match kind {
            Kind::Oom => Err(PortError::OutOfMemory {
                during: match place {
                    Place::Teacher => Work::Label,
                    Place::Evaluation => Work::Evaluate,
                    _ => Work::Train,
                },
                message: "on purpose".to_owned(),
            }),
            Kind::Unreadable => Err(PortError::Data(
                "on purpose: a row cannot be read".to_owned(),
            )),
            _ => {
                happen(kind, told);
                Ok(kind == Kind::Nan)
            }
        }
    }

    /// Returns a hook that injects faults while a checkpoint is saved.
    pub fn save_hook(self: &Arc<Self>) -> SaveHook {
        let faults = Arc::clone(self);
        Arc::new(move |step| match faults.strike(Place::Save, step) {
            None => Ok(()),
            Some(Kind::Enospc) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(Kind::Eio) => Err(Errno::IO.into()),
            Some(kind) => {
                happen(kind, &|| true);
                Ok(())
            }
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
    let kind: Kind = kind.parse().ok()?;
    let phase = || place.parse().map(Place::Phase);
    let place = place.parse().or_else(|_| phase()).ok()?;
    kind.happens_at(place).then_some(())?;
    Some(Fault {
        entry: entry.to_owned(),
        kind,
        place,
        at: at.parse().ok()?,
        calls_left: AtomicU64::new(call.parse().ok().filter(|call| *call > 0)?),
    })
}

/// Injects a fault that can happen anywhere, and does nothing for a fault in a result. A hang ends when it is
/// `told` to stop.
#[allow(clippy::panic)]
fn happen(kind: Kind, told: &dyn Fn() -> bool) {
    match kind {
        Kind::Panic => panic!("on purpose"),
        // Ends between two instructions: nothing is flushed, nothing is dropped.
        Kind::Kill => std::process::abort(),
        Kind::Stall => std::thread::sleep(STALL),
        Kind::Hang => {
            while !told() {
                std::thread::sleep(LOOK);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_strikes_once_at_its_call() {
        let faults = Faults {
            faults: vec![
                parse("eio save 8 3").unwrap(),
                parse("nan student 2").unwrap(),
            ],
            begun: Mutex::default(),
        };
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
            "nan loader 3",
            "enospc student 3",
            "panic save 1 0",
            "hang student 1",
            "nan export 1",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        assert!(parse("hang export 1").is_some() && parse("hang evaluation 2").is_some());
    }
}
