//! Adds an operation with a backward pass of its own to libtorch's autograd graph.

use std::{
    ffi::{CString, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use tch::{TchError, Tensor};

/// The tensor of tch's C interface.
type Handle = *mut c_void;

/// `Backward` in `node.cpp`.
#[repr(C)]
struct Function {
    state: *mut c_void,
    backward: unsafe extern "C" fn(*mut c_void, *mut Handle, *mut Handle) -> *const c_char,
    drop: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn ddk_needs_gradient(inputs: *const Handle, count: usize) -> bool;
    fn ddk_attach(
        outputs: *const Handle,
        output_count: usize,
        inputs: *const Handle,
        input_count: usize,
        function: Function,
    ) -> bool;
}

/// Computes the gradients of the inputs from those of the outputs. A gradient that is zero may be `None`.
type Backward = dyn FnMut(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>, TchError> + Send;

/// What a node owns.
struct State {
    backward: Box<Backward>,
    outputs: usize,
    inputs: usize,
    /// The last error's text, which C++ reads.
    message: CString,
}

/// Whether an operation on these tensors must record a backward pass: gradients are enabled, and one of the tensors
/// requires one.
pub fn needs_gradient(inputs: &[&Tensor]) -> bool {
    let handles = handles(inputs);
    // SAFETY: the handles are those of living tensors.
    unsafe { ddk_needs_gradient(handles.as_ptr(), handles.len()) }
}

/// Records that an operation computed `outputs` from `inputs`, and how its backward pass works. The outputs must be new
/// tensors that share no memory with others. `backward` gets the gradients of the outputs, and returns those of the
/// inputs, in order. The graph drops it after the backward pass, unless the graph is kept.
///
/// Call it only if [`needs_gradient`] returns true for the inputs.
///
/// # Errors
/// If libtorch fails.
pub fn attach(
    outputs: &[&Tensor],
    inputs: &[&Tensor],
    backward: impl FnMut(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>, TchError> + Send + 'static,
) -> Result<(), TchError> {
    let state = Box::new(State {
        backward: Box::new(backward),
        outputs: outputs.len(),
        inputs: inputs.len(),
        message: CString::default(),
    });
    let function = Function {
        state: Box::into_raw(state).cast(),
        backward: run,
        drop: discard,
    };
    let (outputs, inputs) = (handles(outputs), handles(inputs));
    // SAFETY: the handles are those of living tensors. The node takes the state, and passes it only to `run` and, once,
    // to `discard`.
    let done = unsafe {
        ddk_attach(
            outputs.as_ptr(),
            outputs.len(),
            inputs.as_ptr(),
            inputs.len(),
            function,
        )
    };
    let failed = || TchError::Torch("libtorch could not add a node to the graph".to_owned());
    if done { Ok(()) } else { Err(failed()) }
}

fn handles(tensors: &[&Tensor]) -> Vec<Handle> {
    let tensors = tensors.iter();
    tensors
        .map(|tensor| tensor.as_ptr().cast_mut().cast())
        .collect()
}

/// Runs the backward pass of a node. Returns null, or the text of an error.
unsafe extern "C" fn run(
    state: *mut c_void,
    gradients: *mut Handle,
    results: *mut Handle,
) -> *const c_char {
    // SAFETY: the node passes the state that `attach` gave it, and uses it in one call at a time.
    let state = unsafe { &mut *state.cast::<State>() };
    let given = (0..state.outputs).map(|index| {
        // SAFETY: there is one handle or null per output, and this function owns it.
        unsafe {
            let handle = gradients.add(index).read();
            (!handle.is_null()).then(|| Tensor::from_ptr(handle.cast()))
        }
    });
    let given = given.collect();
    let inputs = state.inputs;
    // A panic must not unwind into C++.
    let found = catch_unwind(AssertUnwindSafe(|| (state.backward)(given)));
    let text = match found {
        Ok(Ok(found)) if found.len() == inputs => {
            for (index, result) in found.into_iter().enumerate() {
                if let Some(result) = result {
                    // SAFETY: there is a place for each input's gradient, and the node owns what is written there.
                    unsafe { results.add(index).write(owned(result)) }
                }
            }
            return ptr::null();
        }
        Ok(Ok(found)) => format!(
            "a backward pass returned {} gradients for {inputs} inputs",
            found.len()
        ),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a backward pass panicked".to_owned(),
    };
    state.message = CString::new(text.replace('\0', " ")).unwrap_or_default();
    state.message.as_ptr()
}

/// Gives up a tensor's handle without freeing it.
fn owned(tensor: Tensor) -> Handle {
    let tensor = std::mem::ManuallyDrop::new(tensor);
    tensor.as_ptr().cast_mut().cast()
}

unsafe extern "C" fn discard(state: *mut c_void) {
    // SAFETY: `attach` made the state as a box, and the node discards it once.
    drop(unsafe { Box::from_raw(state.cast::<State>()) });
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tch::Kind;

    use super::*;

    fn leaf(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    /// `(a * b, a + b)`, computed outside of the graph.
    fn product_and_sum(a: &Tensor, b: &Tensor, calls: &Arc<AtomicUsize>) -> (Tensor, Tensor) {
        let (product, sum) = tch::no_grad(|| (a * b, a + b));
        assert!(!product.requires_grad());
        let (saved, calls) = ([a.detach(), b.detach()], Arc::clone(calls));
        attach(&[&product, &sum], &[a, b], move |gradients| {
            calls.fetch_add(1, SeqCst);
            let [a, b] = &saved;
            let of_sum = |gradient: Tensor| match &gradients[1] {
                Some(of_sum) => gradient + of_sum,
                None => gradient,
            };
            let Some(of_product) = &gradients[0] else {
                return Ok(vec![None, None]);
            };
            Ok(vec![
                Some(of_sum(of_product * b)),
                Some(of_sum(of_product * a)),
            ])
        })
        .unwrap();
        (product, sum)
    }

    #[test]
    fn gradients_are_those_of_autograd_and_the_state_is_freed() {
        let calls = Arc::new(AtomicUsize::new(0));
        let (a, b) = (leaf(&[1.0, 2.0, 3.0]), leaf(&[4.0, 5.0, 6.0]));
        assert!(needs_gradient(&[&a, &b]));
        assert!(!tch::no_grad(|| needs_gradient(&[&a])));
        assert!(!needs_gradient(&[&a.detach()]));
        // Operations of libtorch before and after the node.
        let (product, sum) = product_and_sum(&(&a * 2.0), &b, &calls);
        let loss = (product * &sum + sum).sum(Kind::Float);
        loss.backward();
        let grads = [a.grad(), b.grad()];
        let (c, d) = (leaf(&[1.0, 2.0, 3.0]), leaf(&[4.0, 5.0, 6.0]));
        let (product, sum) = (&c * 2.0 * &d, &c * 2.0 + &d);
        (product * &sum + sum).sum(Kind::Float).backward();
        assert!(grads[0].equal(&c.grad()) && grads[1].equal(&d.grad()));
        // The test's own handle is the only one left: the node has dropped what it saved.
        assert_eq!((calls.load(SeqCst), Arc::strong_count(&calls)), (1, 1));
        // A graph that is never run frees its state with its last tensor.
        drop(product_and_sum(&a, &b, &calls));
        assert_eq!((calls.load(SeqCst), Arc::strong_count(&calls)), (1, 1));
    }

    #[test]
    fn errors_and_panics_reach_the_caller() {
        let run = |backward: fn() -> Result<Vec<Option<Tensor>>, TchError>| {
            let x = leaf(&[1.0]);
            let y = tch::no_grad(|| &x * 3.0);
            attach(&[&y], &[&x], move |_| backward()).unwrap();
            y.f_backward().unwrap_err().to_string()
        };
        let error = run(|| Err(TchError::Torch("no memory".to_owned())));
        assert!(error.contains("no memory"), "{error}");
        let error = run(|| Ok(Vec::new()));
        assert!(error.contains("0 gradients for 1 inputs"), "{error}");
        let error = run(|| panic!("on purpose"));
        assert!(error.contains("panicked"), "{error}");
    }
}
