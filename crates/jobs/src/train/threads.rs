//! `pipeline.threads = "auto"`: measures both models before step 1 to choose replicas and threads. The run's
//! `config.toml` keeps the choice.

use std::{path::Path, thread::available_parallelism};

use anyhow::Result;
use ddk_run::RunFolder;
use ddk_settings::{Settings, ThreadChoice};
use ddk_torch::give_freed_memory_back;

use crate::{
    bench::Bench, config, gpus::devices, phase::Phase, progress::say, ranks::Ranks,
    signals::Signals,
};

/// Seconds of each of the two measurements.
const SECONDS: f64 = 0.5;

/// A fraction of a core that is too small to deserve its own thread.
const SLACK: f64 = 0.15;

/// Returns the settings with the choice of the run in this folder, or with a new measurement if there is no run
/// yet.
pub(super) fn chosen(
    settings: &Settings,
    run: &Path,
    signals: &Signals,
    ranks: Option<&Ranks>,
) -> Result<Settings> {
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
    // The processes on a machine share its cores.
    let processes = ranks.map_or(1, Ranks::local_size);
    let cores = (available_parallelism()?.get() / processes).max(1);
    let mut alone = settings.clone();
    (alone.teacher.threads, alone.student.threads) = (1, 1);
    let (teacher, student) = Bench::new(&alone, SECONDS)?.seconds()?;
    // Return the memory of the measured models before the run allocates its own.
    give_freed_memory_back();
    share(&mut chosen, teacher, student, cores);
    let turns = if chosen.pipeline.time_slicing {
        ", with time slicing"
    } else {
        ""
    };
    say(&format!(
        "pipeline.threads = \"auto\": a step takes the teacher {teacher:.3} s and the student {student:.3} s on one \
         of {cores} cores, so teacher.devices has {} entries, teacher.threads = {}, student.threads = {}{turns}",
        chosen.teacher.devices.len(),
        chosen.teacher.threads,
        chosen.student.threads
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

/// Shares the cores by each model's seconds per step on one core; 0 for a teacher whose output is not needed.
pub(crate) fn share(settings: &mut Settings, teacher: f64, student: f64, cores: usize) {
    // The cores that keep the student as fast as its teachers.
    let wanted = cores as f64 * student / (teacher + student);
    let whole = |cores: f64| (cores - SLACK).ceil().max(1.0) as usize;
    let of_student = whole(wanted).min(cores);
    let of_teachers = cores as f64 - wanted;
    // Several single-threaded replicas use cores better than one replica with several threads. A replica may share a
    // core that the student uses only in part, but only if the student has no other core: all threads of a team wait
    // for the one that lost its core.
    let replicas = match of_student {
        1 => whole(of_teachers).min(cores),
        _ => cores - of_student,
    };
    let is_enough = teacher == 0.0 || replicas as f64 >= of_teachers - SLACK;
    let (replicas, teacher_threads, student_threads) = if is_enough {
        (replicas.max(1), 1, of_student)
    } else {
        (1, cores, cores)
    };
    settings.pipeline.time_slicing = !is_enough;
    settings.teacher.devices = vec!["cpu".to_owned(); replicas];
    settings.teacher.threads = teacher_threads;
    settings.student.threads = student_threads;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether time is sliced, the number of replicas, and the threads of teacher and student.
    fn shared(teacher: f64, student: f64, cores: usize) -> (bool, usize, [usize; 2]) {
        let mut chosen = Settings::default();
        share(&mut chosen, teacher, student, cores);
        let threads = [chosen.teacher.threads, chosen.student.threads];
        let replicas = chosen.teacher.devices.len();
        (chosen.pipeline.time_slicing, replicas, threads)
    }

    #[test]
    fn cores_are_shared_as_the_work_is() {
        let of = |teacher, student, cores| {
            let (is_sliced, replicas, [of_teacher, of_student]) = shared(teacher, student, cores);
            assert!(!is_sliced && of_teacher == 1);
            (replicas, of_student)
        };
        assert_eq!(of(1.0, 1.0, 2), (1, 1));
        assert_eq!(of(1.1, 1.0, 2), (1, 1));
        assert_eq!(of(4.0, 1.0, 2), (2, 1));
        assert_eq!(of(3.0, 1.0, 16), (12, 4));
        assert_eq!(of(1.0, 0.0, 8), (8, 1));
        assert_eq!(of(0.0, 1.0, 8), (1, 8));
        assert_eq!(of(1.0, 1.0, 1), (1, 1));
        for (teacher, student, cores) in [(1.0, 4.0, 2), (1.5, 2.5, 4)] {
            let choice = shared(teacher, student, cores);
            assert_eq!(choice, (true, 1, [cores, cores]));
        }
    }
}
