//! `ddk check`: whether a configuration can run, said in seconds.

use std::{collections::BTreeMap, fs, io::Write, path::Path, sync::Arc};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{Stale, TokenizerFolder, compatible, first_document, sample, stale};
use ddk_engine::{
    Evaluation, Part, Schedule, StepShape, evaluated_copy_memory, gpu_memory, program_memory,
    queue_memory, snapshot_memory, student_memory, teacher_memory,
};
use ddk_model::{Model, ModelConfig, Placement, Weights};
use ddk_objective::default_chunk;
use ddk_settings::{Dtype, MixturePolicy, Settings};
use ddk_torch::{Lane, padded, parse_device};

use crate::{
    args, config,
    gpus::gpu,
    hint::{Ended, exit, render_line},
    prepare::{self, Outdated},
    train::{filters::layer_pairs, options::most_steps},
    wiring::{self, ModelFolders},
};

/// What was found, printed as it is found.
struct Report<'a> {
    out: &'a mut dyn Write,
    problems: usize,
}

impl Report<'_> {
    fn title(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.out, "{text}")?)
    }

    fn line(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.out, "  {text}")?)
    }

    fn problem(&mut self, text: &str) -> Result<()> {
        self.problems += 1;
        self.line(&format!("PROBLEM: {text}"))
    }

    /// The value, or its error as a problem.
    fn take<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.problem(&render_line(&error))?;
                Ok(None)
            }
        }
    }
}

/// Prints everything that keeps a configuration from running; exit code 1 if there is something.
///
/// # Errors
/// The settings cannot be read, or `out` cannot be written.
pub fn run(args: &args::Check, out: &mut dyn Write) -> Result<()> {
    let settings = config::load(&args.config)?.settings;
    let mut report = Report { out, problems: 0 };
    let models = models(&settings, &mut report)?;
    let mut fits = false;
    if let Some(models) = &models {
        fits = memory(&settings, models, &mut report)?;
    }
    data(&settings, &mut report)?;
    schedule(&settings, &mut report)?;
    if let (Some(models), true) = (&models, args.forward && fits && report.problems == 0) {
        forward(&settings, models, &mut report)?;
    }
    let problems = report.problems;
    report.title(&match problems {
        0 => "ready: ddk train starts it".to_owned(),
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    })?;
    if problems > 0 {
        return Err(Ended(exit::ERROR).into());
    }
    Ok(())
}

/// Both models as far as their headers tell.
struct Models {
    folders: ModelFolders,
    teacher: ModelConfig,
    student: ModelConfig,
    vocabulary: u64,
}

fn models(settings: &Settings, report: &mut Report<'_>) -> Result<Option<Models>> {
    report.title("models")?;
    let folder = |model: &Option<std::path::PathBuf>, key: &str| {
        model
            .clone()
            .ok_or_else(|| anyhow!("`{key}` is missing: training needs it"))
    };
    let teacher = report.take(folder(&settings.teacher.model, "teacher.model"))?;
    let student = report.take(folder(&settings.student.model, "student.model"))?;
    let (Some(teacher), Some(student)) = (teacher, student) else {
        return Ok(None);
    };
    let folders = ModelFolders::new(teacher, student);
    let teacher = one_model("teacher", &folders.teacher, report)?;
    let student = one_model("student", &folders.student, report)?;
    let vocabulary = tokenizers(settings, &folders, report)?;
    let (Some(teacher), Some(student), Some(vocabulary)) = (teacher, student, vocabulary) else {
        return Ok(None);
    };
    let (of_teacher, of_student) = (teacher.parameter_counts()?, student.parameter_counts()?);
    if folders.teacher.canonicalize().ok() == folders.student.canonicalize().ok() {
        report.problem("teacher and student are the same folder")?;
    } else if of_teacher.total < of_student.total {
        report.problem(&format!(
            "the teacher has fewer parameters ({}) than the student ({}): are teacher.model and student.model swapped?",
            count(of_teacher.total),
            count(of_student.total)
        ))?;
    }
    for (role, config) in [("teacher", &teacher), ("student", &student)] {
        if config.vocab_size().unsigned_abs() < vocabulary {
            report.problem(&format!(
                "the tokenizer has ids up to {}, but the {role} has only {} columns",
                vocabulary - 1,
                config.vocab_size()
            ))?;
        }
        let length = settings.corpus.sequence_length as i64;
        if config.max_positions() < length {
            report.problem(&format!(
                "corpus.sequence_length is {length}, but the {role} was made for at most {} positions",
                config.max_positions()
            ))?;
        }
    }
    Ok(Some(Models {
        folders,
        teacher,
        student,
        vocabulary,
    }))
}

/// Reads a model's configuration and the headers of its weights.
fn one_model(role: &str, folder: &Path, report: &mut Report<'_>) -> Result<Option<ModelConfig>> {
    let read = || -> Result<ModelConfig> {
        let config = ModelConfig::read(folder)?;
        Model::check(&config, &Weights::open(folder)?)?;
        Ok(config)
    };
    let Some(config) = report.take(read())? else {
        return Ok(None);
    };
    let (heads, kv_heads, head_dim) = config.heads();
    report.line(&format!(
        "{role}: {}, {} parameters ({} layers of {}, {heads} heads of {head_dim}, {kv_heads} of keys), {} \
         columns, in {}",
        config.architecture(),
        count(config.parameter_counts()?.total),
        config.layers(),
        config.hidden_size(),
        config.vocab_size(),
        folder.display()
    ))?;
    Ok(Some(config))
}

/// The tokenizer's size, where both models (and the corpus) mean the same by every token.
fn tokenizers(
    settings: &Settings,
    folders: &ModelFolders,
    report: &mut Report<'_>,
) -> Result<Option<u64>> {
    let end_token = settings.corpus.end_token.as_deref();
    let open = |folder: &Path| -> Result<TokenizerFolder> {
        Ok(TokenizerFolder::open(folder, end_token)?)
    };
    let teacher = report.take(open(&folders.teacher))?;
    let student = report.take(open(&folders.student))?;
    let (Some(teacher), Some(student)) = (teacher, student) else {
        return Ok(None);
    };
    let same = compatible(&teacher, &student).map_err(anyhow::Error::from);
    let mut same = report.take(same)?.is_some();
    let mut vocabulary = student.vocabulary();
    if let Some(folder) = &settings.corpus.tokenizer {
        let of_corpus = open(folder).and_then(|corpus| {
            compatible(&corpus, &student)?;
            Ok(corpus.vocabulary())
        });
        match report.take(of_corpus)? {
            Some(size) => vocabulary = size,
            None => same = false,
        }
    }
    if !same {
        return Ok(None);
    }
    report.line(&format!(
        "tokenizers agree on every id; logits are cut to {vocabulary} columns"
    ))?;
    Ok(Some(vocabulary as u64))
}

/// What each device needs against what it has; whether all fits.
fn memory(settings: &Settings, models: &Models, report: &mut Report<'_>) -> Result<bool> {
    let (teacher, student) = (&settings.teacher, &settings.student);
    let bytes = |dtype| match dtype {
        Dtype::Fp32 => 4,
        Dtype::Bf16 => 2,
    };
    let device = match student.device.as_str() {
        "cpu" => tch::Device::Cpu,
        _ => tch::Device::Cuda(0),
    };
    let chunk = default_chunk(models.vocabulary as i64, device);
    let pairs = layer_pairs(&settings.objective, &models.student, &models.teacher);
    let pairs = report.take(pairs)?;
    let shape = StepShape {
        micro_rows: settings.batch.micro_rows,
        sequence_length: padded(settings.corpus.sequence_length as i64, device).unsigned_abs(),
        chunk: settings.objective.chunk.unwrap_or(chunk).unsigned_abs(),
        vocabulary: models.vocabulary,
        recompute: student.recompute,
        student_bytes: bytes(student.dtype),
        teacher_bytes: bytes(teacher.dtype),
        pairs: pairs.map_or(0, |pairs| pairs.len() as u64),
        on_cpu: student.device == "cpu",
        kernel: (student.device.as_str(), student.dtype) == ("cpu", Dtype::Fp32),
        needs_teacher_output: wiring::needs_teacher_output(settings),
        // The student's side takes the teacher's from a replica that ends on its device.
        shared_head: (0..teacher.devices.len())
            .any(|lane| teacher.devices_of_lane(lane).last() == Some(&student.device.as_str())),
    };
    let mut devices: BTreeMap<&str, Vec<(String, Part)>> = BTreeMap::new();
    let mut add = |device, role: &str, parts: Vec<Part>, share: u64| {
        let list: &mut Vec<(String, Part)> = devices.entry(device).or_default();
        list.extend(parts.into_iter().map(|mut part| {
            part.bytes /= share;
            (format!("{role}: {}", part.name), part)
        }));
    };
    let of_student = student_memory(&models.student, &models.teacher, &shape)?;
    // Replicas on the same devices share their weights.
    let mut replicas: BTreeMap<Vec<&str>, u64> = BTreeMap::new();
    // One that does not label is only measured, by the first lane.
    let lanes = if shape.needs_teacher_output {
        teacher.all_lanes()
    } else {
        1
    };
    for lane in 0..lanes {
        *replicas.entry(teacher.devices_of_lane(lane)).or_default() += 1;
    }
    for (spread, lanes) in &replicas {
        for device in spread {
            let beside: &[Part] = if *device == student.device {
                &of_student
            } else {
                &[]
            };
            let of_teacher = teacher_memory(&models.teacher, &shape, *lanes, beside)?;
            add(device, "teacher", of_teacher, spread.len() as u64);
        }
    }
    add(&student.device, "student", of_student, 1);
    if settings.mixture.lag == 1 {
        let copy = evaluated_copy_memory(&models.student, shape.student_bytes)?;
        add(&student.device, "student", vec![copy], 1);
    }
    let depth = settings.queues.depth as u64;
    let queue = queue_memory(&models.teacher, &shape, depth, teacher.all_lanes() as u64);
    add(&student.device, "run", vec![queue], 1);
    let of_run = vec![program_memory(), snapshot_memory(&models.student)?];
    add("cpu", "run", of_run, 1);
    for (_, parts) in devices.iter_mut().filter(|(device, _)| **device != "cpu") {
        let tensors = parts.iter().map(|(_, part)| part.bytes).sum();
        let of_process = gpu_memory(tensors).into_iter();
        parts.extend(of_process.map(|part| (format!("run: {}", part.name), part)));
    }
    let mut fits = true;
    for (device, parts) in devices {
        fits &= one_device(device, &parts, report)?;
    }
    Ok(fits)
}

fn one_device(device: &str, parts: &[(String, Part)], report: &mut Report<'_>) -> Result<bool> {
    let free = free_bytes(device);
    let needed: u64 = parts.iter().map(|(_, part)| part.bytes).sum();
    let of = free.map_or_else(|| "unknown".to_owned(), size);
    report.title(&format!(
        "memory of {device}: needs {}, free {of}",
        size(needed)
    ))?;
    for (name, part) in parts.iter().filter(|(_, part)| part.bytes > 0) {
        report.line(&format!("{:>10}  {name}", size(part.bytes)))?;
    }
    let Some(free) = free.filter(|free| needed > *free) else {
        return Ok(true);
    };
    let largest = parts
        .iter()
        .filter_map(|(name, part)| Some((name, part.bytes, part.setting?)))
        .max_by_key(|(_, bytes, _)| *bytes);
    if let Some((name, _, setting)) = largest {
        report.problem(&format!(
            "{device} lacks {}; the largest part is {name}: change {setting}",
            size(needed - free),
        ))?;
    }
    Ok(false)
}

/// Memory that a device could give; `None` where that cannot be learnt.
fn free_bytes(device: &str) -> Option<u64> {
    if device != "cpu" {
        return gpu(device)?.free_bytes();
    }
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable"))?;
    let available = line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // A container may be allowed less than the machine has.
    let limit = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    Some(match limit {
        Some((most, used)) => available.min(most.saturating_sub(used)),
        None => available,
    })
}

/// Rows and passes of each domain.
fn data(settings: &Settings, report: &mut Report<'_>) -> Result<()> {
    report.title("data")?;
    let before = report.problems;
    let Some((options, tokenizer)) = report.take(prepare::options(settings))? else {
        return Ok(());
    };
    let mut outdated = Vec::new();
    for domain in &options.domains {
        // One by one, so that the problems of all domains are named.
        let mut alone = options.clone();
        alone.domains = vec![domain.clone()];
        let stale = stale(&alone, &tokenizer).map_err(prepare::advise);
        outdated.extend(report.take(stale)?.unwrap_or_default());
    }
    if report.problems > before {
        return Ok(());
    }
    if !outdated.is_empty() {
        for Stale { domain, reason, .. } in &outdated {
            report.line(&format!("{domain}: {reason}"))?;
        }
        let is_outdated = |name: &str| outdated.iter().any(|stale| stale.domain == name);
        for source in options
            .domains
            .iter()
            .filter(|domain| is_outdated(&domain.name))
        {
            let Some(sample) = report.take(sample(source).map_err(prepare::advise))? else {
                continue;
            };
            if let Some(problem) = sample.problem(&source.name) {
                report.problem(&problem)?;
            }
        }
        return report
            .line("rows and passes are known after `ddk prepare`; `ddk train` does that first");
    }
    let Some(corpus) = report.take(prepare::open(settings, Outdated::AsSet))? else {
        return Ok(());
    };
    if report.take(prepare::validation(&corpus))?.is_none() {
        return Ok(());
    }
    let steps = most_steps(settings);
    let rows = steps.map(|steps| steps * settings.batch.rows);
    let natural = prepare::natural_shares(&corpus);
    let count = corpus.domains.len() as f64;
    let alpha = settings.mixture.alpha;
    let (floor, cap) = ((1.0 - alpha) / count, alpha + (1.0 - alpha) / count);
    report.line(&format!(
        "{:16} {:>10} {:>12}  passes at the floor ({:.1} %), naturally, at the cap ({:.1} %)",
        "domain",
        "rows",
        "tokens",
        100.0 * floor,
        100.0 * cap
    ))?;
    for (domain, natural) in corpus.domains.iter().zip(natural) {
        let passes = |share: f64| match rows {
            Some(rows) => format!("{:.2}", share * rows as f64 / domain.rows() as f64),
            None => "?".to_owned(),
        };
        report.line(&format!(
            "{:16} {:>10} {:>12}  {}, {}, {}",
            domain.name(),
            domain.rows(),
            domain.tokens(),
            passes(floor),
            passes(natural),
            passes(cap)
        ))?;
    }
    Ok(())
}

fn schedule(settings: &Settings, report: &mut Report<'_>) -> Result<()> {
    report.title("schedule")?;
    let Some(steps) = most_steps(settings) else {
        return report.problem(
            "the run has no end: none of run.max_steps, run.max_intervals and run.max_tokens is set",
        );
    };
    let tokens = settings.batch.rows * settings.corpus.sequence_length as u64;
    let policy = settings.mixture.policy;
    let interval = match policy {
        MixturePolicy::Odm | MixturePolicy::DoremiProxy => 1,
        _ => settings.mixture.interval,
    };
    let mixture = match policy {
        MixturePolicy::Equal | MixturePolicy::Natural | MixturePolicy::Static => {
            format!("the mixture stays as it is ({policy})")
        }
        MixturePolicy::Doremi => format!(
            "before them two runs of {} steps find the mixture (doremi)",
            settings.mixture.doremi_steps.unwrap_or(steps)
        ),
        _ => format!(
            "the mixture ({policy}) moves every {interval} steps, {} times",
            steps.saturating_sub(1) / interval
        ),
    };
    report.line(&format!(
        "{steps} steps of {tokens} tokens, {} in all; {mixture}",
        count((steps * tokens) as i64),
    ))?;
    let student = &settings.student;
    let schedule = Schedule {
        peak: student.lr,
        end: student.lr_end,
        warmup_steps: student.warmup_steps,
        total_steps: student.schedule_steps.unwrap_or(steps),
    };
    report.line(&format!(
        "learning rate {:.1e} at step 1, {:.1e} half-way, {:.1e} at the end; saved every {} steps",
        schedule.learning_rate(1),
        schedule.learning_rate(steps.div_ceil(2)),
        schedule.learning_rate(steps),
        settings.checkpoint.every
    ))?;
    if student.warmup_steps >= schedule.total_steps.min(steps) {
        report.line(&format!(
            "warning: student.warmup_steps is {}, but the run has only {steps} steps: the learning rate never \
             reaches student.lr",
            student.warmup_steps
        ))?;
    }
    Ok(())
}

/// Both models on the first text of the first domain: a broken checkpoint shows here.
fn forward(settings: &Settings, models: &Models, report: &mut Report<'_>) -> Result<()> {
    report.title("one forward of each model")?;
    let (options, tokenizer) = prepare::options(settings)?;
    let source = options.domains.first().context("there is no domain")?;
    let Some(text) = first_document(source)? else {
        return report.problem(&format!("the domain {} is empty", source.name));
    };
    let mut tokens = tokenizer.encode_document(&text)?;
    tokens.truncate(settings.corpus.sequence_length);
    let _lane = Lane::enter(std::thread::available_parallelism().map_or(1, usize::from));
    let document = Arc::new(vec![vec![tokens.into()]]);
    let sides: [(&str, &Path, Result<Placement, _>); 2] = [
        (
            "teacher",
            &models.folders.teacher,
            wiring::teacher_placement(&settings.teacher, 0),
        ),
        (
            "student",
            &models.folders.student,
            wiring::student_placement(&settings.student),
        ),
    ];
    for (role, folder, placement) in sides {
        let measure = || -> Result<f64> {
            let model = Model::load(folder, &placement?)?;
            let vocabulary = models.vocabulary as i64;
            let evaluation = Evaluation {
                validation: Arc::clone(&document),
                batch_rows: 1,
                vocabulary,
                chunk: default_chunk(vocabulary, parse_device(&settings.student.device)?),
            };
            let measured = evaluation.perplexities(&model, &|_, _| false)?;
            let perplexity = measured.and_then(|all| all.first().copied());
            perplexity.context("the text has no token to predict")
        };
        let Some(perplexity) = report.take(measure())? else {
            continue;
        };
        report.line(&format!(
            "{role}: perplexity {perplexity:.2} on the first text of {}",
            source.name
        ))?;
        if !perplexity.is_finite() {
            report.problem(&format!(
                "the {role}'s perplexity is not finite: is its checkpoint whole?"
            ))?;
        } else if perplexity > models.vocabulary as f64 {
            report.line(&format!(
                "warning: that is worse than guessing among {} tokens; are the weights and the tokenizer of one model?",
                models.vocabulary
            ))?;
        }
    }
    Ok(())
}

fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        _ if bytes >= 1e9 => format!("{:.2} GB", bytes / 1e9),
        _ if bytes >= 1e6 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.0} kB", bytes / 1e3),
    }
}

fn count(number: i64) -> String {
    let number = number as f64;
    match number {
        _ if number >= 1e9 => format!("{:.2} billion", number / 1e9),
        _ if number >= 1e6 => format!("{:.2} million", number / 1e6),
        _ => format!("{number:.0}"),
    }
}
