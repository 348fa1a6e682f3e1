//! Inputs of a head, and the expected results by definition and autograd.

use ddk_objective::{
    Detail, Divergence, HeadGradients, HeadInput, HeadOptions, HeadOutput, Objective, Positions,
    chunked_head,
};
use tch::{Kind, Tensor};

pub const POSITIONS: i64 = 23;
pub const VOCABULARY: i64 = 37;

/// Every divergence, at settings without cancellation.
pub const DIVERGENCES: [Divergence; 8] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.1 },
    Divergence::Jsd { beta: 0.5 },
    Divergence::Jsd { beta: 0.9 },
    Divergence::SkewKl { skew: 0.1 },
    Divergence::SkewReverseKl { skew: 0.1 },
    Divergence::TotalVariation,
];

/// Computes a divergence by its definition from log-probabilities `[positions, vocabulary]` in f64. Returns
/// `[positions]`.
pub fn by_definition(divergence: Divergence, s: &Tensor, t: &Tensor) -> Tensor {
    let kl = |one: &Tensor, other: &Tensor| {
        (one.exp() * (one - other)).sum_dim_intlist(1, false, Kind::Double)
    };
    let mix = |one: &Tensor, share: f64, other: &Tensor| {
        (one + share.ln()).logaddexp(&(other + (1.0 - share).ln()))
    };
    match divergence {
        Divergence::ForwardKl => kl(t, s),
        Divergence::ReverseKl => kl(s, t),
        Divergence::Jsd { beta } => {
            let m = mix(t, beta, s);
            kl(t, &m) * beta + kl(s, &m) * (1.0 - beta)
        }
        Divergence::SkewKl { skew } => kl(t, &mix(t, skew, s)),
        Divergence::SkewReverseKl { skew } => kl(s, &mix(s, skew, t)),
        Divergence::TotalVariation => {
            (s.exp() - t.exp())
                .abs()
                .sum_dim_intlist(1, false, Kind::Double)
                * 0.5
        }
    }
}

/// A student of width 6 and a teacher of width 9, with LM heads padded to different heights.
pub struct Case {
    pub student: [Tensor; 3],
    pub teacher: [Tensor; 3],
    pub labels: Tensor,
    pub weights: Option<Tensor>,
    pub scale: f64,
    pub soft_cap: Option<f64>,
}

impl Case {
    pub fn new(seed: u64) -> Self {
        // libtorch has one generator for the whole process, and tests run in parallel.
        let mut rng = ddk_order::stream(seed, "case", &[]);
        let mut random = |shape: &[i64]| {
            let count: i64 = shape.iter().product();
            let values: Vec<f64> = (0..count)
                .map(|_| ddk_order::standard_normal(&mut rng))
                .collect();
            Tensor::from_slice(&values).reshape(shape)
        };
        let mut side = |width: i64, padded: i64| {
            [
                random(&[POSITIONS, width]),
                random(&[padded, width]),
                random(&[padded]),
            ]
        };
        let (student, teacher) = (side(6, VOCABULARY + 3), side(9, VOCABULARY + 11));
        let labels: Vec<i64> = (0..POSITIONS)
            .map(|_| match ddk_order::below(&mut rng, 10) {
                0..3 => -100,
                _ => ddk_order::below(&mut rng, VOCABULARY as u64) as i64,
            })
            .collect();
        Self {
            student,
            teacher,
            labels: Tensor::from_slice(&labels),
            weights: None,
            scale: 1.0,
            soft_cap: None,
        }
    }

    pub fn input<'a>(&self, side: &'a [Tensor; 3]) -> HeadInput<'a> {
        HeadInput {
            bias: Some(&side[2]),
            scale: self.scale,
            soft_cap: self.soft_cap,
            ..HeadInput::new(&side[0], &side[1])
        }
    }

    pub fn head(&self, objective: Objective, chunk: i64) -> (HeadOutput, Tensor, Tensor) {
        self.head_with(objective, chunk, Detail::Sums)
    }

    pub fn head_with(
        &self,
        objective: Objective,
        chunk: i64,
        detail: Detail,
    ) -> (HeadOutput, Tensor, Tensor) {
        let mut weight = self.student[1].zeros_like();
        let mut bias = self.student[2].zeros_like();
        let output = chunked_head(
            &self.input(&self.student),
            Some(&self.input(&self.teacher)),
            &Positions {
                labels: &self.labels,
                weights: self.weights.as_ref(),
                denominator: 50.0,
            },
            &HeadOptions {
                objective,
                vocabulary: VOCABULARY,
                chunk,
                detail,
            },
            &mut HeadGradients {
                weight: Some(&mut weight),
                bias: Some(&mut bias),
                buffers: None,
            },
        )
        .unwrap();
        (output, weight, bias)
    }

    pub fn dense_logits(&self, [hidden, weight, bias]: &[Tensor; 3]) -> Tensor {
        let logits = (hidden.matmul(&weight.tr()) + bias) * self.scale;
        let logits = match self.soft_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        };
        logits.narrow(1, 0, VOCABULARY)
    }

    /// Returns the CE sum, the divergence sum, and autograd's gradients of (CE + gamma divergence) / 50, from dense
    /// logits by the definitions.
    pub fn dense(&self, objective: Objective) -> (f64, f64, Vec<Tensor>) {
        let leaves: Vec<Tensor> = self
            .student
            .iter()
            .map(|tensor| tensor.detach().copy().set_requires_grad(true))
            .collect();
        let leaves: [Tensor; 3] = leaves.try_into().unwrap();
        let (student, teacher) = (self.dense_logits(&leaves), self.dense_logits(&self.teacher));
        let mask = self.labels.ge(0).to_kind(Kind::Double);
        let weights = match &self.weights {
            Some(weights) => mask * weights,
            None => mask,
        };
        let picked = student.log_softmax(-1, Kind::Double).gather(
            1,
            &self.labels.clamp_min(0).unsqueeze(1),
            false,
        );
        let ce = (-picked.squeeze_dim(1) * &weights).sum(Kind::Double);
        let t = objective.temperature;
        let s = (student / t).log_softmax(-1, Kind::Double);
        let log_teacher = (teacher / t).log_softmax(-1, Kind::Double);
        let divergence = objective.divergence.unwrap();
        let kl = by_definition(divergence, &s, &log_teacher.detach());
        let factor = if objective.scale_by_temperature_squared {
            t * t
        } else {
            1.0
        };
        let kl = (kl * weights).sum(Kind::Double) * factor;
        ((&ce + &kl * objective.gamma) / 50.0).backward();
        (
            ce.double_value(&[]),
            kl.double_value(&[]),
            leaves.iter().map(Tensor::grad).collect(),
        )
    }
}

pub fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
    let difference = (got - expected).abs().max().double_value(&[]);
    assert!(difference < 1e-12, "{what}: {difference}");
}
