//! What `ddk watch` shows: a picture for a terminal, or a text.

use std::fmt::Write;

use ddk_run::records::EventLine;
use ddk_telemetry::api::{Status, WorkerStatus};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Cell, Chart, Dataset, Gauge, GraphType, Paragraph, Row, Table},
};

use super::Snapshot;

/// Draws everything that there is room for.
pub fn draw(frame: &mut Frame<'_>, snapshot: &Snapshot, problem: Option<&str>) {
    let status = &snapshot.run.status;
    let domains = status.domains.len() as u16 + 3;
    let [head, table, middle, events, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(domains),
        Constraint::Min(6),
        Constraint::Length(7),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, status);
    draw_domains(frame, table, status);
    if status.workers.is_empty() {
        draw_loss(frame, middle, snapshot)
    } else {
        let halves = [Constraint::Fill(1), Constraint::Length(38)];
        let [loss, workers] = Layout::horizontal(halves).areas(middle);
        draw_loss(frame, loss, snapshot);
        draw_workers(frame, workers, &status.workers);
    }
    draw_events(frame, events, &snapshot.events);
    let said = match problem {
        Some(problem) => Line::from(format!(" {problem}")).red(),
        None if !status.problems.is_empty() => {
            Line::from(format!(" {}", status.problems.join("; "))).red()
        }
        None if status.state.is_ended() => Line::from(" q leaves").dim(),
        None => Line::from(" q leaves; the run goes on").dim(),
    };
    frame.render_widget(Paragraph::new(said), foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let title = Line::from(vec![
        Span::from(format!(" {} ", status.name)).bold(),
        Span::from(format!("{} ", status.state.as_str())).green(),
    ]);
    let gauge = Gauge::default()
        .block(Block::bordered().title(title))
        .gauge_style(Style::new().fg(Color::Blue))
        .ratio(share_done(status))
        .label(progress(status));
    frame.render_widget(gauge, area);
}

fn draw_domains(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let head = [
        "domain", "student", "teacher", "ratio", "at start", "weight", "tokens",
    ];
    let rows = status.domains.iter().map(|domain| {
        let numbers = [
            perplexity(domain.student_perplexity),
            perplexity(domain.teacher_perplexity),
            number(domain.ratio),
            number(domain.ratio_at_start),
            percent(domain.weight),
            percent(domain.token_share),
        ];
        let numbers = numbers.map(|text| Cell::from(Line::from(text).right_aligned()));
        Row::new(
            [Cell::from(domain.name.as_str())]
                .into_iter()
                .chain(numbers),
        )
    });
    let widths = [16, 10, 10, 8, 8, 8, 8].map(Constraint::Length);
    let head = head.into_iter().enumerate().map(|(column, text)| {
        let line = Line::from(text).dim();
        if column == 0 {
            line
        } else {
            line.right_aligned()
        }
    });
    let table = Table::new(rows, widths)
        .header(Row::new(head))
        .block(Block::bordered().title(format!(" mean ratio {} ", number(status.ratio))));
    frame.render_widget(table, area);
}

fn draw_loss(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let (steps, losses) = (&snapshot.run.steps, &snapshot.run.status.losses);
    let points: Vec<(f64, f64)> = steps
        .step
        .iter()
        .zip(&steps.loss)
        .filter_map(|(&step, loss)| Some((step as f64, (*loss)?)))
        .collect();
    let last = points.last().map_or(1.0, |point| point.0.max(1.0));
    let values = || points.iter().map(|point| point.1);
    let (low, high) = values().fold((f64::MAX, f64::MIN), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let room = ((high - low) * 0.05).max(1e-3);
    let title = format!(
        " loss {}: cross-entropy {}, KL {} ",
        number(losses.loss),
        number(losses.ce),
        number(losses.kl)
    );
    let chart = Chart::new(vec![
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(Color::Blue))
            .data(&points),
    ])
    .block(Block::bordered().title(title))
    .x_axis(
        Axis::default()
            .bounds([0.0, last])
            .labels(["0".to_owned(), format!("step {last}")]),
    )
    .y_axis(
        Axis::default()
            .bounds([low - room, high + room])
            .labels([format!("{low:.2}"), format!("{high:.2}")]),
    );
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
    let widths = [13, 18, 4].map(Constraint::Length);
    let table = Table::new(rows, widths).block(Block::bordered().title(" workers "));
    frame.render_widget(table, area);
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, events: &[EventLine]) {
    let room = area.height.saturating_sub(2) as usize;
    let lines: Vec<Line<'_>> = events
        .iter()
        .rev()
        .take(room)
        .map(|event| {
            let kind = Span::from(format!("{:12}", event.kind));
            Line::from(vec![
                Span::from(format!("step {:<8} ", event.step)).dim(),
                if event.kind.is_incident() {
                    kind.red()
                } else {
                    kind
                },
                Span::from(event.message.as_str()),
            ])
        })
        .collect();
    let list = Paragraph::new(lines).block(Block::bordered().title(" last events "));
    frame.render_widget(list, area);
}

/// The same as a text, for a file or a pipe.
pub fn text(snapshot: &Snapshot) -> String {
    let status = &snapshot.run.status;
    let losses = &status.losses;
    let width = status.domains.iter().map(|domain| domain.name.len()).max();
    let width = width.unwrap_or(0).max(6);
    let mut text = format!(
        "{}: {}, {}\n",
        status.name,
        status.state.as_str(),
        progress(status)
    );
    let _ = writeln!(
        text,
        "loss {}  ce {}  kl {}  mean ratio {} ({} at the start)",
        number(losses.loss),
        number(losses.ce),
        number(losses.kl),
        number(status.ratio),
        number(status.ratio_at_start)
    );
    if !status.domains.is_empty() {
        let _ = writeln!(
            text,
            "\n{:width$}  {:>10}  {:>10}  {:>8}  {:>8}  {:>8}",
            "domain", "student", "teacher", "ratio", "at start", "weight"
        );
    }
    for domain in &status.domains {
        let _ = writeln!(
            text,
            "{:width$}  {:>10}  {:>10}  {:>8}  {:>8}  {:>8}",
            domain.name,
            perplexity(domain.student_perplexity),
            perplexity(domain.teacher_perplexity),
            number(domain.ratio),
            number(domain.ratio_at_start),
            percent(domain.weight)
        );
    }
    for worker in &status.workers {
        let _ = write!(
            text,
            "{}{}: {}, busy {}",
            if worker.name == status.workers[0].name {
                "\n"
            } else {
                "; "
            },
            worker.name,
            worker.state.replace('_', " "),
            busy(worker)
        );
    }
    if !status.workers.is_empty() {
        text.push('\n');
    }
    if let Some(event) = snapshot.events.last() {
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

fn share_done(status: &Status) -> f64 {
    let share = match (status.step_limit, status.token_limit) {
        (Some(limit), _) => status.step as f64 / limit.max(1) as f64,
        (None, Some(limit)) => status.tokens as f64 / limit.max(1) as f64,
        (None, None) => 0.0,
    };
    share.clamp(0.0, 1.0)
}

fn progress(status: &Status) -> String {
    let limit = status
        .step_limit
        .map_or(String::new(), |limit| format!(" of {limit}"));
    let rate = status
        .tokens_per_second
        .map_or(String::new(), |rate| format!(", {rate:.0} tokens/s"));
    let end = match (&status.stop_reason, status.seconds_left) {
        (Some(reason), _) => format!(", done by {reason}"),
        (None, Some(seconds)) => format!(", about {} left", duration(seconds)),
        (None, None) => String::new(),
    };
    format!("step {}{limit}{rate}{end}", status.step)
}

/// The two largest units.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn busy(worker: &WorkerStatus) -> String {
    let all = worker.busy_seconds + worker.starved_seconds + worker.blocked_seconds;
    if all > 0.0 {
        format!("{:.0}%", 100.0 * worker.busy_seconds / all)
    } else {
        "-".to_owned()
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.3}"))
}

fn perplexity(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.2}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{:.1}%", 100.0 * value))
}

#[cfg(test)]
mod tests;
