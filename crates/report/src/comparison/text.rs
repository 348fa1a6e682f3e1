//! Renders a comparison as text and tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use super::{Comparison, Group, MethodResult};
use crate::{
    document::{Block, Table},
    scores::shown,
    statistics::{Paired, Spread},
};

pub(super) fn blocks(comparison: &Comparison) -> Vec<Block> {
    let mut blocks = vec![
        Block::Title(1, comparison.name.clone()),
        Block::Text(format!("Made by `{}`.", comparison.command)),
        Block::Text(how_to_read(comparison)),
    ];
    for group in &comparison.groups {
        if let Some(swept) = &group.swept {
            blocks.push(Block::Title(2, format!("`{swept}`")));
        }
        blocks.extend(of_group(group, comparison.reference.as_deref()));
    }
    blocks
}

fn how_to_read(comparison: &Comparison) -> String {
    let n = comparison.seeds.len();
    let mut text = "Initial student, token budget, validation sets and evaluation are the same for all methods; \
                    seeds vary the order of the data alone."
        .to_owned();
    if n < 2 {
        text.push_str(
            " One seed: there is no spread and no interval, nothing is marked, and small differences mean nothing.",
        );
        return text;
    }
    text.push_str(&format!(
        " Values are means over {n} seeds ± their standard deviation."
    ));
    match &comparison.reference {
        Some(reference) => text.push_str(&format!(
            " The lowest value of a column is **marked** only where the 95 % confidence interval of its paired \
             difference from `{reference}` (same seed; Student's t, n = {n}) excludes zero, for `{reference}` \
             itself that of the next lowest. Nothing is corrected for the number of comparisons."
        )),
        None => text.push_str(
            " `kd` is not among the methods: there are no paired differences, and nothing is marked.",
        ),
    }
    text
}

fn of_group(group: &Group, reference: Option<&str>) -> Vec<Block> {
    let level = if group.swept.is_some() { 3 } else { 2 };
    let title = |text: &str| Block::Title(level, text.to_owned());
    let mut blocks = vec![
        title("Gap to the teacher"),
        Block::Text(
            "ln(student's perplexity / teacher's) after the last step, in nats per token; 0 is caught up."
                .to_owned(),
        ),
        Block::Table(gaps(group)),
        title("Perplexity"),
        Block::Text(
            "Of the student after the last step, on each domain's validation documents; lower is better."
                .to_owned(),
        ),
        Block::Table(perplexity(group)),
        title("Ratio to the teacher"),
        Block::Text(
            "The student's perplexity divided by the teacher's; 1 is caught up.".to_owned(),
        ),
        Block::Table(ratios(group)),
    ];
    if let Some(reference) = reference {
        blocks.extend([
            title(&format!("Difference from `{reference}`")),
            Block::Text(format!(
                "Of the gaps and of the perplexities, seed by seed: mean and 95 % confidence interval. Below zero: \
                 better than `{reference}`."
            )),
            Block::Table(differences(group)),
        ]);
    }
    blocks.extend([
        title("Tokens drawn"),
        Block::Table(tokens(group)),
        title("Cost"),
        Block::Text(
            "Floating-point operations of the models' matrix products, what comes before a run (DoReMi's \
             reference and proxy, TED's filters) included. Evaluation and mixture: what steering takes, as a \
             share of the training's operations and of its time; methods that do not steer measure at the start \
             and at the end only."
                .to_owned(),
        ),
        Block::Table(costs(group, reference)),
    ]);
    if let Some(table) = scores(group) {
        blocks.extend([
            title("Scores"),
            Block::Text(
                "By lm-evaluation-harness, imported with `--import-scores`; higher is better."
                    .to_owned(),
            ),
            Block::Table(table),
        ]);
    }
    blocks.push(title("Figures"));
    blocks.extend(group.charts.iter().cloned().map(Block::Figure));
    blocks
}

/// A row of a table: its name, then its cells.
fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    iter::once(name.to_owned()).chain(cells).collect()
}

fn header(group: &Group, more: &[&str]) -> Vec<String> {
    let domains = group.teacher.perplexity.keys().cloned();
    let more = more.iter().map(|name| (*name).to_owned());
    row("method", domains.chain(more))
}

fn perplexity(group: &Group) -> Table {
    let of_model = |name: &str, values: &BTreeMap<String, f64>| {
        let mean = values.values().sum::<f64>() / values.len().max(1) as f64;
        row(name, values.values().copied().chain([mean]).map(number))
    };
    let of_method = |method: &MethodResult| {
        let domains = method
            .perplexity
            .iter()
            .map(|(domain, spread)| marked(method, &format!("perplexity.{domain}"), spread));
        let mean = marked(method, "mean_perplexity", &method.mean_perplexity);
        row(&method.method, domains.chain([mean]))
    };
    let start = of_model("student before", &group.start.perplexity);
    let teacher = of_model("teacher", &group.teacher.perplexity);
    Table::new(header(group, &["mean"])).with(
        [start]
            .into_iter()
            .chain(group.methods.iter().map(of_method))
            .chain([teacher]),
    )
}

fn gaps(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let mean = marked(method, "mean_gap", &method.mean_gap);
        let worst = marked(method, "worst_gap", &method.worst_gap);
        let worst = format!("{worst} ({})", method.worst_domain);
        let domains = method.gap.values().map(spread);
        row(&method.method, [mean, worst].into_iter().chain(domains))
    };
    let domains = group.teacher.perplexity.keys().cloned();
    let columns = ["mean", "worst domain"].map(str::to_owned);
    let header = row("method", columns.into_iter().chain(domains));
    Table::new(header).with(group.methods.iter().map(of_method))
}

fn ratios(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let domains = method.ratio.values().map(spread);
        row(&method.method, domains.chain([spread(&method.mean_ratio)]))
    };
    Table::new(header(group, &["mean"])).with(group.methods.iter().map(of_method))
}

fn differences(group: &Group) -> Table {
    let rows = group.methods.iter().filter_map(|method| {
        let difference = method.difference.as_ref()?;
        let columns = method.columns();
        let cells = columns.filter_map(|(column, _)| difference.get(&column).map(paired));
        Some(row(&method.method, cells))
    });
    let domains = group.teacher.perplexity.keys().cloned();
    let gaps = ["mean gap", "worst gap"].map(str::to_owned);
    let perplexities = domains.chain(["mean perplexity".to_owned()]);
    Table::new(row("method", gaps.into_iter().chain(perplexities))).with(rows)
}

fn tokens(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let shares = method
            .token_share
            .values()
            .map(|share| format!("{:.1} %", 100.0 * share.mean));
        let all = format!("{:.0}", method.tokens.mean);
        row(&method.method, shares.chain([all]))
    };
    Table::new(header(group, &["all"])).with(group.methods.iter().map(of_method))
}

fn costs(group: &Group, reference: Option<&str>) -> Table {
    let against = group
        .methods
        .iter()
        .find(|method| Some(method.method.as_str()) == reference);
    let flops = ["teacher FLOPs", "student FLOPs", "evaluation FLOPs"].map(str::to_owned);
    let more = against.map(|method| format!("all, against {}", method.method));
    let shares = ["evaluation and mixture: FLOPs", "time", "wall time"].map(str::to_owned);
    let header = row("method", flops.into_iter().chain(more).chain(shares));
    let of_method = |method: &MethodResult| {
        let flops = [
            &method.teacher_flops,
            &method.student_flops,
            &method.evaluation_flops,
        ];
        let more = against.map(|against| {
            let more = method.all_flops() / against.all_flops() - 1.0;
            format!("{:+.2} %", 100.0 * more)
        });
        let shares = [&method.mixture_flops_share, &method.mixture_seconds_share];
        let flops = flops.map(|flops| format!("{:.3e}", flops.mean));
        let shares = shares.map(|share| format!("{:.2} %", 100.0 * share.mean));
        let seconds = format!("{:.0} s", method.seconds.mean);
        row(
            &method.method,
            flops.into_iter().chain(more).chain(shares).chain([seconds]),
        )
    };
    Table::new(header).with(group.methods.iter().map(of_method))
}

/// One column per task. `None` if no scores were imported.
fn scores(group: &Group) -> Option<Table> {
    let fixed = [
        ("student before", &group.start),
        ("teacher", &group.teacher),
    ];
    let of_methods = group.methods.iter().flat_map(|method| &method.scores);
    let mut tasks: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    for (task, metrics) in of_methods {
        tasks.entry(task).or_default().extend(metrics.keys());
    }
    for (task, metrics) in fixed.iter().flat_map(|(_, model)| &model.scores) {
        tasks.entry(task).or_default().extend(metrics.keys());
    }
    // The metric to show for each task.
    let columns: Vec<(&String, String)> = tasks
        .into_iter()
        .filter_map(|(task, metrics)| {
            let names = metrics
                .into_iter()
                .map(|name| (name.clone(), 0.0))
                .collect();
            Some((task, shown(&names)?.0.to_owned()))
        })
        .collect();
    if columns.is_empty() {
        return None;
    }
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let of_model = |(name, model): &(&str, &super::Model)| {
        let cells = columns.iter().map(|(task, metric)| {
            let value = model
                .scores
                .get(*task)
                .and_then(|metrics| metrics.get(metric));
            value.map_or_else(String::new, |value| percent(*value))
        });
        row(name, cells)
    };
    let of_method = |method: &MethodResult| {
        let cells = columns.iter().map(|(task, metric)| {
            let spread = method
                .scores
                .get(*task)
                .and_then(|metrics| metrics.get(metric));
            spread.map_or_else(String::new, |spread| match spread.deviation {
                Some(deviation) => format!("{} ± {}", percent(spread.mean), percent(deviation)),
                None => percent(spread.mean),
            })
        });
        row(&method.method, cells)
    };
    let names = columns
        .iter()
        .map(|(task, metric)| format!("{task} ({metric}, %)"));
    let rows = [of_model(&fixed[0])]
        .into_iter()
        .chain(group.methods.iter().map(of_method))
        .chain([of_model(&fixed[1])]);
    Some(Table::new(row("method", names)).with(rows))
}

/// Number of decimals to show, fewer for larger values.
fn decimals(value: f64) -> usize {
    match value.abs() {
        small if small < 10.0 => 3,
        middle if middle < 100.0 => 2,
        _ => 1,
    }
}

fn number(value: f64) -> String {
    format!("{value:.*}", decimals(value))
}

fn spread(spread: &Spread) -> String {
    let decimals = decimals(spread.mean);
    match spread.deviation {
        Some(deviation) => format!("{:.decimals$} ± {deviation:.decimals$}", spread.mean),
        None => number(spread.mean),
    }
}

fn marked(method: &MethodResult, column: &str, value: &Spread) -> String {
    if method.best_in.iter().any(|best| best == column) {
        format!("**{}**", spread(value))
    } else {
        spread(value)
    }
}

fn paired(paired: &Paired) -> String {
    match paired.interval {
        Some((low, high)) => format!("{:+.3} [{low:+.3}, {high:+.3}]", paired.mean),
        None => format!("{:+.3}", paired.mean),
    }
}
