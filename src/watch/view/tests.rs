use std::collections::BTreeMap;

use ddk_run::{
    PhaseSeconds,
    records::{EventKind, EventLine, StopReason},
    view::{Progress, Revisions, State, Steps},
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
    }
}

fn drawn(snapshot: &Snapshot, width: u16, height: u16, problem: Option<&str>) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, snapshot, problem))
        .unwrap();
    terminal.backend().to_string()
}

#[test]
fn a_live_run_in_a_terminal() {
    insta::assert_snapshot!(drawn(&snapshot(true), 100, 28, None));
}

#[test]
fn an_ended_run_whose_server_is_gone_stays_with_the_reason() {
    insta::assert_snapshot!(drawn(&snapshot(false), 80, 24, Some("no answer")));
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
