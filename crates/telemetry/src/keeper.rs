//! Periodic work that does not depend on scrapes: keeps the histograms small, and writes the page of metrics to a file.

use std::{
    io,
    path::PathBuf,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::Recorder;

/// Interval at which a run's recorder is maintained.
pub const KEEP_EVERY: Duration = Duration::from_secs(5);

/// Why a keeper cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file cannot be written.
    #[error("cannot write the metrics to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No thread can be started.
    #[error("cannot start the metrics thread")]
    Thread(#[source] io::Error),
}

/// Maintains a recorder on a separate thread until it is dropped. Then writes the file one last time.
#[derive(Debug)]
pub struct Keeper {
    /// Dropped to end the thread.
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Writes `file`, and starts the thread that maintains `recorder` and writes `file` again once per `every`. The
    /// first write shows at the start whether `file` can be written. `file` is for the node exporter's textfile
    /// collector, and its folder must exist.
    ///
    /// # Errors
    /// If the file cannot be written, or if the thread cannot be started.
    pub fn start(
        recorder: Recorder,
        every: Duration,
        file: Option<PathBuf>,
    ) -> Result<Self, KeepError> {
        if let Some(path) = &file {
            // A reader never sees half a page. The node exporter reads only names that end in `.prom`, and the
            // temporary name does not.
            let written = ddk_files::write_atomically(path, recorder.render().as_bytes());
            written.map_err(|error| KeepError::Write {
                path: error.path,
                source: error.source,
            })?;
        }
        let (running, ended) = mpsc::channel();
        let work = move || {
            let (mut failed, mut last) = (false, false);
            while !last {
                last = ended.recv_timeout(every) != Err(RecvTimeoutError::Timeout);
                recorder.upkeep();
                if let Some(path) = &file {
                    let page = recorder.render();
                    let written = ddk_files::write_atomically(path, page.as_bytes());
                    // Warn only once if the disk stays full.
                    if let Err(error) = &written
                        && !failed
                    {
                        tracing::warn!(path = %path.display(), %error, "cannot write the metrics");
                    }
                    failed = written.is_err();
                }
            }
        };
        let thread = thread::Builder::new().name("telemetry".to_owned());
        Ok(Self {
            running: Some(running),
            thread: Some(thread.spawn(work).map_err(KeepError::Thread)?),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
