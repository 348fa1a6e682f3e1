//! The cache is shared with `huggingface_hub`, from the environment of `tools/python-env`, where torchrun is too.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{add_model, all, hub, noise, offline, server::Server};

fn python() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap()).join(".cache");
    let general = env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let cache = env::var_os("DDK_CACHE").map_or_else(|| general.join("ddk"), PathBuf::from);
    let program = cache.join("python/bin/python");
    assert!(
        program.exists(),
        "{} is missing: run tools/python-env",
        program.display()
    );
    program
}

/// Runs a program with a cache, and returns what it prints.
fn run(program: &str, server: &Server, cache: &Path, is_offline: bool) -> String {
    let mut command = Command::new(python());
    command
        .args(["-c", program])
        .env("HF_ENDPOINT", server.endpoint())
        .env("HF_HUB_CACHE", cache);
    command
        .env("HF_HUB_OFFLINE", if is_offline { "1" } else { "0" })
        .env("HF_HUB_DISABLE_XET", "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn huggingface_hub_finds_what_ddk_downloaded() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let weights = noise(200_000, 30);
    add_model(&server, "org/small", &weights);
    let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    server.seen();
    let program = "
import os
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
path = hf_hub_download('org/small', 'model.safetensors')
info = scan_cache_dir()
assert not info.warnings, info.warnings
[repository] = info.repos
[revision] = repository.revisions
assert revision.refs == {'main'}, revision.refs
print(os.path.dirname(path), snapshot_download('org/small'), revision.commit_hash, revision.size_on_disk)";
    let folder = found.folder.display();
    let size = 200_000 + 2 + 18 + 19;
    let expected = format!("{folder} {folder} {} {size}", found.revision);
    assert_eq!(run(program, &server, cache.path(), true), expected);
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn ddk_finds_what_huggingface_hub_downloaded() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let commit = add_model(&server, "org/small", &noise(200_000, 31));
    let program = "
from huggingface_hub import hf_hub_download
for file in ['config.json', 'tokenizer.json', 'model.safetensors']:
    print(hf_hub_download('org/small', file))";
    run(program, &server, cache.path(), false);
    assert!(!server.seen().is_empty());
    let found = all(&offline(&server, cache.path()), "org/small", None).unwrap();
    assert_eq!(found.revision, commit);
    // Without a list of the repository, and with a connection too.
    assert_eq!(
        all(&hub(&server, cache.path()), "org/small", None).unwrap(),
        found
    );
    assert_eq!(server.seen().len(), 0);
}
