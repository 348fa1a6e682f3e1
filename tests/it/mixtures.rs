//! How the mixture moves under every policy. Each policy's run is also killed once inside an interval and resumed.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::world::{STEPS, World, read_lines, stderr};

const DOMAINS: [&str; 3] = ["coins", "rivers", "storms"];

/// The values of an object by domain, in name order.
fn by_domain(object: &Value) -> [f64; 3] {
    DOMAINS.map(|domain| object[domain].as_f64().unwrap())
}

fn normalized(values: [f64; 3]) -> [f64; 3] {
    let sum: f64 = values.iter().sum();
    values.map(|value| value / sum)
}

fn assert_near(got: [f64; 3], expected: [f64; 3], what: &str) {
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-9, "{what}: {got}, {expected}");
    }
}

/// The lines that set a mixture.
fn mixtures(lines: Vec<Value>) -> Vec<Value> {
    let set = lines.into_iter();
    set.filter(|line| line.get("weights").is_some()).collect()
}

fn arguments<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    ["train", "config.toml"].into_iter().chain(sets).collect()
}

/// Kills the process in this step of the first run that reaches it.
fn killed(world: &World, step: u64, sets: &[&str]) {
    let plan = format!("fault_injection.plan=[\"kill student {step}\"]");
    let mut command = world.command(&arguments(&[sets, &[plan.as_str()]].concat()));
    let output = command.env("DDK_ALLOW_FAULTS", "1").output().unwrap();
    assert!(!output.status.success(), "{}", stderr(&output));
}

/// Makes an undisturbed run and one that is killed in step 7 and resumed. Asserts that they match and returns the
/// lines that set a mixture.
fn run(sets: &[&str]) -> Vec<Value> {
    let whole = World::new();
    whole.succeed(&arguments(sets));
    let world = World::new();
    killed(&world, 7, sets);
    world.succeed(&arguments(sets));
    assert!(world.trajectory() == whole.trajectory(), "{sets:?}");
    assert!(
        world.student_weights() == whole.student_weights(),
        "{sets:?}"
    );
    mixtures(whole.lines("mixture.jsonl"))
}

#[test]
fn mixtures_that_stay_measure_nothing_on_the_way() {
    let shares = "mixture.weights={ coins = 3.0, storms = 1.0 }";
    for (sets, expected) in [
        (&["mixture.policy=equal"][..], Some([1.0 / 3.0; 3])),
        (&["mixture.policy=natural", "evaluation.interval=8"], None),
        (&["mixture.policy=static", shares], Some([0.75, 0.0, 0.25])),
    ] {
        let lines = run(sets);
        assert_eq!(lines.len() as u64, STEPS / 4);
        for line in &lines {
            assert_eq!(
                sets[0],
                format!("mixture.policy={}", line["policy"].as_str().unwrap())
            );
            assert!(line.get("alpha").is_none() && line.get("refused").is_none());
            let expected = expected.unwrap_or(by_domain(&lines[0]["weights"]));
            assert_near(by_domain(&line["weights"]), expected, sets[0]);
        }
        let evaluated: Vec<u64> = lines
            .iter()
            .map(|line| line["evaluated_at_step"].as_u64().unwrap())
            .collect();
        let every = [[0, 0, 0], [0, 0, 8]][usize::from(sets.contains(&"evaluation.interval=8"))];
        assert_eq!(evaluated, every, "{sets:?}");
    }
}

#[test]
fn mixtures_that_follow_perplexities_are_their_formulas() {
    let lines = run(&["mixture.policy=ddk-no-smoothing"]);
    for line in &lines[1..] {
        let powers = by_domain(&line["ratio"]).map(f64::exp);
        assert_near(by_domain(&line["weights"]), normalized(powers), "Eq. 1");
        assert_eq!(line["evaluated_at_step"], line["step"]);
    }

    let lines = run(&[
        "mixture.policy=sheared",
        "mixture.reference_loss={ rivers = 1.5 }",
    ]);
    for pair in lines.windows(2) {
        let (losses, reference) = (
            by_domain(&pair[1]["losses"]),
            by_domain(&pair[1]["reference"]),
        );
        assert_eq!(reference[1], 1.5);
        let previous = by_domain(&pair[0]["weights"]);
        assert_eq!(by_domain(&pair[1]["previous_weights"]), previous);
        let tilted = [0, 1, 2]
            .map(|domain| previous[domain] * (losses[domain] - reference[domain]).max(0.0).exp());
        assert_near(
            by_domain(&pair[1]["weights"]),
            normalized(tilted),
            "sheared",
        );
    }
}

#[test]
fn a_mixture_that_lags_follows_the_evaluation_an_interval_earlier() {
    let exact = run(&["mixture.policy=ddk"]);
    let lines = run(&["mixture.policy=ddk", "mixture.lag=1"]);
    let at = |line: &Value| line["evaluated_at_step"].as_u64().unwrap();
    assert_eq!(lines.iter().map(at).collect::<Vec<u64>>(), [0, 0, 4]);
    // The first interval is the same in both runs, and so is the evaluation after it.
    assert_eq!(lines[0], exact[0]);
    assert_eq!(
        lines[1]["student_perplexity"],
        lines[0]["student_perplexity"]
    );
    assert_near(
        by_domain(&lines[2]["student_perplexity"]),
        by_domain(&exact[1]["student_perplexity"]),
        "measured on the other lane",
    );

    let world = World::new();
    let said = world.fail(2, &arguments(&["mixture.policy=odm", "mixture.lag=1"]));
    assert!(
        said.contains("mixture.lag") && said.contains("\"odm\" updates every step"),
        "{said}"
    );
}

#[test]
fn odm_moves_after_every_step_by_the_losses_of_training() {
    let lines = run(&["mixture.policy=odm", "mixture.odm_smoothing=0.5"]);
    assert_eq!(lines.len() as u64, STEPS);
    let epsilon = |turn: f64| (3_f64.ln() / (3.0 * turn)).sqrt().min(1.0 / 3.0);
    let mut reward = [0.0; 3];
    let mut weights = [1.0 / 3.0; 3];
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(
            (&line["step"], &line["evaluated_at_step"]),
            (&index.into(), &0.into())
        );
        if index > 0 {
            for (domain, name) in DOMAINS.iter().enumerate() {
                // Missing if the step drew nothing from the domain.
                if let Some(loss) = line["losses"][name].as_f64() {
                    assert!((0.1..8.0).contains(&loss), "{loss}");
                    reward[domain] = 0.5 * reward[domain] + 0.5 * loss / weights[domain];
                }
            }
            let (before, now) = (epsilon(index as f64), epsilon(index as f64 + 1.0));
            let soft = normalized(reward.map(|reward| (before * reward).exp()));
            weights = soft.map(|soft| (1.0 - 3.0 * now) * soft + now);
        }
        assert_near(
            by_domain(&line["weights"]),
            weights,
            &format!("step {index}"),
        );
    }
    assert!(
        weights
            .iter()
            .any(|weight| (weight - 1.0 / 3.0).abs() > 1e-3),
        "{weights:?}"
    );
}

/// All files of the phases that must match between two equal runs.
fn phases(run: &Path) -> BTreeMap<String, Vec<Value>> {
    let mut all = BTreeMap::new();
    for phase in ["reference", "proxy"] {
        for file in ["run.jsonl", "mixture.jsonl", "samples.jsonl"] {
            let name = format!("phases/{phase}/{file}");
            all.insert(name.clone(), read_lines(&run.join(name)));
        }
    }
    all
}

#[test]
fn doremi_has_three_phases_each_of_which_goes_on_after_a_kill() {
    let sets = [
        "mixture.policy=doremi",
        "mixture.doremi_steps=6",
        "mixture.doremi_smoothing=0.01",
    ];
    let whole = World::new();
    whole.succeed(&arguments(&sets));

    let world = World::new();
    killed(&world, 5, &sets);
    let path = |name: &str| world.run_folder().join("phases").join(name);
    assert!(
        !path("reference/summary.json").exists() && !world.run_folder().join("run.jsonl").exists()
    );
    let mut proxy = false;
    let started = world.start_until(&arguments(&sets), |line| {
        proxy |= line.contains("phase 2 of 3");
        proxy && line.contains("step 4/6")
    });
    started.signal("KILL");
    let (status, said) = started.wait();
    assert!(!status.success(), "{said}");
    assert!(
        path("reference/summary.json").exists()
            && !world.run_folder().join("summary.json").exists()
    );
    killed(&world, 8, &sets);
    assert!(path("proxy/summary.json").exists());
    world.succeed(&arguments(&sets));
    assert!(world.trajectory() == whole.trajectory());
    assert!(world.student_weights() == whole.student_weights());
    assert!(phases(&world.run_folder()) == phases(&whole.run_folder()));

    // The reference trains on labels alone, with the natural mixture. The proxy also trains on labels alone, but
    // the formula sets its mixture.
    let phases = phases(&whole.run_folder());
    for phase in ["reference", "proxy"] {
        let steps = &phases[&format!("phases/{phase}/run.jsonl")];
        assert_eq!(steps.len(), 6);
        assert!(
            steps
                .iter()
                .all(|step| step["kd_loss"] == 0.0 && step["gamma"] == 0.0)
        );
    }
    let lines = mixtures(phases["phases/proxy/mixture.jsonl"].clone());
    assert_eq!(lines.len(), 6);
    assert_near(by_domain(&lines[0]["weights"]), [1.0 / 3.0; 3], "the start");
    let mut sum = [0.0; 3];
    for pair in lines.windows(2) {
        let excess = by_domain(&pair[1]["excess"]);
        assert!(
            excess.iter().all(|excess| (0.0..6.0).contains(excess)),
            "{excess:?}"
        );
        let previous = by_domain(&pair[0]["weights"]);
        let tilted = [0, 1, 2].map(|domain| previous[domain] * excess[domain].exp());
        let expected = normalized(tilted).map(|weight| 0.99 * weight + 0.01 / 3.0);
        assert_near(by_domain(&pair[1]["weights"]), expected, "the proxy");
        for (sum, weight) in sum.iter_mut().zip(expected) {
            *sum += weight;
        }
        let updates = pair[1]["interval"].as_f64().unwrap();
        let mean = sum.map(|sum| sum / updates);
        assert_near(by_domain(&pair[1]["mean_weights"]), mean, "the mean");
    }
    // The main run keeps the mean over all six updates. The proxy's lines lack the last update.
    let lines = mixtures(whole.lines("mixture.jsonl"));
    assert_eq!(lines.len() as u64, STEPS / 4);
    for line in &lines {
        assert_eq!(line["policy"], "doremi");
        let weights = by_domain(&line["weights"]);
        let last = [0, 1, 2].map(|domain| 6.0 * weights[domain] - sum[domain]);
        assert!((last.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{last:?}");
        assert!(
            last.iter().all(|weight| *weight > 0.01 / 3.0 - 1e-9),
            "{last:?}"
        );
    }
    assert!(
        whole
            .lines("run.jsonl")
            .iter()
            .all(|step| step["kd_loss"].as_f64().unwrap() > 0.0)
    );
}

/// This student has no copy of the teacher's LM head, so hidden states from a worker would end the run with an error.
#[test]
fn a_loss_without_the_teacher_asks_it_for_nothing_but_its_perplexities() {
    let world = World::new();
    let output = world.succeed(&arguments(&[
        "mixture.policy=natural",
        "objective.gamma=0.0",
    ]));
    assert!(
        world
            .lines("run.jsonl")
            .iter()
            .all(|step| step["kd_loss"] == 0.0)
    );
    let summary = fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    for domain in DOMAINS {
        let teacher = summary["domains"][domain]["teacher_perplexity"]
            .as_f64()
            .unwrap();
        assert!(teacher > 1.0, "{}", stderr(&output));
    }
}

#[test]
fn a_fork_may_have_another_policy() {
    let world = World::new();
    world.succeed(&["train", "config.toml", "--set", "checkpoint.keep_latest=9"]);
    let fork = [
        "train",
        "config.toml",
        "--fork",
        "other",
        "--resume-from",
        "6",
    ];
    world.succeed(&[&fork[..], &["--set", "mixture.policy=equal"]].concat());
    let lines = mixtures(read_lines(&world.path().join("runs/other/mixture.jsonl")));
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["policy"], &lines[0]["step"]),
        (&"equal".into(), &8.into())
    );
    assert_near(by_domain(&lines[0]["weights"]), [1.0 / 3.0; 3], "equal");

    let fork = [
        "train",
        "config.toml",
        "--fork",
        "third",
        "--resume-from",
        "6",
    ];
    let said = world.fail(
        2,
        &[&fork[..], &["--set", "mixture.policy=doremi"]].concat(),
    );
    assert!(
        said.contains("a fork does not run the phases of DoReMi"),
        "{said}"
    );
}

/// Each replica's weights count on its own devices; a replica split over two devices counts half on each. A GPU
/// also holds memory that is not tensors. Only a forward pass loads models.
#[test]
fn check_counts_replicas_and_loads_models_only_for_a_forward() {
    let world = World::new();
    let check = |more: &[&str]| {
        let output = world.run(&[&["check", "config.toml"][..], more].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let devices = "teacher.devices=[\"cuda:0+cuda:1\", \"cuda:2\"]";
    let said = check(&["--set", devices]);
    let of = |device: &str| {
        let start = format!("memory of {device}:");
        let part = said.split(&start).nth(1).unwrap();
        assert!(part.contains("CUDA's context"), "{said}");
        let line = part
            .lines()
            .find(|line| line.ends_with("teacher: weights"))
            .unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "kB", "{line}");
        words[0].parse::<f64>().unwrap()
    };
    let (half, other_half, whole) = (of("cuda:0"), of("cuda:1"), of("cuda:2"));
    assert_eq!(half, other_half);
    assert!((2.0 * half - whole).abs() <= 2.0, "{half} of {whole}");

    assert!(!check(&[]).contains("one forward"));
    let forward = check(&["--forward"]);
    assert!(forward.contains("teacher: perplexity") && forward.contains("student: perplexity"));
}

/// Teacher replica 0 evaluates the copy of the student, but the copy is in the student's memory.
#[test]
fn check_counts_the_evaluated_copy_on_the_students_device() {
    let world = World::new();
    let check = |lag: &str| {
        let devices = ["--set", "teacher.devices=[\"cuda:0\"]", "--set", lag];
        let output = world.run(&[&["check", "config.toml"][..], &devices].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let lagged = check("mixture.lag=1");
    let mut devices = lagged.split("memory of ").skip(1);
    let of = |device: &str, text: Option<&str>| text.is_some_and(|text| text.starts_with(device));
    let (cpu, gpu) = (devices.next(), devices.next());
    assert!(of("cpu", cpu) && of("cuda:0", gpu), "{lagged}");
    let copy = "student: a copy to evaluate";
    assert!(cpu.is_some_and(|text| text.contains(copy)), "{lagged}");
    assert_eq!(lagged.matches("a copy to evaluate").count(), 1, "{lagged}");
    assert!(!check("mixture.lag=0").contains("a copy to evaluate"));
}
