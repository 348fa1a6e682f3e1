//! The recorder behind the metric handles, and the page that Prometheus scrapes.

use std::{path::Path, sync::Arc};

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use ddk_run::records::seconds_since_1970;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::RwLock;

use crate::{
    Board,
    machine::{Gpu, Machine},
    metrics::{self, ALL, describe},
    samples::Samples,
};

/// Bounds of the histograms' buckets, in seconds: from a hop through a queue to a long evaluation.
const BUCKETS: [f64; 15] = [
    1e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

/// The recorder of the current run.
static CURRENT: RwLock<Option<PrometheusRecorder>> = RwLock::new(None);

/// Why no recorder could be installed.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// Other code has installed a recorder in this process.
    #[error("another metrics recorder is installed already")]
    Installed,
    /// The recorder could not be built.
    #[error("the metrics recorder cannot be built: {0}")]
    Build(String),
}

/// The recorder of a run. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    handle: PrometheusHandle,
    /// The server reads health from it.
    pub(crate) board: Arc<Board>,
    run: Arc<str>,
    machine: Arc<Machine>,
    /// Seconds since 1970.
    started: f64,
}

impl Recorder {
    /// Installs the recorder of a run. A process may make several runs, one after the other. Each has its own recorder,
    /// so that no number carries over to another run. `folder` is the run's folder, whose disk is watched; `gpus` are
    /// the GPUs that the run uses.
    ///
    /// # Errors
    /// If the recorder cannot be built, or if other code has installed a recorder in this process.
    pub fn install(
        board: Arc<Board>,
        run: &str,
        folder: &Path,
        gpus: Vec<Gpu>,
    ) -> Result<Self, RecorderError> {
        let recorder = PrometheusBuilder::new()
            .with_recommended_naming(true)
            .add_global_label("run", run)
            .set_buckets(&BUCKETS)
            .map_err(|error| RecorderError::Build(error.to_string()))?
            .build_recorder();
        let handle = recorder.handle();
        let before = CURRENT.write().replace(recorder);
        if before.is_none() {
            ::metrics::set_global_recorder(Switch).map_err(|_| RecorderError::Installed)?;
        }
        ALL.iter().for_each(|metric| describe(metric));
        let version = env!("CARGO_PKG_VERSION");
        metrics::BUILD_INFO.with(&[version]).set(1.0);
        Ok(Self {
            handle,
            board,
            run: run.into(),
            machine: Arc::new(Machine::new(folder.to_owned(), gpus)),
            started: seconds_since_1970(),
        })
    }

    /// Renders the page of all metrics. Reads the sampled metrics at this moment.
    pub fn render(&self) -> String {
        let mut samples = Samples::new(self.handle.render(), &self.run);
        let ready = f64::from(u8::from(self.board.is_ready()));
        samples.add_one(&metrics::READY, Some(ready));
        samples.add_one(&metrics::START_TIME, Some(self.started));
        self.board.sample(&mut samples);
        self.machine.sample(&mut samples);
        samples.page
    }

    /// Moves the values that histograms have gathered into their buckets. Without this or a scrape, histograms grow
    /// with every value.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// The global recorder of the process. Passes everything on to the current run's recorder.
struct Switch;

impl Switch {
    fn current<T>(&self, ask: impl FnOnce(&PrometheusRecorder) -> T) -> Option<T> {
        CURRENT.read().as_ref().map(ask)
    }
}

impl ::metrics::Recorder for Switch {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.current(|recorder| recorder.describe_counter(name, unit, help));
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.current(|recorder| recorder.describe_gauge(name, unit, help));
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.current(|recorder| recorder.describe_histogram(name, unit, help));
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.current(|recorder| recorder.register_counter(key, metadata))
            .unwrap_or_else(Counter::noop)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.current(|recorder| recorder.register_gauge(key, metadata))
            .unwrap_or_else(Gauge::noop)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.current(|recorder| recorder.register_histogram(key, metadata))
            .unwrap_or_else(Histogram::noop)
    }
}
