//! `ddk compare`: compares methods. Each run of `ddk train` is a separate process.
//!
//! A run has its own log, peak memory and exit. This program starts the runs one after the other, forwards signals,
//! and reads their folders. It skips finished runs and resumes interrupted ones, so the same command always makes
//! progress.

mod archive;
mod child;
mod plan;

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use ddk_report::{ComparedRun, Comparison, comparison::Group, scores};
use ddk_run::view::{counted, duration};
use ddk_settings::{Method, Pretrain, Settings};

use self::plan::{Plan, Planned};
use crate::{
    args, demo,
    hint::Hint,
    phase::Phase,
    planned, prepare,
    progress::say,
    signals::Signals,
    train::{self, inputs::Inputs},
};

/// The method that the others are compared with.
const REFERENCE: Method = Method::Kd;

/// Runs every method with every seed, each in a child process, and writes the comparison.
///
/// # Errors
/// If the settings or the arguments are wrong, if a run fails, or if a file cannot be written.
pub fn run(args: &args::Compare, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    signals.begin(Phase::Compare)?;
    let plan = Plan::new(args)?;
    planned::is_made(&plan.base, &args.config)?;
    // Report unusable files before hours of training.
    let imported = import(&args.import_scores)?;
    same_inputs(&plan)?;
    let mut base = plan.base.clone();
    if plan.student.is_some() {
        // Each seed's own student is made before its runs.
        base.student.model = None;
    }
    models(&args.config, &base, signals)?;
    train_all(&plan, signals)?;
    let comparison = read(&plan, imported)?;
    let folder = args.out.clone().unwrap_or_else(|| plan.folder.clone());
    write(&comparison, &folder)?;
    let text = if io::stdout().is_terminal() {
        comparison.brief()
    } else {
        comparison.document().markdown()
    };
    write!(out, "{text}")?;
    say(&format!(
        "compare.md, compare.json and figures/ are in {}; open {} in a browser for all of it",
        folder.display(),
        folder.join("compare.html").display()
    ));
    Ok(())
}

/// Pretrains the teacher and the student if they are missing and the configuration says how.
fn models(config: &args::ConfigArgs, settings: &Settings, signals: &Signals) -> Result<()> {
    let is_demo = demo::is_demo(settings);
    if is_demo {
        demo::verify_text(settings)?;
    }
    let wanted = [&settings.teacher.model, &settings.student.model];
    let is_missing = |(_, Pretrain { output_dir, .. }): &(&String, &Pretrain)| {
        wanted.contains(&&Some(output_dir.clone())) && !output_dir.join("config.json").exists()
    };
    let missing: Vec<_> = settings.pretrain.iter().filter(is_missing).collect();
    if is_demo && !missing.is_empty() {
        demo::collect(settings)?;
        demo::tokenizer(settings)?;
    }
    for (name, _) in missing {
        let command = format!("ddk pretrain --model {name}");
        say(&format!("{name} is missing: running {command}"));
        let mut arguments = arguments("pretrain", config);
        arguments.extend(["--model".to_owned(), name.clone()]);
        child::run(&arguments, &command, signals)?;
    }
    Ok(())
}

/// Returns the arguments of a command of this program with these settings.
fn arguments(command: &str, config: &args::ConfigArgs) -> Vec<String> {
    let files = config.files.iter().map(|file| file.display().to_string());
    let sets = config.set.iter();
    let sets = sets.flat_map(|set| ["--set".to_owned(), set.clone()]);
    let command = [command.to_owned()].into_iter();
    command.chain(files).chain(sets).collect()
}

/// Trains the runs that are not finished.
fn train_all(plan: &Plan, signals: &Signals) -> Result<()> {
    let mut took = Duration::ZERO;
    let mut left = Vec::new();
    for run in &plan.runs {
        if !train::is_done(run.records(), &run.settings)? {
            left.push(run);
        }
    }
    let (count, folder) = (plan.runs.len(), plan.folder.display());
    let done = count - left.len();
    say(&format!(
        "{} in {folder}, {done} of them finished",
        counted(count as u64, "run")
    ));
    for (index, run) in left.iter().enumerate() {
        let time = match index as u32 {
            0 => String::new(),
            trained => {
                let rest = took / trained * (left.len() as u32 - trained);
                format!(", about {} left", duration(rest.as_secs_f64()))
            }
        };
        let what = format!("{}, seed {}", run.label, run.seed);
        let number = done + index + 1;
        say(&format!("[{number}/{count}] {what}{time}"));
        // Preparing a changed source would replace the corpus of the other runs.
        if let Some(begun) = plan.runs.iter().find(|run| Inputs::are_in(run.records())) {
            prepare::keep_for(begun.records(), &run.settings)?;
        }
        if plan.student.is_some() {
            models(&run.config, &run.settings, signals)?;
        }
        let began = Instant::now();
        let mut command = arguments("train", &run.config);
        // Nobody reads the summary, and what to do next with this run is not the question.
        command.push("--json".to_owned());
        child::run(&command, &what, signals)?;
        // Check after each run, not only after the last, so that no hours of training are wasted.
        same_inputs(plan)?;
        archive::keep(run)?;
        took += began.elapsed();
    }
    // Runs that finished before there was an archive.
    plan.runs.iter().try_for_each(archive::keep)
}

/// Checks that all runs began with the same models and data, because comparing them would be meaningless otherwise.
/// If seeds vary the student, only the runs of a seed share it. Skips runs that have not begun.
fn same_inputs(plan: &Plan) -> Result<()> {
    let begun = || plan.runs.iter().filter(|run| Inputs::are_in(run.records()));
    if plan.student.is_none() {
        return same(begun(), Inputs::clone);
    }
    for seed in &plan.seeds {
        same(begun().filter(|run| run.seed == *seed), Inputs::clone)?;
    }
    same(begun(), Inputs::without_student)
}

/// Checks that these inputs of the runs do not differ.
fn same<'a>(
    mut runs: impl Iterator<Item = &'a Planned>,
    of: impl Fn(&Inputs) -> Inputs,
) -> Result<()> {
    let read = |run: &Planned| Ok::<_, anyhow::Error>(of(&Inputs::of_run(run.records())?));
    let Some(first) = runs.next() else {
        return Ok(());
    };
    let expected = read(first)?;
    for run in runs {
        if expected.changed(&read(run)?).is_some() {
            return Err(anyhow!(
                "{} and {} do not have the same models and data",
                first.records().display(),
                run.records().display()
            ))
            .hint("move the older one away; the same command then trains it again");
        }
    }
    Ok(())
}

/// Reads the score files of lm-evaluation-harness.
fn import(paths: &[PathBuf]) -> Result<Vec<(PathBuf, scores::Harness)>> {
    let read = |path: &PathBuf| {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let harness = scores::harness(&text)
            .with_context(|| path.display().to_string())
            .hint("pass a file that lm-evaluation-harness wrote with --output_path (docs/evaluate.md)")?;
        Ok((path.clone(), harness))
    };
    paths.iter().map(read).collect()
}

/// Returns whether the harness's model is this folder, even if it ran on another machine.
fn is_folder(model: &str, folder: &Path) -> bool {
    let model = Path::new(model);
    match model.canonicalize() {
        Ok(model) => folder.canonicalize().is_ok_and(|folder| folder == model),
        // From another machine: comparison, method, seed and `student` identify the folder.
        Err(_) => folder.iter().rev().take(4).eq(model.iter().rev().take(4)),
    }
}

fn read(plan: &Plan, imported: Vec<(PathBuf, scores::Harness)>) -> Result<Comparison> {
    let read = |run: &Planned| ComparedRun::read(run.records(), &run.method.to_string(), run.seed);
    let mut runs: Vec<_> = plan.runs.iter().map(read).collect::<Result<_, _>>()?;
    let (mut of_student, mut of_teacher) = (scores::Scores::new(), scores::Scores::new());
    for (path, harness) in imported {
        let model = &harness.model;
        let is_model = |folder: &Option<PathBuf>| {
            let folder = folder.as_ref();
            folder.is_some_and(|folder| is_folder(model, folder))
        };
        let mut of_runs = plan.runs.iter().zip(&mut runs);
        let of_run = of_runs.find(|(planned, _)| is_folder(model, &planned.folder.join("student")));
        let scores = match of_run {
            Some((_, run)) => &mut run.scores,
            None if is_model(&plan.base.teacher.model) => &mut of_teacher,
            None if is_model(&plan.base.student.model) => &mut of_student,
            None => {
                return Err(anyhow!(
                    "{} contains the scores of {model}, which is neither a student nor the teacher of this comparison",
                    path.display()
                ))
                .hint(format!(
                    "evaluate the students in {}/METHOD/seed-N/student",
                    plan.folder.display()
                ));
            }
        };
        scores.extend(harness.scores);
    }
    let reference = plan.methods.contains(&REFERENCE);
    let reference = reference.then(|| REFERENCE.to_string());
    let groups = plan.sweep.iter().map(|swept| {
        let own = plan.runs.iter().zip(&runs);
        let own = own.filter(|(planned, _)| planned.swept == *swept);
        let own: Vec<ComparedRun> = own.map(|(_, run)| run.clone()).collect();
        let title = swept.as_ref();
        let title = title.map(|(key, value)| format!("{key} = {value}"));
        let (of_student, of_teacher) = (of_student.clone(), of_teacher.clone());
        Group::new(title, &own, reference.as_deref(), of_student, of_teacher)
    });
    let methods = counted(plan.methods.len() as u64, "method");
    let seeds = counted(plan.seeds.len() as u64, "seed");
    let typed: Vec<String> = std::env::args().skip(1).collect();
    Ok(Comparison {
        name: format!("{}: {methods}, {seeds}", plan.name),
        // The command line as typed.
        command: format!("ddk {}", typed.join(" ")),
        reference: reference.clone(),
        seeds: plan.seeds.clone(),
        varies_student: plan.student.is_some(),
        groups: groups.collect(),
    })
}

fn write(comparison: &Comparison, folder: &Path) -> Result<()> {
    let document = comparison.document();
    let figures = folder.join("figures");
    ddk_files::create_folder(&figures)?;
    for (name, text) in document.svgs()? {
        ddk_files::write_atomically(&figures.join(name), text.as_bytes())?;
    }
    let json = serde_json::to_vec_pretty(comparison)?;
    ddk_files::write_atomically(&folder.join("compare.json"), &json)?;
    ddk_files::write_atomically(&folder.join("compare.html"), document.html()?.as_bytes())?;
    ddk_files::write_atomically(&folder.join("compare.md"), document.markdown().as_bytes())?;
    Ok(())
}
