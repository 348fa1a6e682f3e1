//! What `ddk watch` shows: a screen for a terminal, or text.

use std::fmt::Write;

use ddk_report::document::Table;
use ddk_run::view::{Domain, RunStatus, Scalar, rough};
use ddk_telemetry::api::{Event, WorkerStatus};
use ratatui::{
    Frame,
    layout::{
        Constraint::{Fill, Length, Min},
        Layout, Rect,
    },
    style::{Color, Style, Stylize},
    symbols::Marker,
    text::{Line, Span},
    widgets::{self, Axis, Block, Cell, Chart, Dataset, Gauge, GraphType, Paragraph, Row},
};

use super::Snapshot;

/// Draws everything that fits.
pub fn draw(frame: &mut Frame<'_>, snapshot: &Snapshot, problem: Option<&str>) {
    let (status, workers) = (&snapshot.status.run, &snapshot.status.workers);
    let domains = status.domains.len() as u16 + 3;
    let rows = [Length(3), Length(domains), Min(6), Length(7), Length(1)];
    let [head, table, middle, events, foot] = Layout::vertical(rows).areas(frame.area());
    draw_head(frame, head, status);
    draw_domains(frame, table, status);
    if workers.is_empty() {
        draw_loss(frame, middle, snapshot)
    } else {
        let halves = [Fill(1), Length(38)];
        let [loss, area] = Layout::horizontal(halves).areas(middle);
        draw_loss(frame, loss, snapshot);
        draw_workers(frame, area, workers);
    }
    draw_events(frame, events, &snapshot.events);
    let said = match problem {
        Some(problem) => Line::from(format!(" {problem}")).red(),
        None if !status.problems.is_empty() => {
            Line::from(format!(" {}", status.problems.join("; "))).red()
        }
        None if status.state.is_ended() => Line::from(" q quits").dim(),
        None => Line::from(" q quits; the run continues").dim(),
    };
    frame.render_widget(Paragraph::new(said), foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, status: &RunStatus) {
    let title = Line::from(vec![
        Span::from(format!(" {} ", status.name)).bold(),
        Span::from(format!("{} ", status.state)).green(),
    ]);
    let mut block = Block::bordered().title(title);
    if let Some(activity) = &status.activity {
        // The gauge shows the run's time left.
        let room = usize::from(area.width.saturating_sub(4));
        block = block.title_bottom(format!(" {} ", activity.within(None, room)));
    }
    let gauge = Gauge::default()
        .block(block)
        .gauge_style(Style::new().fg(Color::Blue))
        .ratio(share_done(status))
        .label(progress(status));
    frame.render_widget(gauge, area);
}

fn draw_domains(frame: &mut Frame<'_>, area: Rect, status: &RunStatus) {
    let row = |cells: [String; 8]| {
        let cells = cells.into_iter().enumerate();
        let cells = cells.map(|(column, text)| match column {
            0 => Line::from(text),
            _ => Line::from(text).right_aligned(),
        });
        Row::new(cells.map(Cell::from))
    };
    let domains = status.domains.iter();
    let rows = domains.map(|domain| row(domain_cells(domain)));
    let widths = [14, 7, 8, 9, 9, 7, 7, 7].map(Length);
    let table = widgets::Table::new(rows, widths)
        .header(row(DOMAIN_COLUMNS.map(str::to_owned)).dim())
        .block(Block::bordered().title(format!(" {} ", gaps(status))));
    frame.render_widget(table, area);
}

fn draw_loss(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let steps = &snapshot.steps;
    let values = steps.scalars.get(&Scalar::Loss).into_iter().flatten();
    let points = steps.step.iter().zip(values);
    let points = points.filter_map(|(&step, loss)| Some((step as f64, (*loss)?)));
    let points: Vec<(f64, f64)> = points.collect();
    let last = points.last().map_or(1.0, |point| point.0.max(1.0));
    let values = || points.iter().map(|point| point.1);
    let low = values().fold(f64::MAX, f64::min);
    let high = values().fold(f64::MIN, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let room = ((high - low) * 0.05).max(1e-3);
    let [loss, cross_entropy, kl] = losses(&snapshot.status.run);
    let title = format!(" loss {loss}: cross-entropy {cross_entropy}, KL {kl} ");
    let axis = |bounds, labels: [String; 2]| Axis::default().bounds(bounds).labels(labels);
    let chart = Chart::new(vec![
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(Color::Blue))
            .data(&points),
    ])
    .block(Block::bordered().title(title))
    .x_axis(axis([0.0, last], ["0".to_owned(), format!("step {last}")]))
    .y_axis(axis(
        [low - room, high + room],
        [format!("{low:.2}"), format!("{high:.2}")],
    ));
    frame.render_widget(chart, area);
}

fn draw_workers(frame: &mut Frame<'_>, area: Rect, workers: &[WorkerStatus]) {
    let rows = workers.iter().map(|worker| {
        let state = worker.state.replace('_', " ").replace("waiting", "waits");
        let state = match worker.state.as_str() {
            "busy" => Span::from(state).green(),
            _ => Span::from(state).dim(),
        };
        Row::new([
            Cell::from(worker.name.as_str()),
            Cell::from(state),
            Cell::from(Line::from(busy(worker)).right_aligned()),
        ])
    });
    let widths = [13, 18, 4].map(Length);
    let table = widgets::Table::new(rows, widths).block(Block::bordered().title(" workers "));
    frame.render_widget(table, area);
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, events: &[Event]) {
    let room = area.height.saturating_sub(2) as usize;
    let lines = events.iter().rev().take(room).map(|event| {
        let (line, kind) = (&event.line, Span::from(format!("{:12}", event.line.kind)));
        Line::from(vec![
            Span::from(format!("step {:<8} ", line.step)).dim(),
            if event.is_incident { kind.red() } else { kind },
            Span::from(line.message.as_str()),
        ])
    });
    let list =
        Paragraph::new(lines.collect::<Vec<_>>()).block(Block::bordered().title(" last events "));
    frame.render_widget(list, area);
}

/// The same content as text, for a file or a pipe.
pub fn text(snapshot: &Snapshot) -> String {
    let (status, workers) = (&snapshot.status.run, &snapshot.status.workers);
    let [loss, cross_entropy, kl] = losses(status);
    let mut text = format!(
        "{}: {}, {}\nloss {loss}  cross-entropy {cross_entropy}  KL {kl}\n{}\n",
        status.name,
        status.state,
        progress(status),
        gaps(status)
    );
    if let Some(activity) = &status.activity {
        let _ = writeln!(text, "now: {}", activity.line(status.seconds_left));
    }
    for stage in &status.stages {
        let _ = writeln!(text, "stage {stage}");
    }
    if !status.domains.is_empty() {
        let domains = status.domains.iter();
        let rows = domains.map(|domain| domain_cells(domain).to_vec());
        let _ = write!(text, "\n{}", Table::new(DOMAIN_COLUMNS).with(rows));
    }
    let said = |worker: &WorkerStatus| {
        let state = worker.state.replace('_', " ");
        format!("{}: {state}, busy {}", worker.name, busy(worker))
    };
    if !workers.is_empty() {
        let workers: Vec<String> = workers.iter().map(said).collect();
        let _ = writeln!(text, "\n{}", workers.join("; "));
    }
    if let Some(Event { line: event, .. }) = snapshot.events.last() {
        let _ = writeln!(
            text,
            "\nlast event: step {}, {}: {}",
            event.step, event.kind, event.message
        );
    }
    for problem in &status.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    text
}

/// The mean gap, and the gap of the worst domain.
fn gaps(status: &RunStatus) -> String {
    let worst = status.worst_domain.as_ref().and_then(|name| {
        let domain = status.domains.iter().find(|domain| domain.name == *name)?;
        Some(format!(", worst {name} {}", number(domain.gap, 3)))
    });
    format!(
        "mean gap {} ({} at the start){}",
        number(status.mean_gap, 3),
        number(status.mean_gap_at_start, 3),
        worst.unwrap_or_default()
    )
}

const DOMAIN_COLUMNS: [&str; 8] = [
    "domain", "gap", "at start", "student", "teacher", "ratio", "weight", "tokens",
];

fn domain_cells(domain: &Domain) -> [String; 8] {
    [
        domain.name.clone(),
        number(domain.gap, 3),
        number(domain.gap_at_start, 3),
        number(domain.student_perplexity, 2),
        number(domain.teacher_perplexity, 2),
        number(domain.ratio, 3),
        percent(domain.weight),
        percent(domain.token_share),
    ]
}

fn share_done(status: &RunStatus) -> f64 {
    let share = match (status.step_limit, status.token_limit) {
        (Some(limit), _) => status.step as f64 / limit.max(1) as f64,
        (None, Some(limit)) => status.tokens as f64 / limit.max(1) as f64,
        (None, None) => 0.0,
    };
    share.clamp(0.0, 1.0)
}

fn progress(status: &RunStatus) -> String {
    let limit = status.step_limit.map(|limit| format!(" of {limit}"));
    let rate = status.scalars.get(&Scalar::TokensPerSecond);
    let rate = rate.map(|rate| format!(", {rate:.0} tokens/s"));
    let (limit, rate) = (limit.unwrap_or_default(), rate.unwrap_or_default());
    let end = match (&status.stop_reason, status.seconds_left) {
        (Some(reason), _) => format!(", done by {reason}"),
        (None, Some(seconds)) => format!(", about {} left", rough(seconds)),
        (None, None) => String::new(),
    };
    format!("step {}{limit}{rate}{end}", status.step)
}

fn busy(worker: &WorkerStatus) -> String {
    let all = worker.busy_seconds + worker.input_wait_seconds + worker.output_wait_seconds;
    if all > 0.0 {
        format!("{:.0}%", 100.0 * worker.busy_seconds / all)
    } else {
        "-".to_owned()
    }
}

/// The loss and its two terms.
fn losses(status: &RunStatus) -> [String; 3] {
    let terms = [Scalar::Loss, Scalar::CeLoss, Scalar::KdLoss];
    terms.map(|term| number(status.scalars.get(&term).copied(), 3))
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{:.1}%", 100.0 * value))
}

#[cfg(test)]
mod tests;
