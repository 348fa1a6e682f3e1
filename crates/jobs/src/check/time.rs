//! Estimates how long a run takes.

use std::{iter, thread::available_parallelism};

use anyhow::Result;
use ddk_engine::FlopCounter;
use ddk_run::view::{counted, duration};
use ddk_settings::{MixturePolicy, ObjectiveName, Settings};
use procfs::Current;

use super::{Models, count};
use crate::{
    args,
    bench::{
        Bench,
        quick::{MicroBatch, Operations},
    },
    findings::Findings,
    prepare::{self, Corpus},
    suited::Suited,
    train::options::most_steps,
};

/// Both models are run on as much of a micro-batch as should take at most this many seconds. It runs four times.
const QUICK: f64 = 2.0;

/// Fewest tokens of a sequence that say something about longer ones.
const SHORTEST: usize = 64;

/// Both models are loaded if they have at most this many bytes.
const SMALL: i64 = 8_000_000_000;

/// Share of the rate of large matrix products that a model reaches. An assumption, for models that are too large to
/// measure here.
const EFFICIENCY: f64 = 0.6;

/// Seconds above which the length of a run is worth a warning.
const DAY: f64 = 86_400.0;

/// Seconds of everything that a run repeats.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Times {
    micro_batch: MicroBatch,
    /// The student's evaluation, and the teacher's, if the validation documents are known.
    evaluations: Option<[f64; 2]>,
}

/// Prints how long a step, an evaluation and the whole run take.
pub(super) fn check(
    settings: &Settings,
    models: &Models,
    corpus: Option<&Corpus>,
    args: &args::Check,
    found: &mut Findings<'_>,
) {
    match estimate(settings, models, corpus) {
        Ok((how, times)) => {
            found.title(&format!("time, {how}"));
            report(settings, &times, args.ranks, found);
            other_load(found);
        }
        Err(error) => {
            found.title("time");
            found.line(&format!("not estimated: {error}"));
        }
    }
    threads(settings, models, found);
}

/// Measures a micro-batch, or as much of one as is quick, and otherwise estimates it. Returns how.
fn estimate(
    settings: &Settings,
    models: &Models,
    corpus: Option<&Corpus>,
) -> Result<(String, Times)> {
    let (rows, length) = (
        settings.training.micro_batch_size,
        settings.corpus.sequence_length,
    );
    let whole = Bench::of_shape(settings, rows, length)?;
    let operations = whole.operations()?;
    let [of_teacher, of_student] = whole.rates()?.map(|rate| EFFICIENCY * rate);
    let estimated = MicroBatch {
        teacher: operations.teacher / of_teacher,
        student: operations.student / of_student,
        forward: operations.forward / of_student,
        update: 0.0,
    };
    let mut how =
        "estimated from the models' operations and this machine's matrix products".to_owned();
    let mut micro_batch = estimated;
    let bytes = 4 * (models.teacher.parameter_count()? + models.student.parameter_count()?);
    for (fewer, shorter) in shapes(rows, length).filter(|_| bytes <= SMALL) {
        let part = Bench::of_shape(settings, fewer, shorter)?;
        let of_part = part.operations()?;
        if of_part.teacher / of_teacher + of_part.student / of_student > QUICK {
            continue;
        }
        micro_batch = scaled(part.micro_batch()?, &operations, &of_part);
        how = if (fewer, shorter) == (rows, length) {
            "measured with one micro-batch".to_owned()
        } else {
            format!(
                "measured with one sequence of {shorter} tokens and scaled by the models' operations"
            )
        };
        break;
    }
    let evaluations = corpus.map(|corpus| {
        let flops = whole.flop_counter()?;
        of_evaluations(&flops, corpus, &micro_batch, &operations)
    });
    let evaluations = evaluations.transpose()?;
    Ok((
        how,
        Times {
            micro_batch,
            evaluations,
        },
    ))
}

/// Sequences and tokens of ever smaller parts of a micro-batch.
fn shapes(rows: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let shorter = iter::successors(Some(length), |length| {
        Some(length / 2).filter(|length| *length >= SHORTEST)
    });
    let alone = shorter.map(|length| (1, length));
    iter::once((rows, length)).chain(alone)
}

/// Scales the measured seconds of a part to those of the whole.
fn scaled(seconds: MicroBatch, whole: &Operations, part: &Operations) -> MicroBatch {
    let times = |seconds: f64, whole: f64, part: f64| {
        if part > 0.0 {
            seconds * whole / part
        } else {
            0.0
        }
    };
    MicroBatch {
        teacher: times(seconds.teacher, whole.teacher, part.teacher),
        student: times(seconds.student, whole.student, part.student),
        forward: times(seconds.forward, whole.forward, part.forward),
        // It depends on the weights alone.
        update: seconds.update,
    }
}

/// Seconds of the student's evaluation and of the teacher's, at the rates of their forward passes.
fn of_evaluations(
    flops: &FlopCounter,
    corpus: &Corpus,
    seconds: &MicroBatch,
    operations: &Operations,
) -> Result<[f64; 2]> {
    let documents = prepare::validation(corpus)?;
    let student_rate = operations.forward / seconds.forward.max(1e-9);
    // A teacher without a forward pass is as fast as the student.
    let teacher_rate = if seconds.teacher > 0.0 {
        operations.teacher / seconds.teacher
    } else {
        student_rate
    };
    Ok([
        flops.student_evaluation(&documents) / student_rate,
        flops.teacher_evaluation(&documents) / teacher_rate,
    ])
}

/// Seconds of a step on each of `ranks` processes.
fn of_step(settings: &Settings, seconds: &MicroBatch, ranks: u64, cores: f64) -> f64 {
    let sizes = &settings.training;
    let micro_batches = sizes.global_batch_size / sizes.micro_batch_size / ranks.max(1);
    let micro_batches = micro_batches.max(1) as f64;
    let teacher = micro_batches * seconds.teacher;
    let student = micro_batches * seconds.student + seconds.update;
    let (of_teacher, of_student) = (&settings.teacher, &settings.student);
    let is_on_cpu = |device: &str| device == "cpu";
    if settings.pipeline.time_slicing {
        return teacher + student;
    }
    let both = (teacher / of_teacher.replicas() as f64).max(student);
    // Workers on the CPU cannot use more cores than there are.
    let mut busy = 0.0;
    if is_on_cpu(&of_student.device) {
        busy += student * (of_student.threads as f64).min(cores);
    }
    if of_teacher.every_device().all(is_on_cpu) {
        busy += teacher * (of_teacher.threads as f64).min(cores);
    }
    both.max(busy / cores)
}

/// How often the student is evaluated, the last time after the last step.
fn evaluations(settings: &Settings, steps: u64) -> u64 {
    let interval = if settings.mixture.policy.measures_perplexities() {
        Some(settings.mixture.interval)
    } else {
        settings.evaluation.interval
    };
    let between = interval.map_or(0, |interval| steps.saturating_sub(1) / interval);
    between + 2
}

fn report(settings: &Settings, times: &Times, ranks: u64, found: &mut Findings<'_>) {
    let seconds = &times.micro_batch;
    let Ok(steps) = most_steps(settings) else {
        return;
    };
    let sizes = &settings.training;
    let step_tokens = sizes.global_batch_size * settings.corpus.sequence_length as u64;
    let cores = available_parallelism().map_or(1, usize::from);
    let step = of_step(settings, seconds, ranks, cores as f64);
    let teacher = if settings.teacher.is_served() {
        "a server computes the teacher, which is not timed".to_owned()
    } else if seconds.teacher == 0.0 {
        "no forward pass of the teacher".to_owned()
    } else {
        format!("the teacher {}", duration(seconds.teacher))
    };
    found.line(&format!(
        "a micro-batch of {} takes the student {}; {teacher}",
        counted(sizes.micro_batch_size, "sequence"),
        duration(seconds.student)
    ));
    found.line(&format!(
        "a step takes about {}: {:.0} tokens/s",
        duration(step),
        step_tokens as f64 / step.max(1e-9)
    ));
    let number = evaluations(settings, steps);
    let mut all = steps as f64 * step;
    let mut without = Vec::new();
    if let Some([student, teacher]) = times.evaluations {
        found.line(&format!(
            "an evaluation takes about {}; the run makes {number}, and one of the teacher, which takes about {}",
            duration(student),
            duration(teacher)
        ));
        all += number as f64 * student + teacher;
    } else {
        without.push(format!(
            "{} (estimated after `ddk prepare`)",
            counted(number, "evaluation")
        ));
    }
    if settings.mixture.policy == MixturePolicy::Doremi {
        without.push("the two preliminary runs of doremi".to_owned());
    }
    if settings.objective.name == ObjectiveName::Ted {
        without.push("the first stage of ted".to_owned());
    }
    let without = match &*without {
        [] => String::new(),
        parts => format!(", without {}", parts.join(" and ")),
    };
    let tokens = count((steps * step_tokens) as i64);
    let rate = step_tokens as f64 / step.max(1e-9);
    let length = duration(all);
    found.line(&format!(
        "the run takes about {length}: {tokens} tokens at {rate:.0} tokens/s{without}"
    ));
    if all > DAY {
        found.line(&format!(
            "warning: the run takes {length}: for a shorter one, lower run.max_steps, choose a smaller model, or use a \
             GPU (teacher.devices, student.device)"
        ));
    }
}

/// Says so if other programs were using the cores, which makes every estimate too long.
fn other_load(found: &mut Findings<'_>) {
    let cores = available_parallelism().map_or(1, usize::from);
    let Ok(load) = procfs::LoadAverage::current() else {
        return;
    };
    // This check itself is a part of it.
    if load.one > 1.0 + cores as f32 {
        found.line(&format!(
            "warning: {:.0} threads compete for this machine's {cores} cores: without the other programs, all of this \
             is faster",
            load.one
        ));
    }
}

/// Says so if a run on the CPU leaves more than half of the cores idle.
fn threads(settings: &Settings, models: &Models, found: &mut Findings<'_>) {
    let (teacher, student) = (&settings.teacher, &settings.student);
    let is_on_cpu = student.device == "cpu" && teacher.every_device().all(|on| on == "cpu");
    if !is_on_cpu || teacher.is_served() {
        return;
    }
    let length = settings.corpus.sequence_length as u64;
    let suited = Suited::here(Some(&models.teacher), &models.student, length);
    let of_teacher = teacher.threads * teacher.replicas();
    let used = if settings.pipeline.time_slicing {
        of_teacher.max(student.threads)
    } else {
        of_teacher + student.threads
    };
    if 2 * used < suited.cores {
        found.line(&format!(
            "warning: the run uses {used} of this machine's {} cores; by the models' sizes, these settings use all: \
             {suited}",
            suited.cores
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(sets: &[&str]) -> Settings {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        ddk_settings::load(&[], &sets, []).unwrap().settings
    }

    const SECONDS: MicroBatch = MicroBatch {
        teacher: 2.0,
        student: 1.0,
        forward: 0.3,
        update: 0.5,
    };

    #[test]
    fn a_step_is_as_long_as_its_slower_side_or_its_cores_allow() {
        let sizes = [
            "training.global_batch_size=8",
            "training.micro_batch_size=2",
        ];
        let of = |more: &[&str], ranks, cores| {
            of_step(&settings(&[&sizes, more].concat()), &SECONDS, ranks, cores)
        };
        // Four micro-batches: teacher 8 s, student 4.5 s.
        assert_eq!(of(&[], 1, 8.0), 8.0);
        assert_eq!(of(&["teacher.devices=[\"cpu\", \"cpu\"]"], 1, 8.0), 4.5);
        assert_eq!(of(&["pipeline.time_slicing=true"], 1, 8.0), 12.5);
        // One core has to do everything.
        assert_eq!(of(&[], 1, 1.0), 12.5);
        assert_eq!(of(&["parallel.slots=2"], 2, 8.0), 4.0);
        let on_gpus = ["teacher.devices=[\"cuda:0\"]", "student.device=\"cuda:0\""];
        assert_eq!(of(&on_gpus, 1, 1.0), 8.0);
    }

    #[test]
    fn ever_smaller_parts_are_tried() {
        let all: Vec<_> = shapes(4, 300).collect();
        assert_eq!(all, [(4, 300), (1, 300), (1, 150), (1, 75)]);
        assert_eq!(shapes(2, 32).collect::<Vec<_>>(), [(2, 32), (1, 32)]);
    }

    #[test]
    fn a_part_is_scaled_by_the_operations_of_each_model() {
        let operations = |teacher, student, forward| Operations {
            teacher,
            student,
            forward,
        };
        let whole = operations(40.0, 30.0, 20.0);
        let seconds = scaled(SECONDS, &whole, &operations(10.0, 10.0, 10.0));
        assert_eq!((seconds.teacher, seconds.student), (8.0, 3.0));
        assert_eq!((seconds.forward, seconds.update), (0.6, 0.5));
        let alone = scaled(SECONDS, &whole, &operations(0.0, 10.0, 10.0));
        assert_eq!(alone.teacher, 0.0);
    }

    #[test]
    fn evaluations_are_counted_with_the_first_and_the_last() {
        let of = |policy: &str, more: &[&str], steps| {
            let policy = format!("mixture.policy={policy}");
            let sets = [&[&*policy, "mixture.interval=10"], more].concat();
            evaluations(&settings(&sets), steps)
        };
        assert_eq!(of("ddk", &[], 30), 4);
        assert_eq!(of("ddk", &[], 31), 5);
        assert_eq!(of("equal", &[], 31), 2);
        assert_eq!(of("equal", &["evaluation.interval=15"], 31), 4);
    }
}
