//! The tools that `make` calls, tested as far as possible without changing this machine.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::world::{World, stderr};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn test_tools(skip: &str, programs: Option<&Path>) -> Output {
    let mut command = Command::new("bash");
    command.arg(repository().join("tools/test-tools")).arg(skip);
    if let Some(programs) = programs {
        command.env("PATH", programs);
    }
    command.output().unwrap()
}

fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder with the programs that the script itself calls, an `id` that is not root, and none of the programs that
/// it looks for.
fn bare() -> TempDir {
    let folder = TempDir::new().unwrap();
    for name in ["bash", "echo", "find", "xargs"] {
        let found = ["/usr/bin", "/bin"].map(|place| Path::new(place).join(name));
        let found = found.iter().find(|path| path.exists()).unwrap();
        symlink(found, folder.path().join(name)).unwrap();
    }
    program(folder.path(), "id", "echo 1000");
    program(folder.path(), "apt-get", "echo apt-get was called");
    folder
}

#[test]
fn an_unknown_word_to_skip_is_refused_with_those_that_are_known() {
    let output = test_tools("browser,prometeus", None);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "test-tools: SKIP does not know 'prometeus': it knows browser, prometheus, text, torchrun\n"
    );
}

#[test]
fn what_is_missing_is_told_in_one_line_and_not_installed_by_a_user() {
    let folder = bare();
    let output = test_tools("", Some(folder.path()));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "{said}");
    let install =
        "run 'sudo apt-get install --no-install-recommends g++ python3 python3-pip procps";
    for expected in [install, "prometheus chromium chromium-driver"] {
        assert!(said.contains(expected), "{said}");
    }
    // No value of SKIP makes g++ unnecessary.
    assert!(!said.contains("SKIP"), "{said}");

    for name in ["g++", "python3", "kill", "setpriv"] {
        program(folder.path(), name, "exit 0");
    }
    let said = stderr(&test_tools("browser", Some(folder.path())));
    assert_eq!(
        said,
        "test-tools: missing: gcc prometheus; run 'sudo apt-get install --no-install-recommends gcc prometheus', \
         or leave out what needs them with 'make test SKIP=browser,torchrun,prometheus'\n"
    );
    let output = test_tools("prometheus,browser,torchrun", Some(folder.path()));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn every_world_is_a_configuration() {
    let mut names = Vec::new();
    for entry in fs::read_dir(repository().join("worlds")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() != Some(OsStr::new("toml")) {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // The same files as in worlds/run.
        let base = if name.starts_with("smollm2") {
            "worlds/smollm2.toml"
        } else {
            "config/compare-demo.toml"
        };
        let output = World::empty()
            .command(&["config", "show", base, path.to_str().unwrap()])
            .current_dir(repository())
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        let shown = String::from_utf8(output.stdout).unwrap();
        let run = if name == "smollm2" {
            "smollm2-14"
        } else {
            name.as_str()
        };
        assert!(
            shown.contains(&format!("name = \"world-{run}\"\n")),
            "{shown}"
        );
        names.push(name);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "demo",
            "one-large",
            "small-repeated",
            "smollm2",
            "smollm2-8",
            "uneven"
        ]
    );
}

#[test]
fn the_page_of_results_is_current() {
    let mut command = Command::new(repository().join("worlds/report"));
    let output = command.arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn the_report_of_the_worlds_claims_only_what_the_protocol_allows() {
    let ddk = World::empty().command(&[]);
    let output = Command::new("python3")
        .arg(repository().join("tests/worlds/report.py"))
        .arg(ddk.get_program())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("Ran 4 tests"),
        "{}",
        stderr(&output)
    );
}
