//! AdamW with moments that can be seen, saved and restored.

use ddk_kernel::{AdamWStep, adamw, sum_of_squares};
use ddk_torch::{FusedAdamW, TorchError, are_apart, fused_adamw, numbers, numbers_mut};
use tch::{Kind, Tensor};

/// The constants of AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; applied to matrices only, never to norms and biases.
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

/// AdamW over a fixed list of parameters. Both moments are plain fp32 tensors, one for each parameter, in its order.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    /// Updates made so far; the bias correction depends on it.
    updates: u64,
}

impl AdamW {
    /// Zero moments for `parameters`.
    pub fn new(options: AdamWOptions, parameters: &[(String, Tensor)]) -> Result<Self, TorchError> {
        let zeros = || -> Result<Vec<Tensor>, TorchError> {
            parameters
                .iter()
                .map(|(_, parameter)| Ok(parameter.detach().f_zeros_like()?))
                .collect()
        };
        Ok(Self {
            options,
            first: zeros()?,
            second: zeros()?,
            updates: 0,
        })
    }

    /// Goes on from saved moments (in the order of the parameters) after `updates` updates.
    pub fn restore(
        options: AdamWOptions,
        first: Vec<Tensor>,
        second: Vec<Tensor>,
        updates: u64,
    ) -> Self {
        Self {
            options,
            first,
            second,
            updates,
        }
    }

    /// First and second moments, in the order of the parameters.
    pub fn moments(&self) -> (&[Tensor], &[Tensor]) {
        (&self.first, &self.second)
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Updates every parameter in place from its gradient times `gradient_scale` (the clipping factor). On a
    /// GPU the gradients are scaled in their own place.
    ///
    /// # Errors
    /// There are not as many gradients and moments as parameters, their shapes differ, or two of a
    /// parameter's four tensors share memory: nothing is updated. And what libtorch says.
    ///
    /// # Safety
    /// No other thread uses the storage of the parameters, gradients or moments meanwhile.
    pub unsafe fn update(
        &mut self,
        parameters: &[(String, Tensor)],
        gradients: &[Tensor],
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<(), TorchError> {
        let AdamWOptions {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        } = self.options;
        self.check(parameters, gradients)?;
        self.updates += 1;
        let correction1 = 1.0 - beta1.powf(self.updates as f64);
        let correction2 = 1.0 - beta2.powf(self.updates as f64);
        let _no_grad = tch::no_grad_guard();
        let mut fused = [Fused::default(), Fused::default()];
        for (index, (_, parameter)) in parameters.iter().enumerate() {
            let mut parameter = parameter.detach();
            let decays = parameter.dim() >= 2;
            let decay = match decays {
                true => learning_rate * weight_decay,
                false => 0.0,
            };
            let step = AdamWStep {
                gradient_scale: gradient_scale as f32,
                first_rate: (1.0 - beta1) as f32,
                second_decay: beta2 as f32,
                second_rate: (1.0 - beta2) as f32,
                root_scale: (1.0 / correction2.sqrt()) as f32,
                epsilon: epsilon as f32,
                rate: (learning_rate / correction1) as f32,
                keep: (1.0 - decay) as f32,
            };
            let (gradient, first, second) = (
                &gradients[index],
                &mut self.first[index],
                &mut self.second[index],
            );
            // SAFETY: the four have been found apart and alike; that no other thread uses them the caller promises.
            if !unsafe { update(&mut parameter, gradient, first, second, &step) } {
                let list = &mut fused[usize::from(decays)];
                list.parameters.push(parameter);
                list.gradients.push(gradient.shallow_clone());
                list.first.push(first.shallow_clone());
                list.second.push(second.shallow_clone());
            }
        }
        for (list, weight_decay) in fused.iter().zip([0.0, weight_decay]) {
            let step = FusedAdamW {
                learning_rate,
                beta1,
                beta2,
                weight_decay,
                epsilon,
                updates: self.updates,
                gradient_scale,
            };
            fused_adamw(
                &list.parameters,
                &list.gradients,
                &list.first,
                &list.second,
                &step,
            )?;
        }
        Ok(())
    }

    fn check(
        &self,
        parameters: &[(String, Tensor)],
        gradients: &[Tensor],
    ) -> Result<(), TorchError> {
        let counts = [gradients.len(), self.first.len(), self.second.len()];
        if counts != [parameters.len(); 3] {
            return Err(TorchError::Other(format!(
                "{} parameters have {} gradients, {} first and {} second moments",
                parameters.len(),
                counts[0],
                counts[1],
                counts[2]
            )));
        }
        for (index, (name, parameter)) in parameters.iter().enumerate() {
            let others = [&gradients[index], &self.first[index], &self.second[index]];
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
            if !are_apart(&[parameter, others[0], others[1], others[2]]) {
                return Err(TorchError::Other(format!(
                    "{name} shares memory with its gradient or moments, or these with each other"
                )));
            }
        }
        Ok(())
    }
}

/// Tensors that libtorch updates in one call.
#[derive(Default)]
struct Fused {
    parameters: Vec<Tensor>,
    gradients: Vec<Tensor>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
}

/// In one pass if the numbers are at hand (fp32 on the CPU); false if they are not.
///
/// # Safety
/// The four tensors have one shape and share no memory, and no other thread uses their storages meanwhile.
unsafe fn update(
    parameter: &mut Tensor,
    gradient: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    step: &AdamWStep,
) -> bool {
    // SAFETY: as the caller promises; this thread uses no other handle of them (the model's, autograd's)
    // before the slices are gone.
    let slices = unsafe {
        (
            numbers_mut(parameter),
            numbers(gradient),
            numbers_mut(first),
            numbers_mut(second),
        )
    };
    let (Some(parameter), Some(gradient), Some(first), Some(second)) = slices else {
        return false;
    };
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    adamw(parameter, gradient, first, second, step, threads);
    true
}

/// The L2 norm over all gradients together, summed in f64 (of a GPU's tensor in fp32, by its tree of sums);
/// one wait for the device.
///
/// # Errors
/// What libtorch says.
///
/// # Safety
/// No thread writes to the storage of the gradients meanwhile.
pub unsafe fn global_norm(gradients: &[Tensor]) -> Result<f64, TorchError> {
    let _no_grad = tch::no_grad_guard();
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    // libtorch's own sum on the CPU is in fp32, and in a hundred million numbers a percent too small.
    let (mut total, mut on_device) = (0.0, Vec::new());
    for gradient in gradients {
        // SAFETY: nobody writes to it: no other thread, which the caller promises, and nothing here.
        match unsafe { numbers(gradient) } {
            Some(numbers) => total += sum_of_squares(numbers, threads),
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

    /// Against the formulas of the paper, computed in f64 by hand for one number.
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
            // SAFETY: this thread alone has them.
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
        assert_eq!(optimizer.updates(), 3);
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        let parameters = vec![("norm".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))];
        let mut optimizer = AdamW::new(AdamWOptions::default(), &parameters).unwrap();
        let gradients = [Tensor::zeros([2], (Kind::Float, tch::Device::Cpu))];
        // SAFETY: this thread alone has them.
        unsafe { optimizer.update(&parameters, &gradients, 0.1, 1.0) }.unwrap();
        assert_eq!(
            Vec::<f32>::try_from(&parameters[0].1).unwrap(),
            vec![1.0, 2.0]
        );
    }

    /// Slices of tensors that share memory, or have other lengths, would be undefined behavior: they are
    /// refused before anything is written.
    #[test]
    fn tensors_that_do_not_belong_together_are_refused() {
        let parameters = vec![("w".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))];
        let mut optimizer = AdamW::new(AdamWOptions::default(), &parameters).unwrap();
        for (gradients, expected) in [
            (vec![], "1 parameters have 0 gradients"),
            (vec![Tensor::from_slice(&[1.0_f32])], "w is [2]"),
            (vec![parameters[0].1.shallow_clone()], "w shares memory"),
            (
                vec![optimizer.moments().0[0].shallow_clone()],
                "w shares memory",
            ),
        ] {
            // SAFETY: this thread alone has them.
            let refused = unsafe { optimizer.update(&parameters, &gradients, 0.1, 1.0) };
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(optimizer.updates(), 0);
        let weights = Vec::<f32>::try_from(&parameters[0].1).unwrap();
        assert_eq!(weights, [1.0, 2.0]);
    }

    #[test]
    fn the_global_norm_spans_all_tensors_and_shows_what_is_not_finite() {
        let gradients = [
            Tensor::from_slice(&[3.0_f32]),
            Tensor::from_slice(&[0.0_f32, 4.0]),
        ];
        // SAFETY: this thread alone has them, here and below.
        let global_norm = |gradients: &[Tensor]| unsafe { global_norm(gradients) };
        assert_eq!(global_norm(&gradients).unwrap(), 5.0);
        let broken = [
            Tensor::from_slice(&[f32::NAN]),
            Tensor::from_slice(&[1.0_f32]),
        ];
        assert!(!global_norm(&broken).unwrap().is_finite());
    }
}
