//! The run itself: the actors with their parts, the metrics server, the signals.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use ddk_actors::{LoopState, Outcome, Parts, RunError};
use ddk_mixture::{Ddk, FirstInterval, Policy};
use ddk_model::ModelConfig;
use ddk_run::{CheckpointStore, Journal};
use ddk_settings::Settings;
use ddk_telemetry::{Board, Recorder, ServeError, Server, metrics};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::Prepared;
use crate::{
    hint::{Hint, usage, with_hint},
    progress::{Printer, say},
    wiring,
};

/// Nothing computes longer than this at a stretch; `/livez` says so where something does.
const COMPUTE_LIMIT: Duration = Duration::from_secs(900);

/// What the workers work with.
pub(super) struct Work {
    pub(super) checkpoints: CheckpointStore,
    pub(super) journal: Arc<Journal>,
    pub(super) printer: Arc<Printer>,
    pub(super) resume: Option<LoopState>,
    pub(super) checkpoint: Option<PathBuf>,
}

/// Runs the actors to the end; the outcome, and the number of the signal that stopped it.
pub(super) fn work(prepared: &Prepared<'_>, work: Work) -> Result<(Option<Outcome>, u8)> {
    let settings = prepared.settings;
    let policy: Box<dyn Policy> = Box::new(match &work.resume {
        Some(state) => Ddk::restore(state.interval.policy.clone()),
        None => Ddk::new(
            settings.mixture.alpha,
            settings.mixture.interval,
            match settings.mixture.first {
                ddk_settings::FirstInterval::Natural => FirstInterval::Natural,
                ddk_settings::FirstInterval::Equal => FirstInterval::Equal,
                ddk_settings::FirstInterval::Discrepancy => FirstInterval::Discrepancy,
            },
        ),
    });
    let known = match &work.resume {
        Some(state) => Some(state.at_start.teacher.clone()),
        None => prepared.inputs.cached_perplexities(settings),
    };
    let board = Board::new(COMPUTE_LIMIT);
    let parts = Parts {
        teacher: wiring::teachers(
            settings,
            prepared.folders.teacher.clone(),
            prepared.evaluation.clone(),
        ),
        student: wiring::student(
            settings,
            prepared.folders.clone(),
            prepared.options.clone(),
            prepared.evaluation.clone(),
            work.checkpoint,
        ),
        rows: wiring::rows(prepared.corpus.domains.clone(), settings.run.seed),
        checkpoints: work.checkpoints,
        journal: Arc::clone(&work.journal),
        board: Arc::clone(&board),
        observer: work.printer,
    };
    let step = work.resume.as_ref().map_or(0, |state| state.step);
    let kind = if step == 0 { "started" } else { "resumed" };
    work.journal
        .event(step, kind, &format!("process {}", std::process::id()))?;
    tracing::info!(
        bytes = queue_bytes(prepared)?,
        depth = settings.queues.depth,
        "the queues of micro-batches hold at most this much"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let recorder = Recorder::install(Arc::clone(&board)).ok();
        for report in &prepared.corpus.reports {
            metrics::QUARANTINED
                .with(&[&report.domain])
                .set(report.quarantined as f64);
        }
        let _server = serve(settings, recorder).await?;
        let signal = Arc::new(AtomicU8::new(0));
        let stop = signals(Arc::clone(&signal), Arc::clone(&work.journal))?;
        let ended = ddk_actors::run(
            prepared.plan.clone(),
            parts,
            policy,
            work.resume,
            known,
            stop,
        )
        .await;
        if let Err(error) = &ended {
            work.journal.event(step, "failed", &error.to_string())?;
        }
        let outcome = ended.map_err(explain)?;
        if let Some(outcome) = &outcome {
            prepared
                .inputs
                .keep_perplexities(settings, &outcome.at_start.teacher);
        }
        Ok((outcome, signal.load(Ordering::SeqCst)))
    })
}

/// Bytes that the queues before and behind the teachers hold at most: token ids, and hidden states in fp32.
fn queue_bytes(prepared: &Prepared<'_>) -> Result<u64> {
    let settings = prepared.settings;
    let width = ModelConfig::read(&prepared.folders.teacher)?.hidden_size() as u64;
    let positions = settings.batch.micro_rows * settings.corpus.sequence_length as u64;
    let batches = (settings.queues.depth * settings.teacher.lanes) as u64;
    Ok(batches * positions * (4 + 4 * (width + 1)))
}

/// A part that cannot be started is a matter of configuration; after any other failure the run can go on.
fn explain(error: RunError) -> anyhow::Error {
    match error {
        RunError::Start { .. } => usage(error),
        RunError::Part { .. } | RunError::Lost(_) => with_hint(
            error,
            "the same command goes on from the last checkpoint; events.jsonl and run.log in the run's folder say more",
        ),
    }
}

/// The metrics server; a port that is taken is said, and stops the run only where it is required.
async fn serve(settings: &Settings, recorder: Option<Recorder>) -> Result<Option<Server>> {
    let telemetry = &settings.telemetry;
    let (true, Some(recorder)) = (telemetry.enabled, recorder) else {
        return Ok(None);
    };
    let address = telemetry.address.parse().context("telemetry.address")?;
    match ddk_telemetry::serve(address, recorder).await {
        Ok(server) => {
            say(&format!("metrics: http://{}/metrics", server.address()));
            Ok(Some(server))
        }
        Err(error @ ServeError::PortInUse(_)) if !telemetry.required => {
            say(&format!(
                "warning: {error}; going on without metrics (telemetry.address chooses another port)"
            ));
            Ok(None)
        }
        Err(error) => {
            Err(error).hint("choose another telemetry.address, or set telemetry.enabled = false")
        }
    }
}

/// The first SIGINT or SIGTERM stops the run cleanly, the second ends the process at once.
fn signals(seen: Arc<AtomicU8>, journal: Arc<Journal>) -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            let (number, name) = tokio::select! {
                _ = interrupt.recv() => (2_u8, "SIGINT"),
                _ = terminate.recv() => (15, "SIGTERM"),
            };
            if seen.swap(number, Ordering::SeqCst) != 0 {
                std::process::exit(128 + i32::from(number));
            }
            say(&format!(
                "{name}: finishing the step and saving; once more ends at once"
            ));
            let _ = journal.event(0, "signal", name);
            let _ = sender.send(()).await;
        }
    });
    Ok(receiver)
}
