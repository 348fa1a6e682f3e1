//! The recorder behind the handles, and the page that Prometheus reads.

use std::{fs, sync::Arc, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::{
    Board,
    metrics::{self, ALL, Kind},
};

/// Bounds of the histograms' buckets, in seconds: from a queue's hop to a long evaluation.
const BUCKETS: [f64; 15] = [
    1e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// Why no recorder could be installed.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The process has one already.
    #[error("a metrics recorder is installed already")]
    Installed,
    /// The recorder could not be built.
    #[error("the metrics recorder cannot be built: {0}")]
    Build(String),
}

/// The process's recorder. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    handle: PrometheusHandle,
    board: Arc<Board>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Recorder")
    }
}

impl Recorder {
    /// Installs the process's recorder; once.
    pub fn install(board: Arc<Board>) -> Result<Self, RecorderError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets(&BUCKETS)
            .map_err(|error| RecorderError::Build(error.to_string()))?
            .build_recorder();
        let handle = recorder.handle();
        ::metrics::set_global_recorder(recorder).map_err(|_| RecorderError::Installed)?;
        for metric in ALL {
            describe(metric);
        }
        metrics::BUILD_INFO
            .with(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        Ok(Self { handle, board })
    }

    /// The page of all metrics, with what is read at the moment that somebody looks.
    pub fn render(&self) -> String {
        self.board.publish();
        metrics::RESIDENT.with(&[]).set(resident_bytes() as f64);
        self.handle.render()
    }

    /// Health, for the server.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Keeps histograms bounded while nobody scrapes; runs until it is dropped.
    pub async fn upkeep(&self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        loop {
            ticks.tick().await;
            self.handle.run_upkeep();
        }
    }
}

#[allow(clippy::disallowed_macros)]
fn describe(metric: &'static metrics::Metric) {
    match metric.kind {
        Kind::Counter => ::metrics::describe_counter!(metric.name, metric.help),
        Kind::Gauge => ::metrics::describe_gauge!(metric.name, metric.help),
        Kind::Histogram => ::metrics::describe_histogram!(metric.name, metric.help),
    }
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}
