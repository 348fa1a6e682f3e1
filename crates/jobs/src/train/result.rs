//! Finishes a run: exports the student, and writes the summary, the report and the table.

use std::{collections::BTreeMap, fs, io::Write, path::Path, time::Instant};

use anyhow::{Context, Result, anyhow};
use ddk_actors::{End, LoopState, Outcome};
use ddk_mixture::gap;
use ddk_model::Export;
use ddk_run::{
    CheckpointStore, RunFolder,
    records::{DomainSummary, EventKind, Summary},
};
use ddk_settings::{ExportedStudent, ObjectiveName, Settings};
use ddk_telemetry::peak_resident_bytes;

use super::{filters, prepared::Prepared};
use crate::{
    args,
    bench::serial,
    checkpoints::{self, LOST, checkpoint_of, refuse_if_saved},
    export,
    hint::{Hint, quoted},
    output::print_json,
    phase::Phase,
    progress::{exporting, model_parameters, say},
    report,
    signals::Signals,
};

pub(super) const REPORT: &str = "report.html";

/// Exports the student, then writes `summary.json`, which marks the run in the folder as done. The report is built
/// from the summary.
pub(super) fn finish(
    prepared: &Prepared,
    folder: &RunFolder,
    signals: &Signals,
    outcome: &Outcome,
    seconds_before: f64,
    began: Instant,
    serial_steps: u64,
) -> Result<()> {
    signals.begin(Phase::Export)?;
    let (exported, exported_step) = export(prepared, folder, outcome)?;
    let mut measured = None;
    if serial_steps > 0 {
        signals.begin(Phase::Serial)?;
        let (domains, shares) = (&prepared.corpus.domains, &prepared.plan.natural);
        measured = Some(serial(&prepared.models, domains, shares, serial_steps)?);
    }
    let summary = Summary {
        exported,
        exported_step,
        serial: measured,
        seconds: seconds_before + began.elapsed().as_secs_f64(),
        ..summarize(prepared, folder, outcome)?
    };
    let text = serde_json::to_vec_pretty(&summary)?;
    ddk_files::write_atomically(&folder.summary(), &text)?;
    signals.run_is_done();
    signals.begin(Phase::Report)?;
    write_report(folder)
}

/// Reopens a finished run. Sets its summary aside after checking that there is a checkpoint to resume from. The
/// exported student stays until the next one replaces it.
pub(super) fn reopen(folder: &RunFolder) -> Result<()> {
    refuse_if_saved(folder)?;
    let store = CheckpointStore::look(&folder.checkpoints());
    store.newest::<LoopState>().hint(LOST)?;
    let steps = ddk_run::read::summary(folder.path())?.steps;
    let kept = format!("summary-{steps}.json");
    let message = format!(
        "the run finished at step {steps} and now continues; {kept} is its summary up to that step"
    );
    ddk_run::record_event(folder.path(), steps, EventKind::Extended, &message)?;
    let (from, to) = (folder.summary(), folder.path().join(kept));
    fs::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))?;
    say(&message);
    Ok(())
}

pub(super) fn write_report(folder: &RunFolder) -> Result<()> {
    let report = report::of_run(folder.path())?.html()?;
    ddk_files::write_atomically(&folder.path().join(REPORT), report.as_bytes())?;
    Ok(())
}

/// Says what to do with a finished run, unless a program reads the result.
pub(super) fn say_next(run: &Path, settings: &Settings, args: &args::Train) {
    if args.json {
        return;
    }
    say(&format!("report: {}", run.join(REPORT).display()));
    let student = run.join("student");
    let mut next = Vec::new();
    if student.exists() {
        let student = quoted(&student);
        let mut domains = settings.domains.values();
        let prompt = if domains.any(|domain| domain.messages_field.is_some()) {
            "--chat --prompt \"Hello\""
        } else {
            "--prompt \"Once upon a time\""
        };
        next.push(format!("ddk generate --model {student} {prompt}"));
        // The run's own settings include the options with which it was started.
        let config = quoted(&run.join("config.toml"));
        next.push(format!("ddk eval {config} --model {student}"));
    }
    next.push(format!(
        "ddk export {} --out FOLDER --dtype bf16",
        quoted(run)
    ));
    let runs = run.parent().filter(|runs| !runs.as_os_str().is_empty());
    next.push(format!(
        "ddk serve {}",
        quoted(runs.unwrap_or(Path::new(".")))
    ));
    say(&format!("next: {}", next.join("\n      ")));
}

/// Prints the table, or the summary as JSON.
pub(super) fn print(summary: &Summary, json: bool, out: &mut dyn Write) -> Result<()> {
    if json {
        return print_json(summary, out);
    }
    Ok(write!(out, "{}", ddk_report::table(summary))?)
}

/// Exports the last or the best student as a Hugging Face folder, or the filters of TED's first stage. Returns what
/// was exported, and the step of a student.
fn export(
    prepared: &Prepared,
    folder: &RunFolder,
    outcome: &Outcome,
) -> Result<(String, Option<u64>)> {
    let store = CheckpointStore::look(&folder.checkpoints());
    let settings = &prepared.models.settings;
    if settings.objective.name == ObjectiveName::TedFilters {
        filters::export(folder, &checkpoint_of(&store, outcome.step)?)?;
        return Ok(("no student, only the filters".to_owned(), None));
    }
    let (mut which, mut step) = ("last".to_owned(), outcome.step);
    if settings.run.export == ExportedStudent::Best {
        if let Some(best) = checkpoints::best(&store, &outcome.measured)? {
            which = format!("best (step {}, mean gap {:.3})", best.step, best.gap);
            step = best.step;
        } else {
            say("warning: no checkpoint was evaluated: exporting the last student");
        }
    }
    let checkpoint = checkpoint_of(&store, step)?;
    let student = &prepared.models.folders.student;
    // In fp32.
    let _meter = exporting(4 * model_parameters(student));
    let model = export::of_checkpoint(student, &checkpoint)?;
    let destination = prepared.destination.as_ref();
    let record = destination.map(|to| (to.record.0, to.record.1.as_str()));
    let (out, source) = match destination {
        None => (folder.student(), student.as_path()),
        Some(to) => (to.folder.clone(), prepared.corpus.tokenizer.folder()),
    };
    let mut export = Export::new(source);
    export.beside = record.as_slice();
    let saved = model.save(&out, &export);
    saved.hint("move those files away; the same command then finishes the run")?;
    say(&format!("student exported to {}", out.display()));
    Ok((format!("{which}, in {}", out.display()), Some(step)))
}

fn summarize(prepared: &Prepared, folder: &RunFolder, outcome: &Outcome) -> Result<Summary> {
    let End::Finished(reason) = outcome.end else {
        return Err(anyhow!("the run was stopped and has no summary"));
    };
    let after = outcome.after.as_ref();
    let after = after.context("the last evaluation is missing")?;
    let totals = &outcome.totals;
    let tokens = totals.all_tokens();
    // A fork that continues an interval has the baseline of the run that it was forked from. Its results start
    // with its own first evaluation, as on the page.
    let first = ddk_run::read::first_mixture(folder.path())?;
    let of_fork = first.filter(|line| line.evaluated_at_step > 0);
    let of_fork = of_fork.map(|line| line.student_perplexity);
    let of_fork = of_fork.unwrap_or_default();
    let mut domains = BTreeMap::new();
    for (index, name) in prepared.plan.domains.iter().enumerate() {
        let before = of_fork.get(name).copied();
        let before = before.unwrap_or(outcome.baseline.student[index]);
        // NaN without a teacher.
        let teacher = outcome.baseline.teacher.get(index);
        let teacher = teacher.copied().unwrap_or(f64::NAN);
        let domain = DomainSummary {
            student_perplexity_before: before,
            student_perplexity_after: after[index],
            teacher_perplexity: teacher,
            ratio_before: before / teacher,
            ratio_after: after[index] / teacher,
            gap_before: gap(before, teacher),
            gap_after: gap(after[index], teacher),
            token_share: totals.tokens[index] as f64 / tokens.max(1) as f64,
        };
        domains.insert(name.clone(), domain);
    }
    let mut teacher_head_flops = 0.0;
    if prepared.models.asks_teacher() {
        teacher_head_flops = prepared.models.flop_counter()?.teacher_head(tokens);
    }
    let busy =
        totals.teacher_busy_seconds + totals.student_busy_seconds + totals.evaluation_seconds;
    let distill = totals.distill_seconds.max(1e-9);
    // Every method needs the teacher's evaluation for the gaps, so it is no cost of steering.
    let mixture_flops = (totals.mixture_flops - totals.teacher_evaluation_flops).max(0.0);
    Ok(Summary {
        domains,
        steps: outcome.step,
        intervals: outcome.intervals,
        tokens,
        seconds: 0.0,
        distill_seconds: totals.distill_seconds,
        tokens_per_second: tokens as f64 / distill,
        teacher_busy_seconds: totals.teacher_busy_seconds,
        student_busy_seconds: totals.student_busy_seconds,
        evaluation_seconds: totals.evaluation_seconds,
        boundary_seconds: totals.boundary_seconds,
        save_stall_seconds: totals.save_stall_seconds,
        paused_seconds: totals.paused_seconds,
        overlap: busy / distill,
        data_wait_share: totals.data_wait_seconds / distill / prepared.plan.replicas as f64,
        teacher_flops: totals.teacher_flops,
        teacher_flops_saved: totals.teacher_flops_saved,
        teacher_head_flops,
        student_flops: totals.student_flops,
        evaluation_flops: totals.evaluation_flops,
        teacher_evaluation_flops: totals.teacher_evaluation_flops,
        mixture_flops,
        mixture_flops_share: mixture_flops
            / (totals.teacher_flops + totals.teacher_flops_saved + totals.student_flops).max(1.0),
        mixture_seconds_share: totals.boundary_seconds / distill,
        peak_rss_bytes: peak_resident_bytes().unwrap_or(0),
        stop_reason: reason,
        exported: String::new(),
        exported_step: None,
        serial: None,
    })
}
