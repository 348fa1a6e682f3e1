//! Bad input gets a clear error and loses nothing.

use std::{fs, net::TcpListener};

use serde_json::{Value, json};

use crate::world::{World, stderr};

/// Asserts that the message contains every expected part.
fn says(message: &str, expected: &[&str]) {
    for part in expected {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

fn edit(world: &World, from: &str, to: &str) {
    let path = world.path().join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn an_unknown_key_names_file_line_and_the_nearest_valid_one() {
    let world = World::new();
    edit(&world, "micro_batch_size = 4", "micro_batch_siz = 4");
    let said = world.fail(2, &["train", "config.toml"]);
    says(
        &said,
        &[
            "config.toml:",
            "micro_batch_siz",
            "did you mean `micro_batch_size`?",
        ],
    );
    assert!(!world.path().join("runs").exists());
}

#[test]
fn a_mistyped_value_and_one_out_of_range_name_the_key() {
    let world = World::new();
    says(
        &world.fail(2, &["train", "config.toml", "--set", "mixture.alpha=7"]),
        &["--set mixture.alpha=7", "`mixture.alpha` is 7", "0 to 1"],
    );
    edit(&world, "interval = 4", "interval = \"4\"");
    says(
        &world.fail(2, &["train", "config.toml"]),
        &[
            "config.toml:",
            "interval = \"4\"",
            "expected a whole number: 1 to 1000000",
        ],
    );
}

#[test]
fn what_training_needs_is_named_where_it_is_missing() {
    let world = World::new();
    edit(
        &world,
        "name = \"small\"\nmax_steps = 12",
        "name = \"small\"",
    );
    says(
        &world.fail(2, &["train", "config.toml"]),
        &["run.max_steps", "run.max_tokens"],
    );
    edit(&world, "model = \"models/teacher\"", "");
    says(
        &world.fail(2, &["train", "config.toml", "--set", "run.max_steps=3"]),
        &["`teacher.model` is missing"],
    );
}

#[test]
fn an_empty_and_a_missing_domain_are_named() {
    let world = World::new();
    fs::write(world.path().join("sources/rivers.jsonl"), "").unwrap();
    says(
        &world.fail(1, &["train", "config.toml"]),
        &["domain `rivers` is empty", "hint:"],
    );
    fs::remove_file(world.path().join("sources/rivers.jsonl")).unwrap();
    says(
        &world.fail(1, &["train", "config.toml"]),
        &["domain `rivers`: `sources/rivers.jsonl` matches no file"],
    );
}

/// DDK does not guess the format of a file whose name does not reveal it.
#[test]
fn files_of_unknown_formats_are_skipped_by_init_and_refused_by_check_and_prepare() {
    let world = World::new();
    let lines = fs::read(world.path().join("sources/rivers.jsonl")).unwrap();
    edit(
        &world,
        "files = [\"sources/rivers.jsonl\"]",
        "files = [\"data\"]",
    );
    for (name, said) in [
        ("records.xml", "`.xml` is not a known extension"),
        ("records.jsonl.bz2", "`.bz2` files are not read"),
        ("rows.parquet.gz", "unpack this one"),
        ("tokens.bin", "set `format = \"megatron\"`"),
        ("photo.png", "`.png` is not a known extension"),
        ("shard-00001", "no extension"),
    ] {
        let _ = fs::remove_dir_all(world.path().join("data"));
        fs::create_dir_all(world.path().join("data")).unwrap();
        fs::write(world.path().join("data/good.jsonl"), &lines).unwrap();
        fs::write(world.path().join("data").join(name), &lines).unwrap();
        let new = format!("{name}.toml");
        let init = [
            "init",
            "--teacher",
            "models/teacher",
            "--student",
            "models/student",
            "--data",
            "data",
            "--out",
            &new,
        ];
        let begun = stderr(&world.succeed(&init));
        says(
            &begun,
            &[&format!("data/{name}: skipped: "), said, "1 domain in "],
        );
        let expected = [&format!("data/{name}: ")[..], said];
        let checked = world.run(&["check", "config.toml"]);
        assert_eq!(checked.status.code(), Some(1));
        let checked = String::from_utf8(checked.stdout).unwrap();
        says(
            &checked,
            &[&expected[..], &["PROBLEM: domain `rivers`"]].concat(),
        );
        for command in ["prepare", "train"] {
            let refused = world.fail(2, &[command, "config.toml"]);
            says(
                &refused,
                &[&expected[..], &["domains.rivers.format"]].concat(),
            );
        }
    }
    // The same lines in a file whose name does not reveal the format, with the format set explicitly.
    fs::remove_dir_all(world.path().join("data")).unwrap();
    fs::create_dir_all(world.path().join("data")).unwrap();
    fs::write(world.path().join("data/records.log"), &lines).unwrap();
    let given = [
        "prepare",
        "config.toml",
        "--set",
        "domains.rivers.format=jsonl",
    ];
    let tokens = || fs::read(world.path().join("prepared/rivers/tokens.bin")).unwrap();
    let before = tokens();
    world.succeed(&given);
    assert!(tokens() == before);
}

#[test]
fn records_without_the_field_are_told_with_those_that_they_have() {
    let world = World::new();
    let records: String = (0..150)
        .map(|number| {
            format!(
                "{}\n",
                json!({ "question": format!("{number}?"), "answer": "yes" })
            )
        })
        .collect();
    fs::write(world.path().join("sources/rivers.jsonl"), &records).unwrap();
    let expected = [
        "sources/rivers.jsonl",
        "line 1: no field `text`; its records have the fields `question`, `answer`",
    ];
    let checked = world.run(&["check", "config.toml"]);
    assert_eq!(checked.status.code(), Some(1));
    let checked = String::from_utf8(checked.stdout).unwrap();
    says(
        &checked,
        &[&expected[..], &["PROBLEM: domain `rivers`"]].concat(),
    );
    let hint = "domains.rivers.text_template = \"{question}\\n{answer}\"";
    let said = world.fail(1, &["prepare", "config.toml"]);
    says(
        &said,
        &[&expected[..], &["no record can be used", hint]].concat(),
    );
    // Follow the hint.
    let set = "domains.rivers.text_template={question}\n{answer}";
    world.succeed(&["prepare", "config.toml", "--set", set]);
}

#[test]
fn bad_records_are_skipped_counted_and_listed_up_to_a_share() {
    let world = World::new();
    let path = world.path().join("sources/rivers.jsonl");
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(b"not json\n\xff\xff\n{\"content\": \"the ford\"}\n");
    fs::write(&path, text).unwrap();
    let said = world.fail(1, &["train", "config.toml"]);
    // The field that a few records have instead is not the right one.
    assert!(!said.contains("text_field"), "{said}");
    says(
        &said,
        &[
            "3 of 153 records",
            "corpus.max_bad_fraction = 0.05",
            "sources/rivers.jsonl",
            "line 151",
            "not JSON",
        ],
    );
    let output = world.succeed(&[
        "train",
        "config.toml",
        "--set",
        "corpus.max_bad_fraction=0.05",
    ]);
    says(
        &stderr(&output),
        &["rivers: 3 records could not be used", "quarantine.jsonl"],
    );
    let listed = world.lines("quarantine.jsonl");
    assert_eq!(listed.len(), 3);
    assert_eq!(
        (&listed[1]["domain"], &listed[1]["line"]),
        (&"rivers".into(), &152.into())
    );
}

#[test]
fn a_teacher_with_another_tokenizer_is_refused_before_the_run() {
    let world = World::new();
    let path = world.path().join("models/teacher/tokenizer.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    let names: Vec<String> = vocabulary
        .iter()
        .filter(|(_, id)| [60, 61].contains(&id.as_u64().unwrap()))
        .map(|(name, _)| name.clone())
        .collect();
    let ids = [vocabulary[&names[0]].clone(), vocabulary[&names[1]].clone()];
    vocabulary.insert(names[0].clone(), ids[1].clone());
    vocabulary.insert(names[1].clone(), ids[0].clone());
    fs::write(&path, json.to_string()).unwrap();
    let said = world.fail(1, &["train", "config.toml"]);
    says(
        &said,
        &["models/teacher", "models/student", "id 60", "hint:"],
    );
    assert!(!world.path().join("runs").exists());
}

#[test]
fn a_teacher_that_is_the_student_is_refused() {
    let world = World::new();
    let said = world.fail(
        2,
        &[
            "train",
            "config.toml",
            "--set",
            "teacher.model=models/student",
        ],
    );
    says(
        &said,
        &[
            "teacher and student have the same weights",
            "models/student",
        ],
    );
    assert!(!world.path().join("runs").exists());
}

#[test]
fn a_damaged_model_is_an_error_of_the_start() {
    let world = World::new();
    let path = world.path().join("models/student/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    says(
        &world.fail(1, &["train", "config.toml"]),
        &[
            "models/student/model.safetensors",
            "not a complete safetensors file",
        ],
    );
    fs::remove_file(&path).unwrap();
    says(
        &world.fail(1, &["train", "config.toml"]),
        &["there is no model.safetensors in models/student"],
    );
}

#[test]
fn a_folder_that_holds_another_run_is_not_touched() {
    let world = World::new();
    world.succeed(&["train", "config.toml", "--set", "run.max_steps=4"]);
    let before = world.trajectory();
    let changed = ["--set", "run.max_steps=3", "--set", "optimizer.beta1=0.5"];
    let said = world.fail(2, &[&["train", "config.toml"], &changed[..]].concat());
    says(
        &said,
        &[
            "the run in runs/small was started with other settings",
            "`run.max_steps` was 4 and is now 3",
            "`optimizer.beta1` was 0.9 and is now 0.5",
            "--fork NAME --set run.max_steps=8",
            "choose another run.name",
        ],
    );
    says(
        &world.fail(2, &["train", "config.toml", "--no-resume"]),
        &["already contains a run", "--no-resume"],
    );
    says(
        &world.fail(2, &["train", "runs/small"]),
        &[
            "runs/small",
            "runs/small/config.toml",
            "`ddk serve` compares runs",
        ],
    );
    // The weights are the same, but the model computes something else with them.
    let path = world.path().join("models/teacher/config.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["rms_norm_eps"] = json!(1e-3);
    fs::write(&path, config.to_string()).unwrap();
    let said = world.fail(2, &["train", "config.toml", "--set", "run.max_steps=4"]);
    says(
        &said,
        &[
            "contains a different run",
            "the teacher's config.json changed",
        ],
    );
    fs::write(&path, text).unwrap();
    // A different teacher also makes a different run.
    world.succeed(&[
        "pretrain",
        "config.toml",
        "--model",
        "teacher",
        "--set",
        "pretrain.teacher.steps=3",
    ]);
    let said = world.fail(2, &["train", "config.toml", "--set", "run.max_steps=4"]);
    says(&said, &["the teacher's weights changed"]);
    assert_eq!(world.trajectory(), before);

    fs::create_dir_all(world.path().join("runs/thesis")).unwrap();
    fs::write(world.path().join("runs/thesis/chapter-1.tex"), "").unwrap();
    says(
        &world.fail(1, &["train", "config.toml", "--set", "run.name=thesis"]),
        &["runs/thesis is not empty and is not the folder of a run"],
    );
}

#[test]
fn a_port_in_use_is_named_and_stops_the_run_only_where_it_must() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("telemetry.listen={}", taken.local_addr().unwrap());
    let world = World::new();
    let on = ["--set", "telemetry.enabled=true", "--set", &address];
    let required = [
        &["train", "config.toml", "--set", "telemetry.required=true"][..],
        &on,
    ]
    .concat();
    says(
        &world.fail(1, &required),
        &[&taken.local_addr().unwrap().to_string(), "in use", "hint:"],
    );
    assert!(!world.run_folder().exists(), "a refused run leaves nothing");
    let output = world.succeed(&[&["train", "config.toml"][..], &on].concat());
    says(
        &stderr(&output),
        &[
            "warning: the port of",
            &taken.local_addr().unwrap().to_string(),
            "continuing without the live page and metrics",
            "is not this run",
        ],
    );
}

#[test]
fn an_unsupported_model_is_refused_by_name() {
    let world = World::new();
    let path = world.path().join("models/teacher/config.json");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("LlamaForCausalLM", "MambaForCausalLM");
    fs::write(&path, text).unwrap();
    says(
        &world.fail(1, &["train", "config.toml"]),
        &[
            "models/teacher/config.json",
            "MambaForCausalLM",
            "LlamaForCausalLM",
        ],
    );
}

#[test]
fn a_metrics_file_that_cannot_be_is_said_at_the_start() {
    let world = World::new();
    let said = world.fail(
        1,
        &["train", "config.toml", "--metrics-file", "nowhere/ddk.prom"],
    );
    assert!(
        said.contains("nowhere/ddk.prom") && said.contains("telemetry.metrics_file"),
        "{said}"
    );
    let said = world.fail(2, &["train", "config.toml", "--metrics-file", "ddk.txt"]);
    assert!(
        said.contains("`telemetry.metrics_file` is \"ddk.txt\""),
        "{said}"
    );
}

#[test]
fn the_demo_without_its_configuration_says_where_to_run_it() {
    let world = World::new();
    let said = world.fail(2, &["demo"]);
    says(&said, &["config/demo.toml", "hint:"]);
}
