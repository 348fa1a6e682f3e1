//! Accepts commands for the current run, over a socket in its folder and from the HTTP server.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use ddk_actors::RunHandle;
use ddk_run::{
    RunView, Source,
    control::{
        Answer, Asked, Command, Control, LONGEST_COMMAND, Refusal, Reply, SOCKET, short_path,
    },
    view::State,
};
use ddk_telemetry::Board;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
    time::timeout,
};

use crate::signals::{Signals, later};

/// Maximum time for a command to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Delay before a stop, so that its answer is sent before the process may end.
const HEAD_START: Duration = Duration::from_millis(200);

/// Carries out commands on the current run.
#[derive(Debug)]
pub(crate) struct RunControl {
    board: Arc<Board>,
    signals: Signals,
    /// The run's files, read incrementally.
    view: Arc<Mutex<RunView>>,
    /// The current run: the requested one, or one of its preliminary runs.
    run: Mutex<Option<RunHandle>>,
}

impl RunControl {
    pub(crate) fn new(folder: &Path, board: &Arc<Board>, signals: &Signals) -> Arc<Self> {
        Arc::new(Self {
            board: Arc::clone(board),
            signals: signals.clone(),
            view: Arc::new(Mutex::new(RunView::new(folder))),
            run: Mutex::default(),
        })
    }

    /// Sends commands to the workers of this run from now on, or to none.
    pub(crate) fn works_on(&self, run: Option<RunHandle>) {
        *self.run.lock() = run;
    }

    /// Returns whether workers are training, and so can finish a step.
    pub(crate) fn trains(&self) -> bool {
        self.board.is_ready() && self.run.lock().is_some()
    }

    /// Returns the state of the run.
    pub(crate) fn state(&self) -> State {
        self.board.state()
    }

    /// Tells the workers to finish the step, save and end.
    pub(crate) fn stop(&self) {
        if let Some(run) = &*self.run.lock() {
            self.board.activity().stop();
            run.stop();
        }
    }
}

impl Control for RunControl {
    fn ask(self: Arc<Self>, command: Command, source: Source) -> Asked {
        Box::pin(async move {
            let run = self.run.lock().clone().filter(|_| self.board.is_ready());
            match (command, run) {
                (Command::Status, _) => {
                    let (view, state) = (Arc::clone(&self.view), self.state());
                    let board = Arc::clone(&self.board);
                    let read = move || {
                        let mut view = view.lock();
                        view.refresh();
                        let mut status = view.status(Some(state));
                        board.complete(&mut status);
                        status
                    };
                    let status = tokio::task::spawn_blocking(read).await;
                    let status = status.map_err(|error| Refusal(error.to_string()))?;
                    Ok(Reply::Status(Box::new(status)))
                }
                (Command::Stop, _) => {
                    let signals = self.signals.clone();
                    later(HEAD_START, move || signals.obey());
                    Ok(Reply::Stop)
                }
                (command, Some(run)) => run.ask(command, source).await,
                (_, None) => Err(Refusal(format!(
                    "the run is {}: it accepts this command only while it trains",
                    self.state()
                ))),
            }
        })
    }
}

/// The socket in a run's folder. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Accepts commands for the run in `folder`, from this user only. Call it within a runtime.
    pub(crate) fn listen(folder: &Path, control: Arc<RunControl>) -> Result<Self> {
        let path = folder.join(SOCKET);
        let listener =
            bind(folder).with_context(|| format!("cannot listen on {}", path.display()))?;
        let accepting = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        tokio::spawn(serve(stream, Arc::clone(&control)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection on the socket");
                        tokio::time::sleep(PATIENCE).await;
                    }
                }
            }
        });
        Ok(Self { path, accepting })
    }
}

/// Binds the socket under a temporary name, then renames it. That sets its mode before any client can find it, and
/// replaces a socket left by a killed process.
fn bind(folder: &Path) -> io::Result<UnixListener> {
    let (_open, short) = short_path(folder)?;
    let new = short.join(format!("{SOCKET}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, short.join(SOCKET))?;
    Ok(listener)
}

/// Answers one command, a line of JSON, with another line.
async fn serve(mut stream: UnixStream, control: Arc<RunControl>) -> io::Result<()> {
    let (from, mut to) = stream.split();
    let mut line = String::new();
    let mut from = BufReader::new(from.take(LONGEST_COMMAND as u64));
    timeout(PATIENCE, from.read_line(&mut line)).await??;
    let outcome = match serde_json::from_str(&line) {
        Ok(command) => control.ask(command, Source::Socket).await,
        Err(error) => Err(Refusal(format!("not a command: {error}"))),
    };
    let mut answer = serde_json::to_vec(&Answer::from(outcome))?;
    answer.push(b'\n');
    to.write_all(&answer).await
}
