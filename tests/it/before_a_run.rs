//! What DDK says before a run: all problems at once, how long it takes, and settings that suit the machine.

use std::{fs, thread::available_parallelism};

use serde_json::{Value, json};

use crate::world::{World, stderr};

fn check(world: &World, more: &[&str]) -> (bool, String) {
    let output = world.run(&[&["check", "config.toml"], more].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), said)
}

fn records(count: u64, record: impl Fn(u64) -> Value) -> String {
    (0..count)
        .map(|number| format!("{}\n", record(number)))
        .collect()
}

/// One domain lacks the field, one has no file, one has a few unusable records, and one is fine.
#[test]
fn the_problems_of_all_domains_are_listed_at_once() {
    let world = World::new();
    let sources = world.path().join("sources");
    let question = |number| json!({ "question": format!("{number}?"), "answer": "yes" });
    fs::write(sources.join("rivers.jsonl"), records(150, question)).unwrap();
    let text = fs::read_to_string(sources.join("storms.jsonl")).unwrap();
    fs::write(
        sources.join("storms.jsonl"),
        format!("{{\"text\": 5}}\n{text}"),
    )
    .unwrap();
    let missing = "domains.coins.files=[\"sources/none*.jsonl\"]";
    let (ready, said) = check(&world, &["--set", missing]);
    assert!(!ready);
    let problems: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("PROBLEM"))
        .collect();
    assert_eq!(problems.len(), 2, "{said}");
    assert!(problems[0].contains("`coins`") && problems[1].contains("`rivers`"));
    // What to do about each.
    assert!(
        said.contains("domains.rivers.text_template = \"{question}\\n{answer}\""),
        "{said}"
    );
    assert!(
        said.contains("warning: domain `storms`: 1 of the first 100 records cannot be used"),
        "{said}"
    );
    assert!(
        said.contains("2 problems") && !said.contains("time,"),
        "{said}"
    );
    let before = fs::read(world.path().join("prepared/storms/tokens.bin")).unwrap();
    for command in ["prepare", "train"] {
        let output = world.run(&[command, "config.toml", "--set", missing]);
        assert!(!output.status.success());
        let said = stderr(&output);
        for words in [
            "2 domains cannot be prepared",
            "- domain `coins`",
            "- domain `rivers`",
        ] {
            assert!(said.contains(words), "{command}: no {words:?} in: {said}");
        }
        // Nothing was tokenized before the problems were known.
        let after = fs::read(world.path().join("prepared/storms/tokens.bin")).unwrap();
        assert!(before == after, "{command}");
    }
    // With templates that are wrong in two domains, both are named.
    let said = world.fail(
        2,
        &[
            "prepare",
            "config.toml",
            "--set",
            "domains.coins.text_template={",
            "--set",
            "domains.storms.text_template={",
        ],
    );
    assert!(
        said.contains("domains.coins.text_template")
            && said.contains("domains.storms.text_template"),
        "{said}"
    );
}

/// This machine has no such GPU. Everything else is checked all the same.
#[test]
fn a_gpu_that_is_not_there_is_a_problem() {
    let world = World::new();
    let devices = "teacher.devices=[\"cuda:97\",\"cuda:98\"]";
    let (ready, said) = check(&world, &["--set", devices]);
    assert!(!ready && !said.contains("ready:"), "{said}");
    let problems: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("PROBLEM: there is no CUDA device `cuda:97`"))
        .collect();
    assert_eq!(problems.len(), 1, "{said}");
    assert!(said.contains("memory of cuda:97"), "{said}");
}

/// The seconds in a line of the check, which come after `words`.
fn seconds(said: &str, words: &str) -> f64 {
    let rest = said.split(words).nth(1);
    let rest = rest.unwrap_or_else(|| panic!("no {words:?} in: {said}"));
    let number = rest.split_whitespace().next().unwrap();
    let unit = rest.split_whitespace().nth(1).unwrap();
    assert!(unit.starts_with('s'), "{rest}");
    number.parse().unwrap()
}

#[test]
fn check_estimates_a_step_an_evaluation_and_the_run() {
    let world = World::new();
    let (ready, said) = check(&world, &[]);
    assert!(ready, "{said}");
    assert!(
        said.contains("time, measured with one micro-batch"),
        "{said}"
    );
    // These models take milliseconds.
    assert!(seconds(&said, "a step takes about ") < 5.0, "{said}");
    assert!(seconds(&said, "an evaluation takes about ") < 5.0, "{said}");
    // Intervals of four steps in a run of twelve: at the start, twice in between, at the end.
    assert!(
        said.contains("the run makes 4, and one of the teacher"),
        "{said}"
    );
    assert!(!said.contains("warning: the run takes"), "{said}");

    // Far too long, and not prepared.
    let long = [
        "--set",
        "run.max_steps=900000000",
        "--set",
        "corpus.dir=elsewhere",
    ];
    let (ready, said) = check(&world, &long);
    assert!(ready, "{said}");
    assert!(said.contains("warning: the run takes"), "{said}");
    assert!(
        said.contains("evaluations (estimated after `ddk prepare`)"),
        "{said}"
    );
    assert!(!said.contains("an evaluation takes"), "{said}");

    let patient = ["--set", "run.patience=3", "--set", "lr_scheduler.type=wsd"];
    let (ready, said) = check(&world, &patient);
    assert!(ready, "{said}");
    assert!(
        said.contains("the run stops earlier if 3 evaluations"),
        "{said}"
    );
    assert!(
        said.contains("learning rate (wsd)")
            && said.contains("until step 11, and falls to 5.0e-4 at step 12"),
        "{said}"
    );
}

/// `ddk init` divides the cores of this machine, and the file trains as it is.
#[test]
fn init_writes_thread_settings_that_suit_the_machine() {
    let world = World::new();
    fs::create_dir(world.path().join("text")).unwrap();
    let file = |folder: &str| world.path().join(folder).join("coins.jsonl");
    fs::copy(file("sources"), file("text")).unwrap();
    world.succeed(&[
        "init",
        "--teacher",
        "models/teacher",
        "--student",
        "models/student",
        "--data",
        "text",
        "--out",
        "my.toml",
    ]);
    let text = fs::read_to_string(world.path().join("my.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let number = |section: &str| table[section]["threads"].as_integer().unwrap();
    let replicas = table["teacher"].get("devices");
    let replicas = replicas.map_or(1, |devices| devices.as_array().unwrap().len());
    let cores = available_parallelism().unwrap().get().min(64) as i64;
    let (teacher, student) = (number("teacher") * replicas as i64, number("student"));
    let used = if table["pipeline"]["time_slicing"].as_bool().unwrap() {
        teacher.max(student)
    } else {
        teacher + student
    };
    // Two threads at least, one per model; a share of a core may be rounded up.
    assert!(used >= cores.min(2) && used <= cores + 1, "{text}");
    let (_, said) = (
        0,
        String::from_utf8(world.run(&["check", "my.toml"]).stdout).unwrap(),
    );
    assert!(!said.contains("of this machine's"), "{said}");
}

/// A path in a folder for models is a path, even if there is no such folder.
#[test]
fn a_missing_model_in_a_folder_for_models_is_not_looked_for_on_the_hub() {
    let world = World::empty();
    let init = ["init", "--teacher", "models/missing", "--data", "text"];
    let said = world.fail(2, &init);
    assert!(said.contains("models/missing"), "{said}");
    assert!(
        !said.contains("Hub at") && !said.contains("again in"),
        "{said}"
    );
}

#[test]
fn a_run_that_ends_before_its_first_update_is_warned_about() {
    let world = World::new();
    let warning = "the run ends before the first update of the mixture";
    for (steps, is_short) in [("4", true), ("5", false)] {
        let limit = format!("run.max_steps={steps}");
        let (ready, said) = check(&world, &["--set", &limit]);
        assert!(ready, "{said}");
        assert_eq!(said.contains(warning), is_short, "{said}");
    }
}

/// Without a student, the commands that `ddk init` prints make one from the teacher.
#[test]
fn init_without_a_student_plans_one_that_shrink_makes() {
    let world = World::new();
    fs::create_dir(world.path().join("text")).unwrap();
    let file = |folder: &str| world.path().join(folder).join("coins.jsonl");
    fs::copy(file("sources"), file("text")).unwrap();
    let init = ["init", "--teacher", "models/teacher", "--data", "text"];
    let said = stderr(&world.succeed(&[&init[..], &["--out", "my.toml"]].concat()));
    assert!(
        said.contains("next: ddk shrink my.toml --layers 1, then ddk check my.toml"),
        "{said}"
    );
    let config = fs::read_to_string(world.path().join("my.toml")).unwrap();
    assert!(config.contains("policy = \"excess\""), "{config}");
    let small = ["--set", "corpus.sequence_length=32"];
    // Until then, one problem says what to do.
    let output = world.run(&["check", "my.toml"]);
    let said = String::from_utf8(output.stdout).unwrap();
    let advice = "ddk shrink my.toml --layers 1`";
    let problem = "the student models/teacher-1-layers does not exist yet";
    assert_eq!(said.matches("PROBLEM").count(), 1, "{said}");
    assert!(said.contains(problem) && said.contains(advice), "{said}");
    // What needs no student is checked.
    assert!(
        said.contains("teacher: ") && said.contains("schedule"),
        "{said}"
    );
    let said = world.fail(2, &["train", "my.toml"]);
    assert!(said.contains(problem) && said.contains(advice), "{said}");
    let said = world.fail(2, &["shrink", "my.toml", "--layers", "3"]);
    assert!(said.contains("leaves out at least one"), "{said}");
    // The folder's name says how many layers to keep.
    world.succeed(&[&["shrink", "my.toml"][..], &small].concat());
    assert!(
        world
            .path()
            .join("models/teacher-1-layers/config.json")
            .exists()
    );
    let output = world.succeed(&[&["check", "my.toml"][..], &small].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("ready: ddk train my.toml"), "{said}");
    // A server has no weights to make a student from.
    let served = [
        &init[..],
        &[
            "--teacher-server",
            "http://127.0.0.1:1",
            "--out",
            "other.toml",
        ],
    ];
    let said = world.fail(2, &served.concat());
    assert!(said.contains("--student is missing"), "{said}");
}

#[test]
fn the_report_lists_only_settings_that_differ() {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    world.succeed(&["report", "runs/small", "--format", "md"]);
    let text = fs::read_to_string(world.run_folder().join("report.md")).unwrap();
    let settings = text.split("Settings that differ from the defaults").nth(1);
    let settings = settings.unwrap().split("\n## ").next().unwrap();
    assert!(settings.contains("`domains.coins.files`"), "{settings}");
    assert!(settings.contains("`optimizer.lr`"), "{settings}");
    for default in [
        "max_document_bytes",
        "min_document_bytes",
        "text_template",
        "`optimizer.beta1`",
    ] {
        assert!(!settings.contains(default), "{default}: {settings}");
    }
    // Dates and mean gaps of checkpoints.
    let listed = String::from_utf8(world.succeed(&["checkpoints", "runs/small"]).stdout).unwrap();
    let lines: Vec<&str> = listed.lines().collect();
    assert!(
        lines[0].contains("saved (UTC)") && lines[0].contains("mean gap"),
        "{listed}"
    );
    assert_eq!(
        lines.iter().filter(|line| line.contains("Z ")).count(),
        3,
        "{listed}"
    );
}

#[test]
fn options_of_other_trainers_are_answered_with_what_to_do() {
    let world = World::empty();
    for (arguments, hint) in [
        (&["train", "a.toml", "--resume"][..], "resumes by itself"),
        (
            &["train", "a.toml", "--learning-rate", "1e-4"],
            "--set optimizer.lr=VALUE",
        ),
        (
            &["train", "a.toml", "--lr=1e-4"],
            "--set optimizer.lr=VALUE",
        ),
        (
            &["train", "--config", "a.toml"],
            "the configuration is positional: ddk train a.toml",
        ),
        (
            &["check", "--config=a.toml"],
            "the configuration is positional: ddk check a.toml",
        ),
        (&["generate", "models/student"], "--model models/student"),
        (
            &[
                "train",
                "a.toml",
                "--resume-from-checkpoint",
                "run/checkpoint-500",
            ],
            "add --resume-from 500",
        ),
        (&["check", "a.toml", "--dry-run"], "`ddk check` says"),
        (
            &["train", "a.toml", "--optimizer.lr", "1e-4"],
            "--set optimizer.lr=VALUE",
        ),
        (&["export", "runs/my", "--checkpoint", "5"], "--step N"),
        (&["serve", "--port", "8000"], "--address 127.0.0.1:8000"),
        (
            &["serve", "--host=0.0.0.0", "--port=80"],
            "--address 0.0.0.0:80",
        ),
        (
            &["export", "--run", "runs/my", "--out", "x"],
            "the folder of the run is positional: ddk export runs/my",
        ),
        (
            &["data", "samples", "--run-dir=runs/my"],
            "the folder of the run is positional: ddk data samples runs/my",
        ),
        (
            &["config", "show", "a.toml", "--lr", "1"],
            "--set optimizer.lr=VALUE",
        ),
    ] {
        let said = world.fail(2, arguments);
        assert!(
            said.contains("unexpected argument") && said.contains(hint),
            "{said}"
        );
        assert!(!said.contains("tip:"), "{said}");
    }
    let said = world.fail(2, &["generate", "--prompt", "Once"]);
    assert!(
        said.contains("--model <MODEL>") && said.contains("--config <CONFIG_OR_RUN>"),
        "{said}"
    );
    let said = world.fail(2, &["train", "a.toml", "--restrat"]);
    assert!(
        said.contains("--restart") && !said.contains("hint:"),
        "{said}"
    );
    let spaces = ["mixture", "--student-ppl", "9, 6", "--teacher-ppl", " 6 ,5"];
    let plain = ["mixture", "--student-ppl", "9,6", "--teacher-ppl", "6,5"];
    assert_eq!(world.succeed(&spaces).stdout, world.succeed(&plain).stdout);
}
