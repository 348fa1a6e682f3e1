//! Models and text by their names on the Hugging Face Hub, from a server that speaks its API.

#[allow(dead_code, reason = "the tests of the client need more of it")]
#[path = "../../crates/hub/tests/it/server.rs"]
mod server;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use self::server::Server;
use crate::world::{World, stderr, write_sources};

/// A world without models and text. A server has them.
struct Online {
    world: World,
    server: Server,
}

impl Online {
    fn new() -> Self {
        let (world, server) = (World::empty(), Server::start());
        for model in ["teacher", "student"] {
            server.commit(
                "models",
                &format!("lab/{model}"),
                "main",
                &files_of(model, b""),
            );
        }
        write_sources(world.path());
        let mut all = String::new();
        for topic in ["coins", "rivers", "storms"] {
            let file = world.path().join(format!("sources/{topic}.jsonl"));
            for line in fs::read_to_string(file).unwrap().lines() {
                let mut record: Value = serde_json::from_str(line).unwrap();
                record["topic"] = topic.into();
                all.push_str(&format!("{record}\n"));
            }
        }
        let files: [(&str, &[u8]); 3] = [
            ("README.md", b"About the texts"),
            ("data/train.jsonl", all.as_bytes()),
            ("data/test.jsonl", b"{\"topic\": \"secret\"}\n"),
        ];
        server.commit("datasets", "lab/texts", "main", &files);
        fs::remove_dir_all(world.path().join("sources")).unwrap();
        Self { world, server }
    }

    fn command(&self, arguments: &[&str], offline: bool) -> Command {
        let mut command = self.world.command(arguments);
        command.env("HF_ENDPOINT", self.server.endpoint());
        if !offline {
            command.env_remove("HF_HUB_OFFLINE");
        }
        command
    }

    fn succeed(&self, arguments: &[&str], offline: bool) -> Output {
        let output = self.command(arguments, offline).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ddk {arguments:?}: {said}");
        output
    }

    fn init(&self) -> Output {
        let arguments = [
            "init",
            "--teacher",
            "lab/teacher",
            "--student",
            "lab/student",
            "--data",
            "hf://datasets/lab/texts",
            "--domain-field",
            "topic",
            "--out",
            "my.toml",
        ];
        self.succeed(&arguments, false)
    }

    /// Trains up to this step.
    fn train(&self, name: &str, steps: u64, offline: bool) -> Output {
        let [name, steps] = [format!("run.name={name}"), format!("run.max_steps={steps}")];
        let sets = [
            &*name,
            &*steps,
            "telemetry.enabled=false",
            "mixture.interval=4",
            "corpus.sequence_length=32",
        ];
        let sets = sets.into_iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = ["train", "my.toml"].into_iter().chain(sets).collect();
        self.succeed(&arguments, offline)
    }

    /// The commit that a run uses of the teacher.
    fn teacher_of(&self, name: &str) -> String {
        let text = fs::read(
            self.world
                .path()
                .join("runs")
                .join(name)
                .join("inputs.json"),
        )
        .unwrap();
        let inputs: Value = serde_json::from_slice(&text).unwrap();
        let commits = inputs["revisions"].as_object().unwrap();
        let names: Vec<&str> = commits.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "datasets/lab/texts@main",
                "models/lab/student@main",
                "models/lab/teacher@main"
            ]
        );
        commits["models/lab/teacher@main"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn refs(&self, repository: &str) -> std::path::PathBuf {
        self.world
            .path()
            .join("huggingface/hub")
            .join(repository)
            .join("refs/main")
    }
}

/// The files of a model made by transformers, with something appended to its README.
fn files_of(model: &str, more: &'static [u8]) -> Vec<(&'static str, &'static [u8])> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/pairs/qwen2")
        .join(model);
    let mut files: Vec<(&str, &[u8])> = vec![("README.md", more)];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name: &str = path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
            .leak();
        files.push((name, fs::read(&path).unwrap().leak()));
    }
    files
}

#[test]
fn names_become_a_run_that_keeps_its_commits() {
    let online = Online::new();
    let said = stderr(&online.init());
    assert!(said.contains("3 domains in my.toml"), "{said}");
    let config = fs::read_to_string(online.world.path().join("my.toml")).unwrap();
    for line in [
        "name = \"student-from-teacher-on-texts\"",
        "model = \"lab/teacher\"",
        "model = \"lab/student\"",
        "files = [\"hf://datasets/lab/texts\"]",
    ] {
        assert!(config.contains(line), "no {line} in {config}");
    }
    assert!(
        !config.contains("snapshots") && !config.contains("secret"),
        "{config}"
    );
    // So far, no weights are here. Their download breaks once.
    let seen = online.server.seen();
    assert!(seen.iter().all(|seen| !seen.is_storage) && !seen.is_empty());
    online.server.break_after("model.safetensors", 5_000);
    let output = online.succeed(
        &["check", "my.toml", "--set", "corpus.sequence_length=32"],
        false,
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains("lab/teacher is ") && printed.contains("ready"),
        "{printed}"
    );
    let said = stderr_of(&output.stderr);
    assert!(said.contains("trying again in 1 s"), "{said}");
    let resumed = online.server.seen();
    let resumed = resumed
        .iter()
        .filter(|seen| seen.is_storage && seen.from == Some(5_000));
    assert_eq!(resumed.count(), 1);
    // From here on, everything is in the cache.
    online.train("first", 4, true);
    let first = online.teacher_of("first");
    let written = fs::read_to_string(online.world.path().join("runs/first/config.toml")).unwrap();
    assert!(
        written.contains("model = \"lab/teacher\"") && !written.contains("snapshots"),
        "{written}"
    );
    assert_eq!(online.server.seen().len(), 0);
    // The branch moves, and the cache forgets where it was.
    let mut moved = files_of("teacher", b"better");
    let student = files_of("student", b"");
    let weights = student
        .iter()
        .find(|(name, _)| *name == "model.safetensors")
        .unwrap();
    let config = student
        .iter()
        .find(|(name, _)| *name == "config.json")
        .unwrap();
    moved.retain(|(name, _)| !["model.safetensors", "config.json"].contains(name));
    let second = online
        .server
        .commit("models", "lab/teacher", "main", &moved);
    assert_ne!(first, second);
    fs::remove_file(online.refs("models--lab--teacher")).unwrap();
    // The run that has begun continues with what it had. The new teacher is not even a model.
    online.train("first", 8, false);
    assert_eq!(online.teacher_of("first"), first);
    assert_eq!(online.server.seen().len(), 0);
    let refused = online
        .command(&["train", "my.toml", "--set", "run.name=other"], false)
        .output()
        .unwrap();
    let said = stderr_of(&refused.stderr);
    assert!(
        said.contains("lab/teacher on the Hub has no config.json"),
        "{said}"
    );
    assert_eq!(refused.status.code(), Some(2));
    // A new run takes the new commit: the student's weights in a new repository, under the teacher's name.
    let mut other = vec![*weights, *config];
    other.extend(moved.iter().filter(|(name, _)| *name != "README.md"));
    let third = online
        .server
        .commit("models", "lab/teacher", "main", &other);
    let refused = online
        .command(&["train", "my.toml", "--set", "run.name=other"], false)
        .output()
        .unwrap();
    let said = stderr_of(&refused.stderr);
    assert!(
        said.contains("teacher and student have the same weights") && said.contains(&third),
        "{said}"
    );
    // Every command that names a model or a run finds it without a connection.
    online.server.seen();
    online.succeed(&["export", "runs/first", "--out", "exported"], true);
    online.succeed(
        &["data", "inspect", "my.toml", "--set", "run.name=first"],
        true,
    );
    let sets = [
        "--set",
        "run.name=first",
        "--set",
        "corpus.sequence_length=32",
    ];
    let evaluation = [
        "eval",
        "my.toml",
        "--model",
        "lab/student",
        "--baseline",
        "exported",
        "--json",
    ];
    online.succeed(&[&evaluation[..], &sets].concat(), true);
    let generate = [
        "generate",
        "--model",
        "lab/student",
        "--prompt",
        "the river",
        "--max-new-tokens",
        "3",
    ];
    online.succeed(&generate, true);
    assert_eq!(online.server.seen().len(), 0);
}

fn stderr_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_name_that_cannot_be_had_is_explained() {
    let online = Online::new();
    online.init();
    let refused = |sets: &[&str], offline: bool| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = ["train", "my.toml"].into_iter().chain(sets).collect();
        let output = online.command(&arguments, offline).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        stderr_of(&output.stderr)
    };
    // The weights are not here yet.
    let said = refused(&[], true);
    assert!(
        said.contains("HF_HUB_OFFLINE") && said.contains("`hf download lab/teacher`"),
        "{said}"
    );
    assert!(said.contains("it lacks model.safetensors"), "{said}");
    let said = refused(&["teacher.model=\"lab/techer\""], false);
    assert!(
        said.contains("lab/techer is neither a folder here nor a model on the Hub"),
        "{said}"
    );
    let said = refused(&["teacher.model=\"lab/teacher@v9\""], false);
    assert!(said.contains("no revision `v9`"), "{said}");
    let other = [
        "teacher.model=\"lab/student\"",
        "domains.coins.files=[\"hf://datasets/lab/texts/*.csv\"]",
    ];
    let said = refused(&other, false);
    assert!(said.contains("no file that matches *.csv"), "{said}");
    online.server.gate("models/lab/teacher", "hf_secret");
    let said = refused(&[], false);
    assert!(
        said.contains("accept the license at") && said.contains("HF_TOKEN"),
        "{said}"
    );
    // Beside other folders, a name is a path, and nobody is asked.
    fs::create_dir(online.world.path().join("models")).unwrap();
    let output = online
        .command(&["eval", "my.toml", "--model", "models/smal"], false)
        .output()
        .unwrap();
    let said = stderr_of(&output.stderr);
    assert!(
        said.contains("models/smal") && !output.status.success(),
        "{said}"
    );
    let seen = online.server.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| !seen.path.contains("smal")));
}
