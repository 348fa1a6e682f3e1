//! `pipeline.threads = "auto"`: measures both models before step 1 to choose replicas and threads. The run's
//! `config.toml` keeps the choice.

use std::{path::Path, thread::available_parallelism};

use anyhow::Result;
use ddk_run::RunFolder;
use ddk_settings::{Settings, ThreadChoice};
use ddk_torch::give_freed_memory_back;

use crate::{bench::Bench, config, gpus::devices, phase::Phase, progress::say, signals::Signals};

/// Seconds of each of the two measurements.
const SECONDS: f64 = 0.5;

/// A fraction of a core that is too small to deserve its own thread.
const SLACK: f64 = 0.15;

/// Returns the settings with the choice of the run in this folder, or with a new measurement if there is no run
/// yet.
pub(super) fn chosen(settings: &Settings, run: &Path, signals: &Signals) -> Result<Settings> {
    let mut chosen = settings.clone();
    if settings.pipeline.threads == ThreadChoice::Manual {
        return Ok(chosen);
    }
    if RunFolder::holds_a_run(run) {
        adopt(&mut chosen, &config::of_run(run)?);
        return Ok(chosen);
    }
    if devices(settings).any(|device| device != "cpu") {
        say(
            "pipeline.threads = \"auto\": DDK measures only CPUs; this run uses a GPU and keeps the replicas and \
             threads of the settings",
        );
        return Ok(chosen);
    }
    signals.begin(Phase::Threads)?;
    let cores = available_parallelism()?.get();
    let mut alone = settings.clone();
    (alone.teacher.threads, alone.student.threads) = (1, 1);
    let (teacher, student) = Bench::new(&alone, SECONDS)?.seconds()?;
    // Return the memory of the measured models before the run allocates its own.
    give_freed_memory_back();
    let choice = Choice::of(teacher, student, cores);
    choice.set(&mut chosen);
    let turns = if choice.time_slicing {
        ", with time slicing"
    } else {
        ""
    };
    say(&format!(
        "pipeline.threads = \"auto\": a step takes the teacher {teacher:.3} s and the student {student:.3} s on one \
         of {cores} cores, so teacher.devices has {} entries, teacher.threads = {}, student.threads = {}{turns}",
        choice.replicas, choice.teacher_threads, choice.student_threads
    ));
    Ok(chosen)
}

/// Adopts the choice of a run, if both leave it to a measurement.
pub(super) fn adopt(settings: &mut Settings, run: &Settings) {
    if (settings.pipeline.threads, run.pipeline.threads) == (ThreadChoice::Auto, ThreadChoice::Auto)
    {
        settings.pipeline.time_slicing = run.pipeline.time_slicing;
        settings.teacher.devices.clone_from(&run.teacher.devices);
        settings.teacher.threads = run.teacher.threads;
        settings.student.threads = run.student.threads;
    }
}

/// How the cores are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    replicas: usize,
    teacher_threads: usize,
    student_threads: usize,
    time_slicing: bool,
}

impl Choice {
    /// Chooses by each model's seconds per step on one core; 0 for a teacher whose output is not needed.
    fn of(teacher: f64, student: f64, cores: usize) -> Self {
        // The cores that keep the student as fast as its teachers.
        let wanted = cores as f64 * student / (teacher + student);
        let whole = |cores: f64| (cores - SLACK).ceil().max(1.0) as usize;
        let student_threads = whole(wanted).min(cores);
        let of_teachers = cores as f64 - wanted;
        // Several single-threaded replicas use cores better than one replica with several threads. A replica may
        // share a core that the student uses only in part, but only if the student has no other core: all threads
        // of a team wait for the one that lost its core.
        let replicas = match student_threads {
            1 => whole(of_teachers).min(cores),
            _ => cores - student_threads,
        };
        if teacher == 0.0 || replicas as f64 >= of_teachers - SLACK {
            return Self {
                replicas: replicas.max(1),
                teacher_threads: 1,
                student_threads,
                time_slicing: false,
            };
        }
        Self {
            replicas: 1,
            teacher_threads: cores,
            student_threads: cores,
            time_slicing: true,
        }
    }

    fn set(self, settings: &mut Settings) {
        settings.pipeline.time_slicing = self.time_slicing;
        settings.teacher.devices = vec!["cpu".to_owned(); self.replicas];
        settings.teacher.threads = self.teacher_threads;
        settings.student.threads = self.student_threads;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared_as_the_work_is() {
        let of = |teacher, student, cores| {
            let choice = Choice::of(teacher, student, cores);
            assert!(!choice.time_slicing && choice.teacher_threads == 1);
            (choice.replicas, choice.student_threads)
        };
        assert_eq!(of(1.0, 1.0, 2), (1, 1));
        assert_eq!(of(1.1, 1.0, 2), (1, 1));
        assert_eq!(of(4.0, 1.0, 2), (2, 1));
        assert_eq!(of(3.0, 1.0, 16), (12, 4));
        assert_eq!(of(1.0, 0.0, 8), (8, 1));
        assert_eq!(of(0.0, 1.0, 8), (1, 8));
        assert_eq!(of(1.0, 1.0, 1), (1, 1));
        for (teacher, student, cores) in [(1.0, 4.0, 2), (1.5, 2.5, 4)] {
            let choice = Choice::of(teacher, student, cores);
            assert!(choice.time_slicing, "{choice:?}");
            assert_eq!(
                (
                    choice.replicas,
                    choice.teacher_threads,
                    choice.student_threads
                ),
                (1, cores, cores)
            );
        }
    }
}
