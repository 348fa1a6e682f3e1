//! `ddk label`: fills the teacher's cache ahead of time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use anyhow::{Context, Result, anyhow};
use ddk_actors::{Teacher as _, ports::RunLink};
use ddk_corpus::{Cursor, PreparedDomain, Sequence, SequenceReader};
use ddk_labels::LabelSet;
use ddk_run::records::EventKind;
use ddk_settings::Settings;
use ddk_telemetry::Meter;
use ddk_torch::TimeSlice;

use crate::{
    args, config,
    findings::{Findings, tokenizers},
    hint::Hint,
    hub::{self, Wanted},
    phase::Phase,
    prepare::{self, Corpus, Outdated},
    progress::{Reporter, say},
    signals::Signals,
    train::{inputs::Inputs, labels, options},
    wiring::{ModelFolders, Models, Ports},
};

/// Computes the labels that the cache lacks, and the teacher's perplexities.
///
/// # Errors
/// If the settings have no cache, if the models or the corpus cannot be used, or if the teacher fails.
pub fn run(args: &args::Label, signals: &Signals) -> Result<()> {
    let settings = config::begin(&args.config, signals)?;
    if settings.teacher.cache.dir.is_none() {
        return Err(anyhow!(
            "`teacher.cache.dir` is not set: there is no cache to fill"
        ))
        .hint("set it in the configuration, or pass --set teacher.cache.dir=DIR")
        .usage();
    }
    if settings.objective.has_layers() {
        let name = settings.objective.name;
        return Err(anyhow!("`objective.name` is \"{name}\", which needs outputs of layers: it does not use the cache"))
            .hint("fill the cache with another objective: --set objective.name=forward_kl")
            .usage();
    }
    let pinned = hub::pinned(&settings)?;
    let wanted = [Wanted::Models, Wanted::Corpus];
    let settings = hub::located(&settings, &wanted, &pinned, Some(signals))?;
    signals.begin(Phase::Prepare)?;
    let folders = ModelFolders::of(&settings)?;
    Findings::first(|found| tokenizers(&settings, &folders, found))?;
    let corpus = prepare::open(&settings, Outdated::AsSet)?;
    signals.begin(Phase::Hash)?;
    let inputs = Inputs::of(&folders, &corpus, settings.corpus.sequence_length)?;
    let set = labels::of_run(&settings, &folders, &inputs)?;
    let set = set.context("there is no cache")?;
    let evaluation = prepare::evaluation(&settings, &corpus)?;
    let ports = Arc::new(Ports {
        outages: Arc::default(),
        turns: TimeSlice::new(false),
        prompts: None,
        has_no_texts: false,
        models: Models {
            options: options::of_student(&settings, evaluation.vocabulary, None)?,
            settings: settings.clone(),
            folders,
        },
        teacher_evaluation: evaluation.clone(),
        evaluation,
        labels: Some(Arc::clone(&set)),
        faults: signals.faults(),
    });
    signals.begin(Phase::Label)?;
    let known = inputs.known_perplexities(&settings, Some(&set)).is_some();
    let job = Job::new(&settings, &corpus, args.epochs, ports, Arc::clone(&set));
    let perplexities = job.run(known)?;
    let is_full = job.is_full.into_inner();
    if let Some(perplexities) = perplexities {
        inputs.keep_perplexities(&settings, Some(&set), &perplexities);
    }
    set.flush()?;
    let stats = set.stats();
    say(&format!(
        "the label set {} has {} labels, {:.2} GB; {} are new",
        set.folder().display(),
        stats.labels,
        stats.bytes as f64 / 1e9,
        stats.stored
    ));
    if is_full {
        return Err(anyhow!(
            "the cache is full: the other sequences have no label"
        ))
        .hint("raise teacher.cache.max_bytes, or free space on the disk");
    }
    Ok(())
}

/// The sequences to label, and what the workers share.
struct Job {
    domains: Vec<Arc<PreparedDomain>>,
    seed: u64,
    epochs: f64,
    replicas: usize,
    /// Sequences per question to the teacher.
    rows: usize,
    ports: Arc<Ports>,
    set: Arc<LabelSet>,
    reporter: Reporter,
    done: AtomicU64,
    /// Whether the cache or its disk is full.
    is_full: AtomicBool,
}

impl Job {
    fn new(
        settings: &Settings,
        corpus: &Corpus,
        epochs: f64,
        ports: Arc<Ports>,
        set: Arc<LabelSet>,
    ) -> Self {
        Self {
            domains: corpus.domains.clone(),
            seed: settings.run.seed,
            epochs,
            replicas: settings.teacher.replicas(),
            rows: settings.training.micro_batch_size as usize,
            ports,
            set,
            reporter: Reporter::new(settings.log.interval_seconds),
            done: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
        }
    }

    /// Number of sequences of a domain to label: a second epoch has the same ones.
    fn count(&self, domain: &PreparedDomain) -> u64 {
        (self.epochs.min(1.0) * domain.rows() as f64).ceil() as u64
    }

    /// Runs one worker per replica. Returns the teacher's perplexities, unless they are known.
    fn run(&self, known: bool) -> Result<Option<Vec<f64>>> {
        let total = self.domains.iter().map(|domain| self.count(domain)).sum();
        let meter = self.reporter.meter("labeling", "sequences");
        let mut perplexities = None;
        std::thread::scope(|scope| {
            let workers = (0..self.replicas).map(|replica| {
                let thread = std::thread::Builder::new().name(format!("teacher-{replica}"));
                let meter = &meter;
                thread.spawn_scoped(scope, move || self.work(replica, known, (meter, total)))
            });
            // Start all of them before waiting for the first.
            let workers = workers.collect::<Result<Vec<_>, _>>()?;
            for (replica, worker) in workers.into_iter().enumerate() {
                let done = worker.join();
                let done = done.map_err(|_| anyhow!("teacher replica {replica} panicked"))?;
                let measured = done.with_context(|| format!("teacher replica {replica}"))?;
                perplexities = perplexities.take().or(measured);
            }
            Ok(perplexities)
        })
    }

    /// Labels every `replicas`-th sequence. The first worker also measures the teacher.
    fn work(
        &self,
        replica: usize,
        known: bool,
        (meter, total): (&Meter, u64),
    ) -> Result<Option<Vec<f64>>> {
        let mut port = self.ports.teachers(known)(replica)?;
        let mut waiting: Vec<Sequence> = Vec::new();
        let mut label = |waiting: &mut Vec<Sequence>| -> Result<()> {
            let rows: Vec<&Sequence> = waiting.iter().collect();
            port.look_up(&self.set, &rows, self)?;
            let done = self.done.fetch_add(rows.len() as u64, Ordering::Relaxed);
            self.reporter
                .report(&meter.at(done + rows.len() as u64, total));
            waiting.clear();
            Ok(())
        };
        for (number, domain) in (0..).zip(&self.domains) {
            let start = Cursor::default();
            let mut reader = SequenceReader::new(Arc::clone(domain), number, self.seed, start);
            for index in 0..self.count(domain) {
                let sequence = reader.read()?.sequence;
                if index % self.replicas as u64 != replica as u64 {
                    continue;
                }
                if self.set.contains(&sequence.id()) {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                waiting.push(sequence);
                if waiting.len() == self.rows {
                    label(&mut waiting)?;
                }
                if self.is_full.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
        }
        if !waiting.is_empty() {
            label(&mut waiting)?;
        }
        if replica > 0 || known {
            return Ok(None);
        }
        let meter = self
            .reporter
            .meter("evaluation of the teacher", "documents");
        let between = |done, total| {
            self.reporter.report(&meter.at(done, total));
            false
        };
        Ok(port.perplexities(self, &between)?)
    }
}

/// There is no run: events go to standard error. A signal ends the process at once.
impl RunLink for Job {
    fn is_over(&self) -> bool {
        false
    }

    fn note(&self, kind: EventKind, message: &str) {
        say(message);
        let is_full = kind == EventKind::CacheFull;
        self.is_full.fetch_or(is_full, Ordering::Relaxed);
    }

    fn waiting(&self, phase: &str, unit: &'static str) -> Meter {
        Meter::start(phase, unit)
    }

    fn computing(&self) {}
}
