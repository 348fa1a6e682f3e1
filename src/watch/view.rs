//! What `ddk watch` shows: a screen for a terminal, or text.

mod domains;
mod spark;

use std::{fmt::Write, iter};

use ddk_report::document::Table;
use ddk_run::view::{Fact, Progress, RunStatus, Scalar, State, counted, rough};
use ddk_telemetry::api::{Event, Status, WorkerStatus};
use ratatui::{
    Frame,
    layout::{
        Constraint::{Fill, Length},
        Layout, Rect,
    },
    style::{Color, Style, Stylize},
    symbols::Marker,
    text::{Line, Span},
    widgets::{self, Axis, Block, Borders, Cell, Chart, Dataset, Gauge, GraphType, Paragraph, Row},
};

use self::spark::spark;
use super::{Scroll, Snapshot};

/// Height from which on there is room for borders, and for a curve of the loss beside the workers.
const TALL: u16 = 30;
/// Maximum number of events below the table, in a tall terminal and in a short one.
const EVENTS: (u16, u16) = (5, 3);
/// Minimum height of the curve of the loss with its frame.
const CURVE: u16 = 6;

/// Draws what fits. The domains scroll, so `scroll` learns how many of them are visible.
pub fn draw(
    frame: &mut Frame<'_>,
    snapshot: &Snapshot,
    problem: Option<&str>,
    scroll: &mut Scroll,
) {
    let status = &snapshot.status.run;
    let is_tall = frame.area().height >= TALL;
    let heights = Heights::of(frame.area().height, snapshot);
    let Heights {
        head,
        facts,
        domains,
        middle,
        events,
    } = heights;
    let rows = [head, facts, domains, middle, events, 1].map(Length);
    let [head, facts, table, middle, events, foot] = Layout::vertical(rows).areas(frame.area());
    draw_head(frame, head, &snapshot.status, is_tall);
    draw_facts(frame, facts, snapshot);
    domains::draw(frame, table, status, is_tall, scroll);
    draw_middle(frame, middle, snapshot);
    draw_events(frame, events, &snapshot.events, is_tall);
    let said = match problem {
        Some(problem) => Line::from(format!(" {problem}")).red(),
        None if !status.problems.is_empty() => {
            Line::from(format!(" {}", status.problems.join("; "))).red()
        }
        None => {
            let rest = if status.state.is_ended() {
                ""
            } else {
                " (the run continues)"
            };
            Line::from(format!(" ↑↓ j k PgUp PgDn scroll · q quit{rest}")).dim()
        }
    };
    frame.render_widget(Paragraph::new(said), foot);
}

/// The heights of the parts from top to bottom, without the last line.
#[derive(Debug, PartialEq, Eq)]
struct Heights {
    head: u16,
    facts: u16,
    domains: u16,
    middle: u16,
    events: u16,
}

impl Heights {
    fn of(height: u16, snapshot: &Snapshot) -> Self {
        let is_tall = height >= TALL;
        let (head, facts, most) = if is_tall {
            (3, 0, EVENTS.0)
        } else {
            (2, 2, EVENTS.1)
        };
        let room = height.saturating_sub(head + facts + 1);
        let frame = domains::frame_rows(is_tall);
        let all = frame + snapshot.status.run.domains.len() as u16;
        // At least three domains come before events.
        let event_frame = 1 + u16::from(is_tall);
        let curve = if is_tall { CURVE } else { 0 };
        let reserved = curve + all.min(frame + 3);
        let events = most.min(snapshot.events.len() as u16);
        let events = events.min(room.saturating_sub(reserved + event_frame));
        // One event is enough if all domains fit then.
        let beside = room.saturating_sub(curve + all + event_frame);
        let events = match beside {
            0 => events,
            beside => events.min(beside),
        };
        let events = if events > 0 { events + event_frame } else { 0 };
        let domains = all.min(room.saturating_sub(events + curve));
        let rest = room.saturating_sub(domains + events);
        let middle = if rest >= CURVE { rest } else { 0 };
        // Rows that are too few for a curve show more events.
        let more = (snapshot.events.len() as u16 + event_frame).saturating_sub(events);
        let extra = if middle == 0 && events > 0 {
            more.min(rest)
        } else {
            0
        };
        // The last line stays at the bottom, whatever is left.
        let spare = rest - middle - extra;
        Self {
            head,
            facts,
            domains: domains + spare,
            middle,
            events: events + extra,
        }
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, status: &Status, is_tall: bool) {
    let run = &status.run;
    let name = Span::from(format!(" {} ", run.name)).bold();
    let state = Span::from(format!("{} ", run.state)).green();
    let width = usize::from(area.width);
    let gauge = Gauge::default()
        .gauge_style(Style::new().fg(Color::Blue))
        .ratio(share_done(run))
        .label(progress(run));
    if is_tall {
        let mut block = Block::bordered().title(Line::from(vec![name, state]));
        if let Some(activity) = &run.activity {
            let activity = fitted(activity, width.saturating_sub(4));
            block = block.title_bottom(format!(" {activity} "));
        }
        frame.render_widget(gauge.block(block), area);
        return;
    }
    let line = match &run.activity {
        None => vec![name, state],
        Some(activity) => {
            // What a running run does says that it runs.
            let state = Some(state).filter(|_| run.state != State::Running);
            let mut line = Vec::from_iter(iter::once(name).chain(state));
            let taken: usize = line.iter().map(|span| span.content.chars().count()).sum();
            line.push(Span::from(fitted(activity, width.saturating_sub(taken))));
            line
        }
    };
    let [top, bar] = Layout::vertical([1, 1].map(Length)).areas(area);
    frame.render_widget(Paragraph::new(Line::from(line)), top);
    frame.render_widget(gauge, bar);
}

/// What the process is doing, in at most this many columns. The gauge shows the run's time left. If there is too little
/// room, the time that has passed is left out first.
fn fitted(activity: &Progress, columns: usize) -> String {
    let whole = activity.line(None);
    if whole.chars().count() <= columns {
        return whole;
    }
    let left = activity.seconds_left;
    let left = left.map_or_else(String::new, |left| format!(", about {} left", rough(left)));
    let brief = activity.count() + &left;
    if brief.chars().count() <= columns {
        return brief;
    }
    activity.within(None, columns)
}

/// Numbers of the last steps, and how the loss and the mean gap went. A tall terminal has them in other parts.
fn draw_facts(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    if area.height == 0 {
        return;
    }
    let losses: Vec<f64> = loss_points(snapshot).map(|point| point.1).collect();
    let width = area.width as usize;
    let lines = [
        (format!(" {}", losses_said(&snapshot.status.run)), &losses),
        (format!(" {}", rates(&snapshot.status.run)), &snapshot.gaps),
    ];
    let longest = lines.iter().map(|(text, _)| text.chars().count());
    let start = longest.max().unwrap_or(0);
    let names = ["loss", "mean gap"];
    let lines = lines.into_iter().zip(names).map(|((text, values), name)| {
        // Both curves begin in the same column.
        let left = width.saturating_sub(start + 11).min(24);
        // A curve of a few bars says nothing.
        let curve = if left < 6 {
            String::new()
        } else {
            spark(values, left)
        };
        let name = if curve.is_empty() {
            String::new()
        } else {
            format!("  {name:8} ")
        };
        let text = format!("{text:start$}");
        Line::from(vec![
            Span::from(text),
            Span::from(name).dim(),
            Span::from(curve).blue(),
        ])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

fn draw_middle(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let workers = &snapshot.status.workers;
    if area.height == 0 {
        return;
    }
    if workers.is_empty() || area.width < 80 {
        draw_loss(frame, area, snapshot);
        return;
    }
    let [loss, area] = Layout::horizontal([Fill(1), Length(38)]).areas(area);
    draw_loss(frame, loss, snapshot);
    draw_workers(frame, area, workers);
}

/// Steps and losses that are known.
fn loss_points(snapshot: &Snapshot) -> impl Iterator<Item = (f64, f64)> {
    let steps = &snapshot.steps;
    let values = steps.scalars.get(&Scalar::Loss).into_iter().flatten();
    let points = steps.step.iter().zip(values);
    points.filter_map(|(&step, loss)| Some((step as f64, (*loss)?)))
}

fn draw_loss(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let points: Vec<(f64, f64)> = loss_points(snapshot).collect();
    let last = points.last().map_or(1.0, |point| point.0.max(1.0));
    let values = || points.iter().map(|point| point.1);
    let low = values().fold(f64::MAX, f64::min);
    let high = values().fold(f64::MIN, f64::max);
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let room = ((high - low) * 0.05).max(1e-3);
    // In a short terminal the numbers are above the table.
    let title = if frame.area().height >= TALL {
        let run = &snapshot.status.run;
        let curve = spark(&snapshot.gaps, 24);
        let gap = if curve.is_empty() {
            curve
        } else {
            format!("· mean gap {curve} ")
        };
        format!(" {} · {} {gap}", losses_said(run), rates(run))
    } else {
        " loss ".to_owned()
    };
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

fn draw_events(frame: &mut Frame<'_>, area: Rect, events: &[Event], is_tall: bool) {
    let borders = if is_tall { Borders::ALL } else { Borders::TOP };
    let room = area.height.saturating_sub(1 + u16::from(is_tall)) as usize;
    let lines = events.iter().rev().take(room).map(|event| {
        let (line, kind) = (&event.line, Span::from(format!("{:12}", event.line.kind)));
        Line::from(vec![
            Span::from(format!("step {:<8} ", line.step)).dim(),
            if event.is_incident { kind.red() } else { kind },
            Span::from(line.message.as_str()),
        ])
    });
    let list = Paragraph::new(lines.collect::<Vec<_>>())
        .block(Block::new().borders(borders).title(" last events "));
    frame.render_widget(list, area);
}

/// The same content as text, for a file or a pipe.
pub fn text(snapshot: &Snapshot) -> String {
    let (status, workers) = (&snapshot.status.run, &snapshot.status.workers);
    let mut text = format!(
        "{}: {}, {}\n{} (mean of {})\n{}\n{}\n",
        status.name,
        status.state,
        progress(status),
        losses_said(status),
        counted(status.averaged_steps, "step"),
        rates(status),
        gaps(status)
    );
    if let Some(activity) = &status.activity {
        let _ = writeln!(text, "now: {}", activity.line(status.seconds_left));
    }
    for Fact { name, value } in &status.about {
        let _ = writeln!(text, "{name}: {value}");
    }
    for stage in &status.stages {
        let _ = writeln!(text, "stage {stage}");
    }
    if !status.domains.is_empty() {
        let rows = status
            .domains
            .iter()
            .map(|domain| domains::cells(domain).to_vec());
        let _ = write!(text, "\n{}", Table::new(domains::names()).with(rows));
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
        Some(format!("; worst: {name} {}", number(domain.gap, 3)))
    });
    format!(
        "mean gap {} ({} at the start){}",
        number(status.mean_gap, 3),
        number(status.mean_gap_at_start, 3),
        worst.unwrap_or_default()
    )
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
        (Some(reason), _) => format!(", stopped by {reason}"),
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

/// The loss and its two terms: means of the last steps.
fn losses_said(status: &RunStatus) -> String {
    let terms = [Scalar::Loss, Scalar::CeLoss, Scalar::KdLoss];
    let [loss, cross_entropy, kl] = terms.map(|term| number(status.scalars.get(&term).copied(), 3));
    format!("loss {loss}: cross-entropy {cross_entropy}, KL {kl}")
}

/// The learning rate and the gradient norm.
fn rates(status: &RunStatus) -> String {
    let of = |scalar: Scalar| status.scalars.get(&scalar).copied();
    let rate = of(Scalar::LearningRate).map_or("-".to_owned(), |rate| format!("{rate:.1e}"));
    let norm = number(of(Scalar::GradNorm), 2);
    format!("learning rate {rate}, gradient norm {norm}")
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{:.1}%", 100.0 * value))
}

#[cfg(test)]
mod tests;
