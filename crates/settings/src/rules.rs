//! Checks ranges and rules between keys, and derives defaults from other keys.

use std::{collections::BTreeMap, net::SocketAddr, thread::available_parallelism};

use ddk_mixture::MixturePolicy;

use crate::{
    Domain, ExportedStudent, Origins, Pretrain, Settings, Shape,
    error::{Error, Problem},
    limits::{LARGE, MANY},
};

/// Fills in derived defaults and collects all mistakes.
pub(crate) fn check(settings: &mut Settings, origins: &Origins) -> Result<(), Error> {
    let problems = Vec::new();
    let mut checker = Checker { origins, problems };
    checker.ranges(settings)?;
    checker.run(settings);
    for (name, domain) in &mut settings.domains {
        checker.domain(name, domain);
    }
    checker.models(settings);
    let domains: Vec<String> = settings.domains.keys().cloned().collect();
    checker.mixture(settings, &domains);
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
    fn refuse(&mut self, wrong: bool, key: &str, message: impl FnOnce() -> String) {
        if wrong {
            let place = self.origins.of(key).to_owned();
            let (message, suggestion) = (message(), None);
            self.problems.push(Problem {
                place,
                message,
                suggestion,
            });
        }
    }

    /// Checks each value against the bounds of its key. A key whose default is out of bounds is required.
    fn ranges(&mut self, settings: &Settings) -> Result<(), Error> {
        for value in settings.values()? {
            let path = &value.path;
            let wrong = !value.key.accepts(&value.value);
            let written = self.origins.has(path);
            self.refuse(wrong && written, path, || {
                let shown = match &value.value {
                    toml::Value::Float(number) => number.to_string(),
                    other => other.to_string(),
                };
                let expected = value.key.expected();
                format!("`{path}` is {shown}, expected {expected}")
            });
            let table = path.rsplit_once('.').map_or("", |(table, _)| table);
            self.refuse(wrong && !written, table, || format!("`{path}` is missing"));
        }
        Ok(())
    }

    fn run(&mut self, settings: &Settings) {
        let (run, guard, telemetry) = (&settings.run, &settings.guard, &settings.telemetry);
        let name = run.name.as_deref().unwrap_or("unnamed");
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let wrong = name.is_empty() || name.starts_with('.') || !name.chars().all(plain);
        self.refuse(wrong, "run.name", || {
            format!("`run.name` is \"{name}\", expected letters, digits, `.`, `_` and `-`")
        });
        let (window, from) = (guard.spike_window, guard.spike_from);
        self.refuse(window < from, "guard.spike_window", || {
            format!(
                "`guard.spike_window` is {window}, expected at least `guard.spike_from`, {from}: \
                 nothing would ever be a spike"
            )
        });
        let (address, token) = (&telemetry.address, telemetry.token.as_ref());
        let parsed = address.parse::<SocketAddr>();
        self.refuse(parsed.is_err(), "telemetry.address", || {
            format!(
                "`telemetry.address` is \"{address}\", expected an address and a port such as \"127.0.0.1:9469\""
            )
        });
        let reached = parsed.is_ok_and(|parsed| !parsed.ip().is_loopback());
        self.refuse(reached && token.is_none(), "telemetry.address", || {
            format!(
                "`telemetry.address` is \"{address}\", which other machines reach: that needs a `telemetry.token` \
                 (best DDK__TELEMETRY__TOKEN in the environment)"
            )
        });
        let unusable = token.is_some_and(|token| !token.is_usable());
        self.refuse(unusable, "telemetry.token", || {
            "`telemetry.token` is not usable, expected 16 characters or more, \
             of letters, digits, `-`, `.`, `_` and `~`"
                .to_owned()
        });
        let file = telemetry.file.clone().unwrap_or_else(|| "a.prom".into());
        let is_prom = file.extension().is_some_and(|end| end == "prom");
        self.refuse(!is_prom, "telemetry.file", || {
            format!(
                "`telemetry.file` is \"{}\", expected a name that ends in `.prom`: the node exporter reads no other",
                file.display()
            )
        });
    }

    fn domain(&mut self, name: &str, domain: &mut Domain) {
        let key = |field: &str| format!("domains.{name}.{field}");
        let wrong = name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']);
        self.refuse(wrong, &format!("domains.{name}"), || {
            format!("\"{name}\" is no name for a domain: it becomes a folder, so no `/` and no `.` at its start")
        });
        let (text, field) = (key("text"), key("text_field"));
        if let Some(name) = domain.text_field.take() {
            domain.text = format!("{{{name}}}");
            self.refuse(self.origins.has(&text), &text, || {
                format!("`{text}` and `{field}` are both set: one is enough")
            });
        }
        let (value, field) = (key("domain_value"), key("domain_field"));
        if domain.domain_field.is_some() {
            domain.domain_value.get_or_insert_with(|| name.to_owned());
        }
        let alone = domain.domain_value.is_some() && domain.domain_field.is_none();
        self.refuse(alone, &value, || {
            format!("`{value}` is set without `{field}`")
        });
    }

    fn models(&mut self, settings: &Settings) {
        for device in settings.teacher.every_device() {
            self.device("teacher.devices", device);
        }
        self.device("student.device", &settings.student.device);
        self.micro_rows("batch", settings.batch.rows, settings.batch.micro_rows);
        let key = "objective.ted_layers";
        let pairs = settings.objective.ted_layers.as_deref().unwrap_or_default();
        let zero = pairs.iter().flatten().any(|layer| *layer == 0);
        self.refuse(zero, key, || {
            format!(
                "`{key}` is {pairs:?}, expected at least one pair of layers counted from 1, such as [[2, 4]]"
            )
        });
        let mut indices = 0..pairs.len();
        if let Some(index) = indices.find(|index| pairs[..*index].contains(&pairs[*index])) {
            self.refuse(!zero, key, || {
                format!("`{key}` holds {:?} twice", pairs[index])
            });
        }
    }

    fn device(&mut self, key: &str, device: &str) {
        let number = device.strip_prefix("cuda:").map(str::parse::<usize>);
        let is_one = device == "cpu" || matches!(number, Some(Ok(_)));
        self.refuse(!is_one, key, || {
            format!("`{key}` is \"{device}\", expected \"cpu\" or \"cuda:0\", \"cuda:1\", …")
        });
    }

    fn micro_rows(&mut self, table: &str, rows: u64, micro_rows: u64) {
        let key = format!("{table}.micro_rows");
        let divides = micro_rows == 0 || rows.is_multiple_of(micro_rows);
        self.refuse(!divides, &key, || {
            format!("`{key}` is {micro_rows}, expected a divisor of `{table}.rows` = {rows}")
        });
    }

    fn mixture(&mut self, settings: &Settings, domains: &[String]) {
        let (mixture, policy) = (&settings.mixture, settings.mixture.policy);
        let follows = policy.moves_every_step();
        self.refuse(mixture.lag == 1 && follows, "mixture.lag", || {
            format!(
                "`mixture.lag` is 1, and `mixture.policy` = \"{policy}\" updates every step: \
                 it cannot run ahead of what it follows; set `mixture.lag` = 0"
            )
        });
        let shares = mixture.shares.as_ref();
        let none = shares.is_none() && policy == MixturePolicy::Static;
        self.refuse(none, "mixture.policy", || {
            "`mixture.policy` is \"static\", and `mixture.shares` is missing: it says what to draw by"
                .to_owned()
        });
        self.shares("mixture.shares", shares, domains);
        self.known("mixture.reference_loss", &mixture.reference_loss, domains);
        let (interval, step_rows) = (mixture.interval, settings.batch.rows);
        let rows = interval.saturating_mul(step_rows);
        let many = rows > MANY && step_rows <= LARGE && interval <= LARGE;
        self.refuse(many && !follows, "mixture.interval", || {
            format!(
                "`mixture.interval` times `batch.rows` is {rows}, expected {MANY} at most: \
                 an interval's order is held in memory"
            )
        });
        // These settings use perplexities during the run, which not every policy measures.
        let measured = policy.measures_perplexities() || settings.evaluation.every.is_some();
        let best = settings.run.export == ExportedStudent::Best;
        for (key, is_set) in [
            ("run.stop_ratio", settings.run.stop_ratio.is_some()),
            ("checkpoint.keep_best", settings.checkpoint.keep_best),
            ("run.export", best),
        ] {
            self.refuse(is_set && !measured, key, || {
                format!(
                    "`{key}` goes by perplexities during the run, and `mixture.policy` = \"{policy}\" has none \
                     measured: set `evaluation.every`"
                )
            });
        }
    }

    fn shares(&mut self, key: &str, shares: Option<&BTreeMap<String, f64>>, domains: &[String]) {
        if let Some(shares) = shares {
            let none = shares.values().all(|share| *share <= 0.0);
            self.refuse(none, key, || {
                format!("`{key}` holds {shares:?}, expected numbers of 0 or more, not all 0")
            });
            self.known(key, shares, domains);
        }
    }

    /// Refuses names of domains that do not exist.
    fn known(&mut self, table: &str, of: &BTreeMap<String, f64>, domains: &[String]) {
        for name in of.keys() {
            let known = domains.join(", ");
            self.refuse(!domains.contains(name), &format!("{table}.{name}"), || {
                format!(
                    "`{table}` names the domain \"{name}\", which there is not (there are: {known})"
                )
            });
        }
    }

    fn pretrain(&mut self, name: &str, model: &mut Pretrain, run_seed: u64, domains: &[String]) {
        let (table, origins) = (format!("pretrain.{name}"), self.origins);
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
        let start_and_shape = model.architecture.is_some() == model.init.is_some();
        self.refuse(start_and_shape, &table, || {
            format!(
                "`{table}` needs either `init` (a model's folder) or `architecture` (a new model)"
            )
        });
    }

    fn shape(&mut self, table: &str, shape: &Shape) {
        let (width, heads, kv_heads) = (shape.hidden_size, shape.heads, shape.kv_heads);
        if width < 1 || heads < 1 || kv_heads < 1 {
            return;
        }
        let uneven = width % heads != 0 || (width / heads) % 2 != 0;
        self.refuse(uneven, &format!("{table}.heads"), || {
            format!(
                "`{table}.heads` is {heads}: hidden_size {width} must be an even multiple of it"
            )
        });
        let divides = heads % kv_heads == 0;
        self.refuse(!divides && !uneven, &format!("{table}.kv_heads"), || {
            format!("`{table}.kv_heads` is {kv_heads}, expected a divisor of heads = {heads}")
        });
    }
}
