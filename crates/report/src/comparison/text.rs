//! Renders a comparison as text and tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use super::{Comparison, Group, MethodResult, find, spreads};
use crate::{
    document::{Block, Table},
    scores::shown,
    statistics::{Paired, Spread},
    table::saved,
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
    let mut blocks = Vec::new();
    let mut section = |title: &str, about: &str, table: Option<Table>| {
        blocks.push(Block::Title(level, title.to_owned()));
        blocks.extend((!about.is_empty()).then(|| Block::Text(about.to_owned())));
        blocks.extend(table.map(Block::Table));
    };
    let about = "ln(student's perplexity / teacher's) after the last step, in nats per token; 0 is caught up.";
    section("Gap to the teacher", about, Some(gaps(group)));
    let about = "Of the student after the last step, on each domain's validation documents; lower is better.";
    section("Perplexity", about, Some(perplexity(group)));
    let about = "The student's perplexity divided by the teacher's; 1 is caught up.";
    section("Ratio to the teacher", about, Some(ratios(group)));
    if let Some(reference) = reference {
        let title = format!("Difference from `{reference}`");
        let about = format!(
            "Of the gaps and of the perplexities, seed by seed: mean and 95 % confidence interval. Below zero: \
             better than `{reference}`."
        );
        section(&title, &about, Some(differences(group)));
    }
    section("Tokens drawn", "", Some(tokens(group)));
    let about = "Floating-point operations of the models' matrix products, what comes before a run (DoReMi's \
                 reference and proxy, TED's filters) included. Evaluation and mixture: what steering takes, as a \
                 share of the training's operations and of its time; methods that do not steer measure at the start \
                 and at the end only.";
    let about = format!("{about}{}", cached(group));
    section("Cost", &about, Some(costs(group, reference)));
    if let Some(scores) = scores(group) {
        let about = "By lm-evaluation-harness, imported with `--import-scores`; higher is better.";
        section("Scores", about, Some(scores));
    }
    section("Figures", "", None);
    blocks.extend(group.charts.iter().cloned().map(Block::Figure));
    blocks
}

/// A row of a table: its name, then its cells.
fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    iter::once(name.to_owned()).chain(cells).collect()
}

/// A header with a column per domain between `first` and `last`.
fn header(first: &[&str], group: &Group, last: &[&str]) -> Vec<String> {
    let domains = group.teacher.perplexity.keys();
    let domains: Vec<&str> = domains.map(String::as_str).collect();
    let names = [first, &domains, last].concat();
    row("method", names.into_iter().map(str::to_owned))
}

fn perplexity(group: &Group) -> Table {
    let of_model = |name: &str, values: &BTreeMap<String, f64>| {
        let mean = values.values().sum::<f64>() / values.len().max(1) as f64;
        row(name, values.values().copied().chain([mean]).map(number))
    };
    let of_method = |method: &MethodResult| {
        let domains = method.perplexity.iter();
        let domains =
            domains.map(|(domain, spread)| marked(method, &format!("perplexity.{domain}"), spread));
        let mean = marked(method, "mean_perplexity", &method.mean_perplexity);
        row(&method.method, domains.chain([mean]))
    };
    Table::new(header(&[], group, &["mean"]))
        .with([of_model("student before", &group.start.perplexity)])
        .with(group.methods.iter().map(of_method))
        .with([of_model("teacher", &group.teacher.perplexity)])
}

fn gaps(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let mean = marked(method, "mean_gap", &method.mean_gap);
        let worst = marked(method, "worst_gap", &method.worst_gap);
        let worst = format!("{worst} ({})", method.worst_domain);
        let domains = method.gap.values().map(spread);
        row(&method.method, [mean, worst].into_iter().chain(domains))
    };
    let header = header(&["mean", "worst domain"], group, &[]);
    Table::new(header).with(group.methods.iter().map(of_method))
}

fn ratios(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let domains = method.ratio.values().map(spread);
        row(&method.method, domains.chain([spread(&method.mean_ratio)]))
    };
    Table::new(header(&[], group, &["mean"])).with(group.methods.iter().map(of_method))
}

fn differences(group: &Group) -> Table {
    let rows = group.methods.iter().filter_map(|method| {
        let difference = method.difference.as_ref()?;
        let columns = method.columns();
        let cells = columns.filter_map(|(column, _)| difference.get(&column).map(paired));
        Some(row(&method.method, cells))
    });
    let gaps = ["mean gap", "worst gap"];
    Table::new(header(&gaps, group, &["mean perplexity"])).with(rows)
}

fn tokens(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let shares = method.token_share.values();
        let shares = shares.map(|share| format!("{:.1} %", 100.0 * share.mean));
        let all = format!("{:.0}", method.tokens.mean);
        row(&method.method, shares.chain([all]))
    };
    Table::new(header(&[], group, &["total tokens"])).with(group.methods.iter().map(of_method))
}

/// What the shared cache of the teacher saved; empty if nothing.
fn cached(group: &Group) -> String {
    let sum = |of: fn(&MethodResult) -> &Spread| {
        let values = group.methods.iter().flat_map(|method| &of(method).values);
        values.sum::<f64>()
    };
    let saved = saved(
        sum(|method| &method.teacher_flops),
        sum(|method| &method.teacher_head_flops),
        sum(|method| &method.teacher_flops_saved),
    );
    match &*saved {
        "" => String::new(),
        saved => {
            format!(" The table counts them as without a cache. In all runs together, {saved}.")
        }
    }
}

fn costs(group: &Group, reference: Option<&str>) -> Table {
    let against = find(&group.methods, reference);
    let flops = ["teacher FLOPs", "student FLOPs", "evaluation FLOPs"].map(str::to_owned);
    let more = against.map(|method| format!("total FLOPs relative to {}", method.method));
    let shares = [
        "evaluation and mixture: FLOPs",
        "evaluation and mixture: time",
        "wall time",
    ]
    .map(str::to_owned);
    let header = row("method", flops.into_iter().chain(more).chain(shares));
    let of_method = |method: &MethodResult| {
        let flops = [
            method.uncached_teacher_flops(),
            method.student_flops.mean,
            method.evaluation_flops.mean,
        ];
        let more = against.map(|against| {
            let more = method.all_flops() / against.all_flops() - 1.0;
            format!("{:+.2} %", 100.0 * more)
        });
        let shares = [&method.mixture_flops_share, &method.mixture_seconds_share];
        let flops = flops.map(|flops| format!("{flops:.3e}"));
        let shares = shares.map(|share| format!("{:.2} %", 100.0 * share.mean));
        let seconds = format!("{:.0} s", method.seconds.mean);
        let cells = flops.into_iter().chain(more).chain(shares);
        row(&method.method, cells.chain([seconds]))
    };
    Table::new(header).with(group.methods.iter().map(of_method))
}

/// One column per task. `None` if no scores were imported.
fn scores(group: &Group) -> Option<Table> {
    let [start, teacher] = [&group.start, &group.teacher].map(|model| spreads([&model.scores]));
    let methods = group.methods.iter();
    let methods = methods.map(|method| (&*method.method, &method.scores));
    let rows = iter::once(("student before", &start)).chain(methods);
    let rows: Vec<_> = rows.chain([("teacher", &teacher)]).collect();
    let mut tasks: BTreeMap<&String, BTreeSet<&str>> = BTreeMap::new();
    for (task, metrics) in rows.iter().flat_map(|(_, scores)| *scores) {
        let names = metrics.keys().map(String::as_str);
        tasks.entry(task).or_default().extend(names);
    }
    if tasks.is_empty() {
        return None;
    }
    // The metric to show for each task.
    let columns = tasks.iter();
    let columns = columns.filter_map(|(task, metrics)| Some((*task, shown(metrics)?)));
    let columns: Vec<(&String, &str)> = columns.collect();
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let cell = |spread: &Spread| match spread.deviation {
        Some(deviation) => format!("{} ± {}", percent(spread.mean), percent(deviation)),
        None => percent(spread.mean),
    };
    let rows = rows.iter().map(|(name, scores)| {
        let columns = columns.iter();
        let spreads = columns.map(|(task, metric)| scores.get(*task)?.get(*metric));
        row(
            name,
            spreads.map(|spread| spread.map_or_else(String::new, cell)),
        )
    });
    let columns = columns.iter();
    let names = columns.map(|(task, metric)| format!("{task} ({metric}, %)"));
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
