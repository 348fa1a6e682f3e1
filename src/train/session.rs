//! What surrounds a process's runs: the HTTP server, the metrics file, signals, the watchdog.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ddk_run::RunFolder;
use ddk_settings::{Settings, Token};
use ddk_telemetry::{Board, KEEP_EVERY, Keeper, Recorder, ServeError, Server, Site};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{reload, systemd};
use crate::{hint::Hint, progress::say};

/// What the runs of a process share: DoReMi has three of them.
pub(super) struct Session {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) board: Arc<Board>,
    _server: Option<Server>,
    /// Writes the metrics to their file a last time when all is done.
    _keeper: Keeper,
    /// The number of the signal that came.
    pub(super) signal: Arc<AtomicU8>,
    /// Told when one has come.
    pub(super) stop: mpsc::Receiver<()>,
}

impl Session {
    /// Starts the metrics server and listens to signals.
    pub(super) fn start(settings: &Settings, folder: &RunFolder) -> Result<Self> {
        // On a thread of its own: signals, the watchdog and the server go on while this one loads, hashes or exports.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let limit = Duration::from_secs_f64(settings.guard.compute_limit_seconds);
        let board = Board::new(limit);
        let run = settings.run.name.as_deref().unwrap_or_default();
        let recorder = Recorder::install(Arc::clone(&board), run, folder.path())?;
        let signal = Arc::new(AtomicU8::new(0));
        let grace = Duration::from_secs_f64(settings.guard.grace_seconds);
        let (keeper, server, stop) = runtime.block_on(async {
            let file = settings.telemetry.file.clone();
            let keeper = Keeper::start(recorder.clone(), KEEP_EVERY, file)
                .hint("choose another telemetry.file, in a folder that is there")?;
            let server = serve(settings, recorder, folder.path())?;
            systemd::watch(Arc::clone(&board));
            anyhow::Ok((keeper, server, signals(Arc::clone(&signal), grace)?))
        })?;
        Ok(Self {
            runtime,
            board,
            _server: server,
            _keeper: keeper,
            signal,
            stop,
        })
    }

    /// Another run of this process begins.
    pub(super) fn begin_phase(&self) {
        self.board.set_starting();
    }

    /// While the result is held, SIGHUP is answered with a word.
    pub(super) fn answer_hangup(&self) -> Result<reload::NotYet> {
        let _context = self.runtime.enter();
        reload::not_yet()
    }
}

/// The server of the live page and the metrics; a port that is taken is said, and stops the run only where it is required.
fn serve(settings: &Settings, recorder: Recorder, folder: &Path) -> Result<Option<Server>> {
    let telemetry = &settings.telemetry;
    if !telemetry.enabled {
        return Ok(None);
    }
    let address = telemetry.address.parse().context("telemetry.address")?;
    let token = secret(telemetry.token.as_ref())?;
    let site = Site::of_run(recorder, folder).with_token(token);
    match ddk_telemetry::serve(address, site) {
        Ok(server) => {
            let address = server.address();
            say(&format!(
                "live page: http://{address}/, metrics: http://{address}/metrics"
            ));
            Ok(Some(server))
        }
        Err(error @ ServeError::PortInUse(_)) if !telemetry.required => {
            say(&format!(
                "warning: {error}; going on without the live page and metrics (telemetry.address chooses another port)"
            ));
            Ok(None)
        }
        Err(error) => {
            Err(error).hint("choose another telemetry.address, or set telemetry.enabled = false")
        }
    }
}

/// The token that the server asks for. A configuration out of a run's folder says only that there was one.
fn secret(token: Option<&Token>) -> Result<Option<&str>> {
    match token.map(Token::secret) {
        None => Ok(None),
        Some(Some(secret)) => Ok(Some(secret)),
        Some(None) => Err(anyhow!(
            "`telemetry.token` was left out of this configuration when it was written"
        ))
        .hint("give it as DDK__TELEMETRY__TOKEN in the environment")
        .usage(),
    }
}

/// The first SIGINT or SIGTERM stops the run cleanly; the second, or the end of the grace, ends the process at once.
fn signals(seen: Arc<AtomicU8>, grace: Duration) -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            let (number, name) = tokio::select! {
                _ = interrupt.recv() => (2_u8, "SIGINT"),
                _ = terminate.recv() => (15, "SIGTERM"),
            };
            // Nothing of libtorch is taken down while its threads compute; what is saved is saved.
            // SAFETY: `_exit` takes a number and ends the process.
            let end = move || unsafe { libc::_exit(128 + i32::from(number)) };
            if seen.swap(number, Ordering::SeqCst) != 0 {
                end();
            }
            tokio::spawn(async move {
                tokio::time::sleep(grace).await;
                say(&format!(
                    "not done {} s after {name} (guard.grace_seconds): ending at once; the run goes on from the checkpoint before",
                    grace.as_secs_f64()
                ));
                end();
            });
            say(&format!(
                "{name}: finishing the step and saving; once more ends at once"
            ));
            tracing::info!(name, "told to stop");
            systemd::stopping();
            let _ = sender.send(()).await;
        }
    });
    Ok(receiver)
}
