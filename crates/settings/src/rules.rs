//! What no key says alone: ranges, defaults that follow from other keys, and rules between keys.

use std::{collections::BTreeMap, net::SocketAddr, thread::available_parallelism};

use crate::{
    Domain, ExportedStudent, LARGE, MANY, MixturePolicy, Origins, Pretrain, Settings, Shape,
    error::{Error, Problem},
};

/// Fills in what follows from other keys, and gathers all mistakes.
pub(crate) fn check(settings: &mut Settings, origins: &Origins) -> Result<(), Error> {
    let mut checker = Checker {
        origins,
        problems: Vec::new(),
    };
    checker.ranges(settings)?;
    checker.run(settings);
    for (name, domain) in &mut settings.domains {
        checker.domain(name, domain);
    }
    checker.models(settings);
    checker.mixture(settings);
    let domains: Vec<String> = settings.domains.keys().cloned().collect();
    for (name, model) in &mut settings.pretrain {
        checker.pretrain(name, model, settings.run.seed, &domains);
    }
    if checker.problems.is_empty() {
        Ok(())
    } else {
        Err(Error(checker.problems))
    }
}

struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn problem(&mut self, key: &str, message: String) {
        self.problems.push(Problem {
            place: self.origins.of(key).to_owned(),
            message,
            suggestion: None,
        });
    }

    /// Each value by its key's own bounds. A default that is out of them has to be written.
    fn ranges(&mut self, settings: &Settings) -> Result<(), Error> {
        for value in settings.values()? {
            let (path, table) = (&value.path, value.path.rsplit_once('.'));
            if value.key.accepts(&value.value) {
                continue;
            }
            if self.origins.has(path) {
                let shown = match &value.value {
                    toml::Value::Float(number) => number.to_string(),
                    other => other.to_string(),
                };
                let expected = value.key.expected();
                self.problem(path, format!("`{path}` is {shown}, expected {expected}"));
            } else if let Some((table, _)) = table {
                self.problem(table, format!("`{path}` is missing"));
            }
        }
        Ok(())
    }

    fn run(&mut self, settings: &Settings) {
        let (run, guard, telemetry) = (&settings.run, &settings.guard, &settings.telemetry);
        if let Some(name) = &run.name {
            let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                self.problem(
                    "run.name",
                    format!("`run.name` is \"{name}\", expected letters, digits, `.`, `_` and `-`"),
                );
            }
        }
        let (window, from) = (guard.spike_window, guard.spike_from);
        if window < from {
            self.problem(
                "guard.spike_window",
                format!("`guard.spike_window` is {window}, expected at least `guard.spike_from`, {from}: \
                         nothing would ever be a spike"),
            );
        }
        let address = &telemetry.address;
        match address.parse::<SocketAddr>() {
            Ok(parsed) if parsed.ip().is_loopback() || telemetry.token.is_some() => {}
            Ok(_) => self.problem(
                "telemetry.address",
                format!("`telemetry.address` is \"{address}\", which other machines reach: that needs a \
                         `telemetry.token` (best DDK__TELEMETRY__TOKEN in the environment)"),
            ),
            Err(_) => self.problem(
                "telemetry.address",
                format!("`telemetry.address` is \"{address}\", expected an address and a port such as \
                         \"127.0.0.1:9469\""),
            ),
        }
        let file = telemetry.file.as_ref();
        if let Some(file) = file.filter(|file| file.extension().is_none_or(|end| end != "prom")) {
            self.problem(
                "telemetry.file",
                format!("`telemetry.file` is \"{}\", expected a name that ends in `.prom`: the node exporter \
                         reads no other", file.display()),
            );
        }
        if telemetry
            .token
            .as_ref()
            .is_some_and(|token| !token.is_usable())
        {
            self.problem(
                "telemetry.token",
                "`telemetry.token` is not usable, expected 16 characters or more, of letters, digits, `-`, `.`, \
                 `_` and `~`".to_owned(),
            );
        }
    }

    fn domain(&mut self, name: &str, domain: &mut Domain) {
        let key = |field: &str| format!("domains.{name}.{field}");
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            self.problem(
                &format!("domains.{name}"),
                format!("\"{name}\" is no name for a domain: it becomes a folder, so no `/` and no `.` at its start"),
            );
        }
        let (text, field) = (key("text"), key("text_field"));
        if let Some(name) = domain.text_field.take() {
            if self.origins.has(&text) {
                self.problem(
                    &text,
                    format!("`{text}` and `{field}` are both set: one is enough"),
                );
            }
            domain.text = format!("{{{name}}}");
        }
        let (value, field) = (key("domain_value"), key("domain_field"));
        if domain.domain_field.is_some() {
            domain.domain_value.get_or_insert_with(|| name.to_owned());
        } else if domain.domain_value.is_some() {
            self.problem(&value, format!("`{value}` is set without `{field}`"));
        }
    }

    fn models(&mut self, settings: &Settings) {
        for device in settings.teacher.every_device() {
            self.device("teacher.devices", device);
        }
        self.device("student.device", &settings.student.device);
        self.micro_rows("batch", settings.batch.rows, settings.batch.micro_rows);
        let pairs = settings.objective.ted_layers.as_deref().unwrap_or_default();
        let twice = |index: &usize| pairs[..*index].contains(&pairs[*index]);
        let message = if pairs.iter().flatten().any(|layer| *layer == 0) {
            format!(
                "is {pairs:?}, expected at least one pair of layers counted from 1, such as [[2, 4]]"
            )
        } else if let Some(index) = (0..pairs.len()).find(twice) {
            format!("holds {:?} twice", pairs[index])
        } else {
            return;
        };
        let key = "objective.ted_layers";
        self.problem(key, format!("`{key}` {message}"));
    }

    fn device(&mut self, key: &str, device: &str) {
        let number = device.strip_prefix("cuda:").map(str::parse::<usize>);
        if device != "cpu" && !matches!(number, Some(Ok(_))) {
            self.problem(
                key,
                format!("`{key}` is \"{device}\", expected \"cpu\" or \"cuda:0\", \"cuda:1\", …"),
            );
        }
    }

    fn micro_rows(&mut self, table: &str, rows: u64, micro_rows: u64) {
        if micro_rows > 0 && !rows.is_multiple_of(micro_rows) {
            let key = format!("{table}.micro_rows");
            let expected = format!("expected a divisor of `{table}.rows` = {rows}");
            self.problem(&key, format!("`{key}` is {micro_rows}, {expected}"));
        }
    }

    fn mixture(&mut self, settings: &Settings) {
        let (mixture, policy) = (&settings.mixture, settings.mixture.policy);
        let domains: Vec<String> = settings.domains.keys().cloned().collect();
        if mixture.lag == 1 && policy.moves_every_step() {
            self.problem(
                "mixture.lag",
                format!("`mixture.lag` is 1, and `mixture.policy` = \"{policy}\" updates every step: it cannot \
                         run ahead of what it follows; set `mixture.lag` = 0"),
            );
        }
        if mixture.shares.is_none() && policy == MixturePolicy::Static {
            self.problem(
                "mixture.policy",
                "`mixture.policy` is \"static\", and `mixture.shares` is missing: it says what to draw by".to_owned(),
            );
        }
        self.shares("mixture.shares", mixture.shares.as_ref(), &domains);
        self.known_domains("mixture.reference_loss", &mixture.reference_loss, &domains);
        let (interval, step_rows) = (mixture.interval, settings.batch.rows);
        let rows = interval.saturating_mul(step_rows);
        let held = !policy.moves_every_step();
        if held && rows > MANY && step_rows <= LARGE && interval <= LARGE {
            self.problem(
                "mixture.interval",
                format!(
                    "`mixture.interval` times `batch.rows` is {rows}, expected {MANY} at most: an \
                     interval's order is held in memory"
                ),
            );
        }
        // What goes by perplexities over the run needs a mixture that has them measured.
        let by_perplexities = [
            ("run.stop_ratio", settings.run.stop_ratio.is_some()),
            ("checkpoint.keep_best", settings.checkpoint.keep_best),
            ("run.export", settings.run.export == ExportedStudent::Best),
        ];
        let measured = policy.measures_perplexities() || settings.evaluation.every.is_some();
        for (key, _) in by_perplexities
            .iter()
            .filter(|(_, is_set)| *is_set && !measured)
        {
            self.problem(
                key,
                format!("`{key}` goes by perplexities during the run, and `mixture.policy` = \"{policy}\" has \
                         none measured: set `evaluation.every`"),
            );
        }
    }

    fn shares(&mut self, key: &str, shares: Option<&BTreeMap<String, f64>>, domains: &[String]) {
        let Some(shares) = shares else { return };
        if shares.values().all(|share| *share <= 0.0) {
            self.problem(
                key,
                format!("`{key}` holds {shares:?}, expected numbers, not all 0"),
            );
        }
        self.known_domains(key, shares, domains);
    }

    /// A domain that a table names has to be there.
    fn known_domains(&mut self, table: &str, of: &BTreeMap<String, f64>, domains: &[String]) {
        for name in of.keys().filter(|name| !domains.contains(name)) {
            let known = domains.join(", ");
            self.problem(
                &format!("{table}.{name}"),
                format!(
                    "`{table}` names the domain \"{name}\", which there is not (there are: {known})"
                ),
            );
        }
    }

    fn pretrain(&mut self, name: &str, model: &mut Pretrain, run_seed: u64, domains: &[String]) {
        let table = format!("pretrain.{name}");
        let origins = self.origins;
        let absent = |field: &str| !origins.has(&format!("{table}.{field}"));
        if absent("lr_end") {
            model.lr_end = model.lr / 10.0;
        }
        if absent("warmup_steps") {
            model.warmup_steps = model.steps / 20;
        }
        if absent("threads") {
            model.threads = available_parallelism().map_or(1, |cores| cores.get().min(256));
        }
        if absent("seed") {
            model.seed = run_seed;
        }
        if let Some(shape) = &mut model.architecture {
            if absent("architecture.kv_heads") {
                shape.kv_heads = shape.heads;
            }
            self.shape(&format!("{table}.architecture"), shape);
        }
        self.micro_rows(&table, model.rows, model.micro_rows);
        self.device(&format!("{table}.device"), &model.device);
        self.shares(&format!("{table}.shares"), model.shares.as_ref(), domains);
        if model.architecture.is_some() == model.init.is_some() {
            self.problem(
                &table,
                format!("`{table}` needs either `init` (a model's folder) or `architecture` (a new model)"),
            );
        }
    }

    fn shape(&mut self, table: &str, shape: &Shape) {
        let Shape {
            hidden_size,
            heads,
            kv_heads,
            ..
        } = *shape;
        if hidden_size < 1 || heads < 1 || kv_heads < 1 {
            // Said already.
        } else if hidden_size % heads != 0 || (hidden_size / heads) % 2 != 0 {
            self.problem(
                &format!("{table}.heads"),
                format!("`{table}.heads` is {heads}: hidden_size {hidden_size} must be an even multiple of it"),
            );
        } else if heads % kv_heads != 0 {
            self.problem(
                &format!("{table}.kv_heads"),
                format!("`{table}.kv_heads` is {kv_heads}, expected a divisor of heads = {heads}"),
            );
        }
    }
}
