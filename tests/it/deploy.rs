//! Looks up what the job files of `deploy/` name: settings, commands, exit codes, targets and files.
//! `make deploy-check` checks the files themselves.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ddk_settings::{Key, sections};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files under `deploy/`, with their texts.
fn files() -> Vec<(PathBuf, String)> {
    let mut folders = vec![repository().join("deploy")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(found.len() >= 7, "deploy/ has only {} files", found.len());
    found
}

/// The longest pieces of a text that consist of letters, digits and these other characters, without a final `.`.
fn words<'a>(text: &'a str, others: &str) -> impl Iterator<Item = &'a str> {
    text.split(move |c: char| !c.is_ascii_alphanumeric() && !others.contains(c))
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| !word.is_empty())
}

fn is_setting(path: &str) -> bool {
    Key::of(&path.split('.').collect::<Vec<_>>()).is_some()
}

#[test]
fn settings_exist() {
    let tables: BTreeSet<&str> = sections().iter().map(|section| &*section.path).collect();
    let mut found = BTreeSet::new();
    for (path, text) in files() {
        for word in words(&text, "_") {
            if let Some(variable) = word.strip_prefix("DDK__") {
                let setting = variable.to_lowercase().replace("__", ".");
                assert!(is_setting(&setting), "{}: {word}", path.display());
                found.insert(word.to_owned());
            }
        }
        // Names of files, host names and fields of Kubernetes contain `-`, `/` or upper case.
        for word in words(&text, "_.-/") {
            let Some((table, key)) = word.split_once('.') else {
                continue;
            };
            let is_file = ["toml", "yaml", "sbatch", "template", "rs"].contains(&key);
            if !table.is_empty() && tables.contains(table) && !is_file {
                assert!(is_setting(word), "{}: {word}", path.display());
                found.insert(word.to_owned());
            }
        }
    }
    for expected in [
        "DDK__TEACHER__SERVERS",
        "teacher.servers",
        "run.output_dir",
        "run.max_steps",
        "corpus.sequence_length",
    ] {
        assert!(found.contains(expected), "{expected} is not in {found:?}");
    }
}

#[test]
fn commands_and_exit_codes_exist() {
    let ddk = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ddk"))
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let help = ddk(&["--help"]).1;
    let codes = help.split("Exit codes: ").nth(1).unwrap();
    let codes: BTreeSet<&str> = words(codes, "").collect();
    let (mut commands, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (_, text) in files() {
        for code in text.split("`ddk ").skip(1) {
            commands.extend(words(code, "").next().map(str::to_owned));
        }
        for after in text.split("exit code ").skip(1) {
            let number = words(after, "").next().unwrap_or_default();
            if number.bytes().all(|byte| byte.is_ascii_digit()) {
                numbers.insert(number.to_owned());
            }
        }
    }
    assert!(commands.contains("train") && commands.contains("ctl"));
    for command in &commands {
        assert!(ddk(&[command, "--help"]).0, "ddk {command} does not exist");
    }
    assert!(!numbers.is_empty());
    for number in &numbers {
        assert!(codes.contains(&**number), "no exit code is {number}");
    }
}

#[test]
fn targets_and_files_exist() {
    let makefile = fs::read_to_string(repository().join("Makefile")).unwrap();
    let readme = fs::read_to_string(repository().join("deploy/README.md")).unwrap();
    let targets: Vec<&str> = readme.split("`make ").skip(1).collect();
    assert!(!targets.is_empty());
    for target in targets {
        let target = words(target, "-").next().unwrap();
        assert!(
            makefile.contains(&format!("\n{target}:")),
            "make {target} does not exist"
        );
    }
    let present = files();
    let mut found = 0;
    for (path, text) in &present {
        for word in words(text, "_.-/") {
            let Some((_, extension)) = word.rsplit_once('.') else {
                continue;
            };
            let is_listed = match extension {
                "sbatch" | "yaml" => present.iter().any(|(file, _)| file.ends_with(word)),
                "md" | "rs" => ["", "deploy"]
                    .iter()
                    .any(|folder| repository().join(folder).join(word).exists()),
                _ => continue,
            };
            // `deploy/slurm/train.sbatch` is relative to the repository.
            let is_there = is_listed || repository().join(word).exists();
            assert!(is_there, "{}: {word} does not exist", path.display());
            found += 1;
        }
    }
    assert!(found > 10, "only {found} names of files");
}
