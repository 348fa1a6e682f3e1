//! The figures of a comparison: the paper's figures 1 and 3, and the weights.

use std::collections::BTreeMap;

use ddk_run::records::MixtureLine;

use super::{ComparedRun, Group};
use crate::{
    chart::{Bar, Chart, Content, Level, Line, Panel},
    figures::caught_up,
};

pub(super) fn charts(group: &Group, runs: &[ComparedRun]) -> Vec<Chart> {
    let first_seed = runs.iter().map(|run| run.seed).min().unwrap_or(0);
    let firsts: Vec<&ComparedRun> = runs.iter().filter(|run| run.seed == first_seed).collect();
    let charts = [
        perplexity(group),
        ratios(group, &firsts, first_seed),
        weights(group, &firsts, first_seed),
    ];
    let drawn = charts.into_iter().filter(|chart| !chart.panels.is_empty());
    drawn.collect()
}

/// Figure 1: a panel a domain, a bar a method, a line for the teacher.
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
        x_label: String::new(),
        y_label: "perplexity".to_owned(),
        same_scale: false,
        panels: panels.collect(),
    }
}

/// Figure 3: how the ratios move, for the methods that measure them on the way.
fn ratios(group: &Group, runs: &[&ComparedRun], seed: u64) -> Chart {
    let panels = runs.iter().filter_map(|run| {
        // Several lines may hold one evaluation; it belongs to where the run was when it was made.
        let at: BTreeMap<u64, f64> = lines_by_tokens(run)
            .map(|(tokens, line)| (line.step, tokens))
            .collect();
        let mut measured: Vec<(f64, &MixtureLine)> = lines_by_tokens(run)
            .filter_map(|(_, line)| Some((*at.get(&line.evaluated_at_step)?, line)))
            .collect();
        measured.dedup_by_key(|(_, line)| line.evaluated_at_step);
        if measured.len() < 3 {
            return None;
        }
        let lines = run.summary.domains.iter().map(|(domain, result)| {
            let on_the_way = measured
                .iter()
                .filter_map(|(tokens, line)| Some((*tokens, *line.ratio.get(domain)?)));
            let end = (run.summary.tokens as f64, result.ratio_after);
            Line {
                name: domain.clone(),
                points: on_the_way.chain([end]).collect(),
            }
        });
        Some(Panel {
            title: run.method.clone(),
            content: Content::Lines(lines.collect()),
            level: Some(caught_up()),
        })
    });
    Chart {
        name: format!("ratios{}", group.slug()),
        title: "Student's over teacher's perplexity, over the tokens trained on".to_owned(),
        about: format!(
            "Of the methods that measure it during the run; seed {seed}. At 1 the student has caught up."
        ),
        x_label: "tokens".to_owned(),
        y_label: "ratio".to_owned(),
        same_scale: true,
        panels: panels.collect(),
    }
}

/// How the mixtures move, for the methods whose mixture does.
fn weights(group: &Group, runs: &[&ComparedRun], seed: u64) -> Chart {
    let moves = |run: &ComparedRun| {
        run.mixtures
            .windows(2)
            .any(|pair| pair[0].weights != pair[1].weights)
    };
    let panels = runs.iter().filter(|run| moves(run)).map(|run| {
        let lines = run.summary.domains.keys().map(|domain| {
            let mut points: Vec<(f64, f64)> = lines_by_tokens(run)
                .filter_map(|(tokens, line)| Some((tokens, *line.weights.get(domain)?)))
                .collect();
            if let Some(&(_, last)) = points.last() {
                points.push((run.summary.tokens as f64, last));
            }
            Line {
                name: domain.clone(),
                points,
            }
        });
        Panel {
            title: run.method.clone(),
            content: Content::Areas(lines.collect()),
            level: None,
        }
    });
    Chart {
        name: format!("weights{}", group.slug()),
        title: "Weight of each domain in the mixture, over the tokens trained on".to_owned(),
        about: format!("Of the methods whose mixture moves; seed {seed}."),
        x_label: "tokens".to_owned(),
        y_label: "weight".to_owned(),
        same_scale: true,
        panels: panels.collect(),
    }
}

/// Each mixture with the tokens that were trained on before it.
fn lines_by_tokens(run: &ComparedRun) -> impl Iterator<Item = (f64, &MixtureLine)> {
    let mut tokens = 0;
    run.mixtures.iter().enumerate().map(move |(index, line)| {
        let before = tokens;
        let drawn = run.drawn.get(index).map(|line| line.drawn.values());
        tokens += drawn
            .into_iter()
            .flatten()
            .map(|drawn| drawn.tokens)
            .sum::<u64>();
        (before as f64, line)
    })
}
