//! Computes everything for one position, in passes over its row of logits while the row is in the cache.

use crate::{
    Loss, Values,
    divergence::{Column, OfColumn},
    math::exp,
    sum::{LANES, sum},
};

/// Numbers to process at a time: a few arrays of this size stay in the innermost cache.
const BLOCK: usize = 512;

/// A softmax over a row: `p_j = exp((x_j - max) / T) / sum`.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    /// 1 / T.
    sharpness: f32,
    sum: f64,
}

impl Softmax {
    #[inline(always)]
    fn of(row: &[f32], sharpness: f32) -> Self {
        let max = max(row);
        let (mut exponentials, mut total) = ([0.0_f32; BLOCK], 0.0);
        for block in row.chunks(BLOCK) {
            let exponentials = &mut exponentials[..block.len()];
            for (exponential, x) in exponentials.iter_mut().zip(block) {
                *exponential = exp((x - max) * sharpness);
            }
            total += sum(exponentials);
        }
        Self {
            max,
            sharpness,
            sum: total,
        }
    }

    /// Returns the negative log-probability of a logit of the row, at T = 1, in nats.
    fn cross_entropy(&self, number: f32) -> f64 {
        self.sum.ln() + (f64::from(self.max) - f64::from(number))
    }

    /// 1 / sum.
    fn inverse(&self) -> f32 {
        (1.0 / self.sum) as f32
    }
}

/// Computes one position. The gradient, times `scale`, overwrites the student's logits. `teacher_ce`: whether to
/// compute the teacher's own cross-entropy.
#[inline(always)]
pub(crate) fn position(
    student: &mut [f32],
    teacher: Option<&[f32]>,
    label: usize,
    scale: f32,
    teacher_ce: bool,
    loss: &Loss,
) -> Values {
    let own = Softmax::of(student, 1.0);
    let mut values = Values {
        ce: own.cross_entropy(student[label]),
        ..Values::default()
    };
    let mut of_teacher = None;
    if let Some(teacher) = teacher.filter(|_| teacher_ce || loss.temperature == 1.0) {
        let softmax = Softmax::of(teacher, 1.0);
        values.teacher_ce = softmax.cross_entropy(teacher[label]);
        of_teacher = Some(softmax);
    }
    match (teacher, loss.divergence) {
        (Some(teacher), Some(divergence)) if loss.weight != 0.0 => {
            let sharpness = (1.0 / loss.temperature) as f32;
            let pair = match (of_teacher, loss.temperature == 1.0) {
                (Some(of_teacher), true) => (own, of_teacher),
                _ => (
                    Softmax::of(student, sharpness),
                    Softmax::of(teacher, sharpness),
                ),
            };
            let rows = Rows {
                student,
                teacher,
                label,
                own,
                pair,
                scale,
                loss,
            };
            values.divergence = divergence.of_rows(rows);
        }
        _ => {
            let inverse = own.inverse();
            let of_label = scale * (exp(student[label] - own.max) * inverse - 1.0);
            for x in student.iter_mut() {
                *x = scale * (exp(*x - own.max) * inverse);
            }
            student[label] = of_label;
        }
    }
    values
}

/// Both rows of logits, and their softmaxes.
pub(crate) struct Rows<'a> {
    student: &'a mut [f32],
    teacher: &'a [f32],
    label: usize,
    /// The student at T = 1.
    own: Softmax,
    /// Student and teacher at the divergence's temperature.
    pair: (Softmax, Softmax),
    scale: f32,
    loss: &'a Loss,
}

impl Rows<'_> {
    /// Returns the divergence. Overwrites the student's logits with the gradient of `ce + weight * divergence`.
    #[inline(always)]
    pub(crate) fn diverge<D: OfColumn>(self, divergence: D) -> f64 {
        let (of_student, of_teacher) = self.pair;
        let constant = of_student.sum.ln() - of_teacher.sum.ln();
        let columns = Columns {
            max: (of_student.max, of_teacher.max),
            inverse: (of_student.inverse(), of_teacher.inverse()),
            sharpness: of_student.sharpness,
            log_ratio: constant as f32,
        };
        let sums = Sums::of(self.student, self.teacher, columns, divergence);
        let loss = self.loss;
        let gradient = Gradient {
            columns,
            divergence,
            sums,
            own: (loss.temperature != 1.0).then(|| (self.own.max, self.own.inverse())),
            weight: (loss.weight * loss.factor / loss.temperature) as f32,
            scale: self.scale,
        };
        let label = self.label;
        let of_label = gradient.at(self.student[label], self.teacher[label], 1.0);
        for (x, y) in self.student.iter_mut().zip(self.teacher) {
            *x = gradient.at(*x, *y, 0.0);
        }
        self.student[label] = of_label;
        // The sums leave out the constant. Add it once, because the probabilities of a row sum to 1.
        loss.factor * (sums.value + D::GAP * constant)
    }
}

/// Turns the logits of both models at a column into probabilities. Pairs are (student, teacher).
#[derive(Clone, Copy)]
struct Columns {
    max: (f32, f32),
    /// 1 / sum.
    inverse: (f32, f32),
    /// 1 / T.
    sharpness: f32,
    /// Logarithm of the ratio of the student's sum to the teacher's.
    log_ratio: f32,
}

impl Columns {
    // This is called twice, and the compiler uses the processor's vectors only if it is inlined. The same goes for
    // everything that the loops call.
    #[inline(always)]
    fn at(self, own: f32, other: f32) -> Column {
        let x = (own - self.max.0) * self.sharpness;
        let y = (other - self.max.1) * self.sharpness;
        Column {
            p: exp(x) * self.inverse.0,
            q: exp(y) * self.inverse.1,
            ahead: (x - y) - self.log_ratio,
            gap: y - x,
            wide_gap: (f64::from(other) - f64::from(own)) * f64::from(self.sharpness),
        }
    }
}

/// Sums over all columns, which the gradient of each column needs.
#[derive(Clone, Copy)]
struct Sums {
    /// Sum of the parts of the value.
    value: f64,
    /// Mean of the slopes, weighted by the student's probabilities.
    slope: f64,
    /// Sum of the shares.
    share: f32,
}

impl Sums {
    #[inline(always)]
    fn of<D: OfColumn>(student: &[f32], teacher: &[f32], columns: Columns, divergence: D) -> Self {
        let (mut value, mut slope, mut share) = (0.0_f64, 0.0_f64, 0.0_f64);
        let mut values = [0.0_f32; BLOCK];
        let mut of_slopes = [0.0_f64; BLOCK];
        // Holds the student's probabilities if there are slopes.
        let mut of_shares = [0.0_f32; BLOCK];
        for (student, teacher) in student.chunks(BLOCK).zip(teacher.chunks(BLOCK)) {
            let count = student.len().min(teacher.len()).min(BLOCK);
            for index in 0..count {
                let column = columns.at(student[index], teacher[index]);
                let part = divergence.part(column);
                values[index] = part.value;
                if D::SLOPES {
                    of_slopes[index] = f64::from(column.p) * part.slope;
                    of_shares[index] = column.p;
                } else {
                    of_shares[index] = part.share;
                }
            }
            value += sum(&values[..count]);
            if D::SLOPES {
                slope += sum(&of_slopes[..count]);
            }
            share += sum(&of_shares[..count]);
        }
        Self {
            value,
            // Rounded probabilities do not sum to exactly 1, which shows with slopes of 1e4. Divide by their actual
            // sum.
            slope: slope / share,
            share: share as f32,
        }
    }
}

/// The gradient of a column.
#[derive(Clone, Copy)]
struct Gradient<D> {
    columns: Columns,
    divergence: D,
    sums: Sums,
    /// Largest logit and 1 / sum of the student at T = 1, if the divergence has another temperature.
    own: Option<(f32, f32)>,
    /// Weight of the divergence.
    weight: f32,
    scale: f32,
}

impl<D: OfColumn> Gradient<D> {
    /// `one` is 1 at the label and 0 elsewhere. It is subtracted from the probability first, because little may
    /// remain.
    #[inline(always)]
    fn at(&self, x: f32, y: f32, one: f32) -> f32 {
        let column = self.columns.at(x, y);
        let part = self.divergence.part(column);
        let gradient = if D::SLOPES {
            column.p * (part.slope - self.sums.slope) as f32
        } else {
            column.p.mul_add(self.sums.share, -part.share)
        };
        let own = match self.own {
            Some((max, inverse)) => exp(x - max) * inverse,
            None => column.p,
        };
        self.scale * self.weight.mul_add(gradient, own - one)
    }
}

/// Skips NaN, which reappears in the differences from the largest number.
#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *x);
        }
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
    rest.iter().copied().fold(largest, larger)
}
