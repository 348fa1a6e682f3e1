//! GPU operations of libtorch that tch does not bind.

use tch::{Kind, TchError, Tensor};

use crate::dispatch::{Argument, call};

/// The constants of AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay. Applied to matrices only, never to norms and biases.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
        }
    }
}

/// Runs AdamW in a few kernels, without a temporary of a tensor's size. The lists hold parameters, gradients, first
/// and second moments, all on one device. `updates` is the number of updates, including this one. Scales the gradients
/// in place by `gradient_scale`.
///
/// Parameters must not require a gradient in this mode (wrap the call in a no-grad guard).
///
/// # Errors
/// If the lists have different lengths or shapes, or if libtorch fails.
pub fn fused_adamw(
    lists: [&[Tensor]; 4],
    options: &AdamWOptions,
    learning_rate: f64,
    updates: u64,
    gradient_scale: f64,
) -> Result<(), TchError> {
    let [parameters, gradients, first, second] = lists;
    let Some(device) = parameters.first().map(Tensor::device) else {
        return Ok(());
    };
    // libtorch uses these for the bias correction, one per parameter.
    let count = Tensor::f_full([], updates as f64, (Kind::Float, device))?;
    let counts: Vec<Tensor> = parameters.iter().map(|_| count.shallow_clone()).collect();
    // libtorch divides gradients by this.
    let divisor = Tensor::f_full([], gradient_scale.recip(), (Kind::Float, device))?;
    // SAFETY: the arguments match the schema of _fused_adamw_: six lists, five numbers, two flags, two optional
    // tensors, no result.
    unsafe {
        call(
            c"aten::_fused_adamw_",
            &[
                Argument::Tensors(parameters),
                Argument::Tensors(gradients),
                Argument::Tensors(first),
                Argument::Tensors(second),
                Argument::Tensors(&[]),
                Argument::Tensors(&counts),
                Argument::Real(learning_rate),
                Argument::Real(options.beta1),
                Argument::Real(options.beta2),
                Argument::Real(options.weight_decay),
                Argument::Real(options.epsilon),
                Argument::Flag(false),
                Argument::Flag(false),
                Argument::Given(&Argument::Tensor(&divisor)),
                Argument::Absent,
            ],
            0,
        )?;
    }
    Ok(())
}

/// Runs causal flash attention within each of several sequences laid end to end, with its backward pass. For CUDA
/// in bf16 or fp16.
///
/// `query` is `[positions, heads, E]`; `key` and `value` are `[positions, kv heads, E]`. `starts` (i32, on the
/// device) holds the start of each sequence, followed by the number of positions. `longest` is the length of the
/// longest sequence. Returns `[positions, heads, E]`.
///
/// # Errors
/// If libtorch fails, for example because the device or dtype has no flash attention or the head size is over 256.
pub fn flash_attention_of_sequences(
    [query, key, value]: [&Tensor; 3],
    starts: &Tensor,
    longest: i64,
    scale: Option<f64>,
) -> Result<Tensor, TchError> {
    let scale = scale.map(Argument::Real);
    // SAFETY: the arguments match the schema of _flash_attention_forward, with its five results, all tensors.
    let results = unsafe {
        call(
            c"aten::_flash_attention_forward",
            &[
                Argument::Tensor(query),
                Argument::Tensor(key),
                Argument::Tensor(value),
                Argument::Given(&Argument::Tensor(starts)),
                Argument::Given(&Argument::Tensor(starts)),
                Argument::Integer(longest),
                Argument::Integer(longest),
                Argument::Real(0.0),
                Argument::Flag(true),
                Argument::Flag(false),
                scale.as_ref().map_or(Argument::Absent, Argument::Given),
                Argument::Absent,
                Argument::Absent,
                Argument::Absent,
                Argument::Absent,
            ],
            5,
        )
    };
    if results.is_err() {
        // The call does not say why it failed. If memory has run out, an allocation of the result's size says so.
        let _ = query.f_zeros_like()?;
    }
    let result = results?.into_iter().next();
    result.ok_or_else(|| TchError::Torch("flash attention gave no result".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const OPTIONS: AdamWOptions = AdamWOptions {
        beta1: 0.9,
        beta2: 0.95,
        weight_decay: 0.1,
        epsilon: 1e-8,
    };

    /// Compares with the formulas of the paper in f64.
    #[test]
    fn three_fused_updates_follow_the_formula() {
        let shapes: [&[i64]; 2] = [&[3, 2], &[5]];
        let device = crate::test_device().unwrap();
        let random = |shape: &&[i64]| Tensor::randn(*shape, (Kind::Float, device));
        let parameters = shapes.each_ref().map(random);
        let [first, second] = [(); 2].map(|()| parameters.each_ref().map(Tensor::zeros_like));
        let double = |tensors: &[Tensor; 2]| tensors.each_ref().map(|of| of.to_kind(Kind::Double));
        let (mut weights, mut m, mut v) = (double(&parameters), double(&first), double(&second));
        for updates in 1..=3 {
            let gradients = shapes.each_ref().map(random);
            let g = double(&gradients);
            let lists: [&[Tensor]; 4] = [&parameters, &gradients, &first, &second];
            fused_adamw(lists, &OPTIONS, 1e-2, updates, 0.5).unwrap();
            for index in 0..2 {
                let g = 0.5 * &g[index];
                m[index] = 0.9 * &m[index] + 0.1 * &g;
                v[index] = 0.95 * &v[index] + 0.05 * &g * &g;
                let root = (&v[index] / (1.0 - 0.95_f64.powi(updates as i32))).sqrt() + 1e-8;
                let change = &m[index] / (1.0 - 0.9_f64.powi(updates as i32)) / root;
                weights[index] = &weights[index] * (1.0 - 1e-2 * 0.1) - 1e-2 * change;
                let got = parameters[index].to_kind(Kind::Double);
                let worst = (got - &weights[index]).abs().max().double_value(&[]);
                assert!(worst < 1e-6, "update {updates}: off by {worst}");
            }
        }
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        let one = [Tensor::zeros([2], (Kind::Float, Device::Cpu))];
        assert!(fused_adamw([&one, &[], &one, &one], &OPTIONS, 1e-2, 1, 0.5).is_err());
    }
}
