//! The figures of a comparison: the paper's figures 1 and 3, and the weights.

use super::{ComparedRun, Group};
use crate::{
    chart::{Bar, Chart, Content, Level, Panel},
    figures::{Course, caught_up},
};

pub(super) fn charts(group: &Group, runs: &[ComparedRun]) -> Vec<Chart> {
    let first_seed = runs.iter().map(|run| run.seed).min().unwrap_or(0);
    let firsts: Vec<&ComparedRun> = runs.iter().filter(|run| run.seed == first_seed).collect();
    let charts = [
        perplexity(group),
        gaps(group, &firsts, first_seed),
        weights(group, &firsts, first_seed),
    ];
    let drawn = charts.into_iter().filter(|chart| !chart.panels.is_empty());
    drawn.collect()
}

/// Figure 1: one panel per domain, one bar per method, a line for the teacher.
fn perplexity(group: &Group) -> Chart {
    let panels = group.teacher.perplexity.iter().map(|(domain, teacher)| {
        let start = group.start.perplexity.get(domain).map(|value| Bar {
            name: "student before".to_owned(),
            value: *value,
            error: None,
        });
        let methods = group.methods.iter().filter_map(|method| {
            let spread = method.perplexity.get(domain)?;
            Some(Bar {
                name: method.method.clone(),
                value: spread.mean,
                error: spread.deviation,
            })
        });
        Panel {
            title: domain.clone(),
            content: Content::Bars(start.into_iter().chain(methods).collect()),
            level: Some(Level {
                name: "teacher".to_owned(),
                value: *teacher,
            }),
        }
    });
    Chart {
        name: format!("perplexity{}", group.slug()),
        title: "Perplexity of each domain, by method".to_owned(),
        about: "Lower is better; means over seeds, whiskers of one standard deviation. Each domain has a scale \
                of its own."
            .to_owned(),
        y_label: "perplexity".to_owned(),
        panels: panels.collect(),
        ..Chart::default()
    }
}

/// The run over the tokens trained on.
fn course(run: &ComparedRun) -> Course<'_> {
    Course {
        mixture: &run.mixture,
        end: run.summary.tokens as f64,
        x: |interval| interval.tokens_before as f64,
    }
}

/// Figure 3: how the gaps change, for the methods that measure them during the run.
fn gaps(group: &Group, runs: &[&ComparedRun], seed: u64) -> Chart {
    let panels = runs.iter().filter_map(|run| {
        let course = course(run);
        (course.evaluations().len() >= 3).then(|| Panel {
            title: run.method.clone(),
            content: course.measured(|line| &line.gap, |domain| domain.gap_after),
            level: Some(caught_up()),
        })
    });
    Chart {
        name: format!("gaps{}", group.slug()),
        title: "Gap of each domain, over the tokens trained on".to_owned(),
        about: format!(
            "Of the methods that measure it during the run; seed {seed}. At 0 the student has caught up."
        ),
        x_label: "tokens".to_owned(),
        y_label: "gap, nats per token".to_owned(),
        same_scale: true,
        panels: panels.collect(),
        ..Chart::default()
    }
}

/// How the mixtures change, for the methods that change the mixture.
fn weights(group: &Group, runs: &[&ComparedRun], seed: u64) -> Chart {
    let moves = |run: &&&ComparedRun| {
        let mut pairs = run.mixture.intervals.windows(2);
        pairs.any(|pair| pair[0].mixture.weights != pair[1].mixture.weights)
    };
    let panels = runs.iter().filter(moves).map(|run| Panel {
        title: run.method.clone(),
        content: course(run).weights(),
        level: None,
    });
    Chart {
        name: format!("weights{}", group.slug()),
        title: "Weight of each domain in the mixture, over the tokens trained on".to_owned(),
        about: format!("Of the methods whose mixture moves; seed {seed}."),
        x_label: "tokens".to_owned(),
        y_label: "weight".to_owned(),
        same_scale: true,
        panels: panels.collect(),
        ..Chart::default()
    }
}
