use std::collections::BTreeMap;

use ddk_run::{
    PhaseSeconds,
    records::{EventKind, EventLine, StopReason},
    view::{Domain, Progress, Revisions, State, Steps},
};
use ddk_telemetry::api::Status;
use ratatui::{Terminal, backend::TestBackend};

use super::*;

fn snapshot(live: bool) -> Snapshot {
    let domain = |name: &str, student: f64, teacher: f64, weight: f64| Domain {
        name: name.to_owned(),
        student_perplexity: Some(student),
        teacher_perplexity: Some(teacher),
        ratio: Some(student / teacher),
        gap: Some((student / teacher).ln()),
        gap_at_start: Some(2.5_f64.ln()),
        weight: Some(weight),
        target: Some(weight),
        token_share: None,
        epochs: Some(0.5),
    };
    let worker = |name: &str, state: &str, busy: f64| WorkerStatus {
        name: name.to_owned(),
        state: state.to_owned(),
        state_seconds: 0.5,
        busy_seconds: busy,
        input_wait_seconds: 100.0 - busy,
        output_wait_seconds: 0.0,
        restarts: 0,
        progress: None,
    };
    let workers = if live {
        vec![
            worker("teacher-0", "busy", 84.0),
            worker("student", "waiting_for_input", 96.0),
        ]
    } else {
        Vec::new()
    };
    let step: Vec<u64> = (1..=200).collect();
    let loss = step
        .iter()
        .map(|&step| Some(4.0 - (step as f64).ln() / 2.0));
    Snapshot {
        status: Status {
            run: RunStatus {
                name: "warmer".to_owned(),
                about: Vec::new(),
                state: if live {
                    State::Running
                } else {
                    State::Finished
                },
                stop_reason: (!live).then_some(StopReason::MaxSteps),
                step: 200,
                step_limit: Some(if live { 800 } else { 200 }),
                interval: Some(3),
                tokens: 409_600,
                token_limit: None,
                seconds: Some(300.0),
                started: Some(1.8e9),
                ended: None,
                seconds_left: live.then_some(4_321.0),
                activity: live.then(|| Progress {
                    phase: "evaluation of the student after step 200".to_owned(),
                    unit: "documents".to_owned(),
                    done: 31,
                    total: 120,
                    seconds: 12.0,
                    seconds_left: Some(35.0),
                }),
                scalars: BTreeMap::from([
                    (Scalar::Loss, 1.375),
                    (Scalar::CeLoss, 1.25),
                    (Scalar::KdLoss, 0.625),
                    (Scalar::GradNorm, 0.5),
                    (Scalar::LearningRate, 1e-4),
                    (Scalar::TokensPerSecond, 11_150.4),
                ]),
                averaged_steps: 50,
                phases: PhaseSeconds::new(),
                mean_gap: Some(0.336),
                mean_gap_at_start: Some(0.916),
                worst_domain: Some("code".to_owned()),
                evaluated_at_step: Some(200),
                domains: vec![
                    domain("code", 8.0, 5.0, 0.625),
                    domain("prose", 120.0, 100.0, 0.375),
                ],
                stages: Vec::new(),
                incidents: BTreeMap::new(),
                saved: None,
                problems: Vec::new(),
                revisions: Revisions::default(),
            },
            workers,
            queues: Vec::new(),
            ranks: Vec::new(),
        },
        steps: Steps {
            stride: 1,
            scalars: BTreeMap::from([(Scalar::Loss, loss.collect())]),
            step,
        },
        events: [
            (EventKind::Started, 0),
            (EventKind::Saved, 100),
            (EventKind::Restarted, 150),
        ]
        .map(|(kind, step)| Event {
            is_incident: kind.is_incident(),
            line: EventLine {
                time: 0.0,
                step,
                kind,
                message: "in words".to_owned(),
            },
        })
        .to_vec(),
        gaps: vec![0.916, 0.7, 0.5, 0.42, 0.36, 0.336],
    }
}

/// A run with twelve domains and an evaluation under way.
fn twelve() -> Snapshot {
    let mut snapshot = snapshot(true);
    let status = &mut snapshot.status;
    let first = status.run.domains[0].clone();
    let domain = |index: usize| Domain {
        name: format!("domain-{index}-of-12"),
        gap: Some(index as f64 / 10.0),
        ..first.clone()
    };
    status.run.domains = (1..=12).map(domain).collect();
    status.run.worst_domain = Some("domain-12-of-12".to_owned());
    status.run.activity = Some(Progress {
        phase: "evaluation of the student".to_owned(),
        unit: "documents".to_owned(),
        done: 31,
        total: 120,
        seconds: 17.0,
        seconds_left: Some(50.0),
    });
    snapshot
}

fn drawn(snapshot: &Snapshot, width: u16, height: u16, problem: Option<&str>) -> String {
    scrolled(snapshot, width, height, problem, &mut Scroll::default())
}

fn scrolled(
    snapshot: &Snapshot,
    width: u16,
    height: u16,
    problem: Option<&str>,
    scroll: &mut Scroll,
) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, snapshot, problem, scroll))
        .unwrap();
    terminal.backend().to_string()
}

#[test]
fn a_live_run_in_a_terminal() {
    insta::assert_snapshot!(drawn(&snapshot(true), 100, 32, None));
}

#[test]
fn an_ended_run_whose_server_is_gone_stays_with_the_reason() {
    insta::assert_snapshot!(drawn(&snapshot(false), 80, 24, Some("no answer")));
}

#[test]
fn twelve_domains_are_whole_in_80_by_24() {
    let text = drawn(&twelve(), 80, 24, None);
    for index in 1..=12 {
        assert!(text.contains(&format!("domain-{index}-of-12")), "{text}");
    }
    assert!(!text.contains("more"), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn a_narrow_terminal_leaves_out_columns_and_not_their_ends() {
    insta::assert_snapshot!(drawn(&twelve(), 60, 24, None));
    let narrow = drawn(&twelve(), 36, 24, None);
    assert!(
        narrow.contains("domain-12-of-12") && narrow.contains("gap"),
        "{narrow}"
    );
}

#[test]
fn domains_that_do_not_fit_are_counted_and_can_be_reached() {
    let (snapshot, mut scroll) = (twelve(), Scroll::default());
    let mut seen = std::collections::BTreeSet::new();
    let mut text = String::new();
    for _ in 0..12 {
        text = scrolled(&snapshot, 80, 14, None, &mut scroll);
        let is_shown = |index: &usize| text.contains(&format!("domain-{index}-of-12 "));
        let shown: Vec<usize> = (1..=12).filter(is_shown).collect();
        let below = 12 - shown.last().unwrap();
        assert_eq!(
            text.contains(&format!("{below} below")),
            below > 0 && shown[0] > 1,
            "{text}"
        );
        assert_eq!(
            text.contains(&format!("{below} more below")),
            below > 0 && shown[0] == 1
        );
        seen.extend(shown);
        scroll.press(ratatui::crossterm::event::KeyCode::Down);
    }
    assert_eq!(seen.len(), 12);
    insta::assert_snapshot!(text);
}

#[test]
fn a_tiny_terminal_is_no_reason_to_panic() {
    for (width, height) in [(1, 1), (20, 5), (200, 60)] {
        drawn(&snapshot(true), width, height, None);
    }
}

#[test]
fn a_run_as_text() {
    insta::assert_snapshot!(text(&snapshot(true)));
}
