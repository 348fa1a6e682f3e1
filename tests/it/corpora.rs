//! Corpora in whole-program tests: packing, prompts, verification, inspecting data, and compressed sources.

use std::fs;

use crate::world::{World, assert_same, copy, is_step, stderr, whole};

#[test]
fn every_packing_trains_and_goes_on_after_a_stop() {
    let mut weights = Vec::new();
    for packing in ["concat", "concat_masked", "best_fit"] {
        let set = format!("corpus.packing={packing}");
        let train = ["train", "config.toml", "--set", &set];
        let whole = World::new();
        whole.succeed(&train);
        let world = World::new();
        let started = world.start_until(&train, |line| line.contains("step 5/"));
        started.signal("TERM");
        started.wait();
        world.succeed(&train);
        assert!(whole.trajectory() == world.trajectory(), "{packing}");
        assert!(
            whole.student_weights() == world.student_weights(),
            "{packing}"
        );
        weights.push(whole.student_weights());
    }
    assert!(weights[0] != weights[1] && weights[1] != weights[2]);
}

#[test]
fn masked_prompts_change_the_loss() {
    let train = |mask: bool| {
        let world = World::new();
        for domain in ["coins", "rivers", "storms"] {
            let path = world.path().join(format!("sources/{domain}.jsonl"));
            let lines = fs::read_to_string(&path).unwrap();
            let lines: String = lines
                .lines()
                .map(|line| {
                    let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
                    record["question"] = format!("Tell me about {domain}.").into();
                    format!("{record}\n")
                })
                .collect();
            fs::write(path, lines).unwrap();
        }
        let mask = format!("objective.completion_only_loss={mask}");
        let mut arguments = vec![
            "train",
            "config.toml",
            "--set",
            "corpus.packing=best_fit",
            "--set",
            &mask,
        ];
        for prompt in [
            "domains.coins.prompt_template={question} ",
            "domains.rivers.prompt_template={question} ",
            "domains.storms.prompt_template={question} ",
        ] {
            arguments.extend(["--set", prompt]);
        }
        world.succeed(&arguments);
        world.lines("run.jsonl")[0]["ce_loss"].as_f64().unwrap()
    };
    let (masked, plain) = (train(true), train(false));
    // The prompts are all alike and easy to predict. Masking them leaves only the harder tokens in the loss.
    assert!((masked - plain).abs() > 1e-3, "{masked} {plain}");
}

#[test]
fn prompts_that_leave_nothing_to_measure_are_named_at_the_start() {
    let world = World::new();
    let prompt = format!(
        "domains.rivers.prompt_template=\"{}\"",
        "so long a prompt ".repeat(20) + "{text}"
    );
    let masked = [
        "--set",
        &prompt,
        "--set",
        "objective.completion_only_loss=true",
    ];
    let said = world.fail(2, &[&["train", "config.toml"][..], &masked].concat());
    assert!(
        said.contains("domain `rivers` has no token to predict")
            && said.contains("sequence_length"),
        "{said}"
    );
}

#[test]
fn prepared_files_are_verified_and_looked_at() {
    let world = World::new();
    world.succeed(&["prepare", "config.toml", "--verify"]);
    let inspected = world.succeed(&[
        "data",
        "inspect",
        "config.toml",
        "--domain",
        "rivers",
        "--rows",
        "1",
    ]);
    let said = String::from_utf8(inspected.stdout).unwrap();
    for expected in [
        "rivers: ",
        "tokens per document",
        "sequence 0 of",
        "the ford",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    let long = ["config.toml", "--set", "corpus.sequence_length=300"];
    world.succeed(&[&["prepare"][..], &long].concat());
    let inspect = [&["data", "inspect"][..], &long].concat();
    let said = |more: &[&str]| {
        let output = world.succeed(&[&inspect[..], more].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let cut = "… 100 more tokens (--full prints them)";
    assert!(said(&[]).contains(cut) && !said(&["--full"]).contains("--full"));
    world.succeed(&["prepare", "config.toml"]);
    let said = world.fail(2, &["data", "inspect", "config.toml", "--domain", "lakes"]);
    assert!(said.contains("coins, rivers, storms"), "{said}");

    world.succeed(&["train", "config.toml"]);
    // A run names its configuration.
    let of_run = world.succeed(&["data", "inspect", "runs/small"]);
    let of_file = world.succeed(&["data", "inspect", "config.toml"]);
    assert_eq!(of_run.stdout, of_file.stdout);
    let traced = world.succeed(&["data", "samples", "runs/small", "--step", "3"]);
    let said = String::from_utf8(traced.stdout).unwrap();
    assert_eq!(said.matches("drawn in interval 0").count(), 8, "{said}");
    assert!(said.contains("document"));
    let said = world.fail(2, &["data", "samples", "runs/small", "--step", "99"]);
    assert!(said.contains("no step 99"), "{said}");

    let path = world.path().join("prepared/storms/tokens.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 4;
    fs::write(&path, bytes).unwrap();
    let said = world.fail(1, &["prepare", "config.toml", "--verify"]);
    assert!(said.contains("prepared/storms/tokens.bin"), "{said}");
}

/// A run stops at a block that changed on disk and does not train on it.
#[test]
fn a_byte_that_changed_after_preparation_stops_the_run_with_its_place() {
    let world = World::new();
    let path = world.path().join("prepared/storms/tokens.bin");
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[100] ^= 4;
    fs::write(&path, bytes).unwrap();
    let said = world.fail(1, &["train", "config.toml"]);
    assert!(
        said.contains("loader-storms failed: prepared/storms/tokens.bin is damaged")
            && said.contains("at byte 0 "),
        "{said}"
    );
    let steps = fs::read_to_string(world.run_folder().join("run.jsonl")).unwrap_or_default();
    assert_eq!(steps, "", "no step without rows of storms");
    // With the file restored, the run equals an undisturbed one.
    fs::write(&path, whole).unwrap();
    world.succeed(&["train", "config.toml"]);
    assert_same(&world, &crate::world::whole(), "after damage to its corpus");
}

#[test]
fn a_stale_corpus_is_refused_or_used_where_that_is_asked_for() {
    let world = World::new();
    let path = world.path().join("sources/coins.jsonl");
    let more = fs::read_to_string(&path).unwrap() + "{\"text\": \"one more coin, quite new\"}\n";
    fs::write(path, more).unwrap();
    let said = world.fail(
        1,
        &["train", "config.toml", "--set", "corpus.on_stale=error"],
    );
    assert!(
        said.contains("`coins` is stale") && said.contains("coins.jsonl has changed"),
        "{said}"
    );
    world.succeed(&["train", "config.toml", "--set", "corpus.on_stale=use"]);
}

/// DDK does not replace a corpus that a run needs just because a source has grown.
#[test]
fn a_run_keeps_the_corpus_that_it_was_made_from() {
    let whole = whole();
    let world = World::new();
    let started = world.start_until(&["train", "config.toml"], |line| is_step(line, 5));
    started.signal("KILL");
    started.wait();
    let (sources, before) = (world.path().join("sources"), world.path().join("before"));
    copy(&sources, &before);
    let path = sources.join("coins.jsonl");
    let more = fs::read_to_string(&path).unwrap() + "{\"text\": \"one more coin, quite new\"}\n";
    fs::write(path, more).unwrap();
    let eval = ["eval", "config.toml", "--model", "models/student"];
    let said = stderr(&world.succeed(&eval));
    assert!(
        said.contains("warning: using the prepared coins as it is"),
        "{said}"
    );
    let said = world.fail(2, &["train", "config.toml"]);
    assert!(
        said.contains("was trained on the prepared domain `coins`, which is stale")
            && said.contains("coins.jsonl has changed"),
        "{said}"
    );
    world.succeed(&["train", "config.toml", "--set", "corpus.on_stale=use"]);
    assert_same(&world, &whole, "with a source that has grown");
    // The run is finished. DDK still accepts its command, but refuses to fork it without an explicit choice.
    world.succeed(&["train", "config.toml"]);
    let fork = [
        "train",
        "config.toml",
        "--fork",
        "other",
        "--resume-from",
        "6",
    ];
    let said = world.fail(2, &fork);
    assert!(said.contains("runs/small was trained on"), "{said}");
    // Replace the corpus anyway, then restore its source. No run's corpus is left to protect, and DDK prepares the
    // original one again.
    world.succeed(&["prepare", "config.toml"]);
    copy(&before, &sources);
    world.succeed(&["train", "config.toml"]);
    world.succeed(&fork);
}

#[test]
fn passes_end_a_run_with_what_is_left() {
    let world = World::new();
    let config = fs::read_to_string(world.path().join("config.toml")).unwrap();
    let endless = config.replace("max_steps = 12", "max_tokens = 100000000");
    assert!(endless != config);
    fs::write(world.path().join("config.toml"), endless).unwrap();
    let passes = ["train", "config.toml", "--set", "mixture.max_epochs=1"];
    world.succeed(&[&passes[..], &["--set", "mixture.interval=1000"]].concat());
    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(world.run_folder().join("summary.json")).unwrap())
            .unwrap();
    assert_eq!(summary["stop_reason"], "max_epochs");
    let samples = world.lines("samples.jsonl");
    let places: std::collections::BTreeSet<String> = samples
        .iter()
        .map(|sample| format!("{} {}", sample["domain"], sample["sequence"]))
        .collect();
    assert_eq!(places.len(), samples.len(), "no row twice");
    assert!(samples.len() > 100, "{} rows", samples.len());
    let none = [
        "--set",
        "run.name=none",
        "--set",
        "training.global_batch_size=4000",
    ];
    let said = world.fail(2, &[&passes[..], &none].concat());
    assert!(said.contains("mixture.max_epochs"), "{said}");
}

#[test]
fn a_template_that_is_none_is_named() {
    let world = World::new();
    let said = world.fail(
        2,
        &[
            "prepare",
            "config.toml",
            "--set",
            "domains.coins.text_template={title",
        ],
    );
    assert!(
        said.contains("domains.coins.text_template") && said.contains("not closed"),
        "{said}"
    );
}
