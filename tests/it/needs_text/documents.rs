//! The demo's text is the same on every machine.

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::read::MultiGzDecoder;
use tempfile::TempDir;

use crate::{
    demo_text::{configuration, demo},
    world::{Started, copy},
};

/// Where `tools/demo-text/fetch` keeps the documents.
fn documents() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("DDK_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let of_user = set("XDG_CACHE_HOME").map(PathBuf::from);
        let of_user = of_user.unwrap_or_else(|| Path::new(&set("HOME").unwrap()).join(".cache"));
        of_user.join("ddk")
    });
    cache.join("demo-text")
}

fn unpacked(path: &Path) -> String {
    let mut text = String::new();
    let file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_text_is_what_the_committed_hashes_say_whatever_the_seed() {
    let expected = include_str!("../../../tools/demo-text/expected.toml");
    let expected: toml::Table = toml::from_str(expected).unwrap();
    assert_eq!(expected.len(), 5);
    for seed in ["0", "7"] {
        let folder = TempDir::new().unwrap();
        configuration(folder.path());
        let mut command = demo(folder.path());
        command.args(["--set", &format!("run.seed={seed}")]);
        let run = Started::of(command, |line| line.starts_with("[2/5"));
        run.signal("KILL");
        run.wait();
        for (domain, expected) in &expected {
            let file = folder
                .path()
                .join(format!("data/demo/sources/{domain}.jsonl"));
            let found = blake3::hash(&fs::read(file).unwrap()).to_hex();
            assert_eq!(
                Some(found.as_str()),
                expected["blake3"].as_str(),
                "{domain}"
            );
        }
    }
}

#[test]
fn the_documents_depend_on_their_own_lock_file_alone() {
    let clone = TempDir::new().unwrap();
    let tools = clone.path().join("tools/demo-text");
    copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/demo-text"),
        &tools,
    );
    // Surround it with a workspace whose packages do not resolve.
    fs::write(
        clone.path().join("Cargo.toml"),
        "[package]\nname = \"other\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[lib]\npath = \"other.rs\"\n\
         [dependencies]\nserde = \"=999\"\n",
    )
    .unwrap();
    fs::write(clone.path().join("Cargo.lock"), "not a lock file").unwrap();
    let output = Command::new("python3")
        .arg(tools.join("collect.py"))
        .arg("packages")
        .arg(clone.path())
        .current_dir(clone.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for domain in ["data", "prose", "rust"] {
        let name = format!("{domain}.jsonl.gz");
        let made = unpacked(&clone.path().join(&name));
        assert!(made.lines().count() > 500, "{domain}");
        assert!(made == unpacked(&documents().join(&name)), "{domain}");
    }
}
