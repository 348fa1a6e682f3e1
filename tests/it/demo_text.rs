//! The demo refuses text that is not its own.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output},
};

use flate2::{Compression, write::GzEncoder};
use tempfile::TempDir;

use crate::world::stderr;

/// Writes the shipped configuration to `demo.toml` in the folder, with all its paths inside that folder.
pub fn configuration(folder: &Path) {
    let shipped = include_str!("../../config/demo.toml");
    let data = format!("\"{}/data/demo/", folder.display());
    fs::write(
        folder.join("demo.toml"),
        shipped.replace("\"data/demo/", &data),
    )
    .unwrap();
}

/// `ddk demo` on the folder's configuration.
pub fn demo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ddk"));
    command
        .args(["demo", "--config"])
        .arg(folder.join("demo.toml"))
        .current_dir(folder)
        .env_remove("RUST_LOG");
    command
}

fn refuses(output: &Output, expected: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for expected in expected {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
}

/// A cache folder with one document per domain.
fn cache_of(folder: &Path) {
    let documents = folder.join("demo-text");
    fs::create_dir_all(&documents).unwrap();
    for domain in ["cpp", "data", "prose", "python", "rust"] {
        let file = fs::File::create(documents.join(format!("{domain}.jsonl.gz"))).unwrap();
        let mut packed = GzEncoder::new(file, Compression::fast());
        writeln!(
            packed,
            "{{\"source\": \"one\", \"text\": \"A document.\\n\"}}"
        )
        .unwrap();
        packed.finish().unwrap();
    }
}

#[test]
fn documents_that_are_missing_are_named_with_what_fetches_them() {
    let folder = TempDir::new().unwrap();
    configuration(folder.path());
    let cache = folder.path().join("cache");
    let output = demo(folder.path())
        .env("DDK_CACHE", &cache)
        .output()
        .unwrap();
    refuses(
        &output,
        &[
            "cannot read the documents for the domain `cpp`",
            &cache.join("demo-text/cpp.jsonl.gz").display().to_string(),
            "hint: run `make demo-text`",
        ],
    );
}

#[test]
fn documents_that_give_another_text_are_refused() {
    let folder = TempDir::new().unwrap();
    configuration(folder.path());
    cache_of(&folder.path().join("cache"));
    let mut command = demo(folder.path());
    command.env("DDK_CACHE", folder.path().join("cache"));
    refuses(
        &command.output().unwrap(),
        &[
            "do not produce this version's demo text",
            "\n  cpp: ",
            "\n  rust: ",
            "hint: remove",
            "make demo-text",
        ],
    );
    assert!(!folder.path().join("data/demo/sources/cpp.jsonl").exists());
}

#[test]
fn text_of_an_earlier_version_is_refused_and_kept() {
    let folder = TempDir::new().unwrap();
    configuration(folder.path());
    let sources = folder.path().join("data/demo/sources");
    fs::create_dir_all(&sources).unwrap();
    let old = sources.join("prose.jsonl");
    fs::write(&old, "{\"text\": \"old\"}\n").unwrap();
    let mut compare = Command::new(env!("CARGO_BIN_EXE_ddk"));
    compare
        .args(["compare", "demo.toml", "--methods", "kd", "--seeds", "1"])
        .current_dir(folder.path());
    for mut command in [demo(folder.path()), compare] {
        refuses(
            &command.output().unwrap(),
            &[
                &format!("{} is not this version's demo text", old.display()),
                "hint: an earlier version wrote it, or it was edited: move",
            ],
        );
    }
    assert_eq!(fs::read_to_string(&old).unwrap(), "{\"text\": \"old\"}\n");
    // With a custom size limit there is no reference text to compare with, so DDK uses the existing text.
    let mut own = demo(folder.path());
    own.args(["--set", "domains.prose.max_bytes=1000"])
        .env("DDK_CACHE", folder.path().join("cache"));
    refuses(
        &own.output().unwrap(),
        &["cannot read the documents for the domain `cpp`"],
    );
}
