//! The measurements as a table or as JSON, and advice on what to change.

use std::io::Write;

use anyhow::Result;
use ddk_run::view::counted;
use serde::Serialize;

use super::steps::PARTS;
use ddk_report::document::Table;

/// If one side is slower than the other by more than this factor, a change is worthwhile.
const IMBALANCE: f64 = 1.15;

/// A part of a step.
#[derive(Debug, Serialize)]
pub(super) struct Part {
    pub(super) name: &'static str,
    /// Seconds per step.
    pub(super) seconds: f64,
    /// Floating-point operations of its matmuls.
    pub(super) operations: f64,
    /// Seconds of its matmuls alone, in the same shapes.
    pub(super) products: f64,
}

/// All measurements.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) rows: u64,
    pub(super) sequence_length: usize,
    pub(super) vocabulary: i64,
    /// MKL's matrix kernels.
    pub(super) kernels: &'static str,
    /// Operations per second in large square matmuls, on the teacher's device and threads (if its output is needed)
    /// and on the student's.
    pub(super) teacher_rate: Option<f64>,
    pub(super) student_rate: f64,
    /// Absent if the teacher's output is not needed.
    pub(super) teacher: Option<Part>,
    pub(super) student: [Part; 4],
    /// Seconds per step while both run concurrently.
    pub(super) overlapped_seconds: f64,
    /// The share of that time in which the student waits.
    pub(super) student_waits: f64,
    pub(super) tokens_per_second: f64,
    pub(super) advice: String,
}

impl Measured {
    /// Sums up all parts of the student.
    fn student(&self) -> Part {
        let sum = |of: fn(&Part) -> f64| self.student.iter().map(of).sum::<f64>();
        Part {
            name: "student",
            seconds: sum(|part| part.seconds),
            operations: sum(|part| part.operations),
            products: sum(|part| part.products),
        }
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "a step: {} of {}, {} ids; the CPU's matrix kernels: {}",
            counted(self.rows, "sequence"),
            counted(self.sequence_length as u64, "token"),
            self.vocabulary,
            self.kernels
        )?;
        let mut table = Table::new(["", "seconds", "GFLOP/s", "of rate", "products"]);
        let mut line = |name: String, part: &Part, rate: f64| {
            let speed = part.operations / part.seconds;
            let shares = [speed / rate, part.products / part.seconds];
            let shares = shares.map(|share| format!("{:.0}%", 100.0 * share));
            let mut cells = vec![name, format!("{:.4}", part.seconds)];
            if part.operations > 0.0 {
                cells.push(format!("{:.0}", speed / 1e9));
                cells.extend(shares);
            }
            table.row(cells);
        };
        if let (Some(part), Some(rate)) = (&self.teacher, self.teacher_rate) {
            line(part.name.to_owned(), part, rate);
        }
        let student = self.student();
        line(student.name.to_owned(), &student, self.student_rate);
        for part in &self.student {
            line(format!("  {}", part.name), part, self.student_rate);
        }
        write!(out, "{table}")?;
        let both = || self.teacher.iter().chain([&student]);
        let seconds: f64 = both().map(|part| part.seconds).sum();
        let products: f64 = both().map(|part| part.products).sum();
        writeln!(
            out,
            "products: matrix products of these shapes alone, {products:.4} s of {seconds:.4} s: {:.0}%",
            100.0 * products / seconds
        )?;
        let of_teacher = self.teacher_rate.map_or(String::new(), |rate| {
            format!("{:.0} on the teacher's threads, ", rate / 1e9)
        });
        writeln!(
            out,
            "rate, GFLOP/s of large square products: {of_teacher}{:.0} on the student's threads",
            self.student_rate / 1e9
        )?;
        writeln!(
            out,
            "one after the other {:.0} tokens/s; overlapped {:.0} tokens/s ({:.2} x), the student waits {:.0}% \
             of the time",
            self.tokens_per_second * self.overlapped_seconds / seconds,
            self.tokens_per_second,
            seconds / self.overlapped_seconds,
            100.0 * self.student_waits
        )?;
        Ok(writeln!(out, "{}", self.advice)?)
    }
}

/// Returns what to change, in one sentence. `teacher`: its seconds, if its output is needed. `student`: the parts
/// of its step.
pub(super) fn advice(replicas: usize, teacher: Option<f64>, student: &[Part]) -> String {
    // Users cannot change the optimizer's part.
    let parts = student.iter().filter(|part| part.operations > 0.0);
    let part = match parts.max_by(|one, other| one.seconds.total_cmp(&other.seconds)) {
        Some(part) if part.name == PARTS[1] => {
            "heads: use a smaller vocabulary, or score fewer tokens"
        }
        part => part.map_or("", |part| part.name),
    };
    let Some(teacher) = teacher else {
        return format!("the student works alone; most of its time goes into its {part}");
    };
    let student: f64 = student.iter().map(|part| part.seconds).sum();
    let ratio = teacher / replicas as f64 / student;
    match ratio {
        ratio if ratio > IMBALANCE => format!(
            "the teacher takes {ratio:.1} x as long as the student: add a replica (teacher.devices with {} \
             entries), use another device, or more threads",
            replicas + 1
        ),
        ratio if ratio < 1.0 / IMBALANCE => format!(
            "the student takes {:.1} x as long as the teacher: give it more threads (student.threads), or the \
             faster device; most of its time goes into its {part}",
            1.0 / ratio
        ),
        _ => "teacher and student are balanced".to_owned(),
    }
}
