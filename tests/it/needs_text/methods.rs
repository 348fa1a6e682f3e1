//! Trains every method on the demo's own text. Each run is killed with signal 9 in the middle of each of its phases
//! and must resume exactly.
//!
//! The text, tokenizer, and models are made as `ddk compare config/compare-demo.toml` makes them, but the models
//! take only a few steps.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::world::{Started, read_lines, stderr};

/// Keeps the shipped comparison's shapes and data, but shortens pretraining, phases, and runs.
const SHORT: &str = r#"
[run]
max_intervals = 2
[corpus]
validation_documents = 4
[mixture]
interval = 4
doremi_steps = 6
[objective]
ted_steps = 6
[lr_scheduler]
warmup_steps = 2
[checkpoint]
interval = 2
[telemetry]
enabled = false
[log]
samples = true
interval_seconds = 0
[pretrain.teacher]
steps = 12
warmup_steps = 2
[pretrain.student]
steps = 6
warmup_steps = 2
"#;

/// A method's settings and its kills: each after this step, counted from the line that announces the phase.
struct Case {
    sets: &'static [&'static str],
    kills: &'static [(&'static str, u64)],
}

/// Kills a run without phases in its second interval.
const IN_THE_MIDDLE: &[(&str, u64)] = &[("", 5)];

const fn case(sets: &'static [&'static str]) -> Case {
    Case {
        sets,
        kills: IN_THE_MIDDLE,
    }
}

const CASES: [Case; 16] = [
    Case {
        sets: &["method=cpt-doremi"],
        kills: &[
            ("doremi, phase 1 of 3", 3),
            ("doremi, phase 2 of 3", 3),
            ("doremi, phase 3 of 3", 5),
        ],
    },
    Case {
        sets: &["method=ted"],
        kills: &[("ted, stage 1 of 2", 3), ("ted, stage 2 of 2", 5)],
    },
    case(&["method=ddk"]),
    case(&["method=kd"]),
    case(&["method=cpt"]),
    case(&["method=minillm"]),
    case(&["method=ddk-no-smoothing"]),
    case(&["method=ddk-equal"]),
    case(&["method=ddk", "mixture.lag=1"]),
    case(&[
        "mixture.policy=static",
        "mixture.weights={ cpp = 3.0, rust = 1.0 }",
    ]),
    case(&["mixture.policy=sheared"]),
    case(&["mixture.policy=odm"]),
    case(&["objective.name=jsd"]),
    case(&["objective.name=skew_kl", "objective.temperature=2.0"]),
    case(&["objective.name=skew_reverse_kl"]),
    case(&["objective.name=tvd"]),
];

/// A folder with the demo's text and briefly trained models.
struct Demo(TempDir);

impl Demo {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let shipped = include_str!("../../../config/compare-demo.toml");
        let data = format!("\"{}/data/demo/", folder.path().display());
        let own = shipped.replace("\"data/demo/", &data);
        fs::write(folder.path().join("demo.toml"), own).unwrap();
        fs::write(folder.path().join("short.toml"), SHORT).unwrap();
        let demo = Self(folder);
        let made = demo.command(
            "compare",
            "made",
            &["--methods", "ddk-equal", "--seeds", "1"],
        );
        succeed(made);
        demo
    }

    /// A command on the configuration. It runs in the clone so that it finds the demo's text.
    fn command(&self, name: &str, run: &str, more: &[&str]) -> Command {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ddk"));
        command
            .args([name, &path("demo.toml"), &path("short.toml")])
            .args(["--set", &format!("run.output_dir=\"{}\"", path("runs"))])
            .args(["--set", &format!("run.name={run}")])
            .args(more)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("RUST_LOG");
        command
    }

    fn train(&self, run: &str, case: &Case) -> Command {
        let sets = case.sets.iter().flat_map(|set| ["--set", set]);
        self.command("train", run, &sets.collect::<Vec<_>>())
    }

    fn run_folder(&self, run: &str) -> PathBuf {
        self.0.path().join("runs").join(run)
    }

    /// Kills the run after this step of this phase.
    fn kill(&self, run: &str, case: &Case, (phase, step): (&str, u64)) {
        let mut in_phase = phase.is_empty();
        let started = Started::of(self.train(run, case), |line| {
            in_phase |= line.contains(phase);
            in_phase && line.contains(&format!("step {step}/"))
        });
        started.signal("KILL");
        let (status, said) = started.wait();
        assert_eq!(status.signal(), Some(9), "{:?}: {said}", case.sets);
    }
}

fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
}

/// Lines and weights that must match between two equal runs, by path, including those of phases.
fn trajectory(run: &Path) -> BTreeMap<PathBuf, (Vec<Value>, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let phases = fs::read_dir(run.join("phases")).into_iter().flatten();
    let phases = phases.map(|phase| phase.unwrap().path());
    for folder in phases.chain([run.to_owned()]) {
        let path = |file: &str| folder.join(file);
        let of_run = path("").strip_prefix(run).unwrap().to_owned();
        for file in ["run.jsonl", "mixture.jsonl", "samples.jsonl"] {
            if path(file).exists() {
                files.insert(of_run.join(file), (read_lines(&path(file)), Vec::new()));
            }
        }
        for file in ["student/model.safetensors", "filters.safetensors"] {
            if let Ok(bytes) = fs::read(path(file)) {
                files.insert(of_run.join(file), (Vec::new(), bytes));
            }
        }
    }
    files
}

#[test]
fn every_method_goes_on_exactly_after_a_kill_in_each_of_its_phases() {
    let demo = Demo::new();
    for (index, case) in CASES.iter().enumerate() {
        eprintln!("{:?}", case.sets);
        let [whole, killed] = ["whole", "killed"].map(|name| format!("{name}-{index}"));
        succeed(demo.train(&whole, case));
        for kill in case.kills {
            demo.kill(&killed, case, *kill);
        }
        succeed(demo.train(&killed, case));
        let [whole, killed] = [whole, killed].map(|run| trajectory(&demo.run_folder(&run)));
        let names = whole.keys().collect::<Vec<_>>();
        assert!(names.len() >= 2 + 2 * case.kills.len(), "{names:?}");
        assert_eq!(names, killed.keys().collect::<Vec<_>>(), "{:?}", case.sets);
        for (name, content) in &whole {
            assert!(
                *content == killed[name],
                "{:?}: {}",
                case.sets,
                name.display()
            );
        }
    }
}
