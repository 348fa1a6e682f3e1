//! A small world to run `ddk` in: three domains of generated text, a tokenizer, a teacher, and a student. `ddk`
//! makes all of it once for all tests; each test has its own folder and run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;
use tempfile::TempDir;

/// Steps of a full run in this world: three intervals of four steps.
pub const STEPS: u64 = 12;

/// Multiplies the counts of long tests: 1 in CI, 10 under `make test-full`.
pub fn scale() -> u64 {
    let set = std::env::var("DDK_TEST_SCALE").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The path where cargo put something, unless an environment variable names another one (on a machine without cargo).
fn place(variable: &str, of_cargo: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| PathBuf::from(of_cargo), PathBuf::from)
}

/// A folder that the tests of this process share. Rust does not drop statics, so this also removes the folders of
/// processes that have ended.
fn shared_folder() -> TempDir {
    const PREFIX: &str = "world-of-";
    let place = place("DDK_TEST_TMP", env!("CARGO_TARGET_TMPDIR"));
    for entry in fs::read_dir(&place).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(place)
        .unwrap()
}

/// The folder that the tests share, with the corpus and the two models.
fn base() -> &'static Path {
    static BASE: OnceLock<TempDir> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = shared_folder();
        write_sources(folder.path());
        fs::write(folder.path().join("config.toml"), CONFIG).unwrap();
        let texts: Vec<String> = ["coins", "rivers", "storms"]
            .iter()
            .map(|domain| {
                fs::read_to_string(folder.path().join(format!("sources/{domain}.txt"))).unwrap()
            })
            .collect();
        ddk_corpus::train_tokenizer(texts.into_iter(), 300, &folder.path().join("tokenizer"))
            .unwrap();
        for arguments in [
            &["prepare", "config.toml"][..],
            &["pretrain", "config.toml", "--model", "teacher"],
            &["pretrain", "config.toml", "--model", "student"],
        ] {
            let output = command(folder.path(), arguments).output().unwrap();
            assert!(
                output.status.success(),
                "ddk {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        folder
    })
    .path()
}

/// Writes deterministic sentences from a small grammar, with a separate vocabulary per domain.
pub fn write_sources(folder: &Path) {
    fs::create_dir_all(folder.join("sources")).unwrap();
    let domains: [(&str, &[&str]); 3] = [
        (
            "coins",
            &[
                "a coin", "the mint", "bronze", "silver", "an edge", "the king", "a purse",
            ],
        ),
        (
            "rivers",
            &[
                "the river",
                "a delta",
                "gravel",
                "the source",
                "a weir",
                "trout",
                "the ford",
            ],
        ),
        (
            "storms",
            &[
                "a squall",
                "the gale",
                "hail",
                "low pressure",
                "the barometer",
                "a front",
                "rain",
            ],
        ),
    ];
    let verbs = [
        "holds",
        "meets",
        "turns into",
        "follows",
        "hides",
        "shows",
        "carries",
    ];
    for (domain, nouns) in domains {
        let mut state = domain.len() as u64 + u64::from(domain.as_bytes()[0]);
        let mut next = |bound: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % bound as u64) as usize
        };
        let mut whole = String::new();
        let mut records = String::new();
        for _ in 0..150 {
            let mut document = String::new();
            for _ in 0..4 + next(20) {
                document.push_str(&format!(
                    "{} {} {} and {}. ",
                    nouns[next(7)],
                    verbs[next(7)],
                    nouns[next(7)],
                    nouns[next(7)]
                ));
            }
            records.push_str(&format!("{}\n", serde_json::json!({ "text": document })));
            whole.push_str(&document);
        }
        fs::write(folder.join(format!("sources/{domain}.txt")), whole).unwrap();
        fs::write(folder.join(format!("sources/{domain}.jsonl")), records).unwrap();
    }
}

const CONFIG: &str = r#"
[run]
name = "small"
max_steps = 12

[corpus]
dir = "prepared"
tokenizer = "tokenizer"
sequence_length = 32
validation_fraction = 0.1
validation_documents = 8

[domains.coins]
files = ["sources/coins.jsonl"]
[domains.rivers]
files = ["sources/rivers.jsonl"]
[domains.storms]
files = ["sources/storms.jsonl"]

[teacher]
model = "models/teacher"

[student]
model = "models/student"

[optimizer]
lr = 5e-3

[lr_scheduler]
min_lr = 5e-4
warmup_steps = 2

[training]
global_batch_size = 8
micro_batch_size = 4

[mixture]
interval = 4

[checkpoint]
interval = 3
keep_latest = 3

[telemetry]
enabled = false

[log]
samples = true
interval_seconds = 0

[pretrain.teacher]
output_dir = "models/teacher"
steps = 60
global_batch_size = 8
micro_batch_size = 8
lr = 1e-2
min_lr = 1e-3
warmup_steps = 5
threads = 1
[pretrain.teacher.architecture]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2

[pretrain.student]
output_dir = "models/student"
steps = 10
global_batch_size = 8
micro_batch_size = 8
lr = 1e-2
min_lr = 1e-3
warmup_steps = 2
threads = 1
weights = { coins = 0.8, rivers = 0.1, storms = 0.1 }
[pretrain.student.architecture]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
"#;

/// A test's own folder, with a copy of the shared corpus and models.
pub struct World {
    folder: TempDir,
}

impl World {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        copy(base(), folder.path());
        Self { folder }
    }

    /// An empty folder.
    pub fn empty() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        command(self.path(), arguments)
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs `ddk` and expects success.
    pub fn succeed(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "ddk {arguments:?} ended with {}: {}",
            output.status,
            stderr(&output)
        );
        output
    }

    /// Runs `ddk`, expects this exit code, and returns standard error.
    pub fn fail(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        stderr(&output)
    }

    /// Starts `ddk` and calls `seen` with each line of its standard error until that returns true.
    pub fn start_until(&self, arguments: &[&str], seen: impl FnMut(&str) -> bool) -> Started {
        self.start_until_with(arguments, &[], seen)
    }

    /// Like [`World::start_until`], with environment variables.
    pub fn start_until_with(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        seen: impl FnMut(&str) -> bool,
    ) -> Started {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        Started::of(command, seen)
    }

    pub fn run_folder(&self) -> PathBuf {
        self.path().join("runs/small")
    }

    /// The lines of a file of the run as JSON, without values from a clock.
    pub fn lines(&self, file: &str) -> Vec<Value> {
        read_lines(&self.run_folder().join(file))
    }

    pub fn student_weights(&self) -> Vec<u8> {
        fs::read(self.run_folder().join("student/model.safetensors")).unwrap()
    }

    /// Everything that must match between two equal runs, whatever their speed.
    pub fn trajectory(&self) -> BTreeMap<&'static str, Vec<Value>> {
        ["run.jsonl", "mixture.jsonl", "samples.jsonl"]
            .into_iter()
            .map(|file| (file, self.lines(file)))
            .collect()
    }
}

/// A `ddk` that runs alongside the test.
pub struct Started {
    child: Child,
    said: String,
    reader: Option<std::thread::JoinHandle<String>>,
}

impl Started {
    /// See [`World::start_until`].
    pub fn of(mut command: Command, mut seen: impl FnMut(&str) -> bool) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            said.push_str(&line);
            said.push('\n');
            if seen(&line) {
                // Keep reading, so that the child never blocks on a full pipe.
                let reader = std::thread::spawn(move || {
                    lines
                        .map_while(Result::ok)
                        .fold(String::new(), |all, line| all + &line + "\n")
                });
                return Self {
                    child,
                    said,
                    reader: Some(reader),
                };
            }
        }
        panic!(
            "ddk ended ({:?}) before the awaited line: {said}",
            child.wait()
        );
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end; returns its exit status and standard error.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        let reader = self.reader.take().unwrap();
        let said = std::mem::take(&mut self.said);
        (status, said + &reader.join().unwrap())
    }
}

/// Kills the process, so that a failing test leaves none behind.
impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn read_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            value.as_object_mut().unwrap().remove("seconds");
            value
        })
        .collect()
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(place("DDK_TEST_PROGRAM", env!("CARGO_BIN_EXE_ddk")));
    command
        .args(arguments)
        .current_dir(folder)
        // No test depends on the cache of whoever runs it, or on a connection.
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder.join("huggingface"))
        .env_remove("HF_HUB_CACHE")
        .env_remove("RUST_LOG");
    command
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
            // Keep modification times, so that DDK does not treat the copied corpus as stale.
            let times =
                fs::FileTimes::new().set_modified(entry.metadata().unwrap().modified().unwrap());
            fs::File::options()
                .write(true)
                .open(&target)
                .unwrap()
                .set_times(times)
                .unwrap();
        }
    }
}

/// Whether a line of a run's output reports this step.
pub fn is_step(line: &str, step: u64) -> bool {
    line.contains(&format!("step {step}/"))
}

/// Trains with these faults.
pub fn train_with(world: &World, faults: &[&str], more: &[&str]) -> Output {
    let plan = format!(
        "fault_injection.plan={}",
        serde_json::to_string(faults).unwrap()
    );
    let mut arguments = vec!["train", "config.toml", "--set", &plan];
    for set in more {
        arguments.extend(["--set", set]);
    }
    let mut command = world.command(&arguments);
    command.env("DDK_ALLOW_FAULTS", "1").output().unwrap()
}

/// A world with an undisturbed run.
pub fn whole() -> World {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    world
}

/// Asserts that a run matches the undisturbed one, bit for bit.
pub fn assert_same(world: &World, whole: &World, what: &str) {
    assert!(world.trajectory() == whole.trajectory(), "{what}");
    assert!(world.student_weights() == whole.student_weights(), "{what}");
    // No sequence is lost or duplicated: every step has all its sequences, and none comes twice in an epoch.
    let samples = world.lines("samples.jsonl");
    assert_eq!(samples.len() as u64, 8 * STEPS, "{what}");
    let places: BTreeSet<String> = samples
        .iter()
        .map(|sample| {
            format!(
                "{} {} {}",
                sample["domain"], sample["epoch"], sample["sequence"]
            )
        })
        .collect();
    assert_eq!(places.len(), samples.len(), "{what}");
}
