//! A teacher on a server, and the cache of its outputs. The server answers as vLLM does, with the hidden states that
//! the teacher of the shared world has. `make vllm-check` does the same with a real vLLM.

mod server;

use std::{fs, path::Path};

use ddk_model::safetensors::{read_tensors, write_tensors};
use serde_json::Value;

use self::server::{Fault, Server};
use crate::world::{STEPS, World, assert_same, is_step, stderr, whole};

/// Leaves only the LM head in a copy of the teacher's folder. Returns the copy's name.
fn keep_the_head(world: &World) -> &'static str {
    let (from, to) = (
        world.path().join("models/teacher"),
        world.path().join("models/head"),
    );
    fs::create_dir_all(&to).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let tensors = read_tensors(&from.join("model.safetensors")).unwrap();
    let shape = tensors.shape("lm_head.weight").unwrap();
    let head = tensors.tensor("lm_head.weight", &shape).unwrap();
    let mut file = fs::File::create(to.join("model.safetensors")).unwrap();
    write_tensors(&[("lm_head.weight".to_owned(), head)], &[], &mut file).unwrap();
    "teacher.model=models/head"
}

fn train<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    ["train", "config.toml"].into_iter().chain(sets).collect()
}

fn losses(world: &World) -> Vec<f64> {
    let lines = world.lines("run.jsonl");
    let loss = |line: &Value| line["loss"].as_f64().unwrap();
    lines.iter().map(loss).collect()
}

/// The largest difference between the losses of two runs, of all steps.
fn difference(one: &World, other: &World) -> f64 {
    let (one, other) = (losses(one), losses(other));
    assert_eq!((one.len() as u64, other.len() as u64), (STEPS, STEPS));
    let differences = one
        .iter()
        .zip(&other)
        .map(|(one, other)| (one - other).abs());
    differences.fold(0.0, f64::max)
}

fn events(world: &World, kind: &str) -> Vec<String> {
    let lines = world.lines("events.jsonl");
    let of_kind = lines.iter().filter(|event| event["kind"] == kind);
    let message = |event: &Value| event["message"].as_str().unwrap().to_owned();
    of_kind.map(message).collect()
}

fn summary(world: &World) -> Value {
    let text = fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_served_teacher_gives_the_losses_of_the_same_teacher_in_the_process() {
    for packing in ["concat", "concat_masked", "best_fit"] {
        let packing = format!("corpus.packing={packing}");
        let (here, served) = (World::new(), World::new());
        here.succeed(&train(&[&packing]));
        let servers = [0, 1].map(|_| Server::start(&served, Fault::None));
        let [one, other] = servers.each_ref().map(|server| &server.address);
        let addresses = format!("teacher.servers=[\"{one}\", \"{other}\"]");
        let head = keep_the_head(&served);
        let check = [
            "check",
            "config.toml",
            "--set",
            &packing,
            "--set",
            &addresses,
            "--set",
            head,
        ];
        let said = String::from_utf8(served.succeed(&check).stdout).unwrap();
        assert!(
            said.contains("vLLM 0.24.0 serves teacher, up to 33 tokens"),
            "{said}"
        );
        served.succeed(&train(&[&packing, &addresses, head]));
        let difference = difference(&here, &served);
        assert!(difference < 1e-5, "{packing}: {difference}");
        assert!(servers.iter().all(|server| server.answered() > 0));
        assert_eq!(
            summary(&served)["teacher_flops"],
            summary(&here)["teacher_flops"]
        );
    }
}

#[test]
fn a_run_outlasts_a_server_that_goes_away_and_is_slow_and_answers_nonsense() {
    let here = whole();
    let world = World::new();
    let server = Server::start(&world, Fault::EveryFifth);
    let address = format!("teacher.servers=[\"{}\"]", server.address);
    let sets = [&*address, "teacher.request_timeout_seconds=1"];
    let run = world.start_until(&train(&sets), |line| {
        if is_step(line, 5) {
            server.stop();
        }
        line.contains("is away")
    });
    server.restart();
    let (status, said) = run.wait();
    assert!(status.success(), "{said}");
    let difference = difference(&here, &world);
    assert!(difference < 1e-5, "{difference}");
    let (away, back) = (events(&world, "server_away"), events(&world, "server_back"));
    assert_eq!((away.len(), back.len()), (1, 1), "{away:?} {back:?}");
    assert!(away[0].contains(&server.address) && back[0].contains("is back after"));
}

#[test]
fn a_stop_does_not_wait_for_a_server_that_never_answers() {
    let world = World::new();
    let server = Server::start(&world, Fault::NeverFrom(40));
    let address = format!("teacher.servers=[\"{}\"]", server.address);
    let grace = "recovery.shutdown_grace_seconds=20";
    let run = world.start_until(&train(&[&address, grace]), |line| is_step(line, 1));
    server.wait_for_silence();
    run.signal("TERM");
    let (status, said) = run.wait();
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(said.contains("saved; the same command resumes"), "{said}");
    // The servers may have moved when the run resumes.
    let moved = Server::start(&world, Fault::None);
    let address = format!("teacher.servers=[\"{}\"]", moved.address);
    world.succeed(&train(&[&address]));
    assert!(difference(&whole(), &world) < 1e-5);
}

#[test]
fn a_server_that_does_not_fit_is_refused_with_the_remedy() {
    let world = World::new();
    for (fault, sets, expected) in [
        (Fault::Normalizes, &[][..], "use_activation"),
        (Fault::Context(32), &[], "--max-model-len 33"),
        (Fault::Width(16), &[], "teacher.model"),
        (
            Fault::None,
            &["teacher.served_model=\"another\""],
            "another",
        ),
    ] {
        let server = Server::start(&world, fault);
        let address = format!("teacher.servers=[\"{}\"]", server.address);
        let sets = [&[&*address, "run.name=\"refused\""], sets].concat();
        let said = world.fail(1, &train(&sets));
        assert!(said.contains(expected), "{said}");
        let mut check = train(&sets);
        check[0] = "check";
        let output = world.run(&check);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && said.contains(expected),
            "{said}"
        );
        fs::remove_dir_all(world.path().join("runs")).unwrap();
    }
    let away = [
        "teacher.servers=[\"http://127.0.0.1:1\"]",
        "teacher.patience_seconds=0",
    ];
    let said = world.fail(1, &train(&away));
    assert!(said.contains("http://127.0.0.1:1"), "{said}");
    let mut check = train(&away);
    check[0] = "check";
    let said = String::from_utf8(world.run(&check).stdout).unwrap();
    assert!(
        said.contains("vllm serve models/teacher --runner pooling"),
        "{said}"
    );
    let ted = [away[0], "objective.name=\"ted\""];
    let said = world.fail(2, &train(&ted));
    assert!(said.contains("teacher.servers"), "{said}");
    let both = [away[0], "teacher.devices=[\"cuda:0\"]"];
    assert!(world.fail(2, &train(&both)).contains("teacher.devices"));
}

/// Copies a world's cache, so that a run in the other world finds it.
fn share_cache(from: &World, to: &World) {
    crate::world::copy(&from.path().join("cache"), &to.path().join("cache"));
}

const CACHE: &str = "teacher.cache.dir=\"cache\"";

/// Asserts that two runs are equal but for what the cache changes.
fn assert_equal(world: &World, other: &World, what: &str) {
    assert_same(world, other, what);
    let perplexities = |world: &World| summary(world)["domains"].clone();
    assert_eq!(perplexities(world), perplexities(other), "{what}");
}

#[test]
fn a_run_with_a_cache_equals_one_without_and_a_second_run_needs_no_teacher() {
    for packing in ["concat", "concat_masked", "best_fit"] {
        let packing = format!("corpus.packing={packing}");
        let (plain, first, second) = (World::new(), World::new(), World::new());
        plain.succeed(&train(&[&packing]));
        first.succeed(&train(&[&packing, CACHE]));
        assert_equal(&first, &plain, &packing);
        assert_eq!(
            summary(&first)["teacher_flops"],
            summary(&plain)["teacher_flops"]
        );
        share_cache(&first, &second);
        // The LM head is all that is left of the teacher.
        let sets = [&*packing, CACHE, keep_the_head(&second)];
        let output = second.succeed(&train(&sets));
        let mut check = train(&sets);
        check[0] = "check";
        let said = String::from_utf8(second.succeed(&check).stdout).unwrap();
        assert!(said.contains("sampled sequences have a label"), "{said}");
        assert_equal(&second, &plain, &packing);
        let saved = summary(&second)["teacher_flops_saved"].as_f64().unwrap();
        let needed = summary(&plain)["teacher_flops"].as_f64().unwrap();
        let computed = summary(&second)["teacher_flops"].as_f64().unwrap();
        assert!((saved + computed - needed).abs() < 1e-6 * needed && saved > computed);
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("the teacher's cache saved")
        );
    }
}

#[test]
fn a_cache_that_ddk_label_filled_serves_runs_of_other_seeds_and_methods() {
    let world = World::new();
    let label = ["label", "config.toml", "--set", CACHE];
    let half = world.succeed(&[&label[..], &["--epochs", "0.5"]].concat());
    assert!(stderr(&half).contains("are new"), "{}", stderr(&half));
    world.succeed(&label);
    let again = world.succeed(&label);
    assert!(stderr(&again).contains("; 0 are new"), "{}", stderr(&again));
    // Nothing of the teacher is left but its LM head.
    let head = keep_the_head(&world);
    for sets in [
        &["run.seed=3"][..],
        &["method=kd"],
        &["objective.name=reverse_kl", "training.micro_batch_size=2"],
    ] {
        let plain = World::new();
        plain.succeed(&train(sets));
        let cached = World::new();
        share_cache(&world, &cached);
        keep_the_head(&cached);
        cached.succeed(&train(&[sets, &[CACHE, head]].concat()));
        assert_equal(&cached, &plain, &format!("{sets:?}"));
    }
    // What is not in the cache needs the teacher.
    let said = world.fail(2, &train(&[CACHE, head, "corpus.sequence_length=24"]));
    assert!(
        said.contains("no label set") && said.contains("ddk label"),
        "{said}"
    );
}

#[test]
fn a_served_teacher_with_a_cache_needs_its_server_only_once() {
    let world = World::new();
    let server = Server::start(&world, Fault::None);
    let address = format!("teacher.servers=[\"{}\"]", server.address);
    let sets = [&*address, CACHE];
    world.succeed(&train(&sets));
    let asked = server.answered();
    drop(server);
    let second = World::new();
    share_cache(&world, &second);
    second.succeed(&train(&sets));
    assert!(asked > 0);
    assert_equal(&second, &world, "without its server");
}

/// Flips a bit in every label.
fn damage(folder: &Path) {
    let sets = fs::read_dir(folder.join("cache")).unwrap().flatten();
    let files = sets.filter(|set| set.path().is_dir());
    let files = files.flat_map(|set| fs::read_dir(set.path()).unwrap().flatten());
    let mut paths = files.map(|file| file.path());
    let segment = paths.find(|path| path.extension().is_some_and(|end| end == "seg"));
    let segment = segment.unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    // A label has 32 rows of 32 numbers.
    bytes
        .iter_mut()
        .skip(100)
        .step_by(4000)
        .for_each(|byte| *byte ^= 4);
    fs::write(&segment, bytes).unwrap();
}

#[test]
fn a_damaged_label_is_computed_again_and_a_full_cache_only_stops_growing() {
    let plain = whole();
    let world = World::new();
    world.succeed(&["label", "config.toml", "--set", CACHE]);
    damage(world.path());
    world.succeed(&[&train(&[CACHE])[..], &["--set", "run.max_steps=12"]].concat());
    assert_equal(&world, &plain, "damaged");
    let damaged = events(&world, "label_damaged");
    assert!(damaged.len() > 10, "{damaged:?}");
    let small = World::new();
    small.succeed(&train(&[CACHE, "teacher.cache.max_bytes=50000"]));
    assert_equal(&small, &plain, "full");
    assert_eq!(events(&small, "cache_full").len(), 1);
    let label = [
        "label",
        "config.toml",
        "--set",
        CACHE,
        "--set",
        "teacher.cache.max_bytes=50000",
    ];
    let said = small.fail(1, &label);
    assert!(
        said.contains("the cache is full") && said.contains("max_bytes"),
        "{said}"
    );
}
