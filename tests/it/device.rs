//! Runs on the GPU path learn what CPU runs learn, whatever the method, and resume after a kill.
//!
//! They use the GPUs that `DDK_TEST_DEVICE` and `DDK_TEST_DEVICE_2` name. Otherwise they use the CPU, which then
//! computes as a GPU would (`DDK_GPU_PATH=1`).

use serde_json::Value;

use crate::world::{World, stderr};

/// Relative tolerance in fp32. Over twelve steps, a different order of summation changes values by far less.
const NEAR: f64 = 1e-3;
/// Relative tolerance in bf16, which has eight bits of precision.
const NEAR_BF16: f64 = 2e-2;

const BF16: [&str; 2] = ["teacher.dtype=bf16", "student.dtype=bf16"];

/// The devices of teacher and student.
#[derive(Debug, Clone, Copy)]
enum On {
    /// The CPU with its kernels.
    Cpu,
    /// Both models on the device under test.
    One,
    /// The teacher on the device under test, the student on the second one if there is one.
    Two,
}

impl On {
    fn devices(self) -> [String; 2] {
        let named = |variable| std::env::var(variable).ok();
        let first = named("DDK_TEST_DEVICE").unwrap_or_else(|| "cpu".to_owned());
        match self {
            Self::Cpu => ["cpu"; 2].map(str::to_owned),
            Self::One => [first.clone(), first],
            Self::Two => [first.clone(), named("DDK_TEST_DEVICE_2").unwrap_or(first)],
        }
    }
}

/// Runs `ddk train` on these devices; returns whether it succeeded, and its standard error.
fn train(world: &World, on: On, sets: &[&str]) -> (bool, String) {
    let [teacher, student] = on.devices();
    let places = [
        format!("teacher.devices=[\"{teacher}\"]"),
        format!("student.device={student}"),
    ];
    let places = places.iter().map(String::as_str);
    let sets = places.chain(sets.iter().copied());
    let arguments = ["train", "config.toml"].into_iter();
    let arguments: Vec<&str> = arguments
        .chain(sets.flat_map(|set| ["--set", set]))
        .collect();
    let mut command = world.command(&arguments);
    command.env("DDK_ALLOW_FAULTS", "1");
    let path = match on {
        On::Cpu => "0",
        On::One | On::Two => "1",
    };
    let output = command.env("DDK_GPU_PATH", path).output().unwrap();
    (output.status.success(), stderr(&output))
}

fn succeeds(world: &World, on: On, sets: &[&str]) -> String {
    let (ended, said) = train(world, on, sets);
    assert!(ended, "{on:?}, {sets:?}: {said}");
    said
}

/// The loss of each step, then each domain's final perplexity.
fn learned(world: &World) -> Vec<f64> {
    let steps = world.lines("run.jsonl").into_iter();
    let losses = steps.map(|line| line["loss"].as_f64().unwrap());
    let domains = summary(world)["domains"].as_object().unwrap().clone();
    let perplexities = domains
        .into_iter()
        .map(|(_, domain)| domain["student_perplexity_after"].as_f64().unwrap());
    losses.chain(perplexities).collect()
}

fn summary(world: &World) -> Value {
    let text = std::fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn assert_near(found: &World, expected: &World, near: f64, what: &str) {
    let (found, expected) = (learned(found), learned(expected));
    assert!(expected.len() > 12, "{what}: {expected:?}");
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(&expected) {
        let difference = (found - expected).abs();
        let most = near * expected.abs();
        assert!(difference <= most, "{what}: {found}, expected {expected}");
    }
}

/// Makes the same run on the CPU and on the device under test, and compares them.
fn compare(on: On, sets: &[&str], near: f64) {
    let [on_cpu, on_device] = [On::Cpu, on].map(|on| {
        let world = World::new();
        succeeds(&world, on, sets);
        world
    });
    assert_near(&on_device, &on_cpu, near, &format!("{on:?}, {sets:?}"));
}

#[test]
fn every_objective_learns_what_it_learns_on_the_cpu() {
    for name in [
        "ce",
        "forward_kl",
        "reverse_kl",
        "jsd",
        "skew_kl",
        "skew_reverse_kl",
        "tvd",
    ] {
        compare(On::One, &[&format!("objective.name={name}")], NEAR);
    }
    compare(On::One, &["objective.temperature=2"], NEAR);
}

#[test]
fn bf16_recomputation_and_both_packings_learn_what_they_learn_on_the_cpu() {
    compare(On::One, &BF16, NEAR_BF16);
    compare(On::One, &["student.activation_checkpointing=true"], NEAR);
    let documents = [
        "corpus.packing=concat_masked",
        "corpus.dir=prepared-documents",
    ];
    compare(On::One, &documents, NEAR);
    compare(On::One, &[&BF16[..], &documents].concat(), NEAR_BF16);
}

#[test]
fn lag_and_ted_learn_what_they_learn_on_the_cpu() {
    compare(On::One, &["mixture.lag=1"], NEAR);
    let ted = ["objective.name=ted", "objective.ted_steps=6"];
    compare(On::One, &ted, NEAR);
}

#[test]
fn replicas_and_a_second_device_change_nothing() {
    compare(On::Two, &[], NEAR);
    let [teacher, student] = On::Two.devices();
    let replicas = format!("teacher.devices=[\"{teacher}\", \"{student}+{teacher}\"]");
    compare(On::Two, &[&replicas], NEAR);
}

#[test]
fn a_run_that_is_killed_or_out_of_memory_goes_on() {
    let on_cpu = World::new();
    succeeds(&on_cpu, On::Cpu, &[]);
    let killed = World::new();
    let (ended, said) = train(
        &killed,
        On::One,
        &["fault_injection.plan=[\"kill student 7\"]"],
    );
    assert!(!ended, "it was not killed: {said}");
    let said = succeeds(&killed, On::One, &[]);
    assert!(said.contains("resuming from step "), "{said}");
    assert_near(&killed, &on_cpu, NEAR, "killed");
    let short = World::new();
    succeeds(
        &short,
        On::One,
        &["fault_injection.plan=[\"oom student 7\"]"],
    );
    let events = short.lines("events.jsonl");
    assert!(events.iter().any(|event| event["kind"] == "shrunk"));
    assert_near(&short, &on_cpu, NEAR, "out of memory");
}

/// On a GPU, this is what the setting is for. On the CPU, runs repeat exactly anyway, and the setting must not
/// change that.
#[test]
fn a_deterministic_run_gives_the_same_bits_twice() {
    let sets = [&BF16[..], &["run.deterministic=true"]].concat();
    let [one, other] = [(); 2].map(|()| {
        let world = World::new();
        succeeds(&world, On::One, &sets);
        world
    });
    assert!(one.trajectory() == other.trajectory());
    assert!(one.student_weights() == other.student_weights());
}
