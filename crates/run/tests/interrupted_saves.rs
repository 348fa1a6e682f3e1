//! Fails a save, or kills its process, at every system call. Compares what the next start loads with a list that this
//! test derives from the order of the calls, not from the folder under test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    env, fs, io,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ddk_run::{CheckpointStore, Retention, SaveHook, SaveReport, SnapshotFile};

/// Calls that write a checkpoint of two files to a temporary folder: create the folder; create, write and fsync
/// weights, moments and state; fsync the journal; create, write and fsync the manifest; fsync the folder.
const WRITE: u64 = 1 + 3 * 3 + 1 + 3 + 1;
/// Calls that move it into place: the rename, the fsync of the folder of checkpoints.
const PLACE: u64 = 2;
/// Calls that remove a checkpoint: rename, fsync, four files, the folder.
const REMOVE: u64 = 7;

/// A checkpoint in the list: its step, and the text of its state.
type Listed = (u64, &'static str);

/// A save, and what must exist after an interruption at each call.
struct Case {
    name: &'static str,
    /// Checkpoints saved before, all of them kept.
    before: &'static [Listed],
    /// Then set aside the checkpoints after this step.
    aside_after: Option<u64>,
    /// The checkpoint of the interrupted save.
    saved: Listed,
    /// How many checkpoints to keep.
    keep: usize,
    calls: u64,
    /// The checkpoints after an interruption at this call, from 1.
    expected: fn(u64) -> Vec<Listed>,
    /// Folders that stay set aside.
    aside: fn(u64) -> Vec<&'static str>,
}

/// Whether `call` completed before the interrupted one.
fn done(interrupted: u64, call: u64) -> bool {
    interrupted > call
}

const CASES: [Case; 4] = [
    Case {
        name: "the first save of all",
        before: &[],
        aside_after: None,
        saved: (10, "first"),
        keep: 3,
        calls: WRITE + PLACE,
        expected: |call| {
            if done(call, WRITE + 1) {
                vec![(10, "first")]
            } else {
                vec![]
            }
        },
        aside: |_| vec![],
    },
    Case {
        name: "a save after others",
        before: &[(10, "a"), (20, "b")],
        aside_after: None,
        saved: (30, "c"),
        keep: 3,
        calls: WRITE + PLACE,
        expected: |call| {
            if done(call, WRITE + 1) {
                vec![(10, "a"), (20, "b"), (30, "c")]
            } else {
                vec![(10, "a"), (20, "b")]
            }
        },
        aside: |_| vec![],
    },
    Case {
        name: "a save that replaces one",
        before: &[(10, "a"), (20, "old")],
        aside_after: None,
        saved: (20, "new"),
        keep: 3,
        calls: WRITE + 1 + PLACE + REMOVE,
        // Call WRITE + 1 renames the old checkpoint aside, WRITE + 2 renames the new one into place.
        expected: |call| {
            if done(call, WRITE + 2) {
                vec![(10, "a"), (20, "new")]
            } else {
                vec![(10, "a"), (20, "old")]
            }
        },
        aside: |_| vec![],
    },
    Case {
        name: "a save after which others go",
        before: &[(10, "a"), (20, "b"), (40, "x"), (50, "y")],
        aside_after: Some(20),
        saved: (30, "c"),
        keep: 1,
        calls: WRITE + PLACE + 3 * REMOVE,
        expected: |call| {
            let mut all = vec![(10, "a"), (20, "b"), (30, "c")];
            all.retain(|(step, _)| match step {
                10 => !done(call, WRITE + PLACE + 1),
                20 => !done(call, WRITE + PLACE + REMOVE + 1),
                _ => done(call, WRITE + 1),
            });
            all
        },
        aside: |call| {
            if done(call, WRITE + PLACE + 2 * REMOVE + 1) {
                vec!["aside-step-00000050"]
            } else {
                vec!["aside-step-00000040", "aside-step-00000050"]
            }
        },
    },
];

fn save(store: &CheckpointStore, (step, state): Listed) -> Result<SaveReport, String> {
    let file = |name: &str| SnapshotFile::new(name, move |out| out.write_all(state.as_bytes()));
    let files = vec![file("weights.safetensors"), file("moments.safetensors")];
    let saved = store.save(step, &state, files, || Ok(()));
    saved.map_err(|error| error.to_string())
}

fn open(folder: &Path, keep: usize) -> CheckpointStore {
    CheckpointStore::open(folder, Retention::last(keep)).unwrap()
}

impl Case {
    /// Creates the folder as it is before the save.
    fn prepare(&self, folder: &Path) {
        let store = open(folder, 9);
        for listed in self.before {
            save(&store, *listed).unwrap();
        }
        if let Some(step) = self.aside_after {
            store.set_aside_after(step).unwrap();
        }
    }

    /// Runs the save, with `done` called at system call `at`.
    fn save_with(
        &self,
        folder: &Path,
        at: u64,
        done: fn() -> io::Error,
    ) -> Result<SaveReport, String> {
        let calls = AtomicU64::new(0);
        let hook: SaveHook = Arc::new(move |_| {
            if calls.fetch_add(1, Ordering::SeqCst) + 1 == at {
                Err(done())
            } else {
                Ok(())
            }
        });
        let mut store = open(folder, self.keep);
        store.hook = Some(hook);
        save(&store, self.saved)
    }

    /// Asserts that the next start finds exactly this, and can save.
    fn holds(&self, folder: &Path, expected: &[Listed], aside: &[&str], what: &str) {
        let store = open(folder, 9);
        let names: BTreeSet<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let steps = expected.iter().map(|(step, _)| format!("step-{step:08}"));
        let aside = aside.iter().map(|name| (*name).to_owned());
        assert_eq!(names, steps.chain(aside).collect(), "{what}");
        for (step, state) in expected {
            let text = fs::read_to_string(folder.join(format!("step-{step:08}/state.json")));
            assert_eq!(text.unwrap(), format!("\"{state}\""), "{what}");
        }
        let opened = store.newest::<String>().unwrap();
        let opened = opened.map(|opened| (opened.step, opened.state, opened.skipped.len()));
        let newest = expected.last();
        let newest = newest.map(|(step, state)| (*step, (*state).to_owned(), 0));
        assert_eq!(opened, newest, "{what}");
        save(&store, (60, "next")).unwrap();
        let opened = store.newest::<String>().unwrap().unwrap();
        assert_eq!((opened.step, opened.state.as_str()), (60, "next"), "{what}");
    }
}

#[test]
fn a_save_that_fails_at_any_call_leaves_what_the_list_says() {
    for case in CASES {
        for call in 1..=case.calls {
            let what = format!("{}, call {call} of {}", case.name, case.calls);
            let folder = tempfile::tempdir().unwrap();
            case.prepare(folder.path());
            let full = || io::Error::from(io::ErrorKind::StorageFull);
            let report = case.save_with(folder.path(), call, full);
            let replaces = u64::from(case.name == "a save that replaces one");
            // From here on the checkpoint is durable, so the save succeeds and reports what it could not remove.
            // Another test checks what a failed removal leaves.
            if call > WRITE + replaces + PLACE {
                assert!(report.unwrap().not_removed.is_some(), "{what}");
                continue;
            }
            report.unwrap_err();
            case.holds(
                folder.path(),
                &(case.expected)(call),
                &(case.aside)(call),
                &what,
            );
        }
        let folder = tempfile::tempdir().unwrap();
        case.prepare(folder.path());
        let counted = AtomicU64::new(0);
        let counter = Arc::new(counted);
        let hook = Arc::clone(&counter);
        let mut store = open(folder.path(), case.keep);
        store.hook = Some(Arc::new(move |_| {
            hook.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        let report = save(&store, case.saved).unwrap();
        assert!(report.not_removed.is_none(), "{}", case.name);
        assert_eq!(counter.load(Ordering::SeqCst), case.calls, "{}", case.name);
        let end = case.calls + 1;
        case.holds(
            folder.path(),
            &(case.expected)(end),
            &(case.aside)(end),
            case.name,
        );
    }
}

/// A checkpoint that cannot be removed stays whole under its name, or is removed at the next start. The others are
/// removed at once.
#[test]
fn a_removal_that_fails_keeps_no_other_from_going() {
    let case = &CASES[3];
    let first = WRITE + PLACE + 1;
    let full = || io::Error::from(io::ErrorKind::PermissionDenied);
    for call in first..first + REMOVE {
        let folder = tempfile::tempdir().unwrap();
        case.prepare(folder.path());
        let report = case.save_with(folder.path(), call, full).unwrap();
        let error = report.not_removed.unwrap().to_string();
        // The second call is the fsync of the folder.
        let named = ["step-00000010", "cannot sync"][usize::from(call == first + 1)];
        assert!(error.contains(named), "call {call}: {error}");
        let mut expected = vec![(30, "c")];
        if call == first {
            expected.insert(0, (10, "a"));
        }
        case.holds(
            folder.path(),
            &expected,
            &["aside-step-00000050"],
            "removal",
        );
    }
}

const CHILD: &str = "DDK_TEST_INTERRUPTED_SAVE";

/// The child process that dies: it runs the test below, and the environment names the save and the call.
fn die_in_a_save(told: &str) -> ! {
    let words: Vec<&str> = told.splitn(3, ' ').collect();
    let [case, call, folder] = words[..] else {
        panic!("{told}");
    };
    let case = &CASES[case.parse::<usize>().unwrap()];
    let die = || std::process::abort();
    let saved = case.save_with(Path::new(folder), call.parse().unwrap(), die);
    panic!("it did not die: {saved:?}");
}

#[test]
fn a_process_that_dies_at_any_call_of_a_save_leaves_what_the_list_says() {
    const NAME: &str = "a_process_that_dies_at_any_call_of_a_save_leaves_what_the_list_says";
    if let Ok(told) = env::var(CHILD) {
        die_in_a_save(&told);
    }
    for (index, case) in CASES.iter().enumerate() {
        for call in 1..=case.calls {
            let what = format!("{}, killed at call {call} of {}", case.name, case.calls);
            let folder = tempfile::tempdir().unwrap();
            case.prepare(folder.path());
            let output = Command::new(env::current_exe().unwrap())
                .args(["--exact", NAME])
                .env(CHILD, format!("{index} {call} {}", folder.path().display()))
                .output()
                .unwrap();
            let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
            assert_eq!(signal, Some(6), "{what}: {output:?}");
            // A read-only store sees the same before the cleanup.
            let looked = CheckpointStore::look(folder.path())
                .newest::<String>()
                .unwrap();
            let looked = looked.map(|opened| (opened.step, opened.state));
            let expected = (case.expected)(call);
            let newest = expected.last();
            let newest = newest.map(|(step, state)| (*step, (*state).to_owned()));
            assert_eq!(looked, newest, "{what}");
            case.holds(folder.path(), &expected, &(case.aside)(call), &what);
        }
    }
}
