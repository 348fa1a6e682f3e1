//! Model folders as users bring them: init, check, train, generate, export.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::world::{World, copy, stderr, write_sources};

const PAIRS: [&str; 3] = ["qwen2", "llama", "gpt-bigcode"];

/// A folder with a pair of models made by transformers (tests/reference/make_pairs.py) in `models/`, three domains
/// of text in `text/`, and the configuration that `ddk init` writes for them.
fn world_of(pair: &str) -> World {
    let world = World::empty();
    let pairs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pairs");
    copy(&pairs.join(pair), &world.path().join("models"));
    write_sources(world.path());
    fs::create_dir(world.path().join("text")).unwrap();
    for domain in ["coins", "rivers", "storms"] {
        let from = format!("sources/{domain}.jsonl");
        let to = format!("text/{domain}.jsonl");
        fs::rename(world.path().join(from), world.path().join(to)).unwrap();
    }
    let output = world.succeed(&[
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
    assert!(stderr(&output).contains("ddk check my.toml"));
    world
}

fn check(world: &World, more: &[&str]) -> (bool, String) {
    let output = world.run(&[&["check", "my.toml"], more].concat());
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// The check must fail and name the problem in these words.
fn finds(world: &World, more: &[&str], words: &[&str]) {
    let (ready, said) = check(world, more);
    assert!(!ready, "{said}");
    let problems: String = said
        .lines()
        .filter(|line| line.contains("PROBLEM"))
        .collect();
    for word in words {
        assert!(problems.contains(word), "no {word:?} in: {said}");
    }
}

#[test]
fn two_folders_and_a_folder_of_text_become_a_run() {
    for pair in PAIRS {
        let world = world_of(pair);
        let (ready, said) = check(&world, &[]);
        assert!(ready, "{pair}: {said}");
        world.succeed(&[
            "train",
            "my.toml",
            "--set",
            "run.max_steps=20",
            "--set",
            "run.name=small",
            "--set",
            "telemetry.enabled=false",
        ]);
        assert_eq!(world.lines("run.jsonl").len(), 20, "{pair}");
        let (ready, said) = check(&world, &[]);
        assert!(
            ready && said.contains("epochs at the floor"),
            "{pair}: {said}"
        );

        let says = || {
            let arguments = [
                "generate",
                "--model",
                "runs/small/student",
                "--prompt",
                "the coin",
                "--max-new-tokens",
                "12",
                "--temperature",
                "0.8",
                "--top-p",
                "0.9",
                "--seed",
                "3",
            ];
            String::from_utf8(world.succeed(&arguments).stdout).unwrap()
        };
        let text = says();
        assert!(text.starts_with("the coin") && text.trim().len() > "the coin".len());
        assert_eq!(text, says(), "{pair}: the same seed writes the same text");

        world.succeed(&["export", "runs/small", "--out", "exported"]);
        let said = world.fail(2, &["export", "runs/small", "--out", "text"]);
        assert!(
            said.contains("text contains `coins.jsonl`") && said.contains("is not replaced"),
            "{said}"
        );
        for other in ["my.toml", "runs/small", "models/student", "models/teacher"] {
            let said = world.fail(2, &["export", "runs/small", "--out", other]);
            assert!(
                said.contains(&format!("{other} ")) && said.contains("replaced"),
                "{said}"
            );
        }
        for file in [
            "model.safetensors",
            "tokenizer.json",
            "generation_config.json",
        ] {
            let read = |folder: &str| fs::read(world.path().join(folder).join(file)).unwrap();
            assert!(
                read("exported") == read("runs/small/student"),
                "{pair}: {file}"
            );
        }
        let output = world.succeed(&[
            "eval",
            "my.toml",
            "--model",
            "exported",
            "--baseline",
            "models/teacher",
            "--json",
        ]);
        let evaluated: Value = serde_json::from_slice(&output.stdout).unwrap();
        let coins = &evaluated["domains"]["coins"];
        assert!(coins["perplexity"].as_f64().unwrap() > 1.0);
        assert!(coins["baseline"].as_f64().unwrap() > 1.0);
        assert_ne!(coins["baseline"], coins["perplexity"]);
    }
}

/// In a model folder that ddk wrote, an export replaces only ddk's own files. It never replaces another program's
/// model.
#[test]
fn an_export_replaces_what_an_export_wrote_and_nothing_else() {
    let world = world_of("llama");
    let train = [
        "train",
        "my.toml",
        "--set",
        "run.max_steps=2",
        "--set",
        "run.name=small",
    ];
    world.succeed(&[&train[..], &["--set", "telemetry.enabled=false"]].concat());
    let export = ["export", "runs/small", "--out", "exported"];
    world.succeed(&export);
    world.succeed(&[&export[..], &["--dtype", "bf16"]].concat());
    let exported = world.path().join("exported");
    fs::write(exported.join("notes.md"), "what I found").unwrap();
    let said = world.fail(2, &export);
    assert!(said.contains("exported contains `notes.md`"), "{said}");
    assert_eq!(
        fs::read_to_string(exported.join("notes.md")).unwrap(),
        "what I found"
    );
    fs::remove_file(exported.join("notes.md")).unwrap();
    world.succeed(&export);
    // A model that another program wrote, with the same file names.
    copy(
        &world.path().join("models/teacher"),
        &world.path().join("theirs"),
    );
    let said = world.fail(2, &["export", "runs/small", "--out", "theirs"]);
    assert!(said.contains("theirs contains `config.json`"), "{said}");
    let weights =
        |folder: &str| fs::read(world.path().join(folder).join("model.safetensors")).unwrap();
    assert!(weights("theirs") == weights("models/teacher"));
}

#[test]
fn a_student_keeps_its_own_padding() {
    let world = world_of("qwen2");
    world.succeed(&[
        "train",
        "my.toml",
        "--set",
        "run.max_steps=2",
        "--set",
        "run.name=small",
        "--set",
        "telemetry.enabled=false",
    ]);
    let config = fs::read_to_string(world.run_folder().join("student/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["vocab_size"], 320);
}

#[test]
fn dtypes_recomputation_and_spread_layers_train_as_well() {
    let world = world_of("qwen2");
    let train = |name: &str, settings: &[&str]| {
        let name = format!("run.name={name}");
        let mut arguments = vec![
            "train",
            "my.toml",
            "--set",
            "run.max_steps=3",
            "--set",
            "telemetry.enabled=false",
            "--set",
            &name,
        ];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        world.succeed(&arguments);
    };
    train("plain", &[]);
    train("recomputed", &["student.activation_checkpointing=true"]);
    train("spread", &["teacher.devices=[\"cpu+cpu\"]"]);
    train("bf16", &["student.dtype=bf16", "teacher.dtype=bf16"]);
    let weights = |name: &str| {
        fs::read(
            world
                .path()
                .join(format!("runs/{name}/student/model.safetensors")),
        )
        .unwrap()
    };
    assert!(weights("plain") == weights("recomputed"));
    assert!(weights("plain") == weights("spread"));
    assert!(weights("plain") != weights("bf16"));
}

#[test]
fn check_catches_models_that_do_not_belong_together() {
    let world = world_of("qwen2");
    finds(
        &world,
        &[
            "--set",
            "teacher.model=models/student",
            "--set",
            "student.model=models/teacher",
        ],
        &["swapped"],
    );
    // A tokenizer that differs in one id.
    let path = world.path().join("models/student/tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (first, second) = (vocabulary["a"].clone(), vocabulary["b"].clone());
    vocabulary.insert("a".to_owned(), second);
    vocabulary.insert("b".to_owned(), first.clone());
    fs::write(&path, tokenizer.to_string()).unwrap();
    finds(
        &world,
        &[],
        &[&format!(
            "id {first} is \"a\" in models/teacher and \"b\" in models/student"
        )],
    );
}

#[test]
fn check_catches_a_cut_shard_and_a_missing_tensor() {
    let world = world_of("llama");
    let path = world.path().join("models/teacher/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    finds(&world, &[], &["models/teacher/model.safetensors"]);
    fs::write(&path, bytes).unwrap();
    let config = world.path().join("models/teacher/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut changed: Value = serde_json::from_str(&text).unwrap();
    changed["num_hidden_layers"] = json!(3);
    fs::write(&config, changed.to_string()).unwrap();
    let (ready, said) = check(&world, &[]);
    assert!(
        !ready && said.contains("missing: model.layers.2.mlp.up_proj.weight"),
        "{said}"
    );
}

#[test]
fn check_catches_too_little_memory_and_says_what_to_change() {
    let world = world_of("gpt-bigcode");
    finds(
        &world,
        &[
            "--set",
            "training.micro_batch_size=1000000",
            "--set",
            "training.global_batch_size=1000000",
        ],
        &["cpu is short of", "training.micro_batch_size"],
    );
}

#[test]
fn check_catches_an_absent_domain() {
    let world = world_of("llama");
    finds(
        &world,
        &["--set", "domains.rivers.files=[\"text/lakes.jsonl\"]"],
        &["rivers", "text/lakes.jsonl"],
    );
}

#[test]
fn domains_come_from_a_field_of_the_records() {
    let world = world_of("llama");
    let mut all = String::new();
    for domain in ["coins", "rivers", "storms"] {
        let path = world.path().join(format!("text/{domain}.jsonl"));
        for line in fs::read_to_string(&path).unwrap().lines() {
            let mut record: Value = serde_json::from_str(line).unwrap();
            record["meta"] = json!({ "set name": format!("Set/{domain}") });
            all.push_str(&format!("{record}\n"));
        }
        fs::remove_file(path).unwrap();
    }
    fs::write(world.path().join("text/all.jsonl"), all).unwrap();
    world.succeed(&[
        "init",
        "--teacher",
        "models/teacher",
        "--student",
        "models/student",
        "--data",
        "text",
        "--domain-field",
        "meta.set name",
        "--out",
        "by-field.toml",
    ]);
    let prepared = |config: &str| -> Vec<Vec<u8>> {
        world.succeed(&[
            "prepare",
            config,
            "--set",
            &format!("corpus.dir={config}.d"),
        ]);
        let mut domains: Vec<_> = fs::read_dir(world.path().join(format!("{config}.d")))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        domains.sort();
        domains
            .iter()
            .map(|domain| fs::read(domain.join("tokens.bin")).unwrap())
            .collect()
    };
    let by_field = prepared("by-field.toml");
    assert_eq!(by_field.len(), 3);
    // The same records in one file per domain give the same tokens.
    write_sources(world.path());
    let own = fs::read_to_string(world.path().join("my.toml")).unwrap();
    fs::write(
        world.path().join("own.toml"),
        own.replace("text/", "sources/"),
    )
    .unwrap();
    assert!(prepared("own.toml") == by_field);
}

#[test]
fn init_does_not_overwrite() {
    let world = world_of("llama");
    let said = world.fail(
        2,
        &[
            "init",
            "--teacher",
            "models/teacher",
            "--student",
            "models/student",
            "--data",
            "text",
            "--out",
            "my.toml",
        ],
    );
    assert!(
        said.contains("my.toml already exists") && said.contains("--out"),
        "{said}"
    );
}
