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

/// The method without steering whose mixture is the measure's: all domains count alike.
const EQUAL: &str = "ddk-equal";

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

/// The tables of claims and measures. A star stands for bold.
pub(super) fn brief(comparison: &Comparison) -> String {
    let of_group = |group: &Group| {
        let title = group.swept.iter().map(|swept| format!("{swept}\n"));
        let claims = (!group.primary.is_empty()).then(|| primary(group));
        let tables = claims.into_iter().chain([measures(group)]);
        let tables: Vec<String> = tables.map(|table| table.plain().to_string()).collect();
        title.chain([tables.join("\n")]).collect::<String>()
    };
    let groups: Vec<String> = comparison.groups.iter().map(of_group).collect();
    groups.join("\n")
}

fn how_to_read(comparison: &Comparison) -> String {
    let n = comparison.seeds.len();
    let varied = if comparison.varies_student {
        "the initial student and the order of the data"
    } else {
        "only the order of the data"
    };
    let mut text = format!(
        "All methods have the same initial student, token budget, validation documents and evaluation. Seeds vary \
         {varied}."
    );
    if n < 2 {
        text.push_str(
            " One seed gives no spread and no interval, so nothing is bold, and small differences mean nothing.",
        );
        return text;
    }
    text.push_str(&format!(
        " Values are means over {n} seeds ± their standard deviation."
    ));
    match &comparison.reference {
        Some(reference) => text.push_str(&format!(
            " The lowest value of a column is **bold** only if the 95% confidence interval of its difference from \
             `{reference}` excludes zero (paired by seed; Student's t, n = {n}). If `{reference}` is the lowest, the \
             difference of the next lowest decides. Only the primary comparisons are corrected for their number."
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
    if !group.primary.is_empty() {
        let about = "Differences, paired by seed. A claim holds if its p-value, corrected by Holm's method for the \
                     number of these claims, is at most 0.05. The gap is in nats per token.";
        section("Primary comparisons", about, Some(primary(group)));
    }
    let about = "The gap is ln(student's perplexity / teacher's) after the last step, in nats per token. The clipped \
                 gap counts a domain as 0 if the student is better than the teacher. The token-weighted loss is the \
                 student's, weighted by each domain's share of the corpus. Lower is better.";
    section("Measures", about, Some(measures(group)));
    let about = "By domain, in nats per token. At 0, the student has caught up.";
    section("Gap to the teacher", about, Some(gaps(group)));
    let about = "The student's, after the last step, on each domain's validation documents. Lower is better.";
    section("Perplexity", about, Some(perplexity(group)));
    let about =
        "The student's perplexity divided by the teacher's. At 1, the student has caught up.";
    section("Ratio to the teacher", about, Some(ratios(group)));
    let others = reference.into_iter().chain([EQUAL]);
    for other in others.filter(|other| find(&group.methods, Some(other)).is_some()) {
        let about = format!(
            "Paired by seed: mean and 95% confidence interval. Negative values are better than `{other}`."
        );
        let title = format!("Difference from `{other}`");
        section(&title, &about, Some(differences(group, other)));
    }
    if group.methods.len() > 2 {
        let about = "For each measure, the difference from the best other method by its mean, which the cell names. \
                     Paired by seed: mean and 95% confidence interval.";
        let title = "Difference from the best of the others";
        section(title, about, Some(from_best(group)));
    }
    section("Tokens drawn", "", Some(tokens(group)));
    let about = "FLOPs count the models' matrix products, including preliminary runs (DoReMi's reference and proxy, \
                 TED's filters). Evaluation FLOPs are the student's: only the first run evaluates the teacher, for all \
                 methods. Evaluation and mixture are the cost of steering, as a share of the training's FLOPs and of \
                 its time. Methods that do not steer evaluate only at the start and at the end.";
    let about = format!("{about}{}", cached(group));
    section("Cost", &about, Some(costs(group, reference)));
    if let Some(scores) = scores(group) {
        let about =
            "From lm-evaluation-harness, imported with `--import-scores`. Higher is better.";
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

/// A header with a column per domain, and then `last`.
fn header(group: &Group, last: &[&str]) -> Vec<String> {
    let domains = group.teacher.perplexity.keys();
    let last = last.iter().map(|&name| name.to_owned());
    row("method", domains.cloned().chain(last))
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
    Table::new(header(group, &["mean"]))
        .with([of_model("student before", &group.start.perplexity)])
        .with(group.methods.iter().map(of_method))
        .with([of_model("teacher", &group.teacher.perplexity)])
}

fn primary(group: &Group) -> Table {
    let rows = group.primary.iter().map(|claim| {
        let margin = match claim.margin {
            0.0 => String::new(),
            margin => format!(" + {margin}"),
        };
        let holds = match (claim.holds, claim.p) {
            (true, _) => "yes",
            (false, Some(_)) => "no",
            (false, None) => "not tested",
        };
        let measure = title(&claim.measure);
        vec![
            format!("{measure}: {} < {}{margin}", claim.method, claim.other),
            paired(&claim.difference),
            claim.p_holm.map_or_else(String::new, p_value),
            holds.to_owned(),
        ]
    });
    let header = ["claim", "difference", "p (Holm)", "holds"].map(str::to_owned);
    Table::new(header).with(rows)
}

/// The name of a column for people.
fn title(column: &str) -> String {
    column
        .replace("worst_gap", "worst domain's gap")
        .replace("perplexity.", "perplexity of ")
        .replace("token_weighted", "token-weighted")
        .replace('_', " ")
}

fn measures(group: &Group) -> Table {
    let names = group.methods.iter().take(1);
    let names = names.flat_map(|method| method.measures().map(|(name, _)| title(name)));
    let of_method = |method: &MethodResult| {
        let measures = method.measures().map(|(name, spread)| match name {
            "worst_gap" => format!("{} ({})", marked(method, name, spread), method.worst_domain),
            _ => marked(method, name, spread),
        });
        row(&method.method, measures)
    };
    Table::new(row("method", names)).with(group.methods.iter().map(of_method))
}

fn gaps(group: &Group) -> Table {
    let of_method = |method: &MethodResult| row(&method.method, method.gap.values().map(spread));
    Table::new(header(group, &[])).with(group.methods.iter().map(of_method))
}

fn ratios(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let domains = method.ratio.values().map(spread);
        row(&method.method, domains.chain([spread(&method.mean_ratio)]))
    };
    Table::new(header(group, &["mean"])).with(group.methods.iter().map(of_method))
}

fn differences(group: &Group, from: &str) -> Table {
    let others = group.methods.iter().filter(|method| method.method != from);
    let rows = others.map(|method| {
        let columns = method.columns();
        let cells = columns.filter_map(|(column, _)| method.difference(from, &column).map(paired));
        row(&method.method, cells)
    });
    let columns = group.methods.iter().take(1);
    let columns = columns.flat_map(|method| method.columns().map(|(name, _)| title(&name)));
    Table::new(row("method", columns)).with(rows)
}

fn from_best(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let cells = method.measures().map(|(measure, _)| {
            let others = group.methods.iter();
            let others = others.filter(|other| other.method != method.method);
            let mean = |other: &MethodResult| {
                let spread = other.column(measure);
                spread.map_or(f64::NAN, |spread| spread.mean)
            };
            let best = others.min_by(|a, b| mean(a).total_cmp(&mean(b)));
            let difference = best.and_then(|best| {
                let difference = method.difference(&best.method, measure)?;
                Some(format!("{} ({})", paired(difference), best.method))
            });
            difference.unwrap_or_default()
        });
        row(&method.method, cells)
    };
    let names = group.methods.iter().take(1);
    let names = names.flat_map(|method| method.measures().map(|(name, _)| title(name)));
    Table::new(row("method", names)).with(group.methods.iter().map(of_method))
}

fn tokens(group: &Group) -> Table {
    let of_method = |method: &MethodResult| {
        let shares = method.token_share.values();
        let shares = shares.map(|share| format!("{:.1}%", 100.0 * share.mean));
        let all = format!("{:.0}", method.tokens.mean);
        row(&method.method, shares.chain([all]))
    };
    Table::new(header(group, &["total tokens"])).with(group.methods.iter().map(of_method))
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
            format!("{:+.2}%", 100.0 * more)
        });
        let shares = [&method.mixture_flops_share, &method.mixture_seconds_share];
        let flops = flops.map(|flops| format!("{flops:.3e}"));
        let shares = shares.map(|share| format!("{:.2}%", 100.0 * share.mean));
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

fn p_value(p: f64) -> String {
    match p {
        small if small < 0.0001 => "< 0.0001".to_owned(),
        _ => format!("{p:.4}"),
    }
}

fn paired(paired: &Paired) -> String {
    match paired.interval {
        Some((low, high)) => format!("{:+.3} [{low:+.3}, {high:+.3}]", paired.mean),
        None => format!("{:+.3}", paired.mean),
    }
}
