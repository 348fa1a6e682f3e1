//! AdamW with flat moments that can be saved and restored.

use ddk_kernel::{AdamWStep, adamw, sum_of_squares};
use ddk_torch::{
    AdamWOptions, TorchError, are_apart, as_slice, as_slice_mut, fused_adamw, threads,
};
use tch::{Device, Kind, Tensor};

use crate::{
    buckets::{BUCKET, Bucket, buckets},
    parallel::Parallel,
};

/// Names of the two moments in a checkpoint.
pub(crate) const MOMENTS: [&str; 2] = ["first", "second"];

/// AdamW over a fixed list of parameters. Both moments are fp32, in flat buckets. With several processes, each holds
/// the moments of its own part and updates only that part.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    pub(crate) buckets: Vec<Bucket>,
    /// Updates made so far; the bias correction depends on it.
    pub(crate) updates: u64,
}

/// A deep copy on the CPU, so that a snapshot never holds device memory.
pub(crate) fn copy(tensor: &Tensor) -> Result<Tensor, TorchError> {
    Ok(tensor
        .detach()
        .f_to_device_(Device::Cpu, tensor.kind(), false, true)?)
}

impl AdamW {
    /// Creates an optimizer with zero moments for `parameters`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(
        options: AdamWOptions,
        parameters: &[(String, Tensor)],
        parallel: &Parallel,
    ) -> Result<Self, TorchError> {
        Ok(Self {
            options,
            buckets: buckets(parameters, BUCKET, parallel)?,
            updates: 0,
        })
    }

    /// The pieces of the gradients that this process owns, by bucket, as views.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(crate) fn own_pieces(&self, gradients: &[Tensor]) -> Result<Vec<Vec<Tensor>>, TorchError> {
        let of_bucket = |bucket: &Bucket| {
            let pieces = bucket.own_pieces();
            let views = pieces.map(|piece| piece.of(&gradients[piece.parameter].f_contiguous()?));
            views.collect()
        };
        self.buckets.iter().map(of_bucket).collect()
    }

    /// Updates the pieces of the parameters that this process owns in place. `gradients` holds the gradient of each
    /// piece, by bucket. It counts times `gradient_scale` (the clipping factor). On a GPU, this also scales the
    /// gradients in place.
    ///
    /// # Errors
    /// Before any update, if a gradient's size differs from its piece's, or if two of a piece's four tensors share
    /// memory. During the updates, if libtorch fails.
    ///
    /// # Safety
    /// No other thread may use the storage of the parameters, gradients or moments during the call.
    pub unsafe fn update(
        &mut self,
        parameters: &[(String, Tensor)],
        gradients: &[Vec<Tensor>],
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<(), TorchError> {
        let (mut options, decay) = (self.options, self.options.weight_decay);
        let quadruples = self.quadruples(parameters, gradients)?;
        self.updates += 1;
        let correction1 = 1.0 - options.beta1.powf(self.updates as f64);
        let correction2 = 1.0 - options.beta2.powf(self.updates as f64);
        let _no_grad = tch::no_grad_guard();
        let step = AdamWStep {
            gradient_scale: gradient_scale as f32,
            first_rate: (1.0 - options.beta1) as f32,
            second_decay: options.beta2 as f32,
            second_rate: (1.0 - options.beta2) as f32,
            root_scale: (1.0 / correction2.sqrt()) as f32,
            epsilon: options.epsilon as f32,
            rate: (learning_rate / correction1) as f32,
            keep: 1.0,
        };
        for (bucket, quadruples) in self.buckets.iter().zip(quadruples) {
            options.weight_decay = if bucket.decays { decay } else { 0.0 };
            let step = AdamWStep {
                keep: (1.0 - learning_rate * options.weight_decay) as f32,
                ..step
            };
            // The tensors for one call of libtorch: parameters, gradients, first and second moments.
            let mut fused: [Vec<Tensor>; 4] = Default::default();
            for mut quadruple in quadruples {
                // SAFETY: `quadruples` found that the four share no memory and have one size. The caller promises
                // that no other thread uses them.
                if !unsafe { update(&mut quadruple, &step) } {
                    for (list, tensor) in fused.iter_mut().zip(quadruple) {
                        list.push(tensor);
                    }
                }
            }
            let (lists, updates) = (fused.each_ref().map(|list| &list[..]), self.updates);
            fused_adamw(lists, &options, learning_rate, updates, gradient_scale)?;
        }
        Ok(())
    }

    /// Parameter, gradient, first and second moment of each piece that this process owns, by bucket.
    fn quadruples(
        &self,
        parameters: &[(String, Tensor)],
        gradients: &[Vec<Tensor>],
    ) -> Result<Vec<Vec<[Tensor; 4]>>, TorchError> {
        let of_bucket = |(bucket, gradients): (&Bucket, &Vec<Tensor>)| {
            let pieces = bucket.own_pieces().zip(gradients);
            let quadruples = pieces.map(|(piece, gradient)| {
                let (name, parameter) = &parameters[piece.parameter];
                let [first, second] = bucket.moments_of(piece)?;
                let parameter = piece.of(parameter)?;
                let (size, found) = (parameter.numel(), gradient.numel());
                if size != found || parameter.device() != gradient.device() {
                    return Err(TorchError::Other(format!(
                        "a piece of {name} has {size} numbers on {:?}, and its gradient {found} on {:?}",
                        parameter.device(),
                        gradient.device()
                    )));
                }
                if !are_apart(&[&parameter, gradient, &first, &second]) {
                    return Err(TorchError::Other(format!(
                        "{name} shares memory with its gradient or moments, or these with each other"
                    )));
                }
                Ok([parameter, gradient.shallow_clone(), first, second])
            });
            quadruples.collect()
        };
        self.buckets.iter().zip(gradients).map(of_bucket).collect()
    }
}

/// Refuses gradients that do not belong to the parameters.
pub(crate) fn check(
    parameters: &[(String, Tensor)],
    gradients: &[Tensor],
) -> Result<(), TorchError> {
    if gradients.len() != parameters.len() {
        return Err(TorchError::Other(format!(
            "{} parameters have {} gradients",
            parameters.len(),
            gradients.len()
        )));
    }
    for ((name, parameter), gradient) in parameters.iter().zip(gradients) {
        let (size, device) = (parameter.size(), parameter.device());
        if gradient.size() != size || gradient.device() != device {
            return Err(TorchError::Other(format!(
                "{name} is {size:?} on {device:?}, and its gradient is {:?} on {:?}",
                gradient.size(),
                gradient.device()
            )));
        }
    }
    Ok(())
}

/// Updates in one pass if all four tensors are fp32 on the CPU; otherwise returns false.
///
/// # Safety
/// The four tensors must have one size and share no memory. No other thread may use their storage during the call.
unsafe fn update([parameter, gradient, first, second]: &mut [Tensor; 4], step: &AdamWStep) -> bool {
    // SAFETY: the caller promises it. This thread uses no other handle to them (the model's, autograd's) before the
    // slices are gone.
    let (weights, moments) = unsafe {
        let moments = as_slice_mut(first).zip(as_slice_mut(second));
        (as_slice_mut(parameter).zip(as_slice(gradient)), moments)
    };
    let (Some((parameter, gradient)), Some((first, second))) = (weights, moments) else {
        return false;
    };
    adamw(parameter, gradient, first, second, step, threads());
    true
}

/// Sums the squares of each tensor in f64. A tensor on a GPU is summed in fp32, by the GPU's tree of sums. Waits for
/// the device once.
///
/// # Errors
/// If libtorch fails.
///
/// # Safety
/// No thread may write to the storage of the tensors during the call.
pub unsafe fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>, TorchError> {
    let _no_grad = tch::no_grad_guard();
    // libtorch's own sum on the CPU is in fp32. Over a hundred million numbers it is one percent too small.
    let (mut sums, mut on_device, mut places) = (vec![0.0; tensors.len()], Vec::new(), Vec::new());
    for (at, (tensor, sum)) in tensors.iter().zip(&mut sums).enumerate() {
        // SAFETY: the caller promises that no other thread writes to it, and this function does not either.
        match unsafe { as_slice(tensor) } {
            Some(numbers) => *sum = sum_of_squares(numbers, threads()),
            None => {
                let norm = tensor.f_norm()?.f_to_kind(Kind::Double)?;
                on_device.push(norm.f_square()?);
                places.push(at);
            }
        }
    }
    if !on_device.is_empty() {
        let found = Tensor::f_stack(&on_device, 0)?.f_to_device(Device::Cpu)?;
        for (at, sum) in places.into_iter().zip(Vec::<f64>::try_from(&found)?) {
            sums[at] = sum;
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Updates all parameters from their gradients.
    fn update(
        optimizer: &mut AdamW,
        parameters: &[(String, Tensor)],
        gradients: &[Tensor],
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<(), TorchError> {
        check(parameters, gradients)?;
        let pieces = optimizer.own_pieces(gradients)?;
        // SAFETY: only the calling test uses them.
        unsafe { optimizer.update(parameters, &pieces, learning_rate, gradient_scale) }
    }

    /// Compares with the formulas of the paper, computed by hand in f64 for one number.
    #[test]
    fn three_updates_of_one_weight_follow_the_formula() {
        let options = AdamWOptions {
            weight_decay: 0.1,
            ..Default::default()
        };
        let parameters = vec![(
            "w".to_owned(),
            Tensor::from_slice(&[0.5_f32]).reshape([1, 1]),
        )];
        let mut optimizer = AdamW::new(options, &parameters, &Parallel::default()).unwrap();
        let (mut weight, mut first, mut second) = (0.5_f64, 0.0_f64, 0.0_f64);
        for (before, gradient) in [0.3_f64, -0.2, 0.05].into_iter().enumerate() {
            let gradients = [Tensor::from_slice(&[gradient as f32]).reshape([1, 1])];
            update(&mut optimizer, &parameters, &gradients, 1e-2, 0.5).unwrap();
            let g = gradient * 0.5;
            first = 0.9 * first + 0.1 * g;
            second = 0.95 * second + 0.05 * g * g;
            let t = (before + 1) as i32;
            let step = first
                / (1.0 - 0.9_f64.powi(t))
                / ((second / (1.0 - 0.95_f64.powi(t))).sqrt() + 1e-8);
            weight = weight * (1.0 - 1e-2 * 0.1) - 1e-2 * step;
            let got = parameters[0].1.double_value(&[0, 0]);
            assert!((got - weight).abs() < 1e-6, "{got} instead of {weight}");
        }
        assert_eq!(optimizer.updates, 3);
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        let parameters = vec![("norm".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))];
        let mut optimizer =
            AdamW::new(AdamWOptions::default(), &parameters, &Parallel::default()).unwrap();
        let gradients = [Tensor::zeros([2], (Kind::Float, tch::Device::Cpu))];
        update(&mut optimizer, &parameters, &gradients, 0.1, 1.0).unwrap();
        assert_eq!(
            Vec::<f32>::try_from(&parameters[0].1).unwrap(),
            vec![1.0, 2.0]
        );
    }

    /// Slices of tensors that share memory or differ in length would be undefined behavior. They are refused before
    /// anything is written.
    #[test]
    fn tensors_that_do_not_belong_together_are_refused() {
        let parameters = vec![("w".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))];
        let mut optimizer =
            AdamW::new(AdamWOptions::default(), &parameters, &Parallel::default()).unwrap();
        for (gradients, expected) in [
            (vec![], "1 parameters have 0 gradients"),
            (vec![Tensor::from_slice(&[1.0_f32])], "w is [2]"),
            (vec![parameters[0].1.shallow_clone()], "w shares memory"),
            (
                vec![optimizer.buckets[0].moments[0].narrow(0, 0, 2)],
                "w shares memory",
            ),
        ] {
            let refused = update(&mut optimizer, &parameters, &gradients, 0.1, 1.0);
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(optimizer.updates, 0);
        let weights = Vec::<f32>::try_from(&parameters[0].1).unwrap();
        assert_eq!(weights, [1.0, 2.0]);
    }

    /// Buckets of any size and number of slices give the same weights as one optimizer per parameter.
    #[test]
    fn buckets_change_no_bit() {
        let shapes: [&[i64]; 6] = [&[5, 3], &[7], &[3, 2, 5], &[0], &[17], &[40, 2]];
        let tensors = |by: i64| -> Vec<(String, Tensor)> {
            let tensors = shapes.iter().enumerate().map(|(index, shape)| {
                let numbers =
                    Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu));
                let tensor = ((numbers + index as f64) * by as f64).sin().reshape(*shape);
                (format!("p{index}"), tensor)
            });
            tensors.collect()
        };
        let parallel = |slots| Parallel { slots, group: None };
        let weights = |limit: Option<i64>, slots| -> Vec<Tensor> {
            let (parameters, parallel) = (tensors(3), parallel(slots));
            let lists = match limit {
                Some(_) => vec![&parameters[..]],
                None => parameters.chunks(1).collect(),
            };
            let mut optimizers: Vec<AdamW> = lists
                .iter()
                .map(|list| AdamW {
                    options: AdamWOptions::default(),
                    buckets: buckets(list, limit.unwrap_or(BUCKET), &parallel).unwrap(),
                    updates: 0,
                })
                .collect();
            for step in 1..=3 {
                let gradients: Vec<Tensor> = tensors(step).into_iter().map(|(_, of)| of).collect();
                let chunks = gradients.chunks(lists[0].len());
                for ((optimizer, list), gradients) in optimizers.iter_mut().zip(&lists).zip(chunks)
                {
                    update(optimizer, list, gradients, 1e-2, 0.5).unwrap();
                }
            }
            parameters
                .into_iter()
                .map(|(_, parameter)| parameter)
                .collect()
        };
        let expected = weights(None, 1);
        for (limit, slots) in [(1, 1), (48, 1), (100, 2), (BUCKET, 1), (BUCKET, 4)] {
            for (found, expected) in weights(Some(limit), slots).iter().zip(&expected) {
                assert!(found.equal(expected), "buckets of {limit}, {slots} slots");
            }
        }
        let sizes = |limit| -> Vec<Vec<usize>> {
            let buckets = buckets(&tensors(1), limit, &parallel(1)).unwrap();
            let members = buckets.iter().map(|bucket| bucket.members.iter());
            members
                .map(|of| of.map(|member| member.parameter).collect())
                .collect()
        };
        assert_eq!(sizes(48), [vec![0, 2], vec![1, 3, 4], vec![5]]);
        assert_eq!(sizes(BUCKET), [vec![0, 2, 5], vec![1, 3, 4]]);
    }

    #[test]
    fn squares_are_summed_by_tensor_and_show_what_is_not_finite() {
        let gradients = [
            Tensor::from_slice(&[3.0_f32]),
            Tensor::from_slice(&[0.0_f32, 4.0]),
        ];
        let squares = |gradients: &[Tensor; 2]| {
            // SAFETY: only this thread uses them.
            unsafe { sums_of_squares(&gradients.each_ref()) }.unwrap()
        };
        assert_eq!(squares(&gradients), [9.0, 16.0]);
        let broken = [
            Tensor::from_slice(&[f32::NAN]),
            Tensor::from_slice(&[1.0_f32]),
        ];
        assert!(!squares(&broken)[0].is_finite());
    }
}
