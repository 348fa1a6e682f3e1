//! What the models write after `samples.prompts`: it changes no result, and resumes with the run.

use serde_json::{Value, json};

use crate::world::{World, assert_same, read_lines, stderr, train_with};

const PROMPTS: &str = "samples.prompts=[\"The old\", \"\"]";
const LENGTH: &str = "samples.max_tokens=12";

/// A world with a run with these settings.
fn trained(sets: &[&str]) -> World {
    let world = World::new();
    let output = train_with(&world, &[], sets);
    assert!(output.status.success(), "{}", stderr(&output));
    world
}

/// Which model wrote after which step.
fn writers(world: &World) -> Vec<Value> {
    let lines = world.lines("texts.jsonl");
    let writers = lines
        .iter()
        .map(|line| json!([line["model"], line["step"]]));
    writers.collect()
}

#[test]
fn texts_are_written_at_each_evaluation_and_change_no_result() {
    for lag in ["mixture.lag=0", "mixture.lag=1"] {
        let (without, with) = (trained(&[lag]), trained(&[lag, PROMPTS, LENGTH]));
        assert_same(&with, &without, lag);
        assert!(!without.run_folder().join("texts.jsonl").exists(), "{lag}");
        let expected = [
            json!(["student", 0]),
            json!(["teacher", 0]),
            json!(["student", 4]),
            json!(["student", 8]),
            json!(["student", 12]),
        ];
        assert_eq!(writers(&with), expected, "{lag}");

        // `ddk generate` writes the same with the exported student.
        let last = with.lines("texts.jsonl").pop().unwrap();
        for (index, prompt) in ["The old", ""].into_iter().enumerate() {
            let arguments = [
                "generate",
                "--model",
                "runs/small/student",
                "--prompt",
                prompt,
            ];
            let greedy = ["--temperature", "0", "--max-new-tokens", "12"];
            let output = with.succeed(&[&arguments[..], &greedy[..]].concat());
            let generated = String::from_utf8(output.stdout).unwrap();
            let text = last["texts"][index]["text"].as_str().unwrap();
            assert!(!text.is_empty(), "{last}");
            assert_eq!(generated.trim_end_matches('\n'), format!("{prompt}{text}"));
        }
    }
}

#[test]
fn a_run_that_resumes_has_the_same_texts() {
    for lag in ["mixture.lag=0", "mixture.lag=1"] {
        let whole = trained(&[lag, PROMPTS, LENGTH]);
        // Within an interval, at its end, and while a checkpoint is saved.
        for fault in ["kill student 7", "kill student 9", "kill save 6 2"] {
            let world = World::new();
            let output = train_with(&world, &[fault], &[lag, PROMPTS, LENGTH]);
            assert!(!output.status.success(), "{fault} did nothing");
            let output = train_with(&world, &[], &[lag, PROMPTS, LENGTH]);
            assert!(output.status.success(), "{}", stderr(&output));
            assert_same(&world, &whole, fault);
            assert_eq!(
                world.lines("texts.jsonl"),
                whole.lines("texts.jsonl"),
                "{lag}, {fault}"
            );
        }
    }
}

#[test]
fn the_teacher_writes_although_an_earlier_run_has_measured_it() {
    let world = trained(&[]);
    let output = train_with(&world, &[], &["run.name=again", PROMPTS, LENGTH]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = read_lines(&world.path().join("runs/again/texts.jsonl"));
    assert_eq!(
        (&lines[1]["model"], &lines[1]["step"]),
        (&json!("teacher"), &json!(0))
    );
    assert!(!lines[1]["texts"][0]["text"].as_str().unwrap().is_empty());
}
