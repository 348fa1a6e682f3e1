//! Runs the kernels on the CPU, compiled as C++: compares them with `ddk-kernel` and with golden values that were
//! computed in float64 from the formulas.

use std::ffi::c_void;

use ddk_cuda::{
    Chunk, Dtype, Launch, Norm, NormBackward, Rotation, Source, losses, silu_mul, silu_mul_backward,
};
use ddk_kernel::{Divergence, Loss, NormInputs, Values};
use serde_json::Value;

use crate::compile::{self, normal};

/// The gradient and the values of a chunk.
type Computed = (Vec<f32>, Vec<Values>);

struct Case {
    columns: usize,
    student: Vec<f32>,
    teacher: Vec<f32>,
    labels: Vec<i64>,
    scales: Vec<f32>,
}

impl Case {
    /// Normal logits times `spread`; every third position is not scored.
    fn new(positions: usize, columns: usize, spread: f64) -> Self {
        let label = |position: usize| match position % 3 {
            2 => -100,
            _ => (position * 5 % columns) as i64,
        };
        Self {
            columns,
            student: normal("student", positions * columns, spread),
            teacher: normal("teacher", positions * columns, spread),
            labels: (0..positions).map(label).collect(),
            scales: (0..positions).map(|at| 0.1 + 0.1 * at as f32).collect(),
        }
    }

    fn by_twin(&self, loss: &Loss, teacher_ce: bool) -> Computed {
        let mut gradient = self.student.clone();
        // Not what the kernel writes at unscored positions.
        let mut values = vec![
            Values {
                ce: 7.0,
                divergence: 7.0,
                teacher_ce: 7.0
            };
            self.labels.len()
        ];
        let chunk = Chunk {
            student: gradient.as_mut_ptr(),
            teacher: Some(self.teacher.as_ptr()),
            labels: self.labels.as_ptr(),
            scales: self.scales.as_ptr(),
            values: values.as_mut_ptr(),
            positions: self.labels.len() as u32,
            columns: self.columns as i32,
            teacher_ce,
        };
        compile::run(Source::Loss, &losses(&chunk, loss));
        (gradient, values)
    }

    fn by_kernel(&self, loss: &Loss, teacher_ce: bool) -> Computed {
        let mut gradient = self.student.clone();
        let mut values = vec![Values::default(); self.labels.len()];
        let chunk = ddk_kernel::Chunk {
            student: &mut gradient,
            teacher: Some(&self.teacher),
            labels: &self.labels,
            scales: &self.scales,
            teacher_ce,
        };
        ddk_kernel::losses(chunk, loss, 1, &mut values);
        (gradient, values)
    }

    /// Checks that both agree within the rounding of fp32.
    fn agrees(&self, loss: &Loss, teacher_ce: bool) {
        let (gradient, values) = self.by_twin(loss, teacher_ce);
        let (expected_gradient, expected) = self.by_kernel(loss, teacher_ce);
        for (position, (got, expected)) in values.iter().zip(&expected).enumerate() {
            let of_teacher =
                [got.teacher_ce, expected.teacher_ce].map(|ce| if teacher_ce { ce } else { 0.0 });
            for [got, expected] in [
                [got.ce, expected.ce],
                [got.divergence, expected.divergence],
                of_teacher,
            ] {
                let is_close = (got - expected).abs() < 3e-6 * expected.abs().max(1.0);
                assert!(
                    is_close,
                    "{loss:?}, position {position}: {got} instead of {expected}"
                );
            }
        }
        let scale = expected_gradient
            .iter()
            .fold(0.0_f32, |most, x| most.max(x.abs()));
        for (at, (got, expected)) in gradient.iter().zip(&expected_gradient).enumerate() {
            let is_close = (got - expected).abs() <= 2e-6 * scale;
            assert!(
                is_close,
                "{loss:?}, number {at}: {got} instead of {expected} ({scale})"
            );
        }
    }
}

fn loss_of(divergence: Option<Divergence>, temperature: f64) -> Loss {
    Loss {
        divergence,
        weight: 0.7,
        temperature,
        factor: temperature * temperature,
    }
}

#[test]
fn losses_are_those_of_the_cpu_kernel() {
    let divergences = [
        None,
        Some(Divergence::ForwardKl),
        Some(Divergence::ReverseKl),
        Some(Divergence::Jsd { beta: 0.1 }),
        Some(Divergence::Jsd { beta: 1.0 }),
        Some(Divergence::SkewKl { skew: 0.1 }),
        Some(Divergence::SkewKl { skew: 0.0 }),
        Some(Divergence::SkewReverseKl { skew: 0.1 }),
        Some(Divergence::TotalVariation),
    ];
    // Fewer columns than threads, and several for each thread.
    for (columns, spread) in [(5, 3.0), (97, 2.0), (97, 30.0), (260, 4.0)] {
        let case = Case::new(4, columns, spread);
        for divergence in divergences {
            case.agrees(&loss_of(divergence, 1.0), true);
            if columns == 97 {
                case.agrees(&loss_of(divergence, 2.0), false);
                case.agrees(&loss_of(divergence, 2.0), true);
            }
        }
    }
}

#[test]
fn padding_columns_change_no_loss() {
    let loss = loss_of(Some(Divergence::ReverseKl), 1.0);
    let case = Case::new(4, 97, 3.0);
    let (gradient, values) = case.by_kernel(&loss, true);
    // Columns beyond the vocabulary, as the GPU path pads them.
    let padded = |logits: &[f32]| -> Vec<f32> {
        let rows = logits.chunks(97);
        rows.flat_map(|row| row.iter().copied().chain([-1e30; 31]))
            .collect()
    };
    let wide = Case {
        columns: 128,
        student: padded(&case.student),
        teacher: padded(&case.teacher),
        labels: case.labels.clone(),
        scales: case.scales.clone(),
    };
    let (padded_gradient, padded_values) = wide.by_twin(&loss, true);
    for (got, expected) in padded_values.iter().zip(&values) {
        assert!(
            (got.divergence - expected.divergence).abs() < 1e-5,
            "{got:?} {expected:?}"
        );
    }
    for (row, expected) in padded_gradient.chunks(128).zip(gradient.chunks(97)) {
        assert!(row[97..].iter().all(|x| *x == 0.0));
        let pairs = row.iter().zip(expected);
        assert!(
            pairs
                .into_iter()
                .all(|(got, expected)| (got - expected).abs() < 1e-6)
        );
    }
}

#[test]
fn golden_values_are_met() {
    let goldens = include_str!("../../../objective/tests/goldens.json");
    let goldens: Value = serde_json::from_str(goldens).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        let all = value.as_array().unwrap().iter();
        all.map(|number| number.as_f64().unwrap()).collect()
    };
    let matrix = |key: &str| -> Vec<f64> {
        goldens[key]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(numbers)
            .collect()
    };
    let logits = |key: &str| -> Vec<f32> { matrix(key).iter().map(|x| *x as f32).collect() };
    let labels: Vec<i64> = numbers(&goldens["labels"])
        .iter()
        .map(|x| *x as i64)
        .collect();
    let scored = labels.iter().filter(|label| **label >= 0).count();
    let case = Case {
        columns: matrix("S").len() / labels.len(),
        student: logits("S"),
        teacher: logits("T"),
        scales: vec![1.0 / scored as f32; labels.len()],
        labels,
    };
    let loss = Loss {
        divergence: Some(Divergence::ForwardKl),
        weight: 0.2,
        temperature: 1.0,
        factor: 1.0,
    };
    let (gradient, values) = case.by_twin(&loss, false);
    for (got, expected) in gradient.iter().zip(matrix("gradient")) {
        assert!(
            (f64::from(*got) - expected).abs() < 2e-6,
            "{got} instead of {expected}"
        );
    }
    let [ce, kl] = ["ce", "fkl_T1"].map(|key| numbers(&goldens[key]["per_token"]));
    for (position, got) in values
        .iter()
        .enumerate()
        .filter(|(at, _)| case.labels[*at] >= 0)
    {
        assert!((got.ce - ce[position]).abs() < 2e-6, "{got:?}");
        assert!((got.divergence - kl[position]).abs() < 2e-6, "{got:?}");
    }
}

/// Numbers in a dtype: as a kernel reads them, and as they are.
struct Numbers {
    dtype: Dtype,
    wide: Vec<f32>,
    narrow: Vec<u16>,
}

impl Numbers {
    fn new(dtype: Dtype, numbers: &[f32]) -> Self {
        let narrow: Vec<u16> = numbers.iter().map(|x| to_bf16(*x)).collect();
        let wide = match dtype {
            Dtype::F32 => numbers.to_vec(),
            Dtype::Bf16 => narrow.iter().map(|x| from_bf16(*x)).collect(),
        };
        Self {
            dtype,
            wide,
            narrow,
        }
    }

    fn zeros(dtype: Dtype, count: usize) -> Self {
        Self::new(dtype, &vec![0.0; count])
    }

    fn at(&self) -> *const c_void {
        match self.dtype {
            Dtype::F32 => self.wide.as_ptr().cast(),
            Dtype::Bf16 => self.narrow.as_ptr().cast(),
        }
    }

    fn at_mut(&mut self) -> *mut c_void {
        match self.dtype {
            Dtype::F32 => self.wide.as_mut_ptr().cast(),
            Dtype::Bf16 => self.narrow.as_mut_ptr().cast(),
        }
    }

    /// Checks that a kernel has written these numbers.
    fn are(&self, expected: &[f32], what: &str) {
        let got: Vec<f32> = match self.dtype {
            Dtype::F32 => self.wide.clone(),
            Dtype::Bf16 => self.narrow.iter().map(|x| from_bf16(*x)).collect(),
        };
        // bf16 has 8 bits, and a chain of operations rounds up to three times.
        let tolerance = match self.dtype {
            Dtype::F32 => 2e-6,
            Dtype::Bf16 => 1.2e-2,
        };
        assert_eq!(got.len(), expected.len());
        let most = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
            let is_close = (got - expected).abs() <= tolerance * most.min(1.0).max(expected.abs());
            assert!(
                is_close,
                "{what}, {:?}, number {at}: {got} instead of {expected}",
                self.dtype
            );
        }
    }
}

/// To the nearest, to even between two, by the definition of f64's conversion.
fn to_bf16(x: f32) -> u16 {
    let (low, bits) = ((x.to_bits() >> 16) as u16, x.to_bits());
    let high = low.wrapping_add(1);
    match (bits & 0xffff).cmp(&0x8000) {
        std::cmp::Ordering::Less => low,
        std::cmp::Ordering::Equal => low + (low & 1),
        std::cmp::Ordering::Greater => high,
    }
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn run(launch: &Launch) {
    compile::run(Source::Layers, launch);
}

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

#[test]
fn norms_and_their_gradients_are_those_of_the_cpu_kernel() {
    // Two blocks of rows and a part of one.
    let (rows, width, eps) = (70, 48, 1e-5_f32);
    let count = rows * width;
    for dtype in DTYPES {
        let new =
            |what: &str, count: usize, spread| Numbers::new(dtype, &normal(what, count, spread));
        let (x, added) = (new("x", count, 1.0), new("added", count, 2.0));
        let weight = new("weight", width, 1.0);
        let (gradient, residual) = (new("gradient", count, 0.1), new("residual", count, 0.1));
        let mut out = Numbers::zeros(dtype, count);
        let mut norm = Norm {
            x: x.at(),
            added: None,
            weight: weight.at(),
            out: out.at_mut(),
            rows: rows as u32,
            width: width as i32,
            eps,
        };
        run(&norm.launch(dtype));
        let mut expected = vec![0.0; count];
        ddk_kernel::rms_norm(&x.wide, &weight.wide, eps, &mut expected, 1);
        out.are(&expected, "norm");
        let mut sum = Numbers::zeros(dtype, count);
        norm.added = Some([added.at(), sum.at_mut().cast_const()]);
        run(&norm.launch(dtype));
        let mut of_sum = vec![0.0; count];
        let both = [&x.wide[..], &added.wide];
        ddk_kernel::add_rms_norm(both, &weight.wide, eps, &mut of_sum, &mut expected, 1);
        sum.are(&of_sum, "sum");
        out.are(&expected, "norm of the sum");
        for residual in [None, Some(&residual)] {
            let mut x_gradient = Numbers::zeros(dtype, count);
            let mut weight_gradient = Numbers::zeros(dtype, width);
            let mut sums = vec![7.0_f32; NormBackward::sums(rows, width)];
            let backward = NormBackward {
                x: x.at(),
                weight: weight.at(),
                gradient: gradient.at(),
                residual: residual.map(Numbers::at),
                x_gradient: x_gradient.at_mut(),
                weight_gradient: weight_gradient.at_mut(),
                sums: sums.as_mut_ptr(),
                rows: rows as i32,
                width: width as i32,
                eps,
            };
            backward.launches(dtype).iter().for_each(run);
            let inputs = NormInputs {
                x: &x.wide,
                weight: &weight.wide,
                eps,
                gradient: &gradient.wide,
                residual: residual.map(|residual| &residual.wide[..]),
            };
            let (mut of_x, mut of_weight) = (vec![0.0; count], vec![0.0; width]);
            ddk_kernel::rms_norm_backward(&inputs, &mut of_x, &mut of_weight, 1);
            x_gradient.are(&of_x, "gradient of the rows");
            weight_gradient.are(&of_weight, "gradient of the weight");
        }
    }
}

#[test]
fn gates_and_their_gradients_are_those_of_the_cpu_kernel() {
    let count = 3001;
    for dtype in DTYPES {
        let mut gate = normal("gate", count, 4.0);
        gate[..4].copy_from_slice(&[0.0, 1e4, -1e4, 100.0]);
        let gate = Numbers::new(dtype, &gate);
        let up = Numbers::new(dtype, &normal("up", count, 1.0));
        let gradient = Numbers::new(dtype, &normal("gradient", count, 0.1));
        let mut out = Numbers::zeros(dtype, count);
        run(&silu_mul([gate.at(), up.at()], out.at_mut(), count, dtype));
        let mut expected = vec![0.0; count];
        ddk_kernel::silu_mul(&gate.wide, &up.wide, &mut expected, 1);
        out.are(&expected, "gate");
        let mut of_gate = Numbers::zeros(dtype, count);
        let mut of_up = Numbers::zeros(dtype, count);
        let inputs = [gate.at(), up.at(), gradient.at()];
        let outputs = [of_gate.at_mut(), of_up.at_mut()];
        run(&silu_mul_backward(inputs, outputs, count, dtype));
        let mut others = vec![0.0; count];
        let inputs = [&gate.wide[..], &up.wide, &gradient.wide];
        ddk_kernel::silu_mul_backward(inputs, &mut expected, &mut others, 1);
        of_gate.are(&expected, "gradient of the gate");
        of_up.are(&others, "gradient of the other factor");
    }
}

#[test]
fn rotations_are_those_of_the_cpu_kernel() {
    let (sequences, time, heads, width) = (3, 5, 2, 8);
    let count = sequences * time * heads * width;
    for dtype in DTYPES {
        let x = Numbers::new(dtype, &normal("x", count, 1.0));
        // The halves of a table may differ, and a rotation is not assumed.
        let tables =
            ["cos", "sin"].map(|what| Numbers::new(dtype, &normal(what, time * width, 1.0)));
        for back in [false, true] {
            let mut out = Numbers::zeros(dtype, count);
            let rotation = Rotation {
                x: x.at(),
                cos: tables[0].at(),
                sin: tables[1].at(),
                out: out.at_mut(),
                positions: sequences * time,
                time: time as i32,
                heads: heads as i32,
                width: width as i32,
                back,
            };
            run(&rotation.launch(dtype));
            let [cos, sin] = [&tables[0].wide[..], &tables[1].wide];
            let mut expected = x.wide.clone();
            if back {
                ddk_kernel::rotate_backward(&x.wide, heads, [cos, sin], width, &mut expected, 1);
            } else {
                ddk_kernel::rotate(&mut expected, heads, cos, sin, width, 1);
            }
            out.are(&expected, "rotation");
        }
    }
}
