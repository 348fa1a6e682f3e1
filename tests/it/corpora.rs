//! Corpora through the program: packing, prompts, verification, looking at data, compressed sources.

use std::fs;

use crate::world::World;

#[test]
fn every_packing_trains_and_goes_on_after_a_stop() {
    let mut weights = Vec::new();
    for packing in ["concat", "document", "best_fit"] {
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
        let mask = format!("objective.mask_prompt={mask}");
        let mut arguments = vec![
            "train",
            "config.toml",
            "--set",
            "corpus.packing=best_fit",
            "--set",
            &mask,
        ];
        for prompt in [
            "domains.coins.prompt={question} ",
            "domains.rivers.prompt={question} ",
            "domains.storms.prompt={question} ",
        ] {
            arguments.extend(["--set", prompt]);
        }
        world.succeed(&arguments);
        world.lines("run.jsonl")[0]["ce"].as_f64().unwrap()
    };
    let (masked, plain) = (train(true), train(false));
    // The prompts are all alike and soon known: without them the loss is of what is harder.
    assert!((masked - plain).abs() > 1e-3, "{masked} {plain}");
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
    for expected in ["rivers: ", "tokens of a document", "row 0 of", "the ford"] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    let said = world.fail(2, &["data", "inspect", "config.toml", "--domain", "lakes"]);
    assert!(said.contains("coins, rivers, storms"), "{said}");

    world.succeed(&["train", "config.toml"]);
    let traced = world.succeed(&["data", "trace", "runs/small", "--step", "3"]);
    let said = String::from_utf8(traced.stdout).unwrap();
    assert_eq!(said.matches("drawn by mixture 0").count(), 8, "{said}");
    assert!(said.contains("document"));
    let said = world.fail(2, &["data", "trace", "runs/small", "--step", "99"]);
    assert!(said.contains("no step 99"), "{said}");

    let path = world.path().join("prepared/storms/tokens.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 4;
    fs::write(&path, bytes).unwrap();
    let said = world.fail(1, &["prepare", "config.toml", "--verify"]);
    assert!(said.contains("prepared/storms/tokens.bin"), "{said}");
}

#[test]
fn a_stale_corpus_is_refused_or_used_where_that_is_asked_for() {
    let world = World::new();
    let path = world.path().join("sources/coins.jsonl");
    let more = fs::read_to_string(&path).unwrap() + "{\"text\": \"one more coin, quite new\"}\n";
    fs::write(path, more).unwrap();
    let said = world.fail(
        1,
        &["train", "config.toml", "--set", "corpus.when_stale=refuse"],
    );
    assert!(
        said.contains("`coins` is stale") && said.contains("coins.jsonl has changed"),
        "{said}"
    );
    world.succeed(&["train", "config.toml", "--set", "corpus.when_stale=use"]);
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
            "domains.coins.text={title",
        ],
    );
    assert!(
        said.contains("domains.coins.text") && said.contains("not closed"),
        "{said}"
    );
}
