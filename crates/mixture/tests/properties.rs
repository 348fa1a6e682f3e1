//! Properties of weights, quotas and orders.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_mixture::{
    Ddk, DdkNoSmoothing, DoremiProxy, Excess, Feedback, Fixed, InitialMixture, MixturePolicy,
    Needs, Odm, Perplexities, Policy, Quota, Sheared, TrainingSums, interval_order, limit,
    shares_of_domains, smooth_update,
};
use proptest::prelude::*;

fn cases() -> ProptestConfig {
    let scale = std::env::var("DDK_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    ProptestConfig::with_cases(256 * scale)
}

/// Weights down to 1e-6 that sum to 1.
fn simplex() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-6.0..0.0_f64, 1..12).prop_map(|exponents| {
        let raw: Vec<f64> = exponents
            .iter()
            .map(|exponent| 10_f64.powf(*exponent))
            .collect();
        let sum: f64 = raw.iter().sum();
        raw.iter().map(|weight| weight / sum).collect()
    })
}

fn of_ratios(ratios: &[f64]) -> Perplexities {
    Perplexities {
        student: ratios.to_vec(),
        teacher: vec![1.0; ratios.len()],
    }
}

/// One of each policy.
fn policies(natural: &[f64], alpha: f64) -> Vec<Policy> {
    let reference = (0..natural.len())
        .map(|domain| (domain % 2 == 0).then_some(1.0))
        .collect();
    vec![
        Policy::Ddk(Ddk::new(alpha, 10, InitialMixture::Natural)),
        Policy::DdkNoSmoothing(DdkNoSmoothing::new(10, InitialMixture::Equal)),
        Policy::Excess(Excess::new(alpha, 1.0, 10, 0)),
        Policy::Excess(Excess::new(alpha, 0.5, 10, 1)),
        Policy::Fixed(Fixed::new(MixturePolicy::Static, natural, 10)),
        Policy::Sheared(Sheared::new(10, InitialMixture::Discrepancy, reference)),
        Policy::Odm(Odm::new(alpha * 0.99)),
        Policy::DoremiProxy(DoremiProxy::new(1.0, alpha, 5.0, InitialMixture::Natural)),
    ]
}

/// Minimum weight of a domain in this turn, counted from 1, by a policy of [`policies`].
fn floor(policy: &Policy, natural: &[f64], alpha: f64, turn: u64) -> f64 {
    let count = natural.len() as f64;
    match policy {
        Policy::Ddk(_) | Policy::Excess(_) => (1.0 - alpha) / count,
        Policy::Fixed(_) => natural.iter().copied().fold(1.0, f64::min),
        Policy::Odm(_) => (count.ln() / (count * turn as f64)).sqrt().min(1.0 / count),
        Policy::DoremiProxy(_) => alpha / count,
        Policy::DdkNoSmoothing(_) | Policy::Sheared(_) => 0.0,
    }
}

/// Perplexities and training losses of `10^exponent`, with a number of predictions, and with or without excess.
fn feedback_of(values: &[(f64, u64, bool)]) -> (Perplexities, TrainingSums) {
    let ratios: Vec<f64> = values
        .iter()
        .map(|(exponent, ..)| 10_f64.powf(*exponent))
        .collect();
    let mut training = TrainingSums::new(values.len());
    for (domain, (exponent, predictions, behind)) in values.iter().enumerate() {
        let loss = 10_f64.powf(*exponent) * *predictions as f64;
        training.add_row(domain, loss, if *behind { loss } else { 0.0 }, *predictions);
    }
    (of_ratios(&ratios), training)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn updates_stay_on_the_simplex_between_floor_and_cap(
        previous in simplex(), exponents in prop::collection::vec(-2.0..6.0_f64, 12), alpha in 0.0..=1.0_f64
    ) {
        let ratios: Vec<f64> = exponents[..previous.len()].iter().map(|exponent| 10_f64.powf(*exponent)).collect();
        let weights = smooth_update(&previous, &ratios, alpha).unwrap();
        let floor = (1.0 - alpha) / previous.len() as f64;
        prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        for weight in weights {
            prop_assert!(weight.is_finite() && weight >= floor && weight <= alpha + floor + 1e-15);
        }
    }

    #[test]
    fn every_policy_stays_on_the_simplex_over_its_floor_and_goes_on_from_its_state(
        natural in simplex(), alpha in 0.0..=1.0_f64,
        intervals in prop::collection::vec(prop::collection::vec((-3.0..8.0_f64, 0_u64..3, prop::bool::ANY), 12), 1..8)
    ) {
        for mut policy in policies(&natural, alpha) {
            let count = natural.len();
            let name = policy.name();
            let at_start = of_ratios(&vec![1.5; count]);
            let mut weights = policy.first(&natural, &at_start).unwrap().weights;
            for (turn, values) in (2..).zip(&intervals) {
                let (measured, training) = feedback_of(&values[..count]);
                let feedback = Feedback { perplexities: Some(&measured), training: &training, decay_left: 0.7 };
                let text = serde_json::to_string(&policy).unwrap();
                let mut other: Policy = serde_json::from_str(&text).unwrap();
                let decision = policy.next(&weights, &feedback).unwrap();
                prop_assert_eq!(&decision, &other.next(&weights, &feedback).unwrap(), "{} restored", name);
                prop_assert_eq!(&policy, &other);
                weights = decision.weights;
                prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{name}: {weights:?}");
                let floor = floor(&policy, &natural, alpha, turn);
                for weight in &weights {
                    prop_assert!(weight.is_finite() && *weight >= floor - 1e-15, "{name}: {weight} under {floor}");
                }
                if matches!(policy, Policy::Excess(_)) {
                    let [_, cap] = Excess::limits(alpha, count);
                    prop_assert!(weights.iter().all(|weight| *weight <= cap + 1e-12), "{weights:?} over {cap}");
                }
            }
            // Another list of domains: the first one is gone, and two are new.
            let kept: Vec<Option<usize>> = (1..count).map(Some).chain([None, None]).collect();
            let mut forked = policy.of_domains(&kept);
            let weights = shares_of_domains(&weights, &kept);
            let ones = vec![(0.0, 1, true); kept.len()];
            let (measured, training) = feedback_of(&ones);
            let feedback = Feedback { perplexities: Some(&measured), training: &training, decay_left: 0.7 };
            let decision = forked.next(&weights, &feedback).unwrap();
            prop_assert_eq!(decision.weights.len(), kept.len(), "{}", name);
            prop_assert!((decision.weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{name} forked");
        }
    }

    #[test]
    fn what_is_not_finite_changes_no_policy(
        natural in simplex(),
        bad in prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300]),
        at in 0_usize..12,
    ) {
        let count = natural.len();
        let at = at % count;
        for mut policy in policies(&natural, 0.5) {
            let weights = policy.first(&natural, &of_ratios(&vec![1.5; count])).unwrap().weights;
            let before = policy.clone();
            let mut ratios = vec![1.5; count];
            ratios[at] = bad;
            let mut training = TrainingSums::new(count);
            for domain in 0..count {
                let value = if domain == at { bad } else { 2.0 };
                training.add_row(domain, value, value, 1);
            }
            let perplexities = of_ratios(&ratios);
            let feedback = Feedback { perplexities: Some(&perplexities), training: &training, decay_left: 0.7 };
            let decision = policy.next(&weights, &feedback);
            prop_assert_eq!(decision.is_err(), policy.needs() != Needs::Nothing, "{}", policy.name());
            prop_assert_eq!(&policy, &before, "{}", policy.name());
        }
    }

    #[test]
    fn a_quota_is_exact_in_each_interval_and_over_a_run(
        targets in simplex().prop_flat_map(|first| {
            let count = first.len();
            prop::collection::vec(prop::collection::vec(1e-6..1.0_f64, count), 1..200)
        }), rows in 1_u64..400
    ) {
        let mut quota = Quota::new(targets[0].len());
        let mut owed = vec![0.0_f64; targets[0].len()];
        let bound = quota_bound(targets[0].len());
        for raw in &targets {
            let sum: f64 = raw.iter().sum();
            let target: Vec<f64> = raw.iter().map(|weight| weight / sum).collect();
            let counts = quota.draw(&target, rows);
            prop_assert_eq!(counts.iter().sum::<u64>(), rows);
            for (domain, count) in counts.iter().enumerate() {
                let error = *count as f64 - rows as f64 * target[domain];
                prop_assert!(error.abs() < 1.0 + 1e-9, "off by {} rows", error);
                owed[domain] += error;
                prop_assert!(owed[domain].abs() <= bound + 1e-9, "off by {} rows over the run", owed[domain]);
            }
        }
    }

    #[test]
    fn targets_chosen_against_a_quota_stay_within_its_bound(
        domains in 2_usize..24, rows in 1_u64..30,
        moves in prop::collection::vec((0.0..1.0_f64, prop::bool::ANY), 1..200)
    ) {
        let mut quota = Quota::new(domains);
        let bound = quota_bound(domains);
        for (share, favor_the_owed) in moves {
            // Equal targets for the domains that are owed the most, or the least.
            let mut by_carry: Vec<usize> = (0..domains).collect();
            by_carry.sort_by(|&a, &b| quota.carry()[b].total_cmp(&quota.carry()[a]));
            if !favor_the_owed {
                by_carry.reverse();
            }
            let favored = 1 + (share * domains as f64) as usize;
            let mut target = vec![0.0; domains];
            for &domain in by_carry.iter().take(favored) {
                target[domain] = 1.0 / favored as f64;
            }
            quota.draw(&target, rows);
            for owed in quota.carry() {
                prop_assert!(owed.abs() <= bound + 1e-9, "off by {owed} rows");
            }
        }
    }

    #[test]
    fn a_tiny_share_gets_its_rows_in_time(weight in 1e-6..0.01_f64) {
        let rows = 1000;
        let mut quota = Quota::new(2);
        let intervals = 3000;
        let total: u64 = (0..intervals).map(|_| quota.draw(&[weight, 1.0 - weight], rows)[0]).sum();
        prop_assert!((total as f64 - weight * (rows * intervals) as f64).abs() <= 2.0);
    }

    #[test]
    fn an_order_holds_exactly_the_counts(
        counts in prop::collection::vec(0_u64..50, 1..8), seed: u64, interval in 0_u64..100
    ) {
        let order = interval_order(&counts, seed, interval);
        for (domain, count) in counts.iter().enumerate() {
            prop_assert_eq!(order.iter().filter(|&&drawn| usize::from(drawn) == domain).count() as u64, *count);
        }
        prop_assert_eq!(&order, &interval_order(&counts, seed, interval));
    }

    #[test]
    fn a_limit_frees_its_share_to_the_others(
        weights in simplex(), left in prop::collection::vec(prop::option::of(0_u64..500), 12)
    ) {
        let left = &left[..weights.len()];
        let target = limit(&weights, left, 100);
        prop_assert!((target.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        if target != weights {
            for (domain, share) in target.iter().enumerate() {
                prop_assert!(*share * 100.0 <= left[domain].map_or(f64::INFINITY, |left| left as f64) + 1e-9);
            }
        }
    }
}

#[test]
fn a_limit_keeps_the_proportions_of_the_others() {
    let target = limit(&[0.5, 0.3, 0.2], &[Some(10), None, None], 100);
    assert!((target[0] - 0.1).abs() < 1e-12);
    assert!((target[1] / target[2] - 1.5).abs() < 1e-12);
}

/// Sequences that a domain may be behind or ahead over a run, whatever the targets. [`Quota`] has the proof.
fn quota_bound(domains: usize) -> f64 {
    (domains - 1) as f64 / 2.0
}

/// Targets that favor the domains that never got the leftover sequence, or that always got one, attain
/// `1/2 + 1/3 + … + 1/N`.
#[test]
fn with_one_row_left_over_the_worst_targets_attain_the_harmonic_sum_in_both_directions() {
    for domains in [2, 3, 11, 40] {
        for behind in [true, false] {
            let mut quota = Quota::new(domains);
            let mut favored: Vec<usize> = (0..domains).collect();
            while favored.len() > 1 {
                let rows = if behind { 1 } else { favored.len() as u64 - 1 };
                let mut target = vec![0.0; domains];
                for &domain in &favored {
                    target[domain] = 1.0 / favored.len() as f64;
                }
                let drawn = quota.draw(&target, rows);
                favored.retain(|&domain| (drawn[domain] == 0) == behind);
            }
            let owed = quota.carry()[favored[0]];
            let sum: f64 = (2..=domains).map(|domain| 1.0 / domain as f64).sum();
            let expected = if behind { sum } else { -sum };
            assert!((owed - expected).abs() < 1e-12, "{owed}, not {expected}");
            assert!(sum <= quota_bound(domains));
        }
    }
}

/// Intervals alternate between one and two leftover sequences. Each time, the two domains that compete for the last
/// sequence have equal claims.
#[test]
fn targets_that_alternate_come_near_the_bound_of_three_domains() {
    let mut quota = Quota::new(3);
    for _ in 0..20 {
        for rows in [1, 2] {
            let carry = quota.carry().to_vec();
            let mut by_carry = [0, 1, 2];
            by_carry.sort_by(|&a, &b| carry[a].total_cmp(&carry[b]));
            // Give no share to the domain that is furthest ahead, or almost a sequence to the one furthest behind.
            let (apart, share) = if rows == 1 {
                (by_carry[0], 0.0)
            } else {
                (by_carry[2], 1.0 - 1e-6)
            };
            let equal = (rows as f64 - carry[apart] - share) / 2.0;
            let shares = (0..3).map(|domain| {
                if domain == apart {
                    share
                } else {
                    equal - carry[domain]
                }
            });
            let target: Vec<f64> = shares.map(|share| share / rows as f64).collect();
            quota.draw(&target, rows);
        }
    }
    let largest = quota
        .carry()
        .iter()
        .fold(0.0, |largest: f64, owed| largest.max(owed.abs()));
    assert!((0.999..quota_bound(3)).contains(&largest), "{largest}");
}

#[test]
fn equal_claims_go_by_name() {
    assert_eq!(Quota::new(3).draw(&[1.0 / 3.0; 3], 4), [2, 1, 1]);
}

#[test]
fn domains_that_stay_keep_their_proportions_and_what_they_are_owed() {
    // b and c stay, a is gone, d is new.
    let kept = [Some(1), Some(2), None];
    let shares = shares_of_domains(&[0.5, 0.2, 0.3], &kept);
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    assert!((shares[1] / shares[0] - 1.5).abs() < 1e-12 && shares[2] > shares[1]);
    let mut quota = Quota::new(3);
    quota.draw(&[0.5, 0.2, 0.3], 7);
    let carry = quota.carry().to_vec();
    let forked = quota.of_domains(&kept);
    assert!(forked.carry().iter().sum::<f64>().abs() < 1e-12);
    let difference = carry[1] - carry[2];
    assert!((forked.carry()[0] - forked.carry()[1] - difference).abs() < 1e-12);
}

#[test]
fn domains_that_stay_without_a_share_get_equal_ones() {
    assert_eq!(
        shares_of_domains(&[1.0, 0.0, 0.0], &[Some(1), Some(2)]),
        [0.5, 0.5]
    );
}

#[test]
fn what_was_not_finite_is_still_that_in_a_checkpoint() {
    let mut training = TrainingSums::new(2);
    training.add_row(0, 3.0, f64::NAN, 2);
    training.add_row(1, f64::INFINITY, 1.0, 2);
    let text = serde_json::to_string(&training).unwrap();
    let read: TrainingSums = serde_json::from_str(&text).unwrap();
    let feedback = Feedback {
        perplexities: None,
        training: &read,
        decay_left: 1.0,
    };
    for mut policy in policies(&[0.5, 0.5], 0.5) {
        if matches!(policy.needs(), Needs::Losses | Needs::Excess) {
            let decision = policy.next(&[0.5, 0.5], &feedback);
            assert!(decision.is_err(), "{}", policy.name());
        }
    }
}

#[test]
fn a_corpus_can_be_used_up_to_its_last_row() {
    let left = [Some(7), Some(31), Some(62)];
    let target = limit(&[0.6, 0.3, 0.1], &left, 100);
    assert_eq!(Quota::new(3).draw(&target, 100), [7, 31, 62]);
}

#[test]
fn what_no_model_can_have_is_named() {
    let mut policy = Policy::Ddk(Ddk::new(0.5, 1, InitialMixture::Natural));
    let of = |student: f64| Perplexities {
        student: vec![4.0, student],
        teacher: vec![2.0, student],
    };
    for bad in [f64::INFINITY, -3.0, 0.0, 1e13] {
        let feedback = Feedback {
            perplexities: Some(&of(bad)),
            training: &TrainingSums::new(2),
            decay_left: 1.0,
        };
        let said = policy.next(&[0.5, 0.5], &feedback).unwrap_err().to_string();
        assert!(said.contains("student's perplexity of domain 1"), "{said}");
    }
    let said = smooth_update(&[0.5, 0.5], &[1.0, 2.0], 1.5).unwrap_err();
    assert!(said.to_string().contains("alpha is 1.5"), "{said}");
}

#[test]
fn a_temperature_divides_the_ratios() {
    let new = || Ddk::new(0.5, 1, InitialMixture::Discrepancy);
    // A power of two, so that the division is exact.
    let (mut plain, mut warm) = (
        Policy::Ddk(new()),
        Policy::Ddk(new().with_temperature(64.0)),
    );
    let of = |scale: f64| Perplexities {
        student: [1.5, 2.0, 1.25].map(|ratio| scale * ratio).to_vec(),
        teacher: vec![1.0; 3],
    };
    let natural = [0.2, 0.3, 0.5];
    let first = plain.first(&natural, &of(1.0)).unwrap().weights;
    assert_eq!(first, warm.first(&natural, &of(64.0)).unwrap().weights);
    // A checkpoint keeps the temperature.
    let stored = serde_json::to_string(&warm).unwrap();
    let mut warm: Policy = serde_json::from_str(&stored).unwrap();
    let next = |policy: &mut Policy, perplexities: &Perplexities| {
        let feedback = Feedback {
            perplexities: Some(perplexities),
            training: &TrainingSums::new(3),
            decay_left: 1.0,
        };
        policy.next(&first, &feedback).unwrap().weights
    };
    let expected = next(&mut plain, &of(1.0));
    assert_eq!(expected, next(&mut warm, &of(64.0)));
    assert!(expected[1] > expected[0], "{expected:?}");
}
