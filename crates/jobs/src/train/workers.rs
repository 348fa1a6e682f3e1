//! Runs the actors of a run from start to end.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use ddk_actors::{End, Outcome, Run, RunError};
use ddk_run::{Overrides, RunFolder, records::EventKind, view::State};
use ddk_telemetry::metrics;
use ddk_torch::give_freed_memory_back;

use super::{
    assembly::{Assembly, Begun},
    changes, lost,
    prepared::Prepared,
    session::Session,
};
use crate::{
    args,
    hint::{Hint, usage, with_hint},
    progress::{Printer, lock},
    signals::Signal,
};

/// How the run ended, and what its summary needs.
pub(super) struct Ended {
    /// Absent if the run was stopped before its first step.
    pub(super) outcome: Option<Outcome>,
    /// The signal received while the run was active.
    pub(super) signal: Option<Signal>,
    /// Seconds that earlier processes spent on the run.
    pub(super) seconds_before: f64,
}

/// Runs the actors to the end.
pub(super) fn work(
    session: &mut Session,
    prepared: &Arc<Prepared>,
    folder: &RunFolder,
    reload: Option<&args::ConfigArgs>,
) -> Result<Ended> {
    session.begin_phase();
    // Comparing tokenizers and preparing a corpus needed memory that is no longer in use.
    give_freed_memory_back();
    for report in &prepared.corpus.reports {
        metrics::QUARANTINED
            .with(&[&report.domain])
            .set(report.quarantined as f64);
    }
    let plan = &prepared.plan;
    let assembly = Assembly {
        prepared: Arc::clone(prepared),
        folder: folder.clone(),
        board: Arc::clone(&session.board),
        overrides: Arc::new(Overrides::open(folder.path()).hint(lost::ADVICE)?),
        printer: Arc::new(Printer::new(Arc::clone(&plan.live), plan.max_steps)),
        begun: Arc::default(),
    };
    let (overrides, printer) = (
        Arc::clone(&assembly.overrides),
        Arc::clone(&assembly.printer),
    );
    let begun = Arc::clone(&assembly.begun);
    let (control, signals) = (&session.control, &session.signals);
    // The signal arrived before the workers could receive it.
    if let Some(came) = signals.train(control) {
        return Ok(Ended {
            outcome: None,
            signal: Some(came),
            seconds_before: 0.0,
        });
    }
    // Keep the error with its hints, because the actors receive only its text.
    let failure = Arc::new(Mutex::new(None));
    let failed = Arc::clone(&failure);
    let assemble = move || {
        let assembled = assembly.assemble();
        assembled.map_err(|error| {
            let text = error.to_string();
            *lock(&failed) = Some(error);
            RunError::Lost(text)
        })
    };
    let ended = session.runtime.block_on(async {
        let run = Run::start(assemble, overrides).await?;
        control.works_on(run.handle());
        if let Some(source) = reload {
            changes::on_hangup(
                source.clone(),
                prepared.settings.clone(),
                Arc::clone(control),
            )?;
        }
        let ended = run.ended().await;
        control.is_done();
        Ok::<_, anyhow::Error>(ended)
    })?;
    printer.finish();
    let Begun {
        seconds_before,
        journal,
    } = std::mem::take(&mut *lock(&begun));
    let note = |kind, message: &str| {
        journal.as_ref().map(|journal| journal.note(kind, message));
    };
    let outcome = match ended {
        Ok(outcome) => outcome,
        Err(error) => {
            note(EventKind::Failed, &error.to_string());
            return Err(lock(&failure).take().unwrap_or_else(|| explain(error)));
        }
    };
    session.board.set_state(State::Ending);
    let signal = signals.came();
    let end = outcome.as_ref().map(|outcome| outcome.end);
    if end.is_none_or(|end| end == End::Stopped) {
        let by = signal.map(|signal| format!("received {}", signal.name()));
        note(
            EventKind::Stopped,
            &by.unwrap_or_else(|| "stop requested".to_owned()),
        );
    }
    let teacher = outcome.as_ref().map(|outcome| &outcome.baseline.teacher);
    // Empty for a fork that is stopped before its first step, and for a run without a teacher.
    if let Some(teacher) = teacher.filter(|teacher| !teacher.is_empty()) {
        prepared
            .inputs
            .keep_perplexities(&prepared.settings, teacher);
    }
    Ok(Ended {
        outcome,
        signal,
        seconds_before: seconds_before.unwrap_or_default(),
    })
}

/// Marks a failure to start as a configuration error. After any other failure, the run can resume.
fn explain(error: RunError) -> anyhow::Error {
    match error {
        RunError::Start { .. } => usage(error),
        RunError::Worker { .. } | RunError::Lost(_) => with_hint(
            error,
            "the same command resumes from the last checkpoint; see events.jsonl and run.log in the run's folder",
        ),
    }
}
