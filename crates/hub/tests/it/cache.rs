//! What a download leaves in the cache, and what a cache spares.

use std::{fs, path::Path};

use ddk_hub::{HubError, Parts};

use crate::{
    add_model, all, data, hub, model_name, noise, offline,
    server::{Seen, Server, git_hash, sha256},
    transfers,
};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The files that were asked for, by their names.
fn files_of(seen: &[Seen]) -> Vec<&str> {
    let gets = seen
        .iter()
        .filter(|seen| !seen.is_storage && seen.path.contains("/resolve/"));
    gets.map(|seen| seen.path.rsplit('/').next().unwrap())
        .collect()
}

#[test]
fn a_model_arrives_in_the_standard_layout_and_is_asked_for_once() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let weights = noise(3_000_000, 1);
    let commit = add_model(&server, "org/small", &weights);
    let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    assert_eq!(found.revision, commit);
    let own = cache.path().join("models--org--small");
    assert_eq!(found.folder, own.join("snapshots").join(&commit));
    assert_eq!(
        names(&found.folder),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json"
        ]
    );
    assert_eq!(
        fs::read(found.folder.join("model.safetensors")).unwrap(),
        weights
    );
    assert_eq!(fs::read_to_string(own.join("refs/main")).unwrap(), commit);
    let link = fs::read_link(found.folder.join("config.json")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(git_hash(b"{}")));
    let link = fs::read_link(found.folder.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(&weights)));
    assert_eq!(names(&own.join("blobs")).len(), 4);
    let seen = server.seen();
    let files = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "model.safetensors",
    ];
    assert_eq!(files_of(&seen), files);
    // Later, nobody asks the server, whether the commit is given or not.
    assert_eq!(
        all(&hub(&server, cache.path()), "org/small", None).unwrap(),
        found
    );
    assert_eq!(
        all(&hub(&server, cache.path()), "org/small", Some(&commit)).unwrap(),
        found
    );
    assert_eq!(
        all(&offline(&server, cache.path()), "org/small", None).unwrap(),
        found
    );
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn progress_counts_every_byte_of_what_is_missing() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    add_model(&server, "org/small", &noise(1_000_000, 2));
    let told = transfers(&hub(&server, cache.path()), "org/small");
    let last = told.last().unwrap();
    assert_eq!(
        *last,
        (
            "model.safetensors".to_owned(),
            1_000_000,
            1_000_000,
            1_000_000,
            1_000_000
        )
    );
    let of_weights = told.iter().filter(|told| told.0 == "model.safetensors");
    let of_weights: Vec<u64> = of_weights.map(|told| told.3).collect();
    assert!(of_weights.len() > 3 && of_weights.is_sorted());
    // The small files come first, with their own total.
    let small = told.iter().find(|told| told.0 == "tokenizer.json").unwrap();
    assert_eq!(small.4, 2 + 18 + 19);
}

#[test]
fn a_pinned_commit_stays_when_the_branch_moves() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let old = add_model(&server, "org/small", b"old");
    let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    let new = add_model(&server, "org/small", b"new");
    assert_ne!(old, new);
    // A complete revision in the cache is used as it is.
    assert_eq!(
        all(&hub(&server, cache.path()), "org/small", None).unwrap(),
        found
    );
    // Another program moves the branch.
    fs::write(cache.path().join("models--org--small/refs/main"), &new).unwrap();
    assert_eq!(
        all(&hub(&server, cache.path()), "org/small", Some(&old)).unwrap(),
        found
    );
    let moved = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    assert_eq!(moved.revision, new);
    assert_eq!(
        fs::read(moved.folder.join("model.safetensors")).unwrap(),
        b"new"
    );
    // On another machine, the pinned commit is downloaded, and the branch is left alone.
    let other = tempfile::tempdir().unwrap();
    let pinned = all(&hub(&server, other.path()), "org/small", Some(&old)).unwrap();
    assert_eq!(
        fs::read(pinned.folder.join("model.safetensors")).unwrap(),
        b"old"
    );
    let by_commit = all(
        &hub(&server, other.path()),
        &format!("org/small@{old}"),
        None,
    )
    .unwrap();
    assert_eq!(by_commit, pinned);
}

#[test]
fn one_process_never_uses_two_commits_of_a_branch() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let old = server.commit(
        "datasets",
        "org/d",
        "main",
        &[("a.jsonl", b"1"), ("b.jsonl", b"2")],
    );
    let hub = hub(&server, cache.path());
    assert_eq!(
        data(&hub, "hf://datasets/org/d/a.jsonl").unwrap().revision,
        old
    );
    server.commit(
        "datasets",
        "org/d",
        "main",
        &[("a.jsonl", b"3"), ("b.jsonl", b"4")],
    );
    let found = data(&hub, "hf://datasets/org/d/b.jsonl").unwrap();
    assert_eq!(
        (&found.revision, fs::read(&found.files[0]).unwrap()),
        (&old, b"2".to_vec())
    );
}

#[test]
fn a_cache_of_another_program_is_used_if_it_is_complete() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let commit = add_model(&server, "org/small", b"weights");
    // As transformers leaves it: no list of the repository's files.
    let own = cache.path().join("models--org--small");
    let snapshot = own.join("snapshots").join(&commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(own.join("refs")).unwrap();
    fs::write(own.join("refs/main"), &commit).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::write(snapshot.join(file), "{}").unwrap();
    }
    let refused = all(&offline(&server, cache.path()), "org/small", None).unwrap_err();
    assert!(matches!(refused, HubError::Offline { .. }), "{refused}");
    fs::write(snapshot.join("model.safetensors"), "weights").unwrap();
    let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    assert_eq!((found.folder, server.seen().len()), (snapshot, 0));
}

#[test]
fn a_served_teacher_needs_only_the_shard_with_its_head() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let index = br#"{"weight_map": {"model.layers.0.w": "1.safetensors", "lm_head.weight": "2.safetensors"}}"#;
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{\"vocab_size\": 7}"),
        ("tokenizer.json", b"{}"),
        ("1.safetensors", b"layers"),
        ("2.safetensors", b"head"),
        ("model.safetensors.index.json", index),
    ];
    server.commit("models", "org/large", "main", &files);
    let head = |folder: &Path| -> Option<ddk_hub::IsWanted> {
        // The choice may depend on the configuration, which is here by now.
        assert_eq!(
            fs::read(folder.join("config.json")).unwrap(),
            b"{\"vocab_size\": 7}"
        );
        Some(Box::new(|tensor| tensor == "lm_head.weight"))
    };
    let name = model_name("org/large");
    let of = |parts: &Parts<'_>| {
        hub(&server, cache.path())
            .model(&name, None, parts, &mut |_| {})
            .unwrap()
    };
    of(&Parts::Tensors(&|_| None));
    server.seen();
    let found = of(&Parts::Tensors(&head));
    assert_eq!(files_of(&server.seen()), ["2.safetensors"]);
    assert!(!found.folder.join("1.safetensors").exists());
    of(&Parts::Tensors(&head));
    assert_eq!(server.seen().len(), 0);
    of(&Parts::All);
    assert_eq!(files_of(&server.seen()), ["1.safetensors"]);
}

#[test]
fn a_data_set_is_chosen_by_its_path() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let files: [(&str, &[u8]); 5] = [
        ("README.md", b"words"),
        ("math/train-0.parquet", b"0"),
        ("math/test-0.parquet", b"1"),
        ("code/a b.jsonl", b"{}"),
        ("code/c.jsonl", b"{\"text\": 1}"),
    ];
    let commit = server.commit("datasets", "org/texts", "refs/convert/parquet", &files);
    let of = |path: &str| {
        let name = format!("hf://datasets/org/texts@refs/convert/parquet{path}");
        let found = data(&hub(&server, cache.path()), &name).unwrap();
        assert_eq!(found.revision, commit);
        let inside = |file: &std::path::PathBuf| {
            assert!(file.is_file());
            file.strip_prefix(&found.folder)
                .unwrap()
                .display()
                .to_string()
        };
        found.files.iter().map(inside).collect::<Vec<_>>()
    };
    assert_eq!(of("/code"), ["code/a b.jsonl", "code/c.jsonl"]);
    assert_eq!(of("/math"), ["math/train-0.parquet"]);
    assert_eq!(of("/**/test*"), ["math/test-0.parquet"]);
    server.seen();
    assert_eq!(of("/code/*.jsonl"), ["code/a b.jsonl", "code/c.jsonl"]);
    assert_eq!(server.seen().len(), 0);
    let name = "hf://datasets/org/texts@refs/convert/parquet";
    assert_eq!(
        data(&offline(&server, cache.path()), &format!("{name}/code"))
            .unwrap()
            .files
            .len(),
        2
    );
    let error = data(&hub(&server, cache.path()), &format!("{name}/x/*"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no file that matches x/*") && error.contains("code/c.jsonl"),
        "{error}"
    );
}

#[test]
fn two_clients_download_a_file_once() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    add_model(&server, "org/small", &noise(2_000_000, 3));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| all(&hub(&server, cache.path()), "org/small", None).unwrap());
        }
    });
    let seen = server.seen();
    assert_eq!(seen.iter().filter(|seen| seen.is_storage).count(), 1);
    // Each asks for the commit, and one of them for each file.
    assert_eq!(files_of(&seen).len(), 4);
}

#[test]
fn a_mirror_without_hashes_in_its_list_is_asked_for_each_file() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    server.hide_hashes();
    let weights = noise(500_000, 4);
    add_model(&server, "org/small", &weights);
    let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    let link = fs::read_link(found.folder.join("model.safetensors")).unwrap();
    assert!(link.ends_with(sha256(&weights)));
    assert_eq!(
        server
            .seen()
            .iter()
            .filter(|seen| seen.method == "HEAD")
            .count(),
        4
    );
    all(&hub(&server, cache.path()), "org/small", None).unwrap();
    assert_eq!(server.seen().len(), 0);
}
