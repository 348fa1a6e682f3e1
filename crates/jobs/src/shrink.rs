//! `ddk shrink`: a student made from the teacher by leaving out layers.

use std::{collections::BTreeMap, io::Write, path::PathBuf, thread::available_parallelism};

use anyhow::{Context, Result, anyhow, ensure};
use ddk_engine::Evaluation;
use ddk_model::{Export, Model, ModelConfig, Placement, may_replace, same_folder};
use ddk_report::document::Table;
use ddk_settings::Settings;
use ddk_torch::{ComputeContext, parse_device};
use serde::Serialize;
use tch::Kind;

use crate::{
    args, config,
    findings::fits,
    hint::Hint,
    hub::{self, Wanted},
    output::print_json,
    phase::Phase,
    planned, prepare,
    progress::{Reporter, say},
    signals::Signals,
};

#[derive(Serialize)]
struct Shrunk {
    teacher: PathBuf,
    student: PathBuf,
    /// Parameters of the teacher and of the student.
    parameters: [i64; 2],
    layers: Vec<Layer>,
    domains: BTreeMap<String, Domain>,
}

#[derive(Serialize)]
struct Layer {
    /// Counted from 1.
    number: usize,
    influence: f64,
    is_kept: bool,
}

#[derive(Serialize)]
struct Domain {
    teacher_perplexity: f64,
    student_perplexity: f64,
}

/// Writes a student with the teacher's most influential layers, and prints the perplexities of both.
///
/// # Errors
/// If the teacher or the corpus cannot be used, if the teacher has too few layers, or if the folder must not be
/// replaced.
pub fn run(args: &args::Shrink, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let mut settings = config::begin(&args.config, signals)?;
    let teacher = args.teacher.clone().or(settings.teacher.model.clone());
    let name = teacher
        .context("no teacher is given")
        .hint("pass --teacher, or set teacher.model")
        .usage()?;
    let teacher = hub::model(&name)?;
    let student = args.out.clone().or(settings.student.model.clone());
    let student = student
        .context("no folder to write is given")
        .hint("pass --out, or set student.model")
        .usage()?;
    let shown = student.display();
    if same_folder(&student, &teacher) {
        return Err(anyhow!(
            "{shown} is the teacher's folder: it is not replaced"
        ))
        .hint("set --out to a new folder")
        .usage();
    }
    may_replace(&student, None)
        .hint("set --out to a new folder, or to one that ddk wrote before")
        .usage()?;
    let model_config = ModelConfig::read(&teacher)?;
    let kept = planned::to_keep(args.layers, &student, model_config.layers() as usize)?;
    // The student does not exist yet, and it will have the teacher's tokenizer.
    settings.corpus.tokenizer.get_or_insert(teacher.clone());
    let settings = hub::located(
        &settings,
        &[Wanted::Corpus],
        &hub::pinned(&settings)?,
        Some(signals),
    )?;
    signals.begin(Phase::Prepare)?;
    let corpus = prepare::open(&settings, prepare::Outdated::AsSet)?;
    let size = (
        corpus.tokenizer.vocabulary(),
        settings.corpus.sequence_length,
    );
    fits("teacher", &teacher, &model_config, size)?;
    let evaluation = prepare::evaluation(&settings, &corpus)?;

    signals.begin(Phase::Evaluate)?;
    let _context = ComputeContext::enter(available_parallelism().map_or(1, usize::from));
    let deep = Model::load(&teacher, &placement(&settings, &model_config)?)?;
    let measuring = Measuring::new(&settings, &evaluation);
    let influence = measuring.influence(&deep)?;
    let layers = chosen(&influence, kept);
    let numbers: Vec<usize> = layers
        .iter()
        .filter(|layer| layer.is_kept)
        .map(|layer| layer.number - 1)
        .collect();
    let shallow = deep.with_layers(&numbers)?;
    let before = measuring.perplexities("the teacher", &deep)?;
    let after = measuring.perplexities("the student", &shallow)?;

    signals.begin(Phase::ExportModel)?;
    shallow.save(&student, &Export::new(&teacher))?;
    let domain = |(index, name): (usize, &str)| {
        let domain = Domain {
            teacher_perplexity: before[index],
            student_perplexity: after[index],
        };
        (name.to_owned(), domain)
    };
    let shrunk = Shrunk {
        parameters: [
            model_config.parameter_count()?,
            shallow.config().parameter_count()?,
        ],
        layers,
        domains: corpus.names().enumerate().map(domain).collect(),
        teacher,
        student,
    };
    if args.json {
        return print_json(&shrunk, out);
    }
    print(&shrunk, out)?;
    say(&format!(
        "wrote the student to {}",
        shrunk.student.display()
    ));
    Ok(())
}

/// The weights stay in the dtype of the file, so that the student has the teacher's bits.
fn placement(settings: &Settings, teacher: &ModelConfig) -> Result<Placement> {
    let device = parse_device(&settings.student.device)?;
    let weights = match teacher.dtype() {
        Some("bfloat16") => Kind::BFloat16,
        Some("float16") => Kind::Half,
        _ => Kind::Float,
    };
    Ok(Placement {
        weights,
        compute: Kind::Float,
        ..Placement::on(device, Kind::Float)
    })
}

/// Chooses the `kept` layers with the largest influence. Of equal ones, the first layers stay.
fn chosen(influence: &[f64], kept: usize) -> Vec<Layer> {
    let mut order: Vec<usize> = (0..influence.len()).collect();
    order.sort_by(|&a, &b| influence[b].total_cmp(&influence[a]));
    let layers = influence.iter().enumerate();
    let layers = layers.map(|(index, &influence)| Layer {
        number: index + 1,
        influence,
        is_kept: order[..kept].contains(&index),
    });
    layers.collect()
}

/// Measures models on the validation documents, and reports the progress.
struct Measuring<'a> {
    evaluation: &'a Evaluation,
    reporter: Reporter,
}

impl<'a> Measuring<'a> {
    fn new(settings: &Settings, evaluation: &'a Evaluation) -> Self {
        Self {
            evaluation,
            reporter: Reporter::new(settings.log.interval_seconds),
        }
    }

    fn influence(&self, model: &Model) -> Result<Vec<f64>> {
        let found = self.told("influence of the layers", |tell| {
            Ok(self.evaluation.block_influence(model, tell)?)
        })?;
        let is_finite = found.iter().all(|influence| influence.is_finite());
        ensure!(is_finite, "the teacher's hidden states are not finite");
        Ok(found)
    }

    fn perplexities(&self, whose: &str, model: &Model) -> Result<Vec<f64>> {
        self.told(&format!("evaluation of {whose}"), |tell| {
            Ok(self.evaluation.perplexities(model, tell)?)
        })
    }

    fn told(
        &self,
        phase: &str,
        measure: impl FnOnce(&dyn Fn(u64, u64) -> bool) -> Result<Option<Vec<f64>>>,
    ) -> Result<Vec<f64>> {
        let meter = self.reporter.meter(phase, "documents");
        let tell = |done, total| {
            self.reporter.report(&meter.at(done, total));
            false
        };
        measure(&tell)?.context("the measurement was interrupted")
    }
}

fn print(shrunk: &Shrunk, out: &mut dyn Write) -> Result<()> {
    let mut table = Table::new(["layer", "influence", ""]);
    for layer in &shrunk.layers {
        let kept = if layer.is_kept { "kept" } else { "left out" };
        table.row([
            layer.number.to_string(),
            format!("{:.4}", layer.influence),
            kept.to_owned(),
        ]);
    }
    writeln!(out, "{table}")?;
    let mut table = Table::new(["domain", "teacher", "student", "gap"]);
    for (name, domain) in &shrunk.domains {
        let (teacher, student) = (domain.teacher_perplexity, domain.student_perplexity);
        table.row([
            name.clone(),
            format!("{teacher:.2}"),
            format!("{student:.2}"),
            format!("{:.3}", ddk_mixture::gap(student, teacher)),
        ]);
    }
    let [teacher, student] = shrunk.parameters.map(|count| count as f64 / 1e6);
    let kept = shrunk.layers.iter().filter(|layer| layer.is_kept).count();
    writeln!(out, "{table}")?;
    Ok(writeln!(
        out,
        "kept {kept} of {} layers: {student:.1} million parameters instead of {teacher:.1} million; the gap is in nats \
         per token, before any training",
        shrunk.layers.len()
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_with_the_largest_influence_stay_in_order() {
        let kept = |influence: &[f64], count| -> Vec<usize> {
            let layers = chosen(influence, count).into_iter();
            layers
                .filter(|layer| layer.is_kept)
                .map(|layer| layer.number)
                .collect()
        };
        assert_eq!(kept(&[0.5, 0.1, 0.2, 0.05, 0.4], 3), [1, 3, 5]);
        assert_eq!(kept(&[0.1, 0.1, 0.1], 2), [1, 2]);
    }
}
