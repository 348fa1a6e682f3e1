//! Kills a process at each of its file operations in turn, and checks the order in which it makes files durable.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;

use crate::{LabelSet, Provenance, Put, writer::Sizes};

/// Environment variables of a child: the folder to work in, and the operation before which it dies.
const FOLDER: &str = "DDK_TEST_CRASH_FOLDER";
const CRASH_AT: &str = "DDK_TEST_CRASH_AT";

const LABELS: u8 = 14;
/// Three labels to a flush, about five to a segment.
const SIZES: Sizes = Sizes {
    segment: 2000,
    flush_bytes: 1600,
    flush_labels: 3,
};

thread_local! {
    static LOG: RefCell<Vec<(&'static str, PathBuf)>> = const { RefCell::new(Vec::new()) };
}

/// Runs before every operation that changes the disk ([`ddk_files::set_hook`]).
fn step(operation: &'static str, path: &Path) {
    static DONE: AtomicU64 = AtomicU64::new(0);
    LOG.with_borrow_mut(|log| log.push((operation, path.to_owned())));
    if let Ok(crash_at) = std::env::var(CRASH_AT)
        && DONE.fetch_add(1, Ordering::Relaxed).to_string() == crash_at
    {
        kill_process(getpid(), Signal::KILL).unwrap();
    }
}

fn open(folder: &Path) -> LabelSet {
    let provenance = Provenance::new([("teacher", "a".to_owned())]);
    let set = LabelSet::open(&folder.join("cache"), "set", &provenance, Some(1 << 20));
    set.unwrap().with_sizes(SIZES)
}

fn label(number: u8) -> Vec<u8> {
    vec![number; usize::from(number) * 60]
}

/// Stores all labels and a record. Notes in a file how many labels it has flushed itself.
fn fill(folder: &Path) {
    ddk_files::set_hook(step);
    let set = open(folder);
    for number in 0..LABELS {
        set.put(&[number; 32], &label(number)).unwrap();
        if number % 7 == 5 {
            set.flush().unwrap();
            fs::write(folder.join("flushed"), [number + 1]).unwrap();
            set.keep_record("perplexities", &json!({ "flushed": number, "web": 7.25 }))
                .unwrap();
        }
    }
}

/// The test below runs this as a child.
#[test]
fn child_that_fills() {
    if let Ok(folder) = std::env::var(FOLDER) {
        fill(Path::new(&folder));
    }
}

#[test]
fn a_process_that_dies_at_any_operation_leaves_whole_labels_and_the_next_one_adds_the_rest() {
    let mut deaths = 0;
    for crash_at in 0.. {
        let place = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_tests::child_that_fills"])
            .env(FOLDER, place.path())
            .env(CRASH_AT, crash_at.to_string())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let flushed = fs::read(place.path().join("flushed")).map_or(0, |bytes| bytes[0]);
        let set = open(place.path());
        for number in 0..LABELS {
            let id = [number; 32];
            let found = set.get(&id).unwrap();
            assert!(
                found.is_some() || number >= flushed,
                "operation {crash_at}: {number}"
            );
            assert!(
                found.is_none_or(|found| found == label(number)),
                "operation {crash_at}: {number}"
            );
        }
        let record = set.record("perplexities").unwrap();
        assert!(record.is_some() || flushed <= 6, "operation {crash_at}");
        assert!(record.is_none_or(|record| record["web"] == json!(7.25)));
        fill(place.path());
        // The set that was open before finds what the other one has added.
        for set in [set, open(place.path())] {
            for number in 0..LABELS {
                assert_eq!(
                    set.get(&[number; 32]).unwrap(),
                    Some(label(number)),
                    "operation {crash_at}"
                );
            }
            assert_eq!(set.stats().labels, u64::from(LABELS));
            assert_eq!(
                set.record("perplexities").unwrap().unwrap()["flushed"],
                json!(12)
            );
            assert_eq!(set.take_reports(), [], "operation {crash_at}");
        }
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "operation {crash_at}");
        deaths += 1;
    }
    assert!(deaths > 50, "{deaths} operations");
}

#[test]
fn labels_are_durable_before_the_index_names_them_and_segments_end() {
    let place = tempfile::tempdir().unwrap();
    LOG.take();
    fill(place.path());
    let (mut unsynced, mut begun, mut named) = (BTreeSet::new(), BTreeSet::new(), false);
    for (operation, path) in LOG.take() {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match (operation, extension) {
            ("create", Some("seg")) => named = false,
            ("append", Some("seg")) => drop(unsynced.insert(path)),
            ("sync", Some("seg")) => drop(unsynced.remove(&path)),
            ("sync folder", None) => named = true,
            // The first append is the header.
            ("append", Some("idx")) if !begun.insert(path.clone()) => {
                assert!(named && unsynced.is_empty(), "{path:?}");
            }
            _ => {}
        }
    }
    let segments = begun.len();
    assert!(segments >= 3, "{segments} segments");
    let open = open(place.path());
    assert_eq!(open.put(&[0; 32], b"another").unwrap(), Put::AlreadyThere);
}
