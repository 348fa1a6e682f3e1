//! Ends a preparation at each of its file operations in turn, and checks the order in which it makes files durable.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    DomainSource, FileFormat, Limits, Packing, PrepareOptions, Template, TokenizerFolder,
    ValidationSplit, manifest::Manifest, prepare, train_tokenizer,
};

/// Environment variables of a child: the folder to work in, and the operation before which it exits.
const FOLDER: &str = "DDK_TEST_CRASH_FOLDER";
const CRASH_AT: &str = "DDK_TEST_CRASH_AT";
/// Environment variable of a child that prepares domains that are read together.
const TOGETHER: &str = "DDK_TEST_CRASH_TOGETHER";
const CRASHED: i32 = 86;

thread_local! {
    static LOG: RefCell<Vec<(&'static str, PathBuf)>> = const { RefCell::new(Vec::new()) };
}

/// Runs before every file operation ([`ddk_files::set_hook`]).
fn step(operation: &'static str, path: &Path) {
    static DONE: AtomicU64 = AtomicU64::new(0);
    LOG.with_borrow_mut(|log| log.push((operation, path.to_owned())));
    // Appended bytes stay in a buffer, so it is enough to exit at the operations around an append.
    if operation != "append"
        && let Ok(crash_at) = std::env::var(CRASH_AT)
        && DONE.fetch_add(1, Ordering::Relaxed).to_string() == crash_at
    {
        // As with a kill, no destructor runs and no buffer is flushed.
        std::process::exit(CRASHED);
    }
}

fn text(number: u64) -> String {
    format!(
        "document {number}: {}",
        "river stone cloud ember ".repeat(3)
    )
}

/// The kinds of records, in turn.
const KINDS: [&str; 2] = ["even", "odd"];

fn make_place(folder: &Path) {
    let record = |number: u64| serde_json::json!({ "text": text(number), "kind": KINDS[number as usize % 2] });
    let records: String = (0..60)
        .map(|number| format!("{}\n", record(number)))
        .collect();
    fs::write(folder.join("records.jsonl"), records).unwrap();
    train_tokenizer((0..60).map(text), 300, &folder.join("tokenizer")).unwrap();
}

fn options(place: &Path, folder: PathBuf, tokens: Option<u64>) -> PrepareOptions {
    PrepareOptions {
        folder,
        domains: vec![DomainSource {
            name: "records".to_owned(),
            files: vec![place.join("records.jsonl").to_string_lossy().into_owned()],
            validation_files: Vec::new(),
            format: Some(FileFormat::Jsonl),
            text: Template::field("text"),
            prompt: None,
            chat: None,
            tokens: None,
            only: None,
            limits: Limits {
                tokens,
                ..Limits::default()
            },
        }],
        packing: Packing::Concat,
        sequence_length: 16,
        seed: 3,
        validation_split: ValidationSplit::Count,
        validation_fraction: 0.1,
        validation_documents: 5,
        max_bad_fraction: 0.01,
        batch_bytes: 2000,
        documents_in_memory: 16,
    }
}

/// Options for domains that a field tells apart. They are read together.
fn options_together(place: &Path, folder: PathBuf) -> PrepareOptions {
    let mut options = options(place, folder, None);
    let all = options.domains.remove(0);
    options.domains = KINDS
        .map(|kind| DomainSource {
            name: kind.to_owned(),
            only: Some(("kind".to_owned(), kind.to_owned())),
            ..all.clone()
        })
        .to_vec();
    // One of them draws its documents, which takes another temporary file.
    options.domains[0].limits.documents = Some(20);
    options
}

fn make(options: &PrepareOptions, place: &Path) {
    ddk_files::set_hook(step);
    let tokenizer = TokenizerFolder::open(&place.join("tokenizer"), None).unwrap();
    prepare(options, &tokenizer, false, &mut |_| ()).unwrap();
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in contents(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// The test below runs this as a child.
#[test]
fn child_that_prepares() {
    if let Ok(place) = std::env::var(FOLDER) {
        let place = Path::new(&place);
        let folder = place.join("prepared");
        if std::env::var(TOGETHER).is_ok() {
            make(&options_together(place, folder), place);
        } else {
            make(&options(place, folder, Some(900)), place);
        }
    }
}

#[test]
fn domains_read_together_resume_to_the_same_bytes_after_an_end_at_any_operation() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    make_place(place);
    let (whole, prepared) = (place.join("whole"), place.join("prepared"));
    make(&options_together(place, whole.clone()), place);
    let names = |folder: &Path| -> BTreeSet<_> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(
        names(&whole),
        [".lock", "even", "odd"].map(Into::into).into()
    );
    for crash_at in 0.. {
        let _ = fs::remove_dir_all(&prepared);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_tests::child_that_prepares"])
            .env(FOLDER, place)
            .env(CRASH_AT, crash_at.to_string())
            .env(TOGETHER, "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        if status.success() {
            assert!(crash_at > 60, "{crash_at} operations");
            break;
        }
        assert_eq!(status.code(), Some(CRASHED), "operation {crash_at}");
        make(&options_together(place, prepared.clone()), place);
        for kind in KINDS {
            let same = contents(&prepared.join(kind)) == contents(&whole.join(kind));
            assert!(same, "operation {crash_at}: {kind}");
        }
        assert_eq!(names(&prepared), names(&whole), "operation {crash_at}");
    }
}

#[test]
fn a_preparation_that_ends_at_any_operation_leaves_a_whole_domain_and_resumes_to_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    make_place(place);
    let (old, new) = (place.join("old"), place.join("new"));
    make(&options(place, old.clone(), None), place);
    make(&options(place, new.clone(), Some(900)), place);
    let (old, expected) = (old.join("records"), contents(&new.join("records")));
    assert!(contents(&old) != expected);
    for replaces in [false, true] {
        let mut crashes = 0;
        for crash_at in 0.. {
            let prepared = place.join("prepared");
            let _ = fs::remove_dir_all(&prepared);
            if replaces {
                copy(&old, &prepared.join("records"));
            }
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "crash_tests::child_that_prepares"])
                .env(FOLDER, place)
                .env(CRASH_AT, crash_at.to_string())
                .stdout(std::process::Stdio::null())
                .status()
                .unwrap();
            if replaces {
                let is_whole = |name: &str| {
                    let folder = prepared.join(name);
                    folder.exists() && Manifest::read(&folder).unwrap().is_some()
                };
                assert!(
                    is_whole("records") || (is_whole(".records.old") && is_whole(".records.tmp")),
                    "operation {crash_at} left neither the old nor the new domain in reach"
                );
            }
            if status.success() {
                break;
            }
            assert_eq!(status.code(), Some(CRASHED), "operation {crash_at}");
            crashes += 1;
            make(&options(place, prepared.clone(), Some(900)), place);
            assert!(
                contents(&prepared.join("records")) == expected,
                "operation {crash_at}"
            );
            let left: BTreeSet<_> = fs::read_dir(&prepared)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(
                left.iter().map(String::as_str).collect::<Vec<_>>(),
                [".lock", "records"],
                "operation {crash_at}"
            );
        }
        assert!(crashes > 30, "{crashes} operations");
    }
}

#[test]
fn a_folder_that_was_finished_and_not_put_into_its_place_is_not_made_again() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    make_place(place);
    let options = options(place, place.join("prepared"), None);
    make(&options, place);
    let (folder, temporary) = (
        place.join("prepared/records"),
        place.join("prepared/.records.tmp"),
    );
    fs::rename(&folder, &temporary).unwrap();
    LOG.take();
    make(&options, place);
    assert!(folder.exists() && !temporary.exists());
    assert!(
        LOG.take()
            .iter()
            .all(|(_, path)| !path.ends_with("tokens.bin"))
    );
}

#[test]
fn everything_is_durable_before_it_is_renamed_into_its_place() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    make_place(place);
    LOG.take();
    make(&options(place, place.join("prepared"), None), place);
    let mut unsynced: BTreeSet<PathBuf> = BTreeSet::new();
    let mut renamed = Vec::new();
    let log = LOG.take();
    for (operation, path) in &log {
        match *operation {
            "open" | "append" | "write" => drop(unsynced.insert(path.clone())),
            "sync" => drop(unsynced.remove(path)),
            "rename" => {
                assert!(unsynced.is_empty(), "{unsynced:?} before {path:?}");
                renamed.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
            _ => {}
        }
    }
    for name in [
        "progress.json",
        "quarantine.jsonl",
        "checksums.bin",
        "manifest.json",
        "records",
        "rows-concat-16.bin",
    ] {
        assert!(renamed.iter().any(|renamed| renamed == name), "{name}");
    }
    // The names must be durable too: those of the files before the folder is renamed, then that of the folder.
    let place_of = |operation: &str, path: &str| {
        let path = place.join(path);
        log.iter()
            .position(|step| *step == (operation, path.clone()))
    };
    let published = place_of("rename", "prepared/records");
    assert!(place_of("sync folder", "prepared/.records.tmp") < published);
    assert!(published < place_of("sync folder", "prepared"));
}
