//! What shells, `man` and installers get from the program; and the migration of configurations.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Output},
};

use crate::world::stderr;

fn ddk(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ddk"));
    command
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What bash offers after these words, with the generated script.
fn completed(script: &Path, words: &str) -> Vec<String> {
    let count = words.split(' ').count();
    let program = format!(
        "source '{}' && complete -p ddk > /dev/null && COMP_WORDS=({words}) COMP_CWORD={} && \
         _ddk ddk '{}' '' && printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        count - 1,
        words.rsplit(' ').next().unwrap(),
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &program])
        .output()
        .unwrap();
    stdout(&output).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("ddk.bash");
    fs::write(
        &script,
        stdout(&ddk(folder.path(), &["completions", "bash"])),
    )
    .unwrap();
    assert_eq!(completed(&script, "ddk tra"), ["train"]);
    assert_eq!(completed(&script, "ddk config s"), ["show", "schema"]);
    let options = completed(&script, "ddk train --re");
    assert!(options.contains(&"--restart".to_owned()), "{options:?}");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&ddk(folder.path(), &["completions", shell]));
        assert!(
            script.contains("checkpoints") && script.contains("restart"),
            "{shell}"
        );
    }
}

#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().unwrap();
    stdout(&ddk(folder.path(), &["man", "--out", "share/man1"]));
    let help = stdout(&ddk(folder.path(), &["--help"]));
    let commands = help.split("Commands:").nth(1).unwrap();
    let commands = commands
        .lines()
        .skip(1)
        .map_while(|line| line.split_whitespace().next());
    let mut count = 0;
    for command in commands.filter(|command| *command != "help") {
        let page = folder.path().join(format!("share/man1/ddk-{command}.1"));
        let text = fs::read_to_string(&page).unwrap();
        assert!(
            text.contains(".SH SYNOPSIS") && text.contains(".SH DESCRIPTION"),
            "{text}"
        );
        count += 1;
    }
    assert!(count >= 20, "{help}");
    let main = fs::read_to_string(folder.path().join("share/man1/ddk.1")).unwrap();
    assert!(main.contains("Exit codes"), "{main}");
}

#[test]
fn the_version_names_libtorch_and_is_in_the_changelog() {
    let version = env!("CARGO_PKG_VERSION");
    let said = stdout(&ddk(Path::new("."), &["--version"]));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with(&format!("ddk {version}")), "{said}");
    assert_eq!(lines[1], format!("libtorch {}", ddk_torch::VERSION));
    let changes = Path::new(env!("CARGO_MANIFEST_DIR")).join("CHANGELOG.md");
    assert!(
        fs::read_to_string(changes)
            .unwrap()
            .contains(&format!("\n## [{version}]"))
    );
}

#[test]
fn a_configuration_is_migrated_only_if_it_is_asked_for() {
    const OLD: &str = "[batch]\nrows = 8        # per step\n\n[telemetry]\n\
                       token = \"0123456789abcdef\"\naddress = \"127.0.0.1:1\"\n";
    let folder = tempfile::tempdir().unwrap();
    let (config, kept) = (
        folder.path().join("my.toml"),
        folder.path().join("my.toml.old"),
    );
    fs::write(&config, OLD).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = stderr(&ddk(folder.path(), &["config", "show", "my.toml"]));
    assert!(refused.contains("hint: `ddk migrate CONFIG`"), "{refused}");

    let diff = stdout(&ddk(folder.path(), &["migrate", "my.toml"]));
    insta::assert_snapshot!(diff);
    assert_eq!(fs::read_to_string(&config).unwrap(), OLD);
    assert!(!kept.exists());

    assert_eq!(
        stdout(&ddk(folder.path(), &["migrate", "my.toml", "--write"])),
        diff
    );
    assert_eq!(fs::read_to_string(&kept).unwrap(), OLD);
    // Both files hold the token.
    for path in [&config, &kept] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    }
    let shown = stdout(&ddk(folder.path(), &["config", "show", "my.toml"]));
    assert!(shown.contains("global_batch_size = 8"), "{shown}");
    let new = fs::read_to_string(&config).unwrap();
    assert!(new.contains("token = \"0123456789abcdef\""), "{new}");

    let again = ddk(folder.path(), &["migrate", "my.toml", "--write"]);
    assert_eq!(stdout(&again), "");
    assert_eq!(
        stderr(&again),
        "my.toml has no earlier names: nothing to change\n"
    );
    // An earlier text is never lost.
    fs::write(&config, OLD).unwrap();
    let refused = ddk(folder.path(), &["migrate", "my.toml", "--write"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("my.toml.old exists"),
        "{}",
        stderr(&refused)
    );
}
