//! The tools that `make` calls, tested as far as possible without changing this machine.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::world::stderr;

fn test_tools(skip: &str, programs: Option<&Path>) -> Output {
    let mut command = Command::new("bash");
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/test-tools"))
        .arg(skip);
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
