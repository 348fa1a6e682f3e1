//! Advice on a run that trains without errors but not well: a mixture that has hit its limits, text that is repeated
//! often, and a student that gets worse.

use std::collections::BTreeSet;

use ddk_run::records::{ByDomain, DrawnLine, MixtureLine};

/// Intervals in a row with the same weights at a limit before this is worth a word.
const INTERVALS: u64 = 3;
/// Epochs of a domain that are worth a word: text that is repeated more often teaches little.
const EPOCHS: f64 = 5.0;
/// Maximum distance from a limit at which a weight counts as at it, as a share of the distance between both limits.
const CLOSE: f64 = 0.01;

/// Watches the mixtures of a run. Says everything once, until it changes.
#[derive(Debug, Default)]
pub(crate) struct Advisor {
    /// The domains at a limit, and for how many intervals.
    limited: (Limited, u64),
    /// Domains whose epochs were mentioned.
    repeated: BTreeSet<String>,
    /// The mean gap at the start.
    start: Option<f64>,
    /// The step and the mean gap of the last evaluation, and whether it was larger than the one before.
    last: Option<(u64, f64, bool)>,
    /// Whether a student that gets worse was mentioned.
    is_worse: bool,
}

/// The domains at the floor and at the cap.
#[derive(Debug, Default, PartialEq)]
struct Limited {
    floor: Vec<String>,
    cap: Vec<String>,
}

impl Advisor {
    /// Advice on a new mixture.
    pub(crate) fn mixture(&mut self, line: &MixtureLine) -> Vec<String> {
        let advice = [self.limits(line), self.gaps(line)];
        advice.into_iter().flatten().collect()
    }

    /// Advice on what an interval drew.
    pub(crate) fn drawn(&mut self, line: &DrawnLine) -> Vec<String> {
        let often = line.drawn.iter().filter(|(_, drawn)| drawn.epochs > EPOCHS);
        let new = often.filter(|(name, _)| self.repeated.insert((*name).clone()));
        let advice = new.map(|(name, drawn)| {
            format!(
                "`{name}` has been repeated for {:.1} epochs: add text to it, or limit it with mixture.max_epochs",
                drawn.epochs
            )
        });
        advice.collect()
    }

    fn limits(&mut self, line: &MixtureLine) -> Option<String> {
        let domains = line.weights.len();
        let alpha = line.alpha.filter(|alpha| domains > 1 && *alpha > 0.0)?;
        let floor = (1.0 - alpha) / domains as f64;
        let cap = floor + alpha;
        let near = |limit: f64| -> Vec<String> {
            let is_near = |weight: f64| (weight - limit).abs() <= CLOSE * alpha;
            let near = line.weights.iter().filter(|(_, weight)| is_near(**weight));
            near.map(|(name, _)| name.clone()).collect()
        };
        let limited = Limited {
            floor: near(floor),
            cap: near(cap),
        };
        if limited != self.limited.0 {
            self.limited = (limited, 1);
            return None;
        }
        self.limited.1 += 1;
        let (limited, intervals) = &self.limited;
        if *intervals != INTERVALS || *limited == Limited::default() {
            return None;
        }
        let said = |what: &str, limit: f64, names: &[String]| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            (!names.is_empty()).then(|| format!("{} at the {what} ({limit:.3})", names.join(", ")))
        };
        let both = [
            said("cap", cap, &limited.cap),
            said("floor", floor, &limited.floor),
        ];
        let both: Vec<String> = both.into_iter().flatten().collect();
        Some(format!(
            "weights have not left their limits for {INTERVALS} intervals: {}; the gaps are too far apart to steer by. \
             Set mixture.policy = \"excess\", which steers by the gaps in nats, or raise mixture.temperature",
            both.join(", ")
        ))
    }

    fn gaps(&mut self, line: &MixtureLine) -> Option<String> {
        let gap = mean(&line.gap)?;
        let start = *self.start.get_or_insert(gap);
        let step = line.evaluated_at_step;
        let Some((at, before, grew)) = self.last else {
            self.last = Some((step, gap, false));
            return None;
        };
        if step == at {
            return None;
        }
        let grows = gap > before;
        self.last = Some((step, gap, grows));
        let is_worse = grows && grew && gap > start;
        // A student that gets better again may get worse a second time.
        let is_new = is_worse && !self.is_worse;
        self.is_worse = is_worse || (self.is_worse && grows);
        is_new.then(|| {
            format!(
                "the student gets worse: the mean gap has grown in two evaluations, to {gap:.3}, from {start:.3} at \
                 the start; lower optimizer.lr, or lengthen lr_scheduler.warmup_steps"
            )
        })
    }
}

fn mean(values: &ByDomain) -> Option<f64> {
    let sum: f64 = values.values().sum();
    (!values.is_empty()).then(|| sum / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ddk_run::records::Drawn;

    use super::*;

    fn line(interval: u64, weights: [f64; 3], gap: f64) -> MixtureLine {
        let names = ["a", "b", "c"].map(str::to_owned);
        let by_domain = |values: [f64; 3]| names.clone().into_iter().zip(values).collect();
        MixtureLine {
            interval,
            step: 10 * interval,
            policy: "ddk".to_owned(),
            alpha: Some(0.6),
            weights: by_domain(weights),
            target: by_domain(weights),
            previous_weights: None,
            student_perplexity: BTreeMap::new(),
            teacher_perplexity: BTreeMap::new(),
            ratio: BTreeMap::new(),
            gap: by_domain([gap - 0.1, gap, gap + 0.1]),
            evaluated_at_step: 10 * interval,
            discrepancy: None,
            losses: None,
            reference: None,
            excess: None,
            mean_weights: None,
            refused: None,
        }
    }

    #[test]
    fn weights_at_their_limits_are_told_of_after_three_intervals_and_once() {
        let mut advisor = Advisor::default();
        let mut told = Vec::new();
        let (cap, floor) = (0.4 / 3.0 + 0.6, 0.4 / 3.0);
        for (interval, weights) in [
            [1.0 / 3.0; 3],
            [cap, floor, floor],
            [cap - 0.003, floor + 0.003, floor],
            [cap, floor, floor],
            [cap, floor, floor],
            [0.5, 0.3, 0.2],
            [0.5, 0.3, 0.2],
            [0.5, 0.3, 0.2],
            [floor, cap, floor],
            [floor, cap, floor],
            [floor, cap, floor],
        ]
        .into_iter()
        .enumerate()
        {
            let interval = interval as u64;
            let said = advisor.mixture(&line(interval, weights, 2.0));
            told.extend(said.into_iter().map(|text| (interval, text)));
        }
        let [(3, first), (10, second)] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(
            first.contains("3 intervals: `a` at the cap (0.733), `b`, `c` at the floor (0.133);")
        );
        assert!(second.contains("`b` at the cap"));
        // Other policies have no limits.
        let mut advisor = Advisor::default();
        for interval in 0..5 {
            let mut other = line(interval, [cap, floor, floor], 2.0);
            other.alpha = None;
            assert_eq!(advisor.mixture(&other), Vec::<String>::new());
        }
    }

    #[test]
    fn a_student_that_gets_worse_is_told_of_once_until_it_gets_better() {
        let mut advisor = Advisor::default();
        let mut told = Vec::new();
        // Interval 5 repeats the evaluation of interval 4.
        let gaps = [2.0, 1.5, 1.8, 1.9, 2.1, 2.1, 2.2, 2.0, 2.1, 2.3];
        for (interval, gap) in (0..).zip(gaps) {
            let mut line = line(interval, [0.5, 0.3, 0.2], gap);
            line.evaluated_at_step -= if interval == 5 { 10 } else { 0 };
            if !advisor.mixture(&line).is_empty() {
                told.push(interval);
            }
        }
        assert_eq!(told, [4, 9]);
    }

    #[test]
    fn repeated_text_is_told_of_once_per_domain() {
        let mut advisor = Advisor::default();
        let mut at = |interval: u64, epochs: f64| {
            let drawn = |epochs| Drawn {
                sequences: 1,
                tokens: 1,
                epochs,
            };
            let drawn = BTreeMap::from([
                ("a".to_owned(), drawn(epochs)),
                ("b".to_owned(), drawn(0.5)),
            ]);
            advisor.drawn(&DrawnLine { interval, drawn })
        };
        assert!(at(0, 4.9).is_empty());
        let said = at(1, 5.25);
        assert!(said.len() == 1 && said[0].starts_with("`a` has been repeated for 5.2 epochs"));
        assert!(at(2, 9.0).is_empty());
    }
}
