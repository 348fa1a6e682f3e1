//! Checks ranges and rules between keys, and derives defaults from other keys.

use std::{
    collections::BTreeMap, fmt::Display, net::SocketAddr, path::Path, thread::available_parallelism,
};

use ddk_corpus::FileFormat;
use ddk_mixture::MixturePolicy;

use crate::{
    Domain, ExportedStudent, LrSchedule, LrScheduler, Origins, Pretrain, Settings, Shape, Teacher,
    ThreadChoice,
    error::{Error, Problem},
    limits::{LARGE, MANY},
};

/// Fills in derived defaults and collects all problems.
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
    Error::unless_none(checker.problems)
}

struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    /// Refuses the value of a key. `why` follows the key in the message.
    fn refuse(&mut self, wrong: bool, key: &str, why: impl Display) {
        self.report(wrong, key, format!("`{key}` {why}"));
    }

    fn report(&mut self, wrong: bool, place: &str, message: String) {
        if wrong {
            let place = self.origins.of(place).to_owned();
            self.problems.push(Problem { place, message });
        }
    }

    /// Checks each value against the bounds of its key. A key whose default is out of bounds is required.
    fn ranges(&mut self, settings: &Settings) -> Result<(), Error> {
        for value in settings.values()? {
            let path = &value.path;
            let wrong = !value.key.accepts(&value.value);
            let written = self.origins.has(path);
            let shown = match &value.value {
                toml::Value::Float(number) => number.to_string(),
                other => other.to_string(),
            };
            let why = format!("is {shown}, expected {}", value.key.expected());
            self.refuse(wrong && written, path, why);
            let table = path.rsplit_once('.').map_or("", |(table, _)| table);
            self.report(wrong && !written, table, format!("`{path}` is missing"));
        }
        Ok(())
    }

    fn run(&mut self, settings: &Settings) {
        let (run, recovery, telemetry) = (&settings.run, &settings.recovery, &settings.telemetry);
        let name = run.name.as_deref().unwrap_or("unnamed");
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let wrong = name.is_empty() || name.starts_with('.') || !name.chars().all(plain);
        let why = format!("is \"{name}\", expected letters, digits, `.`, `_` and `-`");
        self.refuse(wrong, "run.name", why);
        let (window, from) = (recovery.spike_window, recovery.spike_min_history);
        let why = format!(
            "is {window}, expected at least `recovery.spike_min_history`, {from}: nothing would ever be a spike"
        );
        self.refuse(window < from, "recovery.spike_window", why);
        let alone = run.min_improvement > 0.0 && run.patience.is_none();
        self.refuse(
            alone,
            "run.min_improvement",
            "is set without `run.patience`",
        );
        let (listen, token) = (&telemetry.listen, telemetry.token.as_ref());
        let parsed = listen.parse::<SocketAddr>();
        let why =
            format!("is \"{listen}\", expected an address and a port such as \"127.0.0.1:9469\"");
        self.refuse(parsed.is_err(), "telemetry.listen", why);
        let reached = parsed.is_ok_and(|parsed| !parsed.ip().is_loopback());
        let why = format!(
            "is \"{listen}\", which other machines reach: that needs a `telemetry.token` \
             (best DDK__TELEMETRY__TOKEN in the environment)"
        );
        self.refuse(reached && token.is_none(), "telemetry.listen", why);
        let unusable = token.is_some_and(|token| !token.is_usable());
        let why = "is not usable, expected 16 characters or more, of letters, digits, `-`, `.`, `_` and `~`";
        self.refuse(unusable, "telemetry.token", why);
        let file = telemetry.metrics_file.as_deref();
        let file = file.unwrap_or(Path::new("a.prom"));
        let is_prom = file.extension().is_some_and(|end| end == "prom");
        let why = format!(
            "is \"{}\", expected a name that ends in `.prom`: the node exporter reads no other",
            file.display()
        );
        self.refuse(!is_prom, "telemetry.metrics_file", why);
    }

    fn domain(&mut self, name: &str, domain: &mut Domain) {
        let key = |field: &str| format!("domains.{name}.{field}");
        let wrong = name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']);
        let message = format!(
            "\"{name}\" is no name for a domain: it becomes a folder, so no `/` and no `.` at its start"
        );
        self.report(wrong, &format!("domains.{name}"), message);
        let (text, field) = (key("text_template"), key("text_field"));
        if let Some(name) = domain.text_field.take() {
            domain.text_template = format!("{{{name}}}");
            let why = format!("and `{field}` are both set: one is enough");
            self.refuse(self.origins.has(&text), &text, why);
        }
        let (messages, tools) = (key("messages_field"), key("tools_field"));
        if domain.messages_field.is_some() {
            // The configuration in a run's folder names the default template too.
            let own_text = domain.text_template != Domain::default().text_template;
            let of_field = self.origins.has(&field);
            let key_of_text = if of_field { &field } else { &text };
            let why = format!("and `{messages}` are both set: the chat template makes the text");
            self.refuse(own_text, key_of_text, why.clone());
            self.refuse(
                domain.prompt_template.is_some(),
                &key("prompt_template"),
                why,
            );
        }
        let alone = domain.tools_field.is_some() && domain.messages_field.is_none();
        self.refuse(alone, &tools, format!("is set without `{messages}`"));
        let alone = domain.completion_field.is_some() && domain.messages_field.is_none();
        let why = format!("is set without `{messages}`: for texts, use prompt_template");
        self.refuse(alone, &key("completion_field"), why);
        let is_encoded =
            domain.tokens_field.is_some() || domain.format == Some(FileFormat::Megatron);
        let why = "is missing: name the folder of the tokenizer that made the ids";
        let tokenizer = key("tokenizer");
        self.refuse(is_encoded && domain.tokenizer.is_none(), &tokenizer, why);
        let why = format!(
            "is set without `{}` or `format = \"megatron\"`: for texts, DDK uses the tokenizer of the corpus",
            key("tokens_field")
        );
        self.refuse(!is_encoded && domain.tokenizer.is_some(), &tokenizer, why);
        let (value, field) = (key("filter_value"), key("filter_field"));
        if domain.filter_field.is_some() {
            domain.filter_value.get_or_insert_with(|| name.to_owned());
        }
        let alone = domain.filter_value.is_some() && domain.filter_field.is_none();
        self.refuse(alone, &value, format!("is set without `{field}`"));
    }

    fn models(&mut self, settings: &Settings) {
        for device in settings.teacher.every_device() {
            self.device("teacher.devices", device);
        }
        self.device("student.device", &settings.student.device);
        self.servers(settings);
        self.schedule(&settings.lr_scheduler);
        let sizes = &settings.training;
        self.batch_sizes("training", sizes.global_batch_size, sizes.micro_batch_size);
        let (slots, global, micro) = (
            settings.parallel.slots,
            sizes.global_batch_size,
            sizes.micro_batch_size,
        );
        let key = "parallel.slots";
        let is_power = slots.is_power_of_two();
        let why = format!("is {slots}, expected a power of two");
        self.refuse(!is_power && slots > 0, key, why);
        let of_slot = micro.saturating_mul(slots);
        let fits = of_slot == 0 || global.is_multiple_of(of_slot) || !global.is_multiple_of(micro);
        let why = format!(
            "is {slots}, and each slot takes whole micro-batches of {micro} sequences: expected \
             `training.global_batch_size` to be a multiple of {of_slot}, not {global}"
        );
        self.refuse(!fits && is_power, key, why);
        let (patience, limit) = (
            settings.teacher.patience_seconds,
            settings.parallel.timeout_seconds,
        );
        let waits = settings.teacher.is_served() && slots > 1 && limit <= patience;
        let why = format!(
            "is {limit}, expected more than `teacher.patience_seconds` = {patience}: one process may wait that long \
             for its teacher's server"
        );
        self.refuse(waits, "parallel.timeout_seconds", why);
        let key = "objective.ted_layers";
        let pairs = settings.objective.ted_layers.as_deref().unwrap_or_default();
        let zero = pairs.iter().flatten().any(|layer| *layer == 0);
        let why = format!(
            "is {pairs:?}, expected at least one pair of layers counted from 1, such as [[2, 4]]"
        );
        self.refuse(zero, key, why);
        let mut indices = 0..pairs.len();
        if let Some(index) = indices.find(|index| pairs[..*index].contains(&pairs[*index])) {
            self.refuse(!zero, key, format!("holds {:?} twice", pairs[index]));
        }
    }

    /// Refuses the settings of a decay that the schedule does not have, or has twice.
    fn schedule(&mut self, scheduler: &LrScheduler) {
        let default = LrScheduler::default();
        let has_fraction = scheduler.decay_fraction != default.decay_fraction;
        let why = "and `lr_scheduler.decay_fraction` are both set: one is enough";
        let both = has_fraction && scheduler.decay_steps.is_some();
        self.refuse(both, "lr_scheduler.decay_steps", why);
        let shape = scheduler.shape;
        let why = format!(
            "is set, but `lr_scheduler.type` is \"{shape}\": only \"wsd\" has a decay of its own"
        );
        for (key, is_set) in [
            ("decay_steps", scheduler.decay_steps.is_some()),
            ("decay_fraction", has_fraction),
            ("decay_type", scheduler.decay_type != default.decay_type),
        ] {
            let wrong = is_set && shape != LrSchedule::Wsd;
            self.refuse(wrong, &format!("lr_scheduler.{key}"), &why);
        }
    }

    fn servers(&mut self, settings: &Settings) {
        let (teacher, key) = (&settings.teacher, "teacher.servers");
        for server in &teacher.servers {
            let host = server.strip_prefix("http://");
            let host = host.or_else(|| server.strip_prefix("https://"));
            let why =
                format!("holds \"{server}\", expected an address such as \"http://10.0.0.5:8000\"");
            self.refuse(host.is_none_or(str::is_empty), key, why);
        }
        let is_served = teacher.is_served();
        // A run's own configuration lists the default.
        let both = is_served && teacher.devices != Teacher::default().devices;
        let why = "and `teacher.devices` are both set: a server replaces the devices, so remove one of them";
        self.refuse(both, key, why);
        let why = format!(
            "is \"{}\", which compares layers, but a server returns only the last hidden states: remove \
             `teacher.servers`, or choose another objective",
            settings.objective.name
        );
        let layers = settings.objective.has_layers();
        self.refuse(is_served && layers, "objective.name", why);
        let auto = settings.pipeline.threads == ThreadChoice::Auto;
        let why = "is \"auto\", which times the teacher on this machine: with `teacher.servers`, set it to \"manual\"";
        self.refuse(is_served && auto, "pipeline.threads", why);
        let alone = !is_served && teacher.served_model.is_some();
        let why = "is set without `teacher.servers`";
        self.refuse(alone, "teacher.served_model", why);
        let alone = teacher.cache.max_bytes.is_some() && teacher.cache.dir.is_none();
        let why = "is set without `teacher.cache.dir`";
        self.refuse(alone, "teacher.cache.max_bytes", why);
    }

    fn device(&mut self, key: &str, device: &str) {
        let number = device.strip_prefix("cuda:").map(str::parse::<usize>);
        let is_one = device == "cpu" || matches!(number, Some(Ok(_)));
        let why = format!("is \"{device}\", expected \"cpu\" or \"cuda:0\", \"cuda:1\", …");
        self.refuse(!is_one, key, why);
    }

    fn batch_sizes(&mut self, table: &str, global: u64, micro: u64) {
        let key = format!("{table}.micro_batch_size");
        let divides = micro == 0 || global.is_multiple_of(micro);
        let why =
            format!("is {micro}, expected a divisor of `{table}.global_batch_size` = {global}");
        self.refuse(!divides, &key, why);
    }

    fn mixture(&mut self, settings: &Settings, domains: &[String]) {
        let (mixture, policy) = (&settings.mixture, settings.mixture.policy);
        let follows = policy.moves_every_step();
        let why = format!(
            "is 1, and `mixture.policy` = \"{policy}\" updates every step: \
             it cannot run ahead of what it follows; set `mixture.lag` = 0"
        );
        self.refuse(mixture.lag == 1 && follows, "mixture.lag", why);
        let weights = mixture.weights.as_ref();
        let none = weights.is_none() && policy == MixturePolicy::Static;
        let why = "is \"static\", and `mixture.weights` is missing: it says what to draw by";
        self.refuse(none, "mixture.policy", why);
        self.weights("mixture.weights", weights, domains);
        self.known("mixture.reference_loss", &mixture.reference_loss, domains);
        let (interval, step_rows) = (mixture.interval, settings.training.global_batch_size);
        let rows = interval.saturating_mul(step_rows);
        let many = rows > MANY && step_rows <= LARGE && interval <= LARGE;
        let why = format!(
            "times `training.global_batch_size` is {rows}, expected {MANY} at most: \
             an interval's order is held in memory"
        );
        self.refuse(many && !follows, "mixture.interval", why);
        // These settings need perplexities during the run, which some policies do not measure.
        let measured = policy.measures_perplexities() || settings.evaluation.interval.is_some();
        let best = settings.run.export == ExportedStudent::Best;
        let why = format!(
            "goes by perplexities during the run, and `mixture.policy` = \"{policy}\" has none \
             measured: set `evaluation.interval`"
        );
        for (key, is_set) in [
            ("run.target_gap", settings.run.target_gap.is_some()),
            ("run.patience", settings.run.patience.is_some()),
            ("checkpoint.keep_best", settings.checkpoint.keep_best),
            ("run.export", best),
        ] {
            self.refuse(is_set && !measured, key, &why);
        }
    }

    fn weights(&mut self, key: &str, weights: Option<&BTreeMap<String, f64>>, domains: &[String]) {
        if let Some(weights) = weights {
            let none = weights.values().all(|weight| *weight <= 0.0);
            let why = format!("holds {weights:?}, expected numbers of 0 or more, not all 0");
            self.refuse(none, key, why);
            self.known(key, weights, domains);
        }
    }

    /// Refuses unknown domains.
    fn known(&mut self, table: &str, of: &BTreeMap<String, f64>, domains: &[String]) {
        let known = domains.join(", ");
        for name in of.keys() {
            let message = format!(
                "`{table}` names the domain \"{name}\", which there is not (there are: {known})"
            );
            self.report(!domains.contains(name), &format!("{table}.{name}"), message);
        }
    }

    fn pretrain(&mut self, name: &str, model: &mut Pretrain, run_seed: u64, domains: &[String]) {
        let (table, origins) = (format!("pretrain.{name}"), self.origins);
        let absent = |field: &str| !origins.has(&format!("{table}.{field}"));
        if absent("min_lr") {
            model.min_lr = model.lr / 10.0;
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
            if absent("architecture.num_key_value_heads") {
                shape.num_key_value_heads = shape.num_attention_heads;
            }
            self.shape(&format!("{table}.architecture"), shape);
        }
        self.batch_sizes(&table, model.global_batch_size, model.micro_batch_size);
        self.device(&format!("{table}.device"), &model.device);
        self.weights(&format!("{table}.weights"), model.weights.as_ref(), domains);
        let start_and_shape = model.architecture.is_some() == model.init_from.is_some();
        let why = "needs either `init_from` (a model's folder) or `architecture` (a new model)";
        self.refuse(start_and_shape, &table, why);
    }

    fn shape(&mut self, table: &str, shape: &Shape) {
        let (width, heads, kv_heads) = (
            shape.hidden_size,
            shape.num_attention_heads,
            shape.num_key_value_heads,
        );
        if width < 1 || heads < 1 || kv_heads < 1 {
            return;
        }
        let uneven = width % heads != 0 || (width / heads) % 2 != 0;
        let why = format!("is {heads}: hidden_size {width} must be an even multiple of it");
        self.refuse(uneven, &format!("{table}.num_attention_heads"), why);
        let divides = heads % kv_heads == 0;
        let key = format!("{table}.num_key_value_heads");
        let why = format!("is {kv_heads}, expected a divisor of num_attention_heads = {heads}");
        self.refuse(!divides && !uneven, &key, why);
    }
}
