//! The commands that only print.

use std::process::Command;

use insta::assert_snapshot;

use crate::world::{World, stderr};

fn ddk(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ddk"))
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr(&output),
    )
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let (code, out, _) = ddk(&["--help"]);
    assert_eq!(code, Some(0));
    for expected in [
        "demo",
        "prepare",
        "pretrain",
        "train",
        "eval",
        "config",
        "mixture",
        "Exit codes",
        "130",
        "143",
    ] {
        assert!(out.contains(expected), "{expected} is not in\n{out}");
    }
    for command in [
        "demo", "prepare", "pretrain", "train", "eval", "config", "mixture",
    ] {
        assert_eq!(ddk(&[command, "--help"]).0, Some(0), "{command}");
    }
}

/// An example of the paper's equations that a reader can check by hand.
#[test]
fn mixture_explains_the_next_weights() {
    let (code, out, _) = ddk(&[
        "mixture",
        "--student-ppl",
        "9,6,12,4",
        "--teacher-ppl",
        "6,5,6,3.5",
    ]);
    assert_eq!(code, Some(0));
    assert_snapshot!(out);
}

#[test]
fn mixture_as_json_meets_the_golden_values() {
    // Case "three domains, paper settings" of crates/mixture/tests/ddk-goldens.json, interval 2.
    let (_, out, _) = ddk(&[
        "mixture",
        "--json",
        "--student-ppl",
        "1.4,1.22,1.1",
        "--teacher-ppl",
        "1,1,1",
        "--previous",
        "0.3986483806490714,0.29398093066124664,0.307370688689682",
    ]);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    let expected = [0.39527365109375473, 0.3074806047126726, 0.29724574419357264];
    for (index, expected) in expected.iter().enumerate() {
        assert!((value["weights"][index].as_f64().unwrap() - expected).abs() < 1e-9);
    }
}

#[test]
fn mixture_refuses_what_are_no_perplexities() {
    for (arguments, said) in [
        (
            &["--student-ppl", "9,6", "--teacher-ppl", "6"][..],
            "--teacher-ppl has 1 values, but --student-ppl has 2",
        ),
        (
            &["--student-ppl", "9,0.5", "--teacher-ppl", "6,5"],
            "--student-ppl contains 0.5",
        ),
        (
            &[
                "--student-ppl",
                "9,6",
                "--teacher-ppl",
                "6,5",
                "--alpha",
                "2",
            ],
            "--alpha is 2",
        ),
        (
            &[
                "--student-ppl",
                "9,6",
                "--teacher-ppl",
                "6,5",
                "--previous",
                "0.5,0.6",
            ],
            "--previous sums to 1.1",
        ),
    ] {
        let (code, _, err) = ddk(&[&["mixture"], arguments].concat());
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(said), "{err}");
    }
}

#[test]
fn config_show_says_where_each_value_comes_from() {
    let world = World::new();
    let output = world
        .command(&[
            "config",
            "show",
            "config.toml",
            "--origin",
            "--set",
            "run.seed=5",
        ])
        .env("DDK__PIPELINE__QUEUE_DEPTH", "3")
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let line = |key: &str| {
        let start = format!("{key} = ");
        out.lines()
            .find(|line| line[2..].starts_with(&start))
            .unwrap_or_else(|| panic!("{key} in\n{out}"))
            .to_owned()
    };
    assert!(line("run.seed").ends_with("--set run.seed=5"));
    assert!(line("pipeline.queue_depth").ends_with("environment DDK__PIPELINE__QUEUE_DEPTH"));
    assert!(line("optimizer.beta1").ends_with("default"));
    assert!(line("run.max_steps").contains("config.toml:"));
    // Only what differs from the defaults.
    let changed = ["config", "show", "config.toml", "--changed"];
    let changed = world.succeed(&[&changed[..], &["--set", "run.seed=5"]].concat());
    let changed = String::from_utf8(changed.stdout).unwrap();
    let has = |line: &str| changed.lines().any(|other| other.starts_with(line));
    assert!(
        has("run.seed = 5") && has("run.max_steps = ") && !has("optimizer.beta1"),
        "{changed}"
    );
    // The output without origins is itself a valid configuration.
    let shown = world.succeed(&["config", "show", "config.toml"]);
    std::fs::write(world.path().join("shown.toml"), &shown.stdout).unwrap();
    assert_eq!(
        world.succeed(&["config", "show", "shown.toml"]).stdout,
        shown.stdout
    );
    let schema: serde_json::Value =
        serde_json::from_slice(&world.succeed(&["config", "schema"]).stdout).unwrap();
    assert!(schema["properties"]["mixture"].is_object());
}
