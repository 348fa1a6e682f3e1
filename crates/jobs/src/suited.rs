//! Thread settings that suit a machine, from the shapes of the models alone.
//!
//! `pipeline.threads = "auto"` measures instead. Two measurements may lead to two choices, and another thread count
//! changes the last bits of a run. A choice by shapes is the same for every start.

use std::{fmt, thread::available_parallelism};

use ddk_model::ModelConfig;
use ddk_settings::Settings;

use crate::train::threads::share;

/// How a teacher and a student share the cores of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suited {
    /// Cores of the machine.
    pub cores: usize,
    /// Whether both models take turns.
    pub time_slicing: bool,
    /// Replicas of the teacher.
    pub replicas: usize,
    /// Threads of each replica.
    pub teacher_threads: usize,
    /// Threads of the student.
    pub student_threads: usize,
}

impl Suited {
    /// Shares `cores` by the models' floating-point operations in a step of sequences of this length. `teacher` is
    /// `None` if another machine computes it.
    pub fn of(
        teacher: Option<&ModelConfig>,
        student: &ModelConfig,
        length: u64,
        cores: usize,
    ) -> Self {
        let columns = student.vocab_size().unsigned_abs();
        let one = || std::iter::once(length);
        let (mut of_teacher, mut of_head) = (0.0, 0.0);
        if let Some(teacher) = teacher {
            of_teacher = teacher.flops().hidden(one());
            // The student's worker applies the teacher's LM head.
            of_head = teacher.flops().head(length, columns);
        }
        let flops = student.flops();
        // A backward pass counts as two forward passes.
        let of_student = 3.0 * (flops.hidden(one()) + flops.head(length, columns)) + of_head;
        let mut settings = Settings::default();
        share(&mut settings, of_teacher, of_student, cores.clamp(1, 64));
        Self {
            cores,
            time_slicing: settings.pipeline.time_slicing,
            replicas: settings.teacher.devices.len(),
            teacher_threads: settings.teacher.threads,
            student_threads: settings.student.threads,
        }
    }

    /// Works like [`Self::of`] with the cores of this machine.
    pub fn here(teacher: Option<&ModelConfig>, student: &ModelConfig, length: u64) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self::of(teacher, student, length, cores)
    }

    /// Writes these settings into a configuration: after the headers `[teacher]` and `[student]`, and as a table
    /// `[pipeline]` before `[training]`. Leaves out the keys of a teacher that another machine computes.
    pub fn write_into(self, configuration: &str, is_served: bool) -> String {
        let core = if self.cores == 1 { "core" } else { "cores" };
        let mut of_teacher = format!(
            "[teacher]\n# Threads of each replica, for a CPU with {} {core}; see [pipeline]. GPUs ignore them.\n\
             threads = {}\n",
            self.cores, self.teacher_threads
        );
        if self.replicas > 1 {
            let devices = toml::Value::from(vec!["cpu"; self.replicas]);
            of_teacher.push_str(&format!(
                "devices = {devices}    # one entry per replica; for GPUs: [\"cuda:0\"]\n"
            ));
        }
        if is_served {
            of_teacher = "[teacher]\n".to_owned();
        }
        let of_student = format!("[student]\nthreads = {}\n", self.student_threads);
        let of_pipeline = format!(
            "# The threads above divide the cores by the computation of each model. `ddk bench` measures others.\n\
             # Another number of threads changes the last bits of the results.\n\
             [pipeline]\ntime_slicing = {}    # true: both models take turns, each with all its threads\n\n\
             [training]\n",
            self.time_slicing
        );
        // An example of the key would repeat it once it is no longer a comment.
        let is_example = |line: &&str| self.replicas > 1 && line.starts_with("# devices =");
        let lines = configuration.split_inclusive('\n');
        let configuration: String = lines.filter(|line| !is_example(line)).collect();
        configuration
            .replacen("[teacher]\n", &of_teacher, 1)
            .replacen("[student]\n", &of_student, 1)
            .replacen("[training]\n", &of_pipeline, 1)
    }
}

impl fmt::Display for Suited {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices = toml::Value::from(vec!["cpu"; self.replicas]);
        write!(
            to,
            "teacher.devices = {devices}, teacher.threads = {}, student.threads = {}, pipeline.time_slicing = {}",
            self.teacher_threads, self.student_threads, self.time_slicing
        )
    }
}
