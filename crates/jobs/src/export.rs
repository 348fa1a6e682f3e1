//! `ddk export`: a run's student as a Hugging Face folder.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use ddk_engine::WEIGHTS_FILE;
use ddk_model::{Export, Model, Placement, may_replace, safetensors::read_tensors, same_folder};
use ddk_run::CheckpointStore;
use tch::{Device, Kind};

use crate::{
    args, checkpoints, config,
    hint::{self, Hint},
    hub::{self, Wanted},
    phase::Phase,
    progress::say,
    signals::Signals,
};

/// Writes the student of a checkpoint as a Hugging Face folder.
///
/// # Errors
/// If the folder holds no run, if the checkpoint is missing or damaged, or if `--out` must not be replaced.
pub fn run(args: &args::Export, signals: &Signals) -> Result<()> {
    signals.begin(Phase::ExportModel)?;
    hint::must_hold_a_run(&args.run)?;
    let settings = config::of_run(&args.run)?;
    let pinned = hub::revisions_of(&args.run)?;
    let settings = hub::located(&settings, &[Wanted::Student], &pinned, Some(signals))?;
    signals.begin(Phase::ExportModel)?;
    let student = settings.student.model.as_deref();
    let student = student.context("the run's config.toml does not set student.model")?;
    let student = settings.local(student);
    let store = CheckpointStore::look(&args.run.join("checkpoints"));
    let step = match args.step {
        Some(args::ExportStep::Best) => Some(best_step(&args.run, &store)?),
        Some(args::ExportStep::Number(step)) => Some(step),
        None => None,
    };
    let (step, checkpoint) = checkpoints::find(&store, step)?;
    let out = args.out.display();
    let advice = "set --out to a new folder, or to one that ddk exported to before";
    for (role, folder) in [
        ("student", Some(&student)),
        ("teacher", settings.teacher.model.as_ref()),
    ] {
        if folder.is_some_and(|folder| same_folder(folder, &args.out)) {
            return Err(anyhow!(
                "{out} is the {role} that the run started from: it is not replaced"
            ))
            .hint(advice)
            .usage();
        }
    }
    may_replace(&args.out, None).hint(advice).usage()?;
    let model = of_checkpoint(&student, &checkpoint)?;
    let mut export = Export::new(&student);
    export.dtype = Some(match args.dtype.as_str() {
        "bf16" => Kind::BFloat16,
        "fp16" => Kind::Half,
        _ => Kind::Float,
    });
    model.save(&args.out, &export)?;
    say(&format!("exported the student of step {step} to {out}"));
    Ok(())
}

/// Loads the model in `student` with the weights of a checkpoint, on the CPU.
///
/// # Errors
/// If the student's folder or the checkpoint cannot be read, or if their tensors do not match.
pub fn of_checkpoint(student: &Path, checkpoint: &Path) -> Result<Model> {
    let placement = Placement::on(Device::Cpu, Kind::Float);
    let mut model = Model::load(student, &placement)
        .context("cannot load the initial student, which the export needs")?;
    model.replace_weights(&read_tensors(&checkpoint.join(WEIGHTS_FILE))?)?;
    Ok(model)
}

/// Returns the step of the checkpoint with the smallest mean gap.
fn best_step(run: &Path, store: &CheckpointStore) -> Result<u64> {
    let hint = "set checkpoint.keep_best: the run then saves a checkpoint whenever the mean gap is smaller than \
                ever";
    let best = checkpoints::best(store, &checkpoints::measured(run, store)?)?;
    let run = run.display();
    let none = || format!("no checkpoint of the run in {run} was evaluated");
    Ok(best.with_context(none).hint(hint)?.step)
}
