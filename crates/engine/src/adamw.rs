//! AdamW with flat moments that can be saved and restored.

use ddk_kernel::{AdamWStep, adamw, sum_of_squares};
use ddk_torch::{
    AdamWOptions, TorchError, are_apart, as_slice, as_slice_mut, fused_adamw, threads,
};
use tch::{Device, Kind, Tensor};

/// Maximum size of a bucket with several parameters, in numbers: 64 MiB of fp32.
const BUCKET: i64 = 1 << 24;

/// Each moment begins at a multiple of this many numbers, so it is aligned like a separate allocation (64 bytes of
/// fp32).
const ALIGNMENT: i64 = 16;

/// Names of the two moments in a checkpoint.
pub(crate) const MOMENTS: [&str; 2] = ["first", "second"];

/// AdamW over a fixed list of parameters. Both moments are fp32, in flat buckets.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    pub(crate) buckets: Vec<Bucket>,
    /// Updates made so far; the bias correction depends on it.
    pub(crate) updates: u64,
}

/// Moments of parameters that share dtype, device and weight decay.
#[derive(Debug)]
pub(crate) struct Bucket {
    decays: bool,
    /// Indices into the list of parameters.
    pub(crate) members: Vec<usize>,
    /// The first and second moments.
    pub(crate) moments: [Flat; 2],
}

/// One tensor for each member of a bucket, all in one allocation.
#[derive(Debug)]
pub(crate) struct Flat {
    whole: Tensor,
    /// Views of `whole`, in the order of the bucket's members.
    pub(crate) views: Vec<Tensor>,
}

impl Flat {
    fn new(whole: Tensor, shapes: impl Iterator<Item = Vec<i64>>) -> Result<Self, TorchError> {
        let mut start = 0;
        let views = shapes.map(|shape| {
            let numbers = shape.iter().product();
            let view = whole.f_narrow(0, start, numbers)?.f_view(&shape[..])?;
            start += aligned(numbers);
            Ok(view)
        });
        Ok(Self {
            views: views.collect::<Result<_, TorchError>>()?,
            whole,
        })
    }

    /// Makes a deep copy on the CPU with a single copy operation.
    pub(crate) fn copy(&self) -> Result<Self, TorchError> {
        Self::new(copy(&self.whole)?, self.views.iter().map(Tensor::size))
    }
}

/// A deep copy on the CPU, so that a snapshot never holds device memory.
pub(crate) fn copy(tensor: &Tensor) -> Result<Tensor, TorchError> {
    Ok(tensor
        .detach()
        .f_to_device_(Device::Cpu, tensor.kind(), false, true)?)
}

fn aligned(numbers: i64) -> i64 {
    numbers + (-numbers).rem_euclid(ALIGNMENT)
}

/// What the parameters of a bucket share: whether they decay, their dtype and their device.
type Class = (bool, Kind, Device);

/// Creates zeroed buckets for `parameters`, each with at most `limit` numbers unless a single parameter has more.
fn buckets(parameters: &[(String, Tensor)], limit: i64) -> Result<Vec<Bucket>, TorchError> {
    let mut plans: Vec<(Class, i64, Vec<usize>)> = Vec::new();
    for (index, (_, parameter)) in parameters.iter().enumerate() {
        let class = (parameter.dim() >= 2, parameter.kind(), parameter.device());
        let numbers = aligned(parameter.numel() as i64);
        let newest = plans.iter_mut().rfind(|plan| plan.0 == class);
        match newest.filter(|plan| plan.1 + numbers <= limit) {
            Some((_, size, members)) => {
                *size += numbers;
                members.push(index);
            }
            None => plans.push((class, numbers, vec![index])),
        }
    }
    let bucket = |((decays, kind, device), size, members): (Class, i64, Vec<usize>)| {
        let zeros = || {
            let shapes = members.iter().map(|&index| parameters[index].1.size());
            Flat::new(Tensor::f_zeros([size], (kind, device))?, shapes)
        };
        Ok(Bucket {
            decays,
            moments: [zeros()?, zeros()?],
            members,
        })
    };
    plans.into_iter().map(bucket).collect()
}

impl AdamW {
    /// Creates an optimizer with zero moments for `parameters`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(options: AdamWOptions, parameters: &[(String, Tensor)]) -> Result<Self, TorchError> {
        Ok(Self {
            options,
            buckets: buckets(parameters, BUCKET)?,
            updates: 0,
        })
    }

    /// Updates every parameter in place from its gradient times `gradient_scale` (the clipping factor). On a GPU,
    /// this also scales the gradients in place.
    ///
    /// # Errors
    /// Before any update, if the numbers of parameters, gradients and moments differ, if their shapes differ, or if
    /// two of a parameter's four tensors share memory. During the updates, if libtorch fails.
    ///
    /// # Safety
    /// No other thread may use the storage of the parameters, gradients or moments during the call.
    pub unsafe fn update(
        &mut self,
        parameters: &[(String, Tensor)],
        gradients: &[Tensor],
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<(), TorchError> {
        let (mut options, decay) = (self.options, self.options.weight_decay);
        self.check(parameters, gradients)?;
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
        for bucket in &mut self.buckets {
            options.weight_decay = if bucket.decays { decay } else { 0.0 };
            let step = AdamWStep {
                keep: (1.0 - learning_rate * options.weight_decay) as f32,
                ..step
            };
            // The tensors for one call of libtorch: parameters, gradients, first and second moments.
            let mut fused: [Vec<Tensor>; 4] = Default::default();
            let [first, second] = &mut bucket.moments;
            let moments = first.views.iter_mut().zip(&mut second.views);
            for (&index, (first, second)) in bucket.members.iter().zip(moments) {
                let (mut parameter, gradient) = (parameters[index].1.detach(), &gradients[index]);
                // SAFETY: `check` found that the four share no memory and have one shape. The caller promises that
                // no other thread uses them.
                if !unsafe { update(&mut parameter, gradient, first, second, &step) } {
                    let four = [&parameter, gradient, first, second].map(Tensor::shallow_clone);
                    for (list, tensor) in fused.iter_mut().zip(four) {
                        list.push(tensor);
                    }
                }
            }
            let (lists, updates) = (fused.each_ref().map(|list| &list[..]), self.updates);
            fused_adamw(lists, &options, learning_rate, updates, gradient_scale)?;
        }
        Ok(())
    }

    fn check(
        &self,
        parameters: &[(String, Tensor)],
        gradients: &[Tensor],
    ) -> Result<(), TorchError> {
        let moments = self.buckets.iter().map(|bucket| bucket.members.len());
        let counts = [gradients.len(), moments.sum()];
        if counts != [parameters.len(); 2] {
            return Err(TorchError::Other(format!(
                "{} parameters have {} gradients and {} pairs of moments",
                parameters.len(),
                counts[0],
                counts[1]
            )));
        }
        for bucket in &self.buckets {
            let [first, second] = bucket.moments.each_ref().map(|flat| flat.views.iter());
            for (&index, (first, second)) in bucket.members.iter().zip(first.zip(second)) {
                let (name, parameter) = &parameters[index];
                let others = [&gradients[index], first, second];
                let (size, device) = (parameter.size(), parameter.device());
                if let Some(other) = others
                    .iter()
                    .find(|other| other.size() != size || other.device() != device)
                {
                    return Err(TorchError::Other(format!(
                        "{name} is {size:?} on {device:?}, and its gradient or moment is {:?} on {:?}",
                        other.size(),
                        other.device()
                    )));
                }
                if !are_apart(&[parameter, others[0], first, second]) {
                    return Err(TorchError::Other(format!(
                        "{name} shares memory with its gradient or moments, or these with each other"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Updates in one pass if all four tensors are fp32 on the CPU; otherwise returns false.
///
/// # Safety
/// The four tensors must have one shape and share no memory. No other thread may use their storage during the call.
unsafe fn update(
    parameter: &mut Tensor,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    step: &AdamWStep,
) -> bool {
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

/// Returns the L2 norm over all gradients together, summed in f64. A tensor on a GPU is summed in fp32, by the
/// GPU's tree of sums. Waits for the device once.
///
/// # Errors
/// If libtorch fails.
///
/// # Safety
/// No thread may write to the storage of the gradients during the call.
pub unsafe fn global_norm(gradients: &[Tensor]) -> Result<f64, TorchError> {
    let _no_grad = tch::no_grad_guard();
    // libtorch's own sum on the CPU is in fp32. Over a hundred million numbers it is one percent too small.
    let (mut total, mut on_device) = (0.0, Vec::new());
    for gradient in gradients {
        // SAFETY: the caller promises that no other thread writes to it, and this function does not either.
        match unsafe { as_slice(gradient) } {
            Some(numbers) => total += sum_of_squares(numbers, threads()),
            None => {
                let norm = gradient.f_norm()?.f_to_kind(Kind::Double)?;
                on_device.push(norm.f_square()?);
            }
        }
    }
    if !on_device.is_empty() {
        let sum = Tensor::f_stack(&on_device, 0)?.f_sum(Kind::Double)?;
        total += sum.f_double_value(&[])?;
    }
    Ok(total.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut optimizer = AdamW::new(options, &parameters).unwrap();
        let (mut weight, mut first, mut second) = (0.5_f64, 0.0_f64, 0.0_f64);
        for (update, gradient) in [0.3_f64, -0.2, 0.05].into_iter().enumerate() {
            let gradients = [Tensor::from_slice(&[gradient as f32]).reshape([1, 1])];
            // SAFETY: only this thread uses them.
            unsafe { optimizer.update(&parameters, &gradients, 1e-2, 0.5) }.unwrap();
            let g = gradient * 0.5;
            first = 0.9 * first + 0.1 * g;
            second = 0.95 * second + 0.05 * g * g;
            let t = (update + 1) as i32;
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
        let mut optimizer = AdamW::new(AdamWOptions::default(), &parameters).unwrap();
        let gradients = [Tensor::zeros([2], (Kind::Float, tch::Device::Cpu))];
        // SAFETY: only this thread uses them.
        unsafe { optimizer.update(&parameters, &gradients, 0.1, 1.0) }.unwrap();
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
        let mut optimizer = AdamW::new(AdamWOptions::default(), &parameters).unwrap();
        for (gradients, expected) in [
            (vec![], "1 parameters have 0 gradients"),
            (vec![Tensor::from_slice(&[1.0_f32])], "w is [2]"),
            (vec![parameters[0].1.shallow_clone()], "w shares memory"),
            (
                vec![optimizer.buckets[0].moments[0].views[0].shallow_clone()],
                "w shares memory",
            ),
        ] {
            // SAFETY: only this thread uses them.
            let refused = unsafe { optimizer.update(&parameters, &gradients, 0.1, 1.0) };
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(optimizer.updates, 0);
        let weights = Vec::<f32>::try_from(&parameters[0].1).unwrap();
        assert_eq!(weights, [1.0, 2.0]);
    }

    /// Buckets of any size give the same weights as one optimizer per parameter.
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
        let weights = |limit: Option<i64>| -> Vec<Tensor> {
            let parameters = tensors(3);
            let lists = match limit {
                Some(_) => vec![&parameters[..]],
                None => parameters.chunks(1).collect(),
            };
            let mut optimizers: Vec<AdamW> = lists
                .iter()
                .map(|list| AdamW {
                    options: AdamWOptions::default(),
                    buckets: buckets(list, limit.unwrap_or(BUCKET)).unwrap(),
                    updates: 0,
                })
                .collect();
            for step in 1..=3 {
                let gradients: Vec<Tensor> = tensors(step).into_iter().map(|(_, of)| of).collect();
                let chunks = gradients.chunks(lists[0].len());
                for ((optimizer, list), gradients) in optimizers.iter_mut().zip(&lists).zip(chunks)
                {
                    // SAFETY: only this thread uses them.
                    unsafe { optimizer.update(list, gradients, 1e-2, 0.5) }.unwrap();
                }
            }
            parameters
                .into_iter()
                .map(|(_, parameter)| parameter)
                .collect()
        };
        let expected = weights(None);
        for limit in [1, 48, 100, BUCKET] {
            for (found, expected) in weights(Some(limit)).iter().zip(&expected) {
                assert!(found.equal(expected), "buckets of {limit}");
            }
        }
        let sizes = |limit| -> Vec<Vec<usize>> {
            let buckets = buckets(&tensors(1), limit).unwrap();
            buckets.into_iter().map(|bucket| bucket.members).collect()
        };
        assert_eq!(sizes(48), [vec![0, 2], vec![1, 3, 4], vec![5]]);
        assert_eq!(sizes(BUCKET), [vec![0, 2, 5], vec![1, 3, 4]]);
    }

    #[test]
    fn the_global_norm_spans_all_tensors_and_shows_what_is_not_finite() {
        let gradients = [
            Tensor::from_slice(&[3.0_f32]),
            Tensor::from_slice(&[0.0_f32, 4.0]),
        ];
        // SAFETY: only this thread uses them, here and below.
        let global_norm = |gradients: &[Tensor]| unsafe { global_norm(gradients) };
        assert_eq!(global_norm(&gradients).unwrap(), 5.0);
        let broken = [
            Tensor::from_slice(&[f32::NAN]),
            Tensor::from_slice(&[1.0_f32]),
        ];
        assert!(!global_norm(&broken).unwrap().is_finite());
    }
}
