//! Computes a divergence between the student's and the teacher's distributions, column by column, from both
//! probabilities and their logarithms.
//!
//! Let `s` and `t` be the log-probabilities of student and teacher at a position, `p = exp(s)`, `q = exp(t)`, and
//! `u` the student's logits, all at the same temperature. Then `ds_k / du_j = [k = j] - p_j`, so a divergence with
//! the partial derivatives `g_j = dD / ds_j` has the gradient `dD / du_j = g_j - p_j sum g`. Each column gives its
//! part of the value, and `g` in one of two forms. As a slope, `g = p h`, and the gradient is `p (h - sum p h)`. As
//! a share, `g = -c`, and the gradient is `p sum c - c`:
//!
//! | divergence | value | gradient |
//! |---|---|---|
//! | forward KL | `sum q (t - s)` | `c = q` |
//! | reverse KL | `sum p (s - t)` | `h = s - t` |
//! | JSD, beta | `beta sum q (t - m) + (1 - beta) sum p (s - m)` | `h = (1 - beta) (s - m)` |
//! | skew KL, a | `sum q (t - m)`, `m = log(a q + (1 - a) p)` | `c = (1 - a) p q / exp(m)` |
//! | skew reverse KL, a | `sum p (s - m)`, `m = log(a p + (1 - a) q)` | `h = s - m - a p / exp(m)` |
//! | total variation | `1/2 sum abs(p - q)` | `h = sign(p - q) / 2` |
//!
//! For JSD, `m = log(beta q + (1 - beta) p)`.
//!
//! Every quotient by a mixture is the exponential of a difference that is bounded above by 0.
//!
//! Sources: forward KL: Hinton et al., 2015; reverse KL: Gu et al., "MiniLLM", 2024; JSD: Agarwal et al.,
//! "On-Policy Distillation of Language Models" (GKD), 2024, in TRL's convention, in which beta weights the teacher;
//! skew KLs: Ko et al., "DistiLLM", 2024; total variation: Wen et al., "f-Divergence Minimization for
//! Sequence-Level Knowledge Distillation", 2023.

use crate::{
    math::{exp, ln_1p, log_add},
    row::Rows,
};

/// A divergence between the teacher's distribution T and the student's distribution S over the next token, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// `KL(T || S)`.
    ForwardKl,
    /// `KL(S || T)`.
    ReverseKl,
    /// `beta KL(T || M) + (1 - beta) KL(S || M)` with `M = beta T + (1 - beta) S`.
    Jsd {
        /// 0 to 1; at both ends it is 0 everywhere.
        beta: f64,
    },
    /// `KL(T || skew T + (1 - skew) S)`.
    SkewKl {
        /// 0 (the forward KL) to 1 (0 everywhere).
        skew: f64,
    },
    /// `KL(S || skew S + (1 - skew) T)`.
    SkewReverseKl {
        /// 0 (the reverse KL) to 1 (0 everywhere).
        skew: f64,
    },
    /// Total variation: `1/2 sum |S - T|`.
    TotalVariation,
}

impl Divergence {
    /// Computes the divergence at a position. The gradient overwrites the student's logits.
    #[inline(always)]
    pub(crate) fn of_rows(self, rows: Rows<'_>) -> f64 {
        match self {
            Self::ForwardKl => rows.diverge(ForwardKl),
            Self::ReverseKl => rows.diverge(ReverseKl),
            Self::Jsd { beta } => rows.diverge(Jsd::new(beta)),
            Self::SkewKl { skew } => rows.diverge(SkewKl::new(skew)),
            Self::SkewReverseKl { skew } => rows.diverge(SkewReverseKl(SkewKl::new(skew))),
            Self::TotalVariation => rows.diverge(TotalVariation),
        }
    }
}

/// Both models at one column of one position.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    /// The student's probability.
    pub(crate) p: f32,
    /// The teacher's.
    pub(crate) q: f32,
    /// `s - t`, computed from differences. Subtracting the rounded `t` from the rounded `s` would keep their
    /// rounding errors.
    pub(crate) ahead: f32,
    /// `t - s` without a constant of the position, which is added in f64.
    pub(crate) gap: f32,
    /// The same in f64, with another constant: for logits of 1e4, fp32 has only three digits left for their
    /// difference.
    pub(crate) wide_gap: f64,
}

/// What a column contributes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part {
    /// Part of the value. For a KL, without the constant of the gap.
    pub(crate) value: f32,
    /// h, without a constant of the position.
    pub(crate) slope: f64,
    /// c.
    pub(crate) share: f32,
}

/// A divergence with its constants. The loops over columns are compiled for each divergence.
pub(crate) trait OfColumn: Copy {
    /// Factor of the gap's constant in the value: 1 if the value is `sum q gap`, -1 if it is `-sum p gap`, 0
    /// otherwise.
    const GAP: f64 = 0.0;
    /// Whether the gradient has slopes; otherwise it has shares.
    const SLOPES: bool = true;

    fn part(self, column: Column) -> Part;
}

#[derive(Clone, Copy)]
pub(crate) struct ForwardKl;

impl OfColumn for ForwardKl {
    const GAP: f64 = 1.0;
    const SLOPES: bool = false;

    #[inline(always)]
    fn part(self, Column { q, gap, .. }: Column) -> Part {
        Part {
            value: q * gap,
            share: q,
            ..Part::default()
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct ReverseKl;

impl OfColumn for ReverseKl {
    const GAP: f64 = -1.0;

    #[inline(always)]
    fn part(self, column: Column) -> Part {
        Part {
            value: -column.p * column.gap,
            slope: -column.wide_gap,
            ..Part::default()
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Jsd {
    beta: f32,
    one_less: f32,
    log_beta: f32,
    log_one_less: f32,
}

impl Jsd {
    pub(crate) fn new(beta: f64) -> Self {
        Self {
            beta: beta as f32,
            one_less: (1.0 - beta) as f32,
            log_beta: beta.ln() as f32,
            log_one_less: (1.0 - beta).ln() as f32,
        }
    }
}

impl OfColumn for Jsd {
    #[inline(always)]
    fn part(self, Column { ahead, p, q, .. }: Column) -> Part {
        // Compute m - t and m - s each from the larger of the two mixed terms, because their difference may be far
        // larger than either.
        let (of_teacher, of_student) = (self.log_beta, ahead + self.log_one_less);
        let more = ln_1p(exp(-(of_teacher - of_student).abs()));
        let (less_t, less_s) = if of_teacher > of_student {
            (of_teacher + more, (of_teacher - ahead) + more)
        } else {
            (of_student + more, self.log_one_less + more)
        };
        let slope = -self.one_less * less_s;
        Part {
            value: (self.beta * q).mul_add(-less_t, p * slope),
            slope: slope.into(),
            ..Part::default()
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct SkewKl {
    log_skew: f32,
    log_one_less: f32,
}

impl SkewKl {
    pub(crate) fn new(skew: f64) -> Self {
        Self {
            log_skew: skew.ln() as f32,
            log_one_less: (1.0 - skew).ln() as f32,
        }
    }
}

impl OfColumn for SkewKl {
    const SLOPES: bool = false;

    #[inline(always)]
    fn part(self, Column { ahead, q, .. }: Column) -> Part {
        // All terms are relative to t.
        let of_student = ahead + self.log_one_less;
        let mixed = log_add(self.log_skew, of_student);
        Part {
            value: -q * mixed,
            share: q * exp(of_student - mixed),
            ..Part::default()
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct SkewReverseKl(SkewKl);

impl OfColumn for SkewReverseKl {
    #[inline(always)]
    fn part(self, Column { ahead, p, .. }: Column) -> Part {
        // All terms are relative to s.
        let mixed = log_add(self.0.log_skew, self.0.log_one_less - ahead);
        Part {
            value: -p * mixed,
            slope: (-mixed - exp(self.0.log_skew - mixed)).into(),
            ..Part::default()
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct TotalVariation;

impl OfColumn for TotalVariation {
    #[inline(always)]
    fn part(self, Column { p, q, .. }: Column) -> Part {
        let difference = p - q;
        // Equal logits give equal bits, so the sign of their difference is 0.
        let sign = f32::from(u8::from(difference > 0.0)) - f32::from(u8::from(difference < 0.0));
        Part {
            value: 0.5 * difference.abs(),
            slope: (0.5 * sign).into(),
            ..Part::default()
        }
    }
}
