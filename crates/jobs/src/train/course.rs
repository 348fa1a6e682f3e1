//! What a run has to do, for the estimate of the time that it needs.

use std::path::Path;

use ddk_actors::ports::StudentFactory;
use ddk_mixture::{MixturePolicy, Needs};
use ddk_settings::Settings;
use ddk_telemetry::{Course, Meter};

use super::prepared::Prepared;
use crate::{
    bench::OF_A_THREAD,
    progress::{model_bytes, model_parameters},
    wiring::StudentPort,
};

/// A guess of the operations per second of a GPU. It counts until the first batch is measured.
const OF_A_GPU: f64 = 2e13;
/// A guess of the bytes per second that an export and the report take, and of the seconds that they take at least.
const EXPORT_BYTES: f64 = 2e8;
const SHORTEST_END: f64 = 1.0;
/// Bytes of a parameter in fp32, and in a checkpoint with both moments.
const FP32: u64 = 4;
const IN_A_CHECKPOINT: u64 = 3 * FP32;

/// Returns the course of a run. `evaluations`: seconds of those before this process, and their number.
pub(super) fn course(prepared: &Prepared, settings: &Settings, evaluations: (f64, u64)) -> Course {
    let plan = &prepared.plan;
    let policy = settings.mixture.policy;
    let (seconds, count) = evaluations;
    let steers = policy.needs() == Needs::Perplexities;
    let measured = (steers && count > 0 && seconds > 0.0).then(|| seconds / count as f64);
    let guess = guess(
        plan.evaluation_flops,
        &settings.student.device,
        settings.student.threads,
    );
    let bytes = FP32 * model_parameters(&prepared.models.folders.student);
    let tokens_per_step = plan.sequences_per_step * settings.corpus.sequence_length as u64;
    Course {
        steps: plan.max_steps,
        tokens: plan.max_tokens,
        interval: match policy {
            MixturePolicy::Odm | MixturePolicy::DoremiProxy => 1,
            _ => settings.mixture.interval,
        },
        // Training does not wait for evaluations that lag.
        evaluation_every: match (plan.lag, steers) {
            (0, true) => Some(1),
            (0, false) => plan.evaluation_every,
            _ => None,
        },
        evaluation_seconds: measured.or(guess),
        evaluations_per_step: evaluations_per_step(prepared, tokens_per_step),
        tokens_per_step,
        save_every: settings.checkpoint.interval,
        ending_seconds: SHORTEST_END + bytes as f64 / EXPORT_BYTES,
    }
}

/// Returns how many evaluations of the student a step takes as long as: a forward and a backward pass, which is three
/// times as much work as a forward pass, or the teacher's forward pass beside it, if that is more.
fn evaluations_per_step(prepared: &Prepared, tokens_per_step: u64) -> Option<f64> {
    let documents = prepared.evaluation.validation.iter().flatten();
    let tokens: usize = documents.map(|document| document.tokens.len()).sum();
    let plan = &prepared.plan;
    let teacher = if prepared.models.asks_teacher() {
        plan.teacher_evaluation_flops / plan.evaluation_flops
    } else {
        0.0
    };
    let each = teacher.max(3.0) * tokens_per_step as f64 / tokens as f64;
    each.is_finite().then_some(each)
}

/// Returns the seconds that the teacher's evaluation may take.
pub(super) fn teacher_evaluation(settings: &Settings, flops: f64) -> Option<f64> {
    let teacher = &settings.teacher;
    let device = teacher.devices.first().map_or("cpu", String::as_str);
    guess(flops, device, teacher.threads)
}

/// Returns the approximate size of a checkpoint.
pub(super) fn checkpoint_bytes(student: &Path) -> u64 {
    IN_A_CHECKPOINT * model_parameters(student)
}

/// Returns the bytes of the models that the workers load: the student, and the teacher if it labels or is measured.
pub(super) fn bytes_to_load(prepared: &Prepared, measures: bool) -> u64 {
    let models = &prepared.models;
    let folders = &models.folders;
    let has_teacher = folders.has_teacher && !folders.head_only;
    let teacher = if has_teacher && (models.asks_teacher() || measures) {
        model_bytes(&folders.teacher)
    } else {
        0
    };
    teacher + model_bytes(&folders.student)
}

/// Shows the progress of loading until the student, which is built last, is built.
pub(super) fn until_built(
    loading: Meter,
    student: StudentFactory<StudentPort>,
) -> StudentFactory<StudentPort> {
    Box::new(move || {
        let built = student();
        drop(loading);
        built
    })
}

fn guess(flops: f64, device: &str, threads: usize) -> Option<f64> {
    let rate = match device {
        "cpu" => OF_A_THREAD * threads.max(1) as f64,
        _ => OF_A_GPU,
    };
    (flops > 0.0).then(|| flops / rate)
}
