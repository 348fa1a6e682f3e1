//! Tests failed saves and damaged checkpoints.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, io, path::Path};

use ddk_run::{CheckpointStore, Retention, SnapshotFile};

fn file(name: &str, contents: &'static [u8]) -> SnapshotFile {
    SnapshotFile::new(name, move |out| out.write_all(contents))
}

fn save(store: &CheckpointStore, step: u64) {
    let files = vec![
        file("weights.safetensors", b"some weights"),
        file("moments.safetensors", b"moments"),
    ];
    store
        .save(step, &format!("state of {step}"), files, || Ok(()))
        .unwrap();
}

fn newest(store: &CheckpointStore) -> (u64, String, Vec<u64>) {
    let opened = store.newest::<String>().unwrap().unwrap();
    let skipped = opened.skipped.iter().map(|entry| entry.step).collect();
    (opened.step, opened.state, skipped)
}

#[test]
fn the_newest_is_opened_and_old_ones_go() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(folder.path(), Retention::last(2)).unwrap();
    assert!(store.newest::<String>().unwrap().is_none());
    for step in [10, 20, 30] {
        save(&store, step);
    }
    assert_eq!(newest(&store), (30, "state of 30".to_owned(), vec![]));
    let steps: Vec<u64> = store
        .list()
        .unwrap()
        .iter()
        .map(|entry| entry.step)
        .collect();
    assert_eq!(steps, [20, 30]);
    let names = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 2, "nothing but the checkpoints");
}

#[test]
fn any_damage_to_the_newest_falls_back_to_the_one_before_and_says_why() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("checksum", |newest| {
            let path = newest.join("weights.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            bytes[3] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("expected", |newest| {
            fs::write(newest.join("moments.safetensors"), b"mo").unwrap()
        }),
        ("moments.safetensors", |newest| {
            fs::remove_file(newest.join("moments.safetensors")).unwrap()
        }),
        ("manifest.json", |newest| {
            fs::remove_file(newest.join("manifest.json")).unwrap()
        }),
        ("state.json", |newest| {
            fs::write(newest.join("state.json"), b"\"state of 21\"").unwrap()
        }),
    ];
    for (said, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(folder.path(), Retention::last(3)).unwrap();
        save(&store, 10);
        save(&store, 20);
        damage(&folder.path().join("step-00000020"));
        let opened = store.newest::<String>().unwrap().unwrap();
        assert_eq!((opened.step, opened.state.as_str()), (10, "state of 10"));
        let reason = opened.skipped[0].status.clone().unwrap_err();
        assert!(reason.contains(said), "{reason}");
    }
}

#[test]
fn where_none_verifies_the_run_does_not_begin_again_silently() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(folder.path(), Retention::last(3)).unwrap();
    save(&store, 10);
    fs::remove_file(folder.path().join("step-00000010/weights.safetensors")).unwrap();
    let error = store.newest::<String>().unwrap_err().to_string();
    assert!(
        error.contains("step-00000010: weights.safetensors"),
        "{error}"
    );
}

#[test]
fn a_disk_that_fills_in_a_save_leaves_the_ones_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(folder.path(), Retention::last(1)).unwrap();
    save(&store, 10);
    let full = SnapshotFile {
        name: "weights.safetensors".to_owned(),
        write: Box::new(|out| {
            out.write_all(&[0; 4096])?;
            // `/dev/full` returns the error of a full disk.
            fs::write("/dev/full", [0; 4096]).map(|()| unreachable!("/dev/full took a write"))
        }),
    };
    let error = store.save(20, &"state", vec![full], || Ok(())).unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(
        source.downcast_ref::<io::Error>().unwrap().kind(),
        io::ErrorKind::StorageFull
    );
    assert!(error.to_string().contains("weights.safetensors"));
    assert_eq!(newest(&store).0, 10);
    // If the journal cannot be made durable, there must be no manifest either.
    let unsynced = || {
        Ok(ddk_files::write_atomically(
            Path::new("/dev/null/journal"),
            b"",
        )?)
    };
    store.save(20, &"state", vec![], unsynced).unwrap_err();
    assert_eq!(newest(&store).0, 10);
    let names = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 1, "step-00000010, nothing temporary");
}

#[test]
fn what_a_killed_save_left_is_removed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(folder.path(), Retention::last(1)).unwrap();
    save(&store, 10);
    let left = folder.path().join(".step-00000020.tmp");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("weights.safetensors"), b"half").unwrap();
    let store = CheckpointStore::open(folder.path(), Retention::last(1)).unwrap();
    assert!(!left.exists());
    assert_eq!(newest(&store).0, 10);
}

/// A folder of an earlier version that also has the leftovers of a kill between two renames.
#[test]
fn opening_a_folder_puts_back_what_was_replaced_and_removes_what_is_no_longer_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::open(folder.path(), Retention::last(3)).unwrap();
    save(&store, 10);
    save(&store, 20);
    fs::write(folder.path().join("latest"), "step-00000020").unwrap();
    let replaced = folder.path().join(".step-00000020.old");
    fs::rename(folder.path().join("step-00000020"), &replaced).unwrap();
    // A read-only store finds the checkpoint and changes nothing.
    let seen = CheckpointStore::look(folder.path());
    assert_eq!(newest(&seen).0, 20);
    assert_eq!(seen.entry(20).path, replaced);
    let store = CheckpointStore::open(folder.path(), Retention::last(3)).unwrap();
    assert_eq!(newest(&store), (20, "state of 20".to_owned(), vec![]));
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["step-00000010", "step-00000020"]);
}

/// A save keeps as many set-aside checkpoints as others, the most recently written ones.
#[test]
fn what_is_set_aside_does_not_pile_up() {
    let folder = tempfile::tempdir().unwrap();
    let keep = |last| CheckpointStore::open(folder.path(), Retention::last(last)).unwrap();
    for round in 0..4 {
        let store = keep(9);
        save(&store, 10);
        save(&store, 20 + round);
        save(&store, 30);
        store.set_aside_after(10).unwrap();
    }
    let aside = || {
        let names = fs::read_dir(folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut aside: Vec<_> = names.filter(|name| name.starts_with("aside-")).collect();
        aside.sort();
        aside
    };
    assert_eq!(aside().len(), 8);
    let report = keep(3).save(11, &"state", vec![], || Ok(())).unwrap();
    assert!(report.not_removed.is_none());
    let expected = [
        "aside-step-00000023",
        "aside-step-00000030-3",
        "aside-step-00000030-4",
    ];
    assert_eq!(aside(), expected);
}
