//! What surrounds a process's runs: the HTTP server, the metrics file, the watchdog, the word to those who
//! watch when it ends.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ddk_run::{RunFolder, control::Control, view::State};
use ddk_settings::{Settings, Token};
use ddk_telemetry::{Board, KEEP_EVERY, Keeper, Recorder, ServeError, Server, Site};
use ddk_torch::make_deterministic;
use tracing_subscriber::fmt::writer::OptionalWriter;

use super::changes;
use crate::{
    control::{RunControl, Socket},
    gpus,
    hint::{Hint, has_ended},
    progress::{lock, say},
    signals::Signals,
    systemd,
};

/// Those who watch a run have this long to hear how it ended.
const FAREWELL: Duration = Duration::from_millis(1500);

/// What the runs of a process share: DoReMi has three of them.
pub(super) struct Session {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) board: Arc<Board>,
    pub(super) signals: Signals,
    server: Option<Arc<Server>>,
    /// Writes the metrics to their file a last time when all is done.
    _keeper: Keeper,
    /// Takes commands for the run at work.
    pub(super) control: Arc<RunControl>,
    _socket: Option<Socket>,
}

/// Does the work of a run in a session of its own, whose log is the run's; who watches it hears how it ended.
pub(super) fn in_one(
    settings: &Settings,
    folder: &RunFolder,
    signals: &Signals,
    work: impl FnOnce(&mut Session) -> Result<()>,
) -> Result<()> {
    start_log(folder)?;
    let mut session = Session::start(settings, folder, signals)?;
    let done = work(&mut session);
    session.signals.left();
    session.board.set_state(match &done {
        Ok(()) => State::Finished,
        Err(error) if has_ended(error) => State::Stopped,
        Err(_) => State::Failed,
    });
    if let Some(server) = &session.server {
        server.finish(FAREWELL);
    }
    done
}

impl Session {
    /// Starts the metrics server; from now on who watches the run hears how it ends.
    fn start(settings: &Settings, folder: &RunFolder, signals: &Signals) -> Result<Self> {
        if settings.run.deterministic {
            make_deterministic()?;
        }
        // On a thread of its own: the watchdog continues while this one loads, hashes or exports.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let limit = Duration::from_secs_f64(settings.recovery.watchdog_seconds);
        let board = Board::new(limit);
        let run = settings.run.name.as_deref().unwrap_or_default();
        let gpus = gpus::of_run(settings);
        let recorder = Recorder::install(Arc::clone(&board), run, folder.path(), gpus)?;
        let file = settings.telemetry.metrics_file.clone();
        let keeper = Keeper::start(recorder.clone(), KEEP_EVERY, file)
            .hint("choose another telemetry.metrics_file, in an existing folder")?;
        let control = RunControl::new(folder.path(), &board, signals);
        let server = serve(settings, recorder, folder.path(), &control)?.map(Arc::new);
        runtime.block_on(async { systemd::watch(Arc::clone(&board)) });
        let (watched, of_server) = (Arc::clone(&board), server.clone());
        let grace = Duration::from_secs_f64(settings.recovery.shutdown_grace_seconds);
        signals.watched(grace, move || {
            watched.set_state(State::Stopped);
            if let Some(server) = &of_server {
                server.finish(FAREWELL);
            }
        });
        let socket =
            runtime.block_on(async { Socket::listen(folder.path(), Arc::clone(&control)) });
        let socket = socket.map_err(|error| {
            say(&format!(
                "warning: {error:#}; `ddk ctl` cannot reach this run"
            ))
        });
        Ok(Self {
            runtime,
            board,
            signals: signals.clone(),
            server,
            _keeper: keeper,
            control,
            _socket: socket.ok(),
        })
    }

    /// Another run of this process begins.
    pub(super) fn begin_phase(&self) {
        self.board.set_state(State::Starting);
    }

    /// While the result is held, SIGHUP is answered with a word.
    pub(super) fn answer_hangup(&self) -> Result<changes::NotYet> {
        let _context = self.runtime.enter();
        changes::not_yet()
    }
}

/// The server of the live page and the metrics; a port that is taken is said, and stops the run only where it
/// is required.
fn serve(
    settings: &Settings,
    recorder: Recorder,
    folder: &Path,
    control: &Arc<RunControl>,
) -> Result<Option<Server>> {
    let telemetry = &settings.telemetry;
    if !telemetry.enabled {
        return Ok(None);
    }
    let address = telemetry.listen.parse().context("telemetry.listen")?;
    let token = secret(telemetry.token.as_ref())?;
    let site = Site::of_run(recorder, folder)
        .with_token(token)
        .with_control(Arc::clone(control) as Arc<dyn Control>);
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
                "warning: {error}; continuing without the live page and metrics (choose another port with \
                 telemetry.listen)"
            ));
            Ok(None)
        }
        Err(error) => {
            Err(error).hint("choose another telemetry.listen, or set telemetry.enabled = false")
        }
    }
}

/// The token that the server asks for. A configuration out of a run's folder says only that there was one.
fn secret(token: Option<&Token>) -> Result<Option<&str>> {
    match token.map(Token::secret) {
        None => Ok(None),
        Some(Some(secret)) => Ok(Some(secret)),
        Some(None) => Err(anyhow!(
            "this configuration was written without its `telemetry.token`"
        ))
        .hint("set the environment variable DDK__TELEMETRY__TOKEN to it")
        .usage(),
    }
}

/// The log of the run at work. One process may have several runs, one after the other.
static LOG: Mutex<Option<Arc<fs::File>>> = Mutex::new(None);

/// From now on everything that `tracing` is told goes to this run's own log.
fn start_log(folder: &RunFolder) -> Result<()> {
    let path = folder.log();
    let file = fs::File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    *lock(&LOG) = Some(Arc::new(file));
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,ractor=warn"));
    // Fails if an earlier run of this process has done so.
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(filter)
        .with_writer(|| OptionalWriter::from(lock(&LOG).clone()))
        .try_init();
    Ok(())
}
