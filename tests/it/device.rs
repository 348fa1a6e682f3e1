//! A run on the device that `DDK_TEST_DEVICE` names (the CPU where it is not set): it learns what the CPU's run learns, and a run that is
//! killed goes on. On the CPU the bits are the same; on a GPU, whose attention adds in any order, values are near.

use serde_json::Value;

use crate::world::{World, stderr};

/// Of a value, on a GPU: twelve steps of fp32 differ by far less from one order of sums to another.
const NEAR: f64 = 1e-3;

fn device() -> String {
    std::env::var("DDK_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

/// `ddk train` with both models on the device: whether it came to its end, and what it said.
fn train(world: &World, device: &str, sets: &[&str]) -> (bool, String) {
    let places = [
        format!("student.device={device}"),
        format!("teacher.devices=[\"{device}\"]"),
    ];
    let sets = places
        .iter()
        .map(String::as_str)
        .chain(sets.iter().copied());
    let arguments = ["train", "config.toml"].into_iter();
    let arguments: Vec<&str> = arguments
        .chain(sets.flat_map(|set| ["--set", set]))
        .collect();
    let mut command = world.command(&arguments);
    command.env("DDK_ALLOW_FAULTS", "1");
    let output = command.output().unwrap();
    (output.status.success(), stderr(&output))
}

/// The loss of each step, and what each domain's perplexity is at the end.
fn learnt(world: &World) -> Vec<f64> {
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

#[test]
fn a_run_on_the_device_is_the_cpus_and_goes_on_after_a_kill() {
    let device = device();
    let [on_cpu, whole, killed] = [(); 3].map(|()| World::new());
    let (ended, said) = train(&killed, &device, &["faults.plan=[\"kill student 7\"]"]);
    assert!(!ended, "it was not killed: {said}");
    for (world, device) in [(&on_cpu, "cpu"), (&whole, &device), (&killed, &device)] {
        let (ended, said) = train(world, device, &[]);
        assert!(ended, "{device}: {said}");
    }
    let expected = learnt(&on_cpu);
    assert!(expected.len() > 12, "{expected:?}");
    for (name, world) in [("whole", &whole), ("killed", &killed)] {
        let found = learnt(world);
        assert_eq!(found.len(), expected.len(), "{name}");
        let tolerance = if device == "cpu" { 0.0 } else { NEAR };
        for (found, expected) in found.iter().zip(&expected) {
            let difference = (found - expected).abs();
            assert!(
                difference <= tolerance * expected.abs(),
                "{name}: {found} for {expected}"
            );
        }
    }
}
