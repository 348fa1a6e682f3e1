//! Compares every policy with golden values computed in float64 from the papers' formulas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_mixture::{
    Ddk, DdkNoSmoothing, DoremiProxy, Excess, Feedback, InitialMixture, Odm, Perplexities, Policy,
    Sheared, TrainingSums,
};
use serde::Deserialize;
use serde_json::Value;

/// Restarts a policy: writes its state as a checkpoint does, and reads it back.
fn restarted(policy: &Policy) -> Policy {
    let text = serde_json::to_string(policy).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn assert_near(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() < 1e-9,
            "{what}: {got} instead of {expected}"
        );
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Updates the policy with these perplexities and returns the next weights.
fn next(policy: &mut Policy, weights: &[f64], perplexities: &Perplexities) -> Vec<f64> {
    let feedback = Feedback {
        perplexities: Some(perplexities),
        training: &TrainingSums::new(weights.len()),
        decay_left: 1.0,
    };
    policy.next(weights, &feedback).unwrap().weights
}

#[derive(Deserialize)]
struct Goldens {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    alpha: f64,
    ratios: Vec<Vec<f64>>,
    r: Vec<Vec<f64>>,
}

#[test]
fn ddk_is_the_papers_equations() {
    let goldens: Goldens = serde_json::from_str(include_str!("ddk-goldens.json")).unwrap();
    assert_eq!(goldens.cases.len(), 6);
    for case in goldens.cases {
        let mut weights = vec![1.0 / case.ratios[0].len() as f64; case.ratios[0].len()];
        let mut policy = Policy::Ddk(Ddk::new(case.alpha, 1000, InitialMixture::Discrepancy));
        for (interval, (ratios, expected)) in case.ratios.iter().zip(&case.r).enumerate() {
            // The teacher has perplexity 1, so the student's perplexity is the ratio itself.
            let perplexities = Perplexities {
                student: ratios.clone(),
                teacher: vec![1.0; ratios.len()],
            };
            weights = match interval {
                0 => policy.first(&weights, &perplexities).unwrap().weights,
                _ => {
                    policy = restarted(&policy);
                    next(&mut policy, &weights, &perplexities)
                }
            };
            assert_near(
                &weights,
                expected,
                &format!("{}, interval {interval}", case.name),
            );
        }
    }
}

fn given() -> Value {
    serde_json::from_str(include_str!("doremi-sheared-goldens.json")).unwrap()
}

#[test]
fn the_proxy_of_doremi_is_the_papers_algorithm() {
    let goldens = &given()["doremi"];
    let number = |key: &str| goldens[key].as_f64().unwrap();
    let mut weights = numbers(&goldens["initial"]);
    let mut policy = Policy::DoremiProxy(DoremiProxy::new(
        number("eta"),
        number("c"),
        number("vocab").ln(),
        InitialMixture::Natural,
    ));
    let nowhere = Perplexities {
        student: vec![1.0; 3],
        teacher: vec![1.0; 3],
    };
    policy.first(&weights, &nowhere).unwrap();
    let updates = goldens["updates"].as_array().unwrap();
    assert_eq!(updates.len(), 3);
    for update in updates {
        let mut training = TrainingSums::new(3);
        for (domain, tokens) in update["excess"].as_array().unwrap().iter().enumerate() {
            // The head clips each prediction. The policy gets only their sum.
            let clipped: f64 = numbers(tokens).iter().map(|excess| excess.max(0.0)).sum();
            training.add_row(domain, 0.0, clipped, numbers(tokens).len() as u64);
        }
        policy = restarted(&policy);
        let feedback = Feedback {
            perplexities: None,
            training: &training,
            decay_left: 1.0,
        };
        let decision = policy.next(&weights, &feedback).unwrap();
        weights = decision.weights;
        assert_near(&weights, &numbers(&update["weights"]), "weights");
        assert_near(
            &decision.excess.unwrap(),
            &numbers(&update["score"]),
            "scores",
        );
        assert_near(
            &decision.mean_weights.unwrap(),
            &numbers(&update["mean_weights"]),
            "mean weights",
        );
    }
}

#[test]
fn a_domain_that_was_never_drawn_has_the_score_of_knowing_nothing() {
    let proxy = DoremiProxy::new(1.0, 1e-3, 8192_f64.ln(), InitialMixture::Equal);
    let mut policy = Policy::DoremiProxy(proxy);
    let nowhere = Perplexities {
        student: vec![1.0; 2],
        teacher: vec![1.0; 2],
    };
    policy.first(&[0.5, 0.5], &nowhere).unwrap();
    let mut training = TrainingSums::new(2);
    training.add_row(0, 6.0, 0.4, 2);
    let feedback = Feedback {
        perplexities: None,
        training: &training,
        decay_left: 1.0,
    };
    let decision = policy.next(&[0.5, 0.5], &feedback).unwrap();
    assert_eq!(decision.excess.unwrap(), [0.2, 8192_f64.ln()]);
}

#[test]
fn sheared_is_the_papers_clipped_form() {
    let goldens = &given()["sheared"];
    let exp = |key: &str| -> Vec<f64> {
        let losses = numbers(&goldens[key]);
        losses.iter().map(|loss| loss.exp()).collect()
    };
    let perplexities = Perplexities {
        student: exp("loss"),
        teacher: exp("reference"),
    };
    let weights = numbers(&goldens["weights"]);
    let expected = numbers(&goldens["paper_clip_c0"]);
    // With the teacher's losses, and with the same losses as the given reference.
    for reference in [vec![None; 3], numbers_given(&goldens["reference"])] {
        let mut policy = Policy::Sheared(Sheared::new(10, InitialMixture::Natural, reference));
        assert_near(
            &next(&mut policy, &weights, &perplexities),
            &expected,
            "weights",
        );
    }
}

fn numbers_given(value: &Value) -> Vec<Option<f64>> {
    numbers(value).into_iter().map(Some).collect()
}

fn trajectories() -> Value {
    serde_json::from_str(include_str!("trajectories.json")).unwrap()
}

/// Perplexities of each interval of a trajectory.
fn perplexities(trajectory: &Value) -> Vec<Perplexities> {
    let students = trajectory["student"].as_array().unwrap();
    let of = |student: &Value| Perplexities {
        student: numbers(student),
        teacher: numbers(&trajectory["teacher"]),
    };
    students.iter().map(of).collect()
}

#[test]
fn sheared_follows_its_trajectory() {
    for trajectory in trajectories()["sheared"].as_array().unwrap() {
        let reference = numbers_given(&trajectory["reference"]);
        let mut policy = Policy::Sheared(Sheared::new(10, InitialMixture::Natural, reference));
        let measured = perplexities(trajectory);
        let natural = numbers(&trajectory["natural"]);
        let mut weights = policy.first(&natural, &measured[0]).unwrap().weights;
        assert_eq!(weights, natural);
        let expected = trajectory["weights"].as_array().unwrap();
        assert_eq!(expected.len(), 3);
        for (perplexities, expected) in measured[1..].iter().zip(expected) {
            policy = restarted(&policy);
            weights = next(&mut policy, &weights, perplexities);
            assert_near(&weights, &numbers(expected), "sheared");
        }
    }
}

#[test]
fn ddk_without_smoothing_is_eq_1_each_time() {
    let trajectory = &trajectories()["no_smoothing"];
    let unsmoothed = DdkNoSmoothing::new(10, InitialMixture::Discrepancy);
    let mut policy = Policy::DdkNoSmoothing(unsmoothed);
    let expected = trajectory["weights"].as_array().unwrap();
    let measured = perplexities(trajectory);
    let first = policy.first(&[0.25; 4], &measured[0]).unwrap();
    assert_near(&first.weights, &numbers(&expected[0]), "interval 0");
    for (perplexities, expected) in measured[1..].iter().zip(&expected[1..]) {
        policy = restarted(&policy);
        let weights = next(&mut policy, &first.weights, perplexities);
        assert_near(&weights, &numbers(expected), "without smoothing");
    }
}

#[test]
fn odm_follows_its_trajectory() {
    for trajectory in trajectories()["odm"].as_array().unwrap() {
        let smoothing = trajectory["smoothing"].as_f64().unwrap();
        let mut policy = Policy::Odm(Odm::new(smoothing));
        let nowhere = Perplexities {
            student: vec![1.0; 4],
            teacher: vec![1.0; 4],
        };
        let mut weights = policy
            .first(&[0.7, 0.1, 0.1, 0.1], &nowhere)
            .unwrap()
            .weights;
        let expected = trajectory["weights"].as_array().unwrap();
        assert_near(&weights, &numbers(&expected[0]), "turn 1");
        let losses = trajectory["losses"].as_array().unwrap();
        assert_eq!(losses.len(), 10);
        for (step, (losses, expected)) in losses.iter().zip(&expected[1..]).enumerate() {
            let losses: Vec<Option<f64>> = serde_json::from_value(losses.clone()).unwrap();
            let mut training = TrainingSums::new(4);
            for (domain, loss) in losses.iter().enumerate() {
                if let Some(loss) = loss {
                    training.add_row(domain, 7.0 * loss, 0.0, 7);
                }
            }
            policy = restarted(&policy);
            let feedback = Feedback {
                perplexities: None,
                training: &training,
                decay_left: 1.0,
            };
            weights = policy.next(&weights, &feedback).unwrap().weights;
            assert_near(
                &weights,
                &numbers(expected),
                &format!("smoothing {smoothing}, turn {}", step + 2),
            );
        }
    }
}

#[test]
fn excess_follows_its_trajectory() {
    let trajectories = &trajectories()["excess"];
    assert_eq!(trajectories.as_array().unwrap().len(), 4);
    for trajectory in trajectories.as_array().unwrap() {
        let number = |key: &str| trajectory[key].as_f64().unwrap();
        let lag = number("lag") as u64;
        let mut policy = Policy::Excess(Excess::new(number("alpha"), number("gain"), 10, lag));
        let expected = trajectory["weights"].as_array().unwrap();
        let decay_left = numbers(&trajectory["decay_left"]);
        let count = numbers(&trajectory["teacher"]).len();
        let mut weights = vec![1.0 / count as f64; count];
        for (interval, perplexities) in perplexities(trajectory).iter().enumerate() {
            policy = restarted(&policy);
            let feedback = Feedback {
                perplexities: Some(perplexities),
                training: &TrainingSums::new(count),
                decay_left: decay_left[interval],
            };
            weights = match interval {
                0 => policy.first(&weights, perplexities),
                _ => policy.next(&weights, &feedback),
            }
            .unwrap()
            .weights;
            assert_near(
                &weights,
                &numbers(&expected[interval]),
                &format!("lag {lag}, interval {interval}"),
            );
        }
    }
}

/// A student with ratios of 300 and more, as after pruning: the paper's exponential gives one domain everything.
#[test]
fn excess_does_not_saturate() {
    let pruned = Perplexities {
        student: vec![300.0, 600.0, 1900.0, 450.0],
        teacher: vec![1.0; 4],
    };
    let first = |mut policy: Policy| policy.first(&[0.25; 4], &pruned).unwrap().weights;
    let ddk = first(Policy::Ddk(Ddk::new(0.5, 10, InitialMixture::Discrepancy)));
    assert!(ddk.iter().copied().fold(0.0, f64::max) > 0.999);
    let excess = first(Policy::Excess(Excess::new(0.8, 1.0, 10, 0)));
    assert!(excess.iter().all(|weight| (0.2..0.3).contains(weight)));
}
