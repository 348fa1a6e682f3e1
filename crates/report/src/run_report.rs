//! The report of a run: its results, how they came about, what went wrong, and how to reproduce the run.

use std::{fs, path::Path};

use ddk_run::{
    Overrides, RunView,
    records::{EventKind, EventLine, Summary},
    texts::TextLine,
    view::{Fact, State, counted, duration},
};
use jiff::Timestamp;

use crate::{
    document::{Block, Document, Table},
    figures::{RunSeries, charts},
    table::{facts, mean_gaps, results, worst_domain},
};

/// Maximum number of incidents to list. Earlier ones are only counted.
const LISTED: usize = 50;

/// A setting that is not the default: key, default, value in the run.
pub type Changed = (String, String, String);

/// Creates the report of a run. `changed` are the settings that differ from the defaults. A run that has not ended has
/// no summary, and its report covers the run so far.
pub fn run_report(view: &RunView, changed: &[Changed]) -> Document {
    let name = view.name();
    let mut blocks = vec![Block::Title(1, name.clone()), about(view)];
    let problems = view.problems().iter();
    let problems = problems.map(|problem| format!("**Problem:** {problem}"));
    blocks.extend(problems.map(Block::Text));
    match view.summary() {
        Some(summary) => blocks.extend(result(summary)),
        None => blocks.push(Block::Text(unfinished(view.status(None).state).to_owned())),
    }
    blocks.push(Block::Title(2, "Charts".to_owned()));
    let charts = charts(&RunSeries::for_report(name.clone(), view)).into_iter();
    blocks.extend(charts.map(Block::Figure));
    blocks.extend(texts(view));
    blocks.extend(time(view));
    blocks.extend(incidents(view));
    blocks.extend(settings(changed));
    blocks.extend(again(view.folder()));
    Document {
        title: name,
        blocks,
    }
}

/// What to say of a run without a summary.
fn unfinished(state: State) -> &'static str {
    match state {
        State::Stopped => {
            "This run was stopped before its end, or killed. The command that started it resumes it."
        }
        State::Failed => {
            "This run failed before its end. The command that started it resumes it from its last checkpoint."
        }
        _ => "This run has not ended yet.",
    }
}

/// Models, method, time and machine.
fn about(view: &RunView) -> Block {
    let facts = view.about().iter();
    let mut facts: Vec<_> = facts
        .map(|Fact { name, value }| (name.clone(), value.clone()))
        .collect();
    let status = view.status(None);
    let ended = match status.state {
        State::Finished => "ended",
        _ => "stopped",
    };
    let times = [("started", status.started), (ended, status.ended)];
    for (name, time) in times {
        facts.extend(time.map(|time| (name.to_owned(), moment(time).replace('T', " "))));
    }
    let events = view.events();
    let starts = |event: &&EventLine| matches!(event.kind, EventKind::Started | EventKind::Resumed);
    if let Some(last) = events.iter().rfind(starts) {
        facts.push(("run by".to_owned(), last.message.clone()));
    }
    Block::Facts(facts)
}

fn result(summary: &Summary) -> Vec<Block> {
    let (before, after) = mean_gaps(summary);
    let how = match worst_domain(summary) {
        Some((worst, domain)) => format!(
            "The mean gap to the teacher went from **{before:.3}** to **{after:.3}** nats per token. The worst domain \
             is {worst}, with {:.3}.",
            domain.gap_after
        ),
        None => "The model learned from the text alone.".to_owned(),
    };
    vec![
        Block::Text(how),
        Block::Table(results(summary)),
        Block::List(facts(summary)),
    ]
}

/// What the models write after each prompt.
fn texts(view: &RunView) -> Vec<Block> {
    let texts = view.texts();
    let (first, last) = (texts.student.first(), texts.student.last());
    let last = last.filter(|last| first.is_some_and(|first| first.step < last.step));
    let of_student = |line: &TextLine| format!("student, step {}", line.step);
    let writers = [
        texts
            .teacher
            .as_ref()
            .map(|line| ("teacher".to_owned(), line)),
        first.map(|line| (of_student(line), line)),
        last.map(|line| (of_student(line), line)),
    ];
    let writers: Vec<_> = writers.into_iter().flatten().collect();
    let Some((_, latest)) = writers.last() else {
        return Vec::new();
    };
    let of_prompt = |prompt: &String| {
        let written = |(name, line): &(String, &TextLine)| {
            let text = line.texts.iter().find(|text| text.prompt == *prompt)?;
            // One line, without marks that Markdown would take for its own.
            let plain = text
                .text
                .replace(['\n', '\r'], " ")
                .replace(['*', '`'], "'");
            Some((name.clone(), plain))
        };
        let facts = writers.iter().filter_map(written).collect();
        let title = prompt.replace(['\n', '\r'], " ").replace(['*', '`'], "'");
        [Block::Title(3, title), Block::Facts(facts)]
    };
    let prompts = latest.texts.iter().map(|text| &text.prompt);
    let title = Block::Title(2, "What the models write".to_owned());
    [title]
        .into_iter()
        .chain(prompts.flat_map(of_prompt))
        .collect()
}

/// Sums of the steps' phases on the student's worker.
fn time(view: &RunView) -> Vec<Block> {
    let all: f64 = view.phases().values().sum();
    let share = |seconds: f64| format!("{:.1}%", 100.0 * seconds / all.max(1e-9));
    let phases = view.phases().iter();
    let rows = phases.map(|(phase, sum)| vec![phase.to_string(), duration(*sum), share(*sum)]);
    vec![
        Block::Title(2, "Where the time went".to_owned()),
        Block::Text("The student's time, summed over all steps:".to_owned()),
        Block::Table(Table::new(["phase", "time", "share"]).with(rows)),
    ]
}

fn incidents(view: &RunView) -> Vec<Block> {
    let mut blocks = vec![Block::Title(2, "Incidents".to_owned())];
    let kinds = view.incidents();
    if kinds.is_empty() {
        let resumed = view.events().into_iter();
        let resumed = resumed.filter(|event| event.kind == EventKind::Resumed);
        let resumed = match resumed.count() {
            0 => String::new(),
            count => format!(" The run was resumed {}.", counted(count as u64, "time")),
        };
        blocks.push(Block::Text(format!(
            "None: nothing was restarted, skipped, rolled back or refused, and every save succeeded.{resumed}"
        )));
        return blocks;
    }
    let counts = kinds
        .iter()
        .map(|(kind, count)| format!("{count} `{kind}`"));
    let counts: Vec<String> = counts.collect();
    blocks.push(Block::Text(counts.join(", ") + "."));
    let events = view.events().into_iter();
    let last: Vec<EventLine> = events.filter(|event| event.kind.is_incident()).collect();
    let listed = &last[last.len().saturating_sub(LISTED)..];
    let rows = listed.iter().map(|event| {
        let (kind, message) = (event.kind.to_string(), event.message.clone());
        vec![moment(event.time), kind, message]
    });
    let table = Table::new(["time (UTC)", "what", "how"]);
    blocks.push(Block::Table(table.with(rows)));
    let earlier = kinds.values().sum::<u64>() - listed.len() as u64;
    if earlier > 0 {
        let text = format!("{earlier} earlier ones are in events.jsonl.");
        blocks.push(Block::Text(text));
    }
    blocks
}

fn settings(changed: &[Changed]) -> Vec<Block> {
    if changed.is_empty() {
        return Vec::new();
    }
    let rows = changed.iter().map(|(key, default, value)| {
        let cells = [key, default, value];
        // TOML may write a text with line breaks over several lines, which no cell can hold.
        let line = |text: &String| match text.strip_prefix("\"\"\"\n") {
            Some(lines) => format!(
                "\"{}\"",
                lines.trim_end_matches("\"\"\"").replace('\n', "\\n")
            ),
            None => text.clone(),
        };
        cells.map(|text| format!("`{}`", line(text))).to_vec()
    });
    vec![
        Block::Title(2, "Settings that differ from the defaults".to_owned()),
        Block::Table(Table::new(["key", "default", "this run"]).with(rows)),
    ]
}

fn again(folder: &Path) -> Vec<Block> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let command = if folder.join("pretrain.json").exists() {
        "ddk pretrain CONFIG --model NAME --force"
    } else {
        "ddk train config.toml --set run.name=again"
    };
    let mut blocks = vec![
        Block::Title(2, "Reproduce this run".to_owned()),
        Block::Text(format!(
            "`{command}` with ddk {}, the settings below as config.toml, and the models and data of these hashes: \
             the same bits on a CPU with the same number of threads.",
            env!("CARGO_PKG_VERSION")
        )),
    ];
    blocks.extend(changes(folder));
    blocks.extend([
        Block::Code("config.toml".to_owned(), read("config.toml")),
        Block::Code("inputs.json".to_owned(), read("inputs.json")),
    ]);
    blocks
}

/// The settings that changed after the start, which are not in `config.toml`.
fn changes(folder: &Path) -> Vec<Block> {
    let overrides = Overrides::look(folder);
    // The run's own reader reports damage.
    let _ = overrides.reload();
    let rows: Vec<Vec<String>> = overrides
        .by_step()
        .iter()
        .flat_map(|(step, values)| {
            let row = |(key, value): (&String, _)| {
                vec![step.to_string(), format!("`{key}`"), format!("`{value}`")]
            };
            values.iter().map(row).collect::<Vec<_>>()
        })
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    vec![
        Block::Text(
            "These settings changed while the run trained. To repeat a change, stop the run after the step before it, \
             and resume it with `--set KEY=VALUE`."
                .to_owned(),
        ),
        Block::Table(Table::new(["from step", "setting", "value"]).with(rows)),
    ]
}

/// Formats seconds since 1970 as a date and time in UTC.
pub fn moment(seconds: f64) -> String {
    match Timestamp::from_second(seconds as i64) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{seconds:.0}"),
    }
}
