//! `ddk compare`: a table of methods from runs that are trained, skipped, and resumed.

use std::fs;

use serde_json::Value;

use crate::world::{World, stderr};

const COMPARE: [&str; 6] = [
    "compare",
    "config.toml",
    "--methods",
    "kd,ddk",
    "--seeds",
    "2",
];

fn json(world: &World, path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(world.path().join(path)).unwrap()).unwrap()
}

#[test]
fn two_methods_and_two_seeds_become_a_table_and_a_second_call_skips_all() {
    let world = World::new();
    // Seeds change the order of the data, never the set of documents.
    let config = fs::read_to_string(world.path().join("config.toml")).unwrap();
    let limited = config.replace(
        "[domains.coins]\n",
        "[domains.coins]\nmax_documents = 100\n",
    );
    assert!(limited != config);
    fs::write(world.path().join("config.toml"), limited).unwrap();
    let output = world.succeed(&COMPARE);
    let said = stderr(&output);
    assert!(
        said.contains("4 runs in runs/small, 0 of them finished"),
        "{said}"
    );
    assert!(said.contains("[4/4] ddk, seed 1, about "), "{said}");
    let compared = json(&world, "runs/small/compare.json");
    // Only the first run evaluates the teacher, which is no cost of its method.
    let first = json(&world, "runs/small/kd/seed-0/summary.json");
    assert!(first["teacher_evaluation_flops"].as_f64().unwrap() > 0.0);
    let costs = &compared["groups"][0]["methods"][0]["evaluation_flops"]["values"];
    assert_eq!(costs[0], costs[1]);
    assert_eq!(compared["seeds"], serde_json::json!([0, 1]));
    for method in compared["groups"][0]["methods"].as_array().unwrap() {
        let name = method["method"].as_str().unwrap();
        for seed in 0..2 {
            let folder = format!("runs/small/{name}/seed-{seed}");
            let summary = json(&world, &format!("{folder}/summary.json"));
            let domain = &summary["domains"]["coins"]["student_perplexity_after"];
            assert_eq!(method["perplexity"]["coins"]["values"][seed], *domain);
            let flops = |key: &str| summary[key].as_f64().unwrap();
            let saved = flops("teacher_flops_saved");
            assert!(flops("teacher_flops") + saved > flops("student_flops"));
            // The first run fills the cache, and every other run has the first one's sequences.
            assert_eq!(
                saved > 0.0,
                (name, seed) != ("kd", 0),
                "{name}, seed {seed}"
            );
            let mixture = summary["mixture_flops"].as_f64().unwrap();
            assert_eq!(mixture > 0.0, name == "ddk", "{name}: {mixture}");
            let inputs = json(&world, &format!("{folder}/inputs.json"));
            assert_eq!(inputs, json(&world, "runs/small/kd/seed-0/inputs.json"));
        }
    }
    for file in [
        "compare.md",
        "compare.html",
        "figures/perplexity.svg",
        "figures/gaps.svg",
    ] {
        assert!(
            world.path().join("runs/small").join(file).exists(),
            "{file} is missing"
        );
    }
    let text = fs::read(world.path().join("runs/small/compare.md")).unwrap();
    assert_eq!(output.stdout, text, "what is printed is what is written");

    let again = world.succeed(&COMPARE);
    assert!(
        stderr(&again).contains("4 of them finished"),
        "{}",
        stderr(&again)
    );
    assert_eq!(again.stdout, output.stdout);
}

#[test]
fn all_eight_methods_stand_in_one_table() {
    let world = World::new();
    let short = ["objective.ted_steps=4", "mixture.doremi_steps=4"];
    let short = short.map(|set| ["--set", set]).concat();
    world.succeed(&[&["compare", "config.toml", "--seeds", "1"], &short[..]].concat());
    let compared = json(&world, "runs/small/compare.json");
    let methods = compared["groups"][0]["methods"].as_array().unwrap();
    let flops = |name: &str| -> [f64; 2] {
        let method = methods.iter().find(|method| method["method"] == name);
        let mean = |key: &str| method.unwrap()[key]["mean"].as_f64().unwrap();
        let without_cache = mean("teacher_flops") + mean("teacher_flops_saved");
        [without_cache, mean("student_flops")]
    };
    let text = fs::read_to_string(world.path().join("runs/small/compare.md")).unwrap();
    assert!(
        text.contains("In all runs together, the teacher's cache saved"),
        "{text}"
    );
    assert_eq!(methods.len(), 8);
    let (kd, cpt, doremi, ted) = (flops("kd"), flops("cpt"), flops("cpt-doremi"), flops("ted"));
    assert_eq!(cpt[0], 0.0, "no teacher is run for cross-entropy alone");
    // DoReMi's reference and proxy train like the student, and the reference is the proxy's teacher. TED trains its
    // filters before the student and together with it.
    assert!(
        doremi[0] > 0.0 && doremi[1] > 1.5 * cpt[1],
        "{doremi:?} {cpt:?}"
    );
    assert!(ted[0] > kd[0] && ted[1] > kd[1], "{ted:?} {kd:?}");
    for name in ["ddk", "ddk-no-smoothing", "ddk-equal", "minillm"] {
        assert!((flops(name)[0] / kd[0] - 1.0).abs() < 0.05, "{name}");
    }
    let weights = fs::read_to_string(world.path().join("runs/small/figures/weights.svg")).unwrap();
    for method in ["ddk", "ddk-no-smoothing"] {
        assert!(
            weights.contains(&format!("\n{method}\n</text>")),
            "{method}"
        );
    }
}

#[test]
fn an_interrupted_comparison_goes_on_where_it_was() {
    let world = World::new();
    let whole = World::new();
    whole.succeed(&COMPARE);
    let mut in_second = false;
    let started = world.start_until(&COMPARE, |line| {
        in_second |= line.starts_with("[2/4]");
        in_second && line.contains("step 5/")
    });
    started.signal("TERM");
    let (status, said) = started.wait();
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(
        said.contains("the same command resumes from there"),
        "{said}"
    );
    let output = world.succeed(&COMPARE);
    let said = stderr(&output);
    assert!(
        said.contains("1 of them finished") || said.contains("2 of them finished"),
        "{said}"
    );
    for run in ["kd/seed-0", "kd/seed-1", "ddk/seed-0", "ddk/seed-1"] {
        let student = format!("runs/small/{run}/student/model.safetensors");
        assert!(
            fs::read(world.path().join(&student)).unwrap()
                == fs::read(whole.path().join(&student)).unwrap(),
            "{run}"
        );
    }
}

#[test]
fn what_would_compare_a_method_with_itself_is_refused() {
    let world = World::new();
    let said = world.fail(
        2,
        &["compare", "config.toml", "--set", "mixture.policy=equal"],
    );
    assert!(
        said.contains("mixture.policy=equal") && said.contains("leave `mixture.policy` out"),
        "{said}"
    );
    let said = world.fail(2, &["compare", "config.toml", "--methods", "kd,distill"]);
    assert!(said.contains("ddk-no-smoothing"), "{said}");
}

#[test]
fn a_sweep_that_makes_some_runs_longer_is_refused() {
    let world = World::new();
    let longer = ["compare", "config.toml", "--set", "run.max_intervals=2"];
    let intervals = ["--sweep", "mixture.interval=2,4"];
    let said = world.fail(2, &[&longer[..], &intervals].concat());
    // 4 and 8 steps, each with 8 sequences of 32 tokens.
    assert!(
        said.contains("mixture.interval: a run with 4 trains on 2048 tokens, a run with 2 on 1024")
            && said.contains("run.max_tokens"),
        "{said}"
    );
    let said = world.fail(2, &["compare", "config.toml", "--sweep", "run.seed=1,2"]);
    assert!(said.contains("a comparison sets this key itself"), "{said}");
    let twice = [
        "compare",
        "config.toml",
        "--sweep",
        "objective.gamma=0.1,0.1",
    ];
    assert!(
        world
            .fail(2, &twice)
            .contains("the value 0.1 appears twice")
    );
    let rows = [
        "compare",
        "config.toml",
        "--sweep",
        "training.global_batch_size=4,8",
    ];
    assert!(
        world
            .fail(2, &rows)
            .contains("training.global_batch_size: a run with 8")
    );
}

#[test]
fn a_sweep_is_a_table_a_value_and_scores_are_columns() {
    let world = World::new();
    let scores = serde_json::json!({
        "results": { "arc_easy": { "acc,none": 0.25, "acc_stderr,none": 0.01 } },
        "config": { "model_args": "pretrained=runs/small-quick/kd-objective.gamma-0.5/seed-0/student" }
    });
    fs::write(world.path().join("scores.json"), scores.to_string()).unwrap();
    let output = world.succeed(&[
        "compare",
        "config.toml",
        "--methods",
        "kd",
        "--seeds",
        "1",
        "--quick",
        "--sweep",
        "objective.gamma=0,0.5",
        "--import-scores",
        "scores.json",
        "--out",
        "written",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("## `objective.gamma = 0`") && text.contains("## `objective.gamma = 0.5`"),
        "{text}"
    );
    assert!(
        text.contains("arc_easy (acc, %)") && text.contains("25.00"),
        "{text}"
    );
    assert!(world.path().join("written/compare.html").exists());
    let summary = json(
        &world,
        "runs/small-quick/kd-objective.gamma-0/seed-0/summary.json",
    );
    assert_eq!(summary["steps"], 3, "a quarter of twelve");
}

#[test]
fn archived_runs_count_as_finished_and_each_seed_has_its_own_student() {
    let world = World::new();
    let archived = [
        "compare",
        "config.toml",
        "--methods",
        "kd,ddk-equal,excess",
        "--seeds",
        "2",
        "--vary",
        "student",
        "--archive",
        "kept",
    ];
    let output = world.succeed(&archived);
    let said = stderr(&output);
    assert!(
        said.contains("running ddk pretrain --model student"),
        "{said}"
    );
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    for expected in [
        "Seeds vary the initial student and the order of the data.",
        "mean gap: excess < kd |",
        "worst domain's gap: excess < ddk-equal |",
        "mean gap: excess < ddk-equal + 0.01 |",
        "## Difference from the best of the others",
    ] {
        assert!(text.contains(expected), "{expected} is missing in {text}");
    }
    let student = |run: &str| json(&world, &format!("kept/{run}/inputs.json"))["student"].clone();
    assert!(student("kd/seed-0").is_string());
    assert_eq!(student("kd/seed-0"), student("excess/seed-0"));
    assert_eq!(student("kd/seed-1"), student("excess/seed-1"));
    assert!(student("kd/seed-0") != student("kd/seed-1"));
    let compared = json(&world, "runs/small/compare.json");
    let primary = compared["groups"][0]["primary"].as_array().unwrap();
    assert_eq!(primary.len(), 4);
    for claim in primary {
        let [p, holm] = ["p", "p_holm"].map(|key| claim[key].as_f64().unwrap());
        assert!(0.0 < p && p <= holm && holm <= 1.0, "{claim}");
    }

    // The archive alone is enough: without the runs and the students, the result is the same.
    fs::remove_dir_all(world.path().join("runs")).unwrap();
    for seed in 0..2 {
        let student = world.path().join(format!("models/student-seed-{seed}"));
        fs::remove_dir_all(student).unwrap();
    }
    let again = world.succeed(&archived);
    assert!(
        stderr(&again).contains("6 of them finished"),
        "{}",
        stderr(&again)
    );
    let again = String::from_utf8(again.stdout).unwrap();
    assert_eq!(again, text);
    let other = [&archived[..], &["--set", "objective.gamma=0.5"]].concat();
    let said = world.fail(2, &other);
    assert!(
        said.contains("kept/kd/seed-0") && said.contains("`objective.gamma` was"),
        "{said}"
    );
    let none = ["--vary", "student", "--set", "student.model=tokenizer"];
    let said = world.fail(2, &[&COMPARE[..], &none].concat());
    assert!(
        said.contains("no [pretrain.NAME] writes to `student.model`"),
        "{said}"
    );
}
