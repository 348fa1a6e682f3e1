//! What the runs of a process share: the HTTP server, the metrics file, the watchdog, and the final message to
//! clients.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use ddk_run::{
    RunFolder,
    control::Control,
    view::{State, counted},
};
use ddk_settings::{Settings, Token};
use ddk_telemetry::{Board, KEEP_EVERY, Keeper, Recorder, ServeError, Server, Site};
use ddk_torch::make_deterministic;
use parking_lot::Mutex;
use tracing_subscriber::fmt::writer::OptionalWriter;

use crate::{
    control::{RunControl, Socket},
    gpus,
    hint::{Hint, has_ended},
    progress::say,
    ranks::{self, Ranks},
    signals::Signals,
    systemd,
};

/// Time for clients that watch a run to learn how it ended.
const FAREWELL: Duration = Duration::from_millis(1500);

/// State that the runs of a process share. DoReMi has three runs.
pub(super) struct Session {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) board: Arc<Board>,
    pub(super) signals: Signals,
    server: Option<Arc<Server>>,
    /// Writes the metrics file a last time when the session ends. Rank 0's work, if there are several ranks.
    _keeper: Option<Keeper>,
    /// Carries out commands on the current run.
    pub(super) control: Arc<RunControl>,
    socket: Option<Socket>,
    /// Says where the live page is, once.
    announcement: Mutex<Option<String>>,
    /// The other processes of the run, if there are any.
    pub(super) ranks: Option<Arc<Ranks>>,
}

/// Does the work of a run in a new session, which its page shows from the start. Clients that watch the run learn how
/// it ended. `path`: the run's folder, which need not exist yet. `serves`: whether there is anything to serve.
pub(super) fn in_one<T>(
    settings: &Settings,
    path: &Path,
    serves: bool,
    signals: &Signals,
    ranks: Option<Arc<Ranks>>,
    work: impl FnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    let mut session = Session::start(settings, path, serves, signals, ranks)?;
    let done = work(&mut session);
    session.signals.left();
    session.board.set_state(match &done {
        Ok(_) => State::Finished,
        Err(error) if has_ended(error) => State::Stopped,
        Err(_) => State::Failed,
    });
    if let Some(server) = &session.server {
        server.finish(FAREWELL);
    }
    done
}

impl Session {
    /// Starts the HTTP server. From now on, clients that watch the run learn how it ends.
    fn start(
        settings: &Settings,
        path: &Path,
        serves: bool,
        signals: &Signals,
        ranks: Option<Arc<Ranks>>,
    ) -> Result<Self> {
        if settings.run.deterministic {
            make_deterministic()?;
        }
        // Runs on a separate thread, so that the watchdog continues while this one loads, hashes or exports.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let limit = Duration::from_secs_f64(settings.recovery.watchdog_seconds);
        let board = Board::new(limit);
        let run = settings.run.name.as_deref().unwrap_or_default();
        let gpus = gpus::of_run(settings);
        let recorder = Recorder::install(Arc::clone(&board), run, path, gpus)?;
        let file = settings.telemetry.metrics_file.clone();
        let leads = ranks::leads(ranks.as_ref());
        // A run that is over keeps its last metrics.
        let keeper = (leads && serves).then(|| Keeper::start(recorder.clone(), KEEP_EVERY, file));
        let keeper = keeper.transpose();
        let keeper = keeper.hint("choose another telemetry.metrics_file, in an existing folder")?;
        let control = RunControl::new(path, &board, signals);
        let site = match &ranks {
            Some(_) if !leads => Site::of_rank(recorder),
            _ => {
                let mut site = Site::of_run(recorder, path);
                site.control = Some(Arc::clone(&control) as Arc<dyn Control>);
                site
            }
        };
        // The processes on a machine have neighboring ports.
        let place = ranks.as_ref().map_or(0, |ranks| ranks.place());
        let (server, announcement) = if serves {
            let (server, warning) = serve(settings, site, place)?;
            let page = server.as_ref().filter(|_| leads).map(|server| {
                let address = server.address();
                format!("live page: http://{address}/, metrics: http://{address}/metrics")
            });
            (server.map(Arc::new), page.or(warning))
        } else {
            (None, None)
        };
        let context = runtime.enter();
        systemd::watch(Arc::clone(&board));
        let (watched, of_server) = (Arc::clone(&board), server.clone());
        let grace = Duration::from_secs_f64(ranks::grace_seconds(settings));
        signals.watched(grace, move || {
            watched.set_state(State::Stopped);
            if let Some(server) = &of_server {
                server.finish(FAREWELL);
            }
        });
        drop(context);
        Ok(Self {
            runtime,
            board,
            signals: signals.clone(),
            server,
            _keeper: keeper,
            control,
            socket: None,
            announcement: Mutex::new(announcement),
            ranks,
        })
    }

    /// Prints the address of the live page, or why it is missing. Later calls print nothing. Call it when the settings
    /// have proved usable.
    pub(super) fn announce(&self) {
        if let Some(announcement) = self.announcement.lock().take() {
            say(&announcement);
        }
    }

    /// Enters the run's folder: from now on, the session logs there, and takes commands there.
    pub(super) fn enter(&mut self, folder: &RunFolder) -> Result<()> {
        self.announce();
        start_log(folder, self.ranks.as_ref().map_or(0, |ranks| ranks.rank()))?;
        if ranks::leads(self.ranks.as_ref()) {
            let _context = self.runtime.enter();
            let socket = Socket::listen(folder.path(), Arc::clone(&self.control));
            self.socket = socket.map(Some).unwrap_or_else(|error| {
                say(&format!(
                    "warning: {error:#}; `ddk ctl` cannot reach this run"
                ));
                None
            });
        }
        Ok(())
    }
}

/// Starts the server of the live page and the metrics. If the port is in use, returns a warning instead, or fails if
/// `telemetry.required` is set.
fn serve(
    settings: &Settings,
    mut site: Site,
    place: usize,
) -> Result<(Option<Server>, Option<String>)> {
    let telemetry = &settings.telemetry;
    if !telemetry.enabled {
        return Ok((None, None));
    }
    let mut address: SocketAddr = telemetry.listen.parse().context("telemetry.listen")?;
    if address.port() > 0 {
        let port = usize::from(address.port()) + place;
        let port = u16::try_from(port).with_context(|| format!("there is no port {port}"));
        address.set_port(port.hint("choose a smaller port with telemetry.listen")?);
    }
    let token = telemetry.token.as_ref().map(secret).transpose()?;
    site.token = token.map(str::to_owned);
    match ddk_telemetry::serve(address, site) {
        Ok(server) => Ok((Some(server), None)),
        Err(error @ ServeError::PortInUse(_)) if !telemetry.required => {
            let warning = format!(
                "warning: {error}; continuing without the live page and metrics. What {address} shows is not this \
                 run; choose another port with telemetry.listen"
            );
            Ok((None, Some(warning)))
        }
        Err(error) => {
            Err(error).hint("choose another telemetry.listen, or set telemetry.enabled = false")
        }
    }
}

/// Returns the token that the server requires. The `config.toml` in a run's folder says only that there was one.
fn secret(token: &Token) -> Result<&str> {
    let secret = token.secret();
    let secret = secret.context("this configuration was written without its `telemetry.token`");
    let secret = secret.hint("set the environment variable DDK__TELEMETRY__TOKEN to it");
    secret.usage()
}

/// This process, its machine and its version, for the event that it starts with.
pub(super) fn process() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "an unnamed machine",
        host => host,
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "process {} on {host} ({}), ddk {}",
        std::process::id(),
        counted(cpus as u64, "CPU"),
        env!("CARGO_PKG_VERSION")
    )
}

/// The log of the current run. One process may have several runs, one after the other.
static LOG: Mutex<Option<Arc<fs::File>>> = Mutex::new(None);

/// Sends everything from `tracing` to this run's own log from now on.
fn start_log(folder: &RunFolder, rank: usize) -> Result<()> {
    let path = folder.log(rank);
    let file = fs::File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    *LOG.lock() = Some(Arc::new(file));
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,ractor=warn"));
    // Fails if an earlier run of this process already did this.
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(filter)
        .with_writer(|| OptionalWriter::from(LOG.lock().clone()))
        .try_init();
    Ok(())
}
