//! The figures of a run.

use std::collections::BTreeSet;

use ddk_run::records::{ByDomain, MixtureLine, StepLine};

use crate::chart::{Chart, Content, Level, Line, Panel};

/// Weight of each domain over the steps, stacked.
pub(crate) fn weights(mixtures: &[MixtureLine], last_step: u64) -> Chart {
    let lines = domains(mixtures).into_iter().map(|domain| {
        let mut points = series(mixtures, &domain, |line| &line.weights);
        // A mixture holds until the next one, or the run's end.
        if let Some(&(_, last)) = points.last() {
            points.push((last_step as f64, last));
        }
        Line {
            name: domain,
            points,
        }
    });
    chart(
        "weights",
        "Mixture",
        "How much of the data is drawn from each domain. Before the first update the corpus is drawn as it is; \
         then weight moves to the domains in which the student is furthest behind.",
        "weight in the mixture",
        Content::Areas(lines.collect()),
    )
}

/// Student's over teacher's perplexity over the steps; 1 is caught up.
pub(crate) fn ratios(mixtures: &[MixtureLine], after: Option<(u64, &ByDomain)>) -> Chart {
    // Several lines may hold one evaluation; it belongs to the step at which it was made.
    let mut measured: Vec<MixtureLine> = mixtures
        .iter()
        .map(|line| MixtureLine {
            step: line.evaluated_at_step,
            ..line.clone()
        })
        .collect();
    measured.dedup_by_key(|line| line.step);
    let lines = domains(mixtures).into_iter().map(|domain| {
        let mut points = series(&measured, &domain, |line| &line.ratio);
        if let Some((step, values)) = after
            && let Some(value) = values.get(&domain)
        {
            points.push((step as f64, *value));
        }
        Line {
            name: domain,
            points,
        }
    });
    let mut chart = chart(
        "ratios",
        "How far behind the student is",
        "The student's perplexity on each domain's validation documents, divided by the teacher's.",
        "student's over teacher's perplexity",
        Content::Lines(lines.collect()),
    );
    for panel in &mut chart.panels {
        panel.level = Some(caught_up());
    }
    chart
}

/// A ratio of 1.
pub(crate) fn caught_up() -> Level {
    Level {
        name: "caught up".to_owned(),
        value: 1.0,
    }
}

/// Loss by term over the steps; at most 2,000 points.
pub(crate) fn losses(steps: &[StepLine]) -> Chart {
    let every = steps.len().div_ceil(2000).max(1);
    type Term = (&'static str, fn(&StepLine) -> Option<f64>);
    let terms: [Term; 4] = [
        ("loss", |line| Some(line.loss)),
        ("cross-entropy", |line| Some(line.ce)),
        ("KL", |line| Some(line.kl)),
        ("layers", |line| line.layer),
    ];
    let lines = terms.map(|(name, value)| Line {
        name: name.to_owned(),
        points: steps
            .iter()
            .step_by(every)
            .filter_map(|line| Some((line.step as f64, value(line)?)))
            .collect(),
    });
    // Only TED has layers.
    let lines = lines.into_iter().filter(|line| !line.points.is_empty());
    chart(
        "losses",
        "Loss",
        "Means over each step's predictions: loss = cross-entropy + gamma KL, which is KL(teacher || student) \
         or the divergence that `objective.name` says; with TED also a weight times the distance of layers.",
        "nats a prediction",
        Content::Lines(lines.collect()),
    )
}

fn chart(name: &str, title: &str, about: &str, y_label: &str, content: Content) -> Chart {
    Chart {
        name: name.to_owned(),
        title: title.to_owned(),
        about: about.to_owned(),
        x_label: "step".to_owned(),
        y_label: y_label.to_owned(),
        same_scale: false,
        panels: vec![Panel {
            title: String::new(),
            content,
            level: None,
        }],
    }
}

fn domains(mixtures: &[MixtureLine]) -> BTreeSet<String> {
    mixtures
        .iter()
        .flat_map(|line| line.weights.keys().cloned())
        .collect()
}

fn series(
    mixtures: &[MixtureLine],
    domain: &str,
    of: impl Fn(&MixtureLine) -> &ByDomain,
) -> Vec<(f64, f64)> {
    mixtures
        .iter()
        .filter_map(|line| Some((line.step as f64, *of(line).get(domain)?)))
        .collect()
}
