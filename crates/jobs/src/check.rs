//! `ddk check`: reports within seconds whether a configuration can run.

mod cache;
mod memory;
mod ranks;
mod servers;
mod time;

use std::{collections::BTreeSet, io::Write, path::Path, sync::Arc};

use anyhow::{Context, Error, Result, anyhow, ensure};
use ddk_corpus::{Stale, first_document};
use ddk_engine::Evaluation;
use ddk_mixture::Excess;
use ddk_model::{Model, ModelConfig, Weights};
use ddk_objective::default_chunk;
use ddk_report::document::Table;
use ddk_run::{RunFolder, view::counted};
use ddk_settings::{LrSchedule, MixturePolicy, Settings};
use ddk_torch::{ComputeContext, DeviceError, parse_device};

use crate::{
    args, chat,
    config::{self, required, run_folder},
    findings::{Findings, fits, tokenizers},
    gpus,
    hint::{Ended, exit},
    hub::{self, Wanted},
    planned,
    prepare::{self, Corpus, Outdated},
    sources::{self, Read},
    train::{
        inputs,
        options::{self, most_steps},
    },
    wiring::{self, ModelFolders},
};

/// Validation documents of a domain below which its gap is noisy.
const FEW_DOCUMENTS: u64 = 8;

/// Prints everything that keeps a configuration from running. Ends with exit code 1 if there is a problem.
///
/// # Errors
/// If the settings cannot be read, or if `out` cannot be written.
pub fn run(args: &args::Check, out: &mut dyn Write) -> Result<()> {
    let settings = config::load(&args.config)?.settings;
    let mut found = Findings::new(out);
    let ready = found.take(ready(&settings, &args.config));
    let ready = ready.unwrap_or_default();
    let missing = planned::is_made(&settings, &args.config);
    if found.take(missing).is_some() {
        all(settings, args, &mut found)?;
    } else {
        without_student(settings, &mut found)?;
    }
    let problems = found.problems();
    if problems == 0 {
        found.title(&ready);
    } else {
        found.title(&counted(problems as u64, "problem"));
        // The lines above may have scrolled away.
        found.list();
    }
    found.written?;
    ensure!(problems == 0, Ended(exit::ERROR));
    Ok(())
}

/// What `ddk train` does with these settings.
///
/// # Errors
/// If it refuses to resume the run that exists.
fn ready(settings: &Settings, config: &args::ConfigArgs) -> Result<String> {
    let command = format!("ddk train{}", config.repeated());
    let folder = run_folder(settings).ok();
    let Some(folder) = folder.filter(|folder| RunFolder::holds_a_run(folder)) else {
        return Ok(format!("ready: {command} starts the run"));
    };
    inputs::same_settings(&folder, settings)?;
    let is_over = folder.join("summary.json").exists() && !inputs::extends(&folder, settings)?;
    let shown = folder.display();
    Ok(if is_over {
        format!(
            "ready, but {shown} contains a finished run: choose another run.name for a new run, or raise the limit to \
             train on"
        )
    } else {
        format!("ready: {command} resumes the run in {shown}")
    })
}

/// Checks everything, the models first.
fn all(settings: Settings, args: &args::Check, found: &mut Findings<'_>) -> Result<()> {
    let settings = names(settings, found)?;
    let models = models(&settings, found);
    devices(&settings, found);
    if let Some(models) = &models {
        let done = ranks::check(&settings, models, args, found);
        found.take(done);
        let done = memory::check(&settings, models, args.ranks, found);
        found.take(done);
    }
    if let Some(models) = models.as_ref().filter(|models| models.folders.is_served) {
        let done = servers::check(&settings, models, found);
        found.take(done);
    }
    let corpus = data(&settings, found);
    if let (Some(models), Some(corpus)) = (&models, &corpus) {
        let done = cache::check(&settings, models, corpus, found);
        found.take(done);
    }
    schedule(&settings, found);
    if let (Some(models), 0) = (&models, found.problems()) {
        time::check(&settings, models, corpus.as_ref(), args, found);
    }
    if let (Some(models), true) = (&models, args.forward && found.problems() == 0) {
        let done = forward(&settings, models, found);
        found.take(done);
    }
    Ok(())
}

/// Checks what needs no student, because `ddk shrink` has not made it yet. It will have the teacher's tokenizer.
fn without_student(settings: Settings, found: &mut Findings<'_>) -> Result<()> {
    let mut settings = names(settings, found)?;
    found.title("models");
    let teacher = required(settings.teacher.model.clone(), "teacher.model");
    if let Some(teacher) = found.take(teacher) {
        if !settings.teacher.is_served() {
            one_model("teacher", &settings.local(&teacher), found);
        }
        settings.corpus.tokenizer.get_or_insert(teacher);
    }
    devices(&settings, found);
    data(&settings, found);
    schedule(&settings, found);
    Ok(())
}

/// Finds what the settings name on the Hub, and says where it is.
fn names(settings: Settings, found: &mut Findings<'_>) -> Result<Settings> {
    let wanted = [Wanted::Models, Wanted::Corpus];
    let located = hub::located(&settings, &wanted, &hub::pinned(&settings)?, None);
    let Some(located) = found.take(located) else {
        return Ok(settings);
    };
    let lines = hub::describe(&located);
    if !lines.is_empty() {
        found.title("Hugging Face Hub");
    }
    for line in lines {
        found.line(&line);
    }
    Ok(located)
}

/// Checks that the GPUs of both models are here.
fn devices(settings: &Settings, found: &mut Findings<'_>) {
    let named: BTreeSet<&str> = gpus::devices(settings).collect();
    let mut missing: Vec<(DeviceError, Vec<&str>)> = Vec::new();
    for device in named {
        let Err(error) = parse_device(device) else {
            continue;
        };
        // Without CUDA, all GPUs are missing for the same reason.
        let text = error.to_string();
        match missing
            .iter_mut()
            .find(|(other, _)| other.to_string() == text)
        {
            Some((_, devices)) => devices.push(device),
            None => missing.push((error, vec![device])),
        }
    }
    for (error, devices) in missing {
        let what = format!("there is no CUDA device `{}`", devices.join("`, `"));
        found.problem(Error::from(error).context(what));
    }
}

/// What the headers of both models say.
struct Models {
    folders: ModelFolders,
    teacher: ModelConfig,
    student: ModelConfig,
    vocabulary: usize,
}

fn models(settings: &Settings, found: &mut Findings<'_>) -> Option<Models> {
    found.title("models");
    found.take(required(settings.teacher.model.clone(), "teacher.model"));
    found.take(required(settings.student.model.clone(), "student.model"));
    let folders = ModelFolders::of(settings).ok()?;
    let teacher = if folders.head_only {
        head_only(&folders, found)
    } else {
        one_model("teacher", &folders.teacher, found)
    };
    let student = one_model("student", &folders.student, found);
    let before = found.problems();
    let vocabulary = tokenizers(settings, &folders, found);
    let ((teacher, of_teacher), (student, of_student)) = (teacher?, student?);
    let vocabulary = vocabulary.filter(|_| found.problems() == before)?;
    found.line(&format!(
        "tokenizers agree on every id; logits are cut to {vocabulary} columns"
    ));
    if folders.teacher.canonicalize().ok() == folders.student.canonicalize().ok() {
        found.problem(anyhow!("teacher and student are the same folder"));
    } else if of_teacher < of_student {
        found.problem(anyhow!(
            "the teacher has fewer parameters ({}) than the student ({}): are teacher.model and student.model swapped?",
            count(of_teacher),
            count(of_student)
        ));
    }
    let size = (vocabulary, settings.corpus.sequence_length);
    found.take(fits("teacher", &folders.teacher, &teacher, size));
    found.take(fits("student", &folders.student, &student, size));
    Some(Models {
        folders,
        teacher,
        student,
        vocabulary,
    })
}

/// Returns a model's configuration and its number of parameters, after checking the headers of its weights.
fn one_model(role: &str, folder: &Path, found: &mut Findings<'_>) -> Option<(ModelConfig, i64)> {
    let read = || -> Result<(ModelConfig, i64)> {
        let config = ModelConfig::read(folder)?;
        Model::check(&config, &Weights::open(folder)?)?;
        let parameters = config.parameter_count()?;
        Ok((config, parameters))
    };
    let (config, parameters) = found.take(read())?;
    let (heads, num_key_value_heads, head_dim) = config.heads();
    found.line(&format!(
        "{role}: {}, {} parameters ({} of width {}, {} of {head_dim}, {}), {} columns, in {}",
        config.architecture(),
        count(parameters),
        counted(config.layers() as u64, "layer"),
        config.hidden_size(),
        counted(heads.unsigned_abs(), "head"),
        counted(num_key_value_heads.unsigned_abs(), "key-value head"),
        config.vocab_size(),
        folder.display()
    ));
    Some((config, parameters))
}

/// Works like [`one_model`], if DDK needs only the teacher's LM head. Estimates the number of parameters.
fn head_only(folders: &ModelFolders, found: &mut Findings<'_>) -> Option<(ModelConfig, i64)> {
    let read = || -> Result<(ModelConfig, i64)> {
        let config = folders.teacher_config()?;
        Weights::open_head(&folders.teacher, &config.head())?;
        let parameters = config.parameter_count()?;
        Ok((config, parameters))
    };
    let (config, parameters) = found.take(read())?;
    found.line(&format!(
        "teacher: {}, about {} parameters; DDK loads only its LM head ({} columns of width {}), from {}",
        config.architecture(),
        count(parameters),
        config.vocab_size(),
        config.hidden_size(),
        folders.teacher.display()
    ));
    Some((config, parameters))
}

/// Reports the sequences and epochs of each domain. Returns the corpus if it is prepared.
fn data(settings: &Settings, found: &mut Findings<'_>) -> Option<Corpus> {
    found.title("data");
    let before = found.problems();
    let (options, tokenizer) = found.take(prepare::options(settings))?;
    let looked = sources::look(&options, &tokenizer, Read::Stale);
    for (Stale { domain, reason, .. }, _) in &looked.stale {
        found.line(&format!("{domain}: {reason}"));
    }
    for warning in &looked.warnings {
        found.line(warning);
    }
    for problem in looked.problems.into_iter().chain(looked.doubts) {
        found.problem(problem);
    }
    if found.problems() > before {
        return None;
    }
    chat::check(&options.domains, found);
    if !looked.stale.is_empty() {
        found.line(
            "run `ddk prepare` to see sequences and epochs; `ddk train` also prepares the corpus",
        );
        return None;
    }
    let corpus = found.take(prepare::open(settings, Outdated::AsSet))?;
    found.take(prepare::validation(&corpus))?;
    let few = corpus.domains.iter();
    let few = few.map(|domain| (domain.name(), domain.validation_documents()));
    let few: Vec<String> = few
        .filter(|(_, documents)| *documents < FEW_DOCUMENTS)
        .map(|(name, documents)| format!("{name} ({documents})"))
        .collect();
    if !few.is_empty() {
        found.line(&format!(
            "warning: the gap of a domain with few validation documents is noisy: {}; add text, or raise \
             corpus.validation_fraction",
            few.join(", ")
        ));
    }
    let rows = |steps| (steps * settings.training.global_batch_size) as f64;
    let rows = most_steps(settings).ok().map(rows);
    let limits = limits(settings, corpus.domains.len());
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut header = ["domain", "sequences", "tokens"]
        .map(str::to_owned)
        .to_vec();
    header.extend(limits.map(|[floor, _]| format!("epochs at the floor ({})", percent(floor))));
    header.push(
        if limits.is_some() {
            "natural"
        } else {
            "epochs at the natural share"
        }
        .to_owned(),
    );
    header.extend(limits.map(|[_, cap]| format!("at the cap ({})", percent(cap))));
    let mut table = Table::new(header);
    for (domain, natural) in corpus.domains.iter().zip(prepare::natural_shares(&corpus)) {
        let shares = match limits {
            Some([floor, cap]) => vec![floor, natural, cap],
            None => vec![natural],
        };
        let passes = shares.into_iter().map(|share| match rows {
            Some(rows) => format!("{:.2}", share * rows / domain.rows() as f64),
            None => "?".to_owned(),
        });
        let (name, rows, tokens) = (domain.name(), domain.rows(), domain.tokens());
        let row = [name.to_owned(), rows.to_string(), tokens.to_string()];
        table.row(row.into_iter().chain(passes));
    }
    found.line(table.to_string().trim_end());
    Some(corpus)
}

/// The smallest and the largest weight of a domain, if the policy has such limits.
fn limits(settings: &Settings, domains: usize) -> Option<[f64; 2]> {
    let mixture = &settings.mixture;
    match mixture.policy {
        MixturePolicy::Ddk => {
            let floor = (1.0 - mixture.alpha) / domains as f64;
            Some([floor, mixture.alpha + floor])
        }
        MixturePolicy::Excess => Some(Excess::limits(mixture.excess_alpha, domains)),
        _ => None,
    }
}

fn schedule(settings: &Settings, found: &mut Findings<'_>) -> Option<()> {
    found.title("schedule");
    let steps = found.take(most_steps(settings))?;
    let tokens = settings.training.global_batch_size * settings.corpus.sequence_length as u64;
    let policy = settings.mixture.policy;
    let each = policy.moves_every_step();
    let interval = if each { 1 } else { settings.mixture.interval };
    let mixture = match policy {
        fixed if fixed.is_fixed() => format!("the mixture is fixed ({policy})"),
        MixturePolicy::Doremi => format!(
            "two runs of {} find the mixture first (doremi)",
            counted(settings.mixture.doremi_steps.unwrap_or(steps), "step")
        ),
        _ => format!(
            "{policy} updates the mixture every {}, {}",
            counted(interval, "step"),
            counted(steps.saturating_sub(1) / interval, "time")
        ),
    };
    found.line(&format!(
        "{} of {}, {} in all; {mixture}",
        counted(steps, "step"),
        counted(tokens, "token"),
        count((steps * tokens) as i64),
    ));
    let adapts = !policy.is_fixed() && policy != MixturePolicy::Doremi;
    if adapts && steps <= interval {
        found.line(
            "warning: the run ends before the first update of the mixture: train longer, or lower mixture.interval",
        );
    }
    let warmup_steps = settings.lr_scheduler.warmup_steps;
    let schedule = options::schedule(settings);
    found.line(&format!(
        "learning rate ({}) {:.1e} at step 1, {:.1e} halfway, {:.1e} at the end; a checkpoint every {}",
        settings.lr_scheduler.shape,
        schedule.learning_rate(1),
        schedule.learning_rate(steps.div_ceil(2)),
        schedule.learning_rate(steps),
        counted(settings.checkpoint.interval, "step")
    ));
    if settings.lr_scheduler.shape == LrSchedule::Wsd {
        let start = schedule.decay_start();
        found.line(&format!(
            "the learning rate stays at {:.1e} until step {start}, and falls to {:.1e} at step {}",
            schedule.peak, schedule.end, schedule.total_steps
        ));
    }
    if let Some(patience) = settings.run.patience {
        let evaluations = match patience {
            1 => "an evaluation does".to_owned(),
            _ => format!("{patience} evaluations in a row do"),
        };
        found.line(&format!(
            "the run stops earlier if {evaluations} not improve the mean gap"
        ));
    }
    if warmup_steps >= schedule.total_steps.min(steps) {
        found.line(&format!(
            "warning: lr_scheduler.warmup_steps is {warmup_steps}, but the run has only {}: the learning rate \
             never reaches optimizer.lr",
            counted(steps, "step")
        ));
    }
    Some(())
}

/// Runs both models on the first text of the first domain, which reveals a broken checkpoint.
fn forward(settings: &Settings, models: &Models, found: &mut Findings<'_>) -> Result<()> {
    found.title("one forward pass of each model");
    let (options, tokenizer) = prepare::options(settings)?;
    let source = options.domains.first().context("there is no domain")?;
    let text = first_document(source)?;
    let text = text.with_context(|| format!("the domain {} is empty", source.name))?;
    let mut tokens = tokenizer.encode_document(&text)?;
    tokens.truncate(settings.corpus.sequence_length);
    let _lane = ComputeContext::enter(std::thread::available_parallelism().map_or(1, usize::from));
    let vocabulary = models.vocabulary as i64;
    let evaluation = Evaluation {
        validation: Arc::new(vec![vec![tokens.into()]]),
        batch_rows: 1,
        vocabulary,
        chunk: default_chunk(vocabulary, parse_device(&settings.student.device)?),
        group: None,
    };
    let teacher = (!models.folders.head_only).then(|| {
        let placement = wiring::teacher_placement(&settings.teacher, 0);
        ("teacher", &models.folders.teacher, placement)
    });
    let student = wiring::student_placement(&settings.student);
    let student = ("student", &models.folders.student, student);
    for (role, folder, placement) in teacher.into_iter().chain([student]) {
        let measure = || -> Result<f64> {
            let model = Model::load(folder, &placement?)?;
            let measured = evaluation.perplexities(&model, &|_, _| false)?;
            let perplexity = measured.and_then(|all| all.first().copied());
            perplexity.context("the text has no token to predict")
        };
        let Some(perplexity) = found.take(measure()) else {
            continue;
        };
        found.line(&format!(
            "{role}: perplexity {perplexity:.2} on the first text of {}",
            source.name
        ));
        if !perplexity.is_finite() {
            found.problem(anyhow!(
                "the {role}'s perplexity is not finite: are its weights damaged?"
            ));
        } else if perplexity > vocabulary as f64 {
            found.line(&format!(
                "warning: that is worse than guessing among {vocabulary} tokens; do the weights and the tokenizer \
                 belong to the same model?"
            ));
        }
    }
    Ok(())
}

fn count(number: i64) -> String {
    let number = number as f64;
    match number {
        _ if number >= 1e9 => format!("{:.2} billion", number / 1e9),
        _ if number >= 1e6 => format!("{:.2} million", number / 1e6),
        _ => format!("{number:.0}"),
    }
}
