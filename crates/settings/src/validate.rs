//! From what was written to what the program uses: everything present, everything in range.

use std::{collections::BTreeMap, fmt::Display, net::SocketAddr, ops::RangeBounds};

use crate::{
    Options,
    error::{Error, Problem},
    options::{DomainOptions, MixturePolicy, PretrainOptions},
    origin::Origins,
    settings::{
        Batch, Checkpoint, Corpus, Domain, Evaluation, Faults, Guard, Log, Mixture, Objective,
        Pretrain, Queues, Run, Settings, Shape, Student, Teacher, Telemetry,
    },
};

/// Gathers mistakes while values are taken out of the options.
struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
}

pub(crate) fn validate(options: Options, origins: &Origins) -> Result<Settings, Error> {
    let mut checker = Checker {
        origins,
        problems: Vec::new(),
    };
    let settings = checker.settings(options);
    match settings {
        Some(settings) if checker.problems.is_empty() => Ok(settings),
        _ => Err(Error(checker.problems)),
    }
}

impl Checker<'_> {
    fn problem(&mut self, key: &str, message: String) {
        self.problems.push(Problem {
            place: self.origins.of(key).to_string(),
            message,
            suggestion: None,
        });
    }

    /// A value that has to be there.
    fn need<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.problem(key, format!("`{key}` is missing"));
        }
        value
    }

    /// A value that has to be there and in a range.
    fn within<T: PartialOrd + Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        range: impl RangeBounds<T>,
        expected: &str,
    ) -> Option<T> {
        let value = self.need(key, value)?;
        if !range.contains(&value) {
            self.problem(key, format!("`{key}` is {value}, expected {expected}"));
        }
        Some(value)
    }

    /// A value that may be absent, but not out of its range.
    fn optional<T: PartialOrd + Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        range: impl RangeBounds<T>,
        expected: &str,
    ) -> Option<T> {
        value.and_then(|value| self.within(key, Some(value), range, expected))
    }

    fn positive(&mut self, key: &str, value: Option<f64>) -> Option<f64> {
        let value = self.need(key, value)?;
        if !(value.is_finite() && value > 0.0) {
            self.problem(key, format!("`{key}` is {value}, expected a number over 0"));
        }
        Some(value)
    }

    fn not_negative(&mut self, key: &str, value: Option<f64>) -> Option<f64> {
        let value = self.need(key, value)?;
        if !(value.is_finite() && value >= 0.0) {
            self.problem(key, format!("`{key}` is {value}, expected 0 or more"));
        }
        Some(value)
    }

    fn device(&mut self, key: &str, value: Option<String>) -> Option<String> {
        let value = self.need(key, value)?;
        let number = value.strip_prefix("cuda:").map(str::parse::<usize>);
        if value != "cpu" && !matches!(number, Some(Ok(_))) {
            self.problem(
                key,
                format!("`{key}` is \"{value}\", expected \"cpu\" or \"cuda:0\", \"cuda:1\", …"),
            );
        }
        Some(value)
    }

    fn settings(&mut self, options: Options) -> Option<Settings> {
        let run = self.run(options.run.unwrap_or_default());
        let corpus = self.corpus(options.corpus.unwrap_or_default());
        let domains: BTreeMap<String, Domain> = options
            .domains
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, domain)| Some((name.clone(), self.domain(&name, domain)?)))
            .collect();
        let teacher = self.teacher(options.teacher.unwrap_or_default());
        let student = self.student(options.student.unwrap_or_default());
        let batch = self.batch("batch", options.batch.unwrap_or_default());
        let names: Vec<String> = domains.keys().cloned().collect();
        let mixture = self.mixture(options.mixture.unwrap_or_default(), &names);
        let objective = self.objective(options.objective.unwrap_or_default());
        let queues = options.queues.unwrap_or_default();
        let evaluation = options.evaluation.unwrap_or_default();
        let checkpoint = options.checkpoint.unwrap_or_default();
        let telemetry = self.telemetry(options.telemetry.unwrap_or_default());
        let log = options.log.unwrap_or_default();
        let queues = self.within("queues.depth", queues.depth, 0..=8, "0 to 8");
        let batch_rows = self.within(
            "evaluation.batch_rows",
            evaluation.batch_rows,
            1..,
            "1 or more",
        );
        let evaluation_every =
            self.optional("evaluation.every", evaluation.every, 1.., "1 or more");
        let every = self.within("checkpoint.every", checkpoint.every, 1.., "1 or more");
        let keep = self.within("checkpoint.keep", checkpoint.keep, 1.., "1 or more");
        let keep_every = self.optional(
            "checkpoint.keep_every",
            checkpoint.keep_every,
            1..,
            "1 or more",
        );
        let keep_best = self.need("checkpoint.keep_best", checkpoint.keep_best);
        let guard = self.guard(options.guard.unwrap_or_default());
        let faults = options.faults.unwrap_or_default().plan.unwrap_or_default();
        let line_seconds = self.not_negative("log.line_seconds", log.line_seconds);
        let run = run?;
        let mixture = mixture?;
        if !mixture.policy.measures_perplexities() && evaluation_every.is_none() {
            self.nothing_measured("run.stop_ratio", run.stop_ratio.is_some(), &mixture);
            self.nothing_measured("checkpoint.keep_best", keep_best == Some(true), &mixture);
        }
        let seed = run.seed;
        let pretrain = options
            .pretrain
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, model)| {
                let checked = self.pretrain(&name, model, seed, &names)?;
                Some((name, checked))
            })
            .collect();
        Some(Settings {
            method: options.method,
            run,
            corpus: corpus?,
            domains,
            teacher: teacher?,
            student: student?,
            batch: batch?,
            mixture,
            objective: objective?,
            queues: Queues { depth: queues? },
            evaluation: Evaluation {
                every: evaluation_every,
                batch_rows: batch_rows?,
            },
            checkpoint: Checkpoint {
                every: every?,
                keep: keep?,
                keep_every,
                keep_best: keep_best?,
            },
            guard: guard?,
            faults: Faults { plan: faults },
            telemetry: telemetry?,
            log: Log {
                line_seconds: line_seconds?,
            },
            pretrain,
        })
    }

    fn run(&mut self, run: crate::options::RunOptions) -> Option<Run> {
        if let Some(name) = &run.name {
            let plain =
                |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                self.problem(
                    "run.name",
                    format!("`run.name` is \"{name}\", expected letters, digits, `.`, `_` and `-`"),
                );
            }
        }
        let max_steps = self.optional("run.max_steps", run.max_steps, 1.., "1 or more");
        let max_intervals = self.optional("run.max_intervals", run.max_intervals, 1.., "1 or more");
        let max_tokens = self.optional("run.max_tokens", run.max_tokens, 1.., "1 or more");
        let stop_ratio = self.optional("run.stop_ratio", run.stop_ratio, 1.0.., "1 or more");
        Some(Run {
            name: run.name,
            folder: self.need("run.folder", run.folder)?,
            seed: self.need("run.seed", run.seed)?,
            max_steps,
            max_intervals,
            max_tokens,
            stop_ratio,
            trace: self.need("run.trace", run.trace)?,
            take_turns: self.need("run.take_turns", run.take_turns)?,
            threads: self.need("run.threads", run.threads)?,
        })
    }

    fn corpus(&mut self, corpus: crate::options::CorpusOptions) -> Option<Corpus> {
        let length = self.within(
            "corpus.sequence_length",
            corpus.sequence_length,
            2..,
            "2 or more",
        );
        let share = self.within(
            "corpus.validation_share",
            corpus.validation_share,
            0.0..1.0,
            "0 or more and under 1",
        );
        let documents = self.within(
            "corpus.validation_documents",
            corpus.validation_documents,
            1..,
            "1 or more",
        );
        let bad = self.within(
            "corpus.max_bad_share",
            corpus.max_bad_share,
            0.0..=1.0,
            "0 to 1",
        );
        Some(Corpus {
            folder: self.need("corpus.folder", corpus.folder)?,
            tokenizer: corpus.tokenizer,
            end_token: corpus.end_token,
            sequence_length: length?,
            packing: self.need("corpus.packing", corpus.packing)?,
            when_stale: self.need("corpus.when_stale", corpus.when_stale)?,
            validation_by: self.need("corpus.validation_by", corpus.validation_by)?,
            validation_share: share?,
            validation_documents: documents?,
            max_bad_share: bad?,
        })
    }

    fn domain(&mut self, name: &str, domain: DomainOptions) -> Option<Domain> {
        let key = format!("domains.{name}");
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            self.problem(&key, format!("\"{name}\" is no name for a domain: it becomes a folder, so no `/` and no `.` at its start"));
        }
        let files = self.need(&format!("{key}.files"), domain.files)?;
        if files.is_empty() {
            self.problem(
                &format!("{key}.files"),
                format!("`{key}.files` is empty, expected at least one file, folder or glob"),
            );
        }
        let text = match (domain.text, domain.text_field) {
            (Some(_), Some(_)) => {
                self.problem(
                    &format!("{key}.text"),
                    format!("`{key}.text` and `{key}.text_field` are both set: one is enough"),
                );
                None
            }
            (Some(template), None) => Some(template),
            (None, field) => Some(format!("{{{}}}", field.as_deref().unwrap_or("text"))),
        };
        if domain.domain_value.is_some() && domain.domain_field.is_none() {
            self.problem(
                &format!("{key}.domain_value"),
                format!("`{key}.domain_value` is set without `{key}.domain_field`"),
            );
        }
        let mut at_least_one =
            |field: &str, value| self.optional(&format!("{key}.{field}"), value, 1.., "1 or more");
        Some(Domain {
            domain_value: domain
                .domain_value
                .or_else(|| domain.domain_field.as_ref().map(|_| name.to_owned())),
            domain_field: domain.domain_field,
            files,
            validation_files: domain.validation_files.unwrap_or_default(),
            text: text?,
            prompt: domain.prompt,
            max_bytes: at_least_one("max_bytes", domain.max_bytes),
            max_documents: at_least_one("max_documents", domain.max_documents),
            max_tokens: at_least_one("max_tokens", domain.max_tokens),
            min_document_bytes: at_least_one("min_document_bytes", domain.min_document_bytes)
                .unwrap_or(1),
            max_document_bytes: at_least_one("max_document_bytes", domain.max_document_bytes)
                .unwrap_or(64 << 20),
        })
    }

    fn teacher(&mut self, teacher: crate::options::TeacherOptions) -> Option<Teacher> {
        let devices = self.need("teacher.devices", teacher.devices);
        for device in devices.iter().flatten() {
            self.device("teacher.devices", Some(device.clone()));
        }
        if devices.as_ref().is_some_and(Vec::is_empty) {
            self.problem(
                "teacher.devices",
                "`teacher.devices` is empty, expected at least one device".to_owned(),
            );
        }
        let threads = self.within("teacher.threads", teacher.threads, 1..=1024, "1 to 1024");
        let lanes = self.within("teacher.lanes", teacher.lanes, 1..=64, "1 to 64");
        Some(Teacher {
            model: teacher.model,
            devices: devices?,
            dtype: self.need("teacher.dtype", teacher.dtype)?,
            threads: threads?,
            lanes: lanes?,
        })
    }

    fn student(&mut self, student: crate::options::StudentOptions) -> Option<Student> {
        let device = self.device("student.device", student.device);
        let threads = self.within("student.threads", student.threads, 1..=1024, "1 to 1024");
        let lr = self.positive("student.lr", student.lr);
        let lr_end = self.not_negative("student.lr_end", student.lr_end);
        let weight_decay = self.not_negative("student.weight_decay", student.weight_decay);
        let beta1 = self.within(
            "student.beta1",
            student.beta1,
            0.0..1.0,
            "0 or more and under 1",
        );
        let beta2 = self.within(
            "student.beta2",
            student.beta2,
            0.0..1.0,
            "0 or more and under 1",
        );
        let epsilon = self.positive("student.epsilon", student.epsilon);
        let clip_norm = self.positive("student.clip_norm", student.clip_norm);
        Some(Student {
            model: student.model,
            device: device?,
            dtype: self.need("student.dtype", student.dtype)?,
            recompute: self.need("student.recompute", student.recompute)?,
            threads: threads?,
            lr: lr?,
            lr_end: lr_end?,
            warmup_steps: self.need("student.warmup_steps", student.warmup_steps)?,
            weight_decay: weight_decay?,
            beta1: beta1?,
            beta2: beta2?,
            epsilon: epsilon?,
            clip_norm: clip_norm?,
        })
    }

    /// `rows` and `micro_rows` of a table.
    fn batch(&mut self, table: &str, batch: crate::options::BatchOptions) -> Option<Batch> {
        let rows = self.within(&format!("{table}.rows"), batch.rows, 1.., "1 or more")?;
        let key = format!("{table}.micro_rows");
        let micro_rows = self.within(&key, batch.micro_rows, 1.., "1 or more")?;
        if micro_rows > 0 && rows % micro_rows != 0 {
            self.problem(
                &key,
                format!("`{key}` is {micro_rows}, expected a divisor of `{table}.rows` = {rows}"),
            );
        }
        Some(Batch { rows, micro_rows })
    }

    /// What goes by perplexities over the run needs a mixture that has them measured.
    fn nothing_measured(&mut self, key: &str, is_set: bool, mixture: &Mixture) {
        if is_set {
            let policy = mixture.policy.name();
            self.problem(
                key,
                format!("`{key}` goes by perplexities during the run, and `mixture.policy` = \"{policy}\" has none measured: set `evaluation.every`"),
            );
        }
    }

    fn mixture(
        &mut self,
        mixture: crate::options::MixtureOptions,
        domains: &[String],
    ) -> Option<Mixture> {
        let policy = self.need("mixture.policy", mixture.policy);
        let alpha = self.within("mixture.alpha", mixture.alpha, 0.0..=1.0, "0 to 1");
        let interval = self.within("mixture.interval", mixture.interval, 1.., "1 or more");
        let lag = self.within("mixture.lag", mixture.lag, 0..=1, "0 or 1");
        if let (Some(1), Some(policy)) = (lag, policy.filter(|policy| policy.moves_every_step())) {
            let policy = policy.name();
            self.problem(
                "mixture.lag",
                format!("`mixture.lag` is 1, and `mixture.policy` = \"{policy}\" updates every step: it cannot run ahead of what it follows; set `mixture.lag` = 0"),
            );
        }
        let odm_smoothing = self.within(
            "mixture.odm_smoothing",
            mixture.odm_smoothing,
            0.0..1.0,
            "0 or more and under 1",
        );
        let doremi_eta = self.positive("mixture.doremi_eta", mixture.doremi_eta);
        let doremi_smoothing = self.within(
            "mixture.doremi_smoothing",
            mixture.doremi_smoothing,
            0.0..=1.0,
            "0 to 1",
        );
        if let Some(shares) = &mixture.shares {
            self.shares("mixture.shares", shares, domains);
        } else if policy == Some(MixturePolicy::Static) {
            self.problem(
                "mixture.policy",
                "`mixture.policy` is \"static\", and `mixture.shares` is missing: it says what to draw by".to_owned(),
            );
        }
        let reference_loss = mixture.reference_loss.unwrap_or_default();
        for (name, loss) in &reference_loss {
            let key = format!("mixture.reference_loss.{name}");
            self.not_negative(&key, Some(*loss));
            self.known_domain("mixture.reference_loss", name, domains);
        }
        Some(Mixture {
            policy: policy?,
            max_passes: self.optional("mixture.max_passes", mixture.max_passes, 1.0.., "1 or more"),
            alpha: alpha?,
            interval: interval?,
            lag: lag?,
            first: self.need("mixture.first", mixture.first)?,
            odm_smoothing: odm_smoothing?,
            doremi_model: mixture.doremi_model,
            doremi_steps: self.optional(
                "mixture.doremi_steps",
                mixture.doremi_steps,
                1..,
                "1 or more",
            ),
            doremi_eta: doremi_eta?,
            doremi_smoothing: doremi_smoothing?,
            shares: mixture.shares,
            reference_loss,
        })
    }

    fn objective(&mut self, objective: crate::options::ObjectiveOptions) -> Option<Objective> {
        let gamma = self.not_negative("objective.gamma", objective.gamma);
        let temperature = self.positive("objective.temperature", objective.temperature);
        let (beta, skew) = (objective.beta, objective.skew);
        if beta.is_some_and(|beta| !(beta > 0.0 && beta < 1.0)) {
            let text = format!(
                "`objective.beta` is {}, expected over 0 and under 1 (at both ends the divergence is 0 everywhere)",
                beta.unwrap_or_default()
            );
            self.problem("objective.beta", text);
        }
        let skew = self.within("objective.skew", skew, 0.0..1.0, "0 or more and under 1");
        let ted_weight = self.positive("objective.ted_weight", objective.ted_weight);
        let ted_steps = self.within("objective.ted_steps", objective.ted_steps, 1.., "1 or more");
        let ted_lr = self.positive("objective.ted_lr", objective.ted_lr);
        if let Some(pairs) = &objective.ted_layers {
            let twice = |index: usize| pairs[..index].contains(&pairs[index]);
            if pairs.is_empty() || pairs.iter().flatten().any(|layer| *layer == 0) {
                self.problem(
                    "objective.ted_layers",
                    format!("`objective.ted_layers` is {pairs:?}, expected at least one pair of layers counted from 1, such as [[2, 4]]"),
                );
            } else if let Some(index) = (0..pairs.len()).find(|index| twice(*index)) {
                self.problem(
                    "objective.ted_layers",
                    format!("`objective.ted_layers` holds {:?} twice", pairs[index]),
                );
            }
        }
        Some(Objective {
            name: self.need("objective.name", objective.name)?,
            chunk: self.optional("objective.chunk", objective.chunk, 1.., "1 or more"),
            gamma: gamma?,
            temperature: temperature?,
            beta: self.need("objective.beta", beta)?,
            skew: skew?,
            mask_prompt: self.need("objective.mask_prompt", objective.mask_prompt)?,
            temperature_squared: self.need(
                "objective.temperature_squared",
                objective.temperature_squared,
            )?,
            ted_weight: ted_weight?,
            ted_steps: ted_steps?,
            ted_lr: ted_lr?,
            ted_layers: objective.ted_layers,
        })
    }

    fn guard(&mut self, guard: crate::options::GuardOptions) -> Option<Guard> {
        let max_skipped = self.within("guard.max_skipped", guard.max_skipped, 1.., "1 or more");
        let sigmas = self.positive("guard.spike_sigmas", guard.spike_sigmas);
        let window = self.within("guard.spike_window", guard.spike_window, 2.., "2 or more");
        let from = self.within("guard.spike_from", guard.spike_from, 2.., "2 or more");
        let grace = self.positive("guard.grace_seconds", guard.grace_seconds);
        let compute_limit =
            self.positive("guard.compute_limit_seconds", guard.compute_limit_seconds);
        Some(Guard {
            max_skipped: max_skipped?,
            max_rollbacks: self.need("guard.max_rollbacks", guard.max_rollbacks)?,
            spike: self.need("guard.spike", guard.spike)?,
            spike_sigmas: sigmas?,
            spike_window: window?,
            spike_from: from?,
            grace_seconds: grace?,
            compute_limit_seconds: compute_limit?,
        })
    }

    fn telemetry(&mut self, telemetry: crate::options::TelemetryOptions) -> Option<Telemetry> {
        let address = self.need("telemetry.address", telemetry.address)?;
        match address.parse::<SocketAddr>() {
            Ok(parsed) if parsed.ip().is_loopback() || telemetry.token.is_some() => {}
            Ok(_) => self.problem(
                "telemetry.address",
                format!("`telemetry.address` is \"{address}\", which other machines reach: that needs a `telemetry.token` (best DDK__TELEMETRY__TOKEN in the environment)"),
            ),
            Err(_) => self.problem(
                "telemetry.address",
                format!("`telemetry.address` is \"{address}\", expected an address and a port such as \"127.0.0.1:9469\""),
            ),
        }
        let prom = |file: &std::path::PathBuf| file.extension().is_some_and(|end| end == "prom");
        if let Some(file) = telemetry.file.as_ref().filter(|file| !prom(file)) {
            self.problem(
                "telemetry.file",
                format!(
                    "`telemetry.file` is \"{}\", expected a name that ends in `.prom`: the node exporter reads no other",
                    file.display()
                ),
            );
        }
        if telemetry
            .token
            .as_ref()
            .is_some_and(|token| !token.is_usable())
        {
            self.problem(
                "telemetry.token",
                "`telemetry.token` is not usable, expected 16 characters or more, of letters, digits, `-`, `.`, `_` and `~`".to_owned(),
            );
        }
        Some(Telemetry {
            file: telemetry.file,
            enabled: self.need("telemetry.enabled", telemetry.enabled)?,
            address,
            token: telemetry.token,
            required: self.need("telemetry.required", telemetry.required)?,
        })
    }

    fn pretrain(
        &mut self,
        name: &str,
        model: PretrainOptions,
        run_seed: u64,
        domains: &[String],
    ) -> Option<Pretrain> {
        let table = format!("pretrain.{name}");
        let key = |field: &str| format!("{table}.{field}");
        let steps = self.within(&key("steps"), model.steps, 1.., "1 or more");
        let batch = self.batch(
            &table,
            crate::options::BatchOptions {
                rows: model.rows.or(Some(16)),
                micro_rows: model.micro_rows.or(Some(8)),
            },
        );
        let lr = self.positive(&key("lr"), model.lr.or(Some(1e-3)))?;
        let lr_end = self.not_negative(&key("lr_end"), model.lr_end.or(Some(lr / 10.0)));
        let weight_decay =
            self.not_negative(&key("weight_decay"), model.weight_decay.or(Some(0.1)));
        let device = self.device(
            &key("device"),
            model.device.or_else(|| Some("cpu".to_owned())),
        );
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.within(
            &key("threads"),
            model.threads.or(Some(cores)),
            1..=1024,
            "1 to 1024",
        );
        if let Some(shares) = &model.shares {
            self.shares(&key("shares"), shares, domains);
        }
        let architecture = match model.architecture {
            Some(shape) => Some(self.shape(&key("architecture"), shape)?),
            None => None,
        };
        if architecture.is_some() == model.init.is_some() {
            self.problem(&table, format!("`{table}` needs either `init` (a model's folder) or `architecture` (a new model)"));
        }
        let steps = steps?;
        Some(Pretrain {
            out: self.need(&key("out"), model.out)?,
            init: model.init,
            architecture,
            steps,
            rows: batch.as_ref()?.rows,
            micro_rows: batch?.micro_rows,
            lr,
            lr_end: lr_end?,
            warmup_steps: model.warmup_steps.unwrap_or(steps / 20),
            weight_decay: weight_decay?,
            device: device?,
            threads: threads?,
            shares: model.shares,
            seed: model.seed.unwrap_or(run_seed),
        })
    }

    fn shares(&mut self, key: &str, shares: &BTreeMap<String, f64>, domains: &[String]) {
        let sum: f64 = shares.values().sum();
        if shares
            .values()
            .any(|share| !(share.is_finite() && *share >= 0.0))
            || sum <= 0.0
        {
            self.problem(
                key,
                format!("`{key}` holds {shares:?}, expected numbers of 0 or more, not all 0"),
            );
        }
        for name in shares.keys() {
            self.known_domain(key, name, domains);
        }
    }

    /// A domain that a table names has to be there.
    fn known_domain(&mut self, table: &str, name: &String, domains: &[String]) {
        if !domains.contains(name) {
            let known = domains.join(", ");
            self.problem(
                &format!("{table}.{name}"),
                format!(
                    "`{table}` names the domain \"{name}\", which there is not (there are: {known})"
                ),
            );
        }
    }

    fn shape(&mut self, table: &str, shape: crate::options::ShapeOptions) -> Option<Shape> {
        let mut size =
            |field: &str, value| self.within(&format!("{table}.{field}"), value, 1.., "1 or more");
        let hidden_size = size("hidden_size", shape.hidden_size);
        let intermediate_size = size("intermediate_size", shape.intermediate_size);
        let layers = size("layers", shape.layers);
        let heads = size("heads", shape.heads)?;
        let kv_heads = size("kv_heads", shape.kv_heads.or(Some(heads)))?;
        let rope_theta = self.positive(
            &format!("{table}.rope_theta"),
            shape.rope_theta.or(Some(10_000.0)),
        );
        let hidden_size = hidden_size?;
        if heads < 1 || kv_heads < 1 || hidden_size % heads != 0 || (hidden_size / heads) % 2 != 0 {
            self.problem(&format!("{table}.heads"), format!("`{table}.heads` is {heads}: hidden_size {hidden_size} must be an even multiple of it"));
        } else if heads % kv_heads != 0 {
            self.problem(
                &format!("{table}.kv_heads"),
                format!("`{table}.kv_heads` is {kv_heads}, expected a divisor of heads = {heads}"),
            );
        }
        Some(Shape {
            hidden_size,
            intermediate_size: intermediate_size?,
            layers: layers?,
            heads,
            kv_heads,
            tie: shape.tie.unwrap_or(false),
            rope_theta: rope_theta?,
        })
    }
}
