//! Calls operations of libtorch that tch does not bind, through the C interface in
//! `torch/csrc/stable/c/shim.h` of [`crate::VERSION`].

use std::{
    ffi::{CStr, c_char, c_void},
    mem::{forget, size_of},
    ptr,
};

use tch::{TchError, Tensor};

/// The release whose argument lists this module uses: major, minor, and patch in the upper bytes.
const RELEASE: u64 = (2 << 56) | (11 << 48);

/// An argument or a result as the interface passes it: a number's bits, or a pointer.
type Word = u64;

unsafe extern "C" {
    fn torch_call_dispatcher(
        name: *const c_char,
        overload: *const c_char,
        stack: *mut Word,
        release: u64,
    ) -> i32;
    fn torch_new_list_reserve_size(size: usize, list: *mut *mut c_void) -> i32;
    fn torch_list_push_back(list: *mut c_void, element: Word) -> i32;
    /// C++'s `operator new`: libtorch deletes what an optional argument points to.
    #[link_name = "_Znwm"]
    fn operator_new(size: usize) -> *mut c_void;
}

/// An argument of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    Tensor(&'a Tensor),
    Tensors(&'a [Tensor]),
    Integer(i64),
    Real(f64),
    Flag(bool),
    /// An optional argument that is present.
    Given(&'a Argument<'a>),
    /// An optional argument that is absent.
    Absent,
}

impl Argument<'_> {
    /// Returns the word that passes the argument. libtorch frees what it points to.
    fn word(self) -> Result<Word, TchError> {
        Ok(match self {
            Self::Tensor(tensor) => handle(tensor),
            Self::Tensors(tensors) => {
                let mut list = ptr::null_mut();
                // SAFETY: `list` is a place for a pointer, and the list takes ownership of each handle.
                unsafe {
                    done(torch_new_list_reserve_size(tensors.len(), &raw mut list))?;
                    for tensor in tensors {
                        done(torch_list_push_back(list, handle(tensor)))?;
                    }
                }
                address(list)
            }
            Self::Integer(number) => number.cast_unsigned(),
            Self::Real(number) => number.to_bits(),
            Self::Flag(flag) => Word::from(flag),
            Self::Given(argument) => {
                let word = argument.word()?;
                // SAFETY: `operator new` returns memory of the requested size and alignment, or does not return.
                unsafe {
                    let place = operator_new(size_of::<Word>()).cast::<Word>();
                    place.write(word);
                    address(place.cast())
                }
            }
            Self::Absent => 0,
        })
    }
}

/// Calls `aten::NAME` and returns its results, all of which must be tensors.
///
/// # Errors
/// If the operation fails. The error names the operation, and libtorch prints the reason to stderr.
///
/// # Safety
/// The arguments must have the number and types of the operation's schema, and the operation must have `results`
/// results.
pub(crate) unsafe fn call(
    name: &CStr,
    arguments: &[Argument<'_>],
    results: usize,
) -> Result<Vec<Tensor>, TchError> {
    let words = arguments.iter().map(|argument| argument.word());
    let mut stack: Vec<Word> = words.collect::<Result<_, _>>()?;
    stack.resize(stack.len().max(results), 0);
    // SAFETY: both names end with their NUL. The stack has room for arguments and results, and the caller promises
    // that they match the schema.
    let code =
        unsafe { torch_call_dispatcher(name.as_ptr(), c"".as_ptr(), stack.as_mut_ptr(), RELEASE) };
    if code != 0 {
        return Err(TchError::Torch(format!(
            "{} failed; libtorch printed the reason to stderr",
            name.to_string_lossy()
        )));
    }
    // SAFETY: each result is a new handle of a tensor, which nothing else frees.
    let tensors = stack
        .into_iter()
        .take(results)
        .map(|word| unsafe { Tensor::from_ptr(ptr::with_exposed_provenance_mut(word as usize)) });
    Ok(tensors.collect())
}

/// Creates a new handle of a tensor.
fn handle(tensor: &Tensor) -> Word {
    let mut handle = tensor.shallow_clone();
    let word = address(handle.as_mut_ptr().cast());
    forget(handle);
    word
}

fn address(pointer: *mut c_void) -> Word {
    pointer.expose_provenance() as Word
}

fn done(code: i32) -> Result<(), TchError> {
    match code {
        0 => Ok(()),
        _ => Err(TchError::Torch(
            "a list of tensors could not be made".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes every kind of argument that an operation can take, to operations with known results.
    #[test]
    fn operations_are_called_by_name() {
        let a = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]);
        let b = Tensor::from_slice(&[4.0_f32]);
        // SAFETY: arguments and results match the schemas.
        unsafe {
            let tensors = [a.shallow_clone(), b.shallow_clone()];
            let joined = call(
                c"aten::cat",
                &[Argument::Tensors(&tensors), Argument::Integer(0)],
                1,
            );
            let joined = joined.unwrap().pop().unwrap();
            assert_eq!(Vec::<f32>::try_from(&joined).unwrap(), [1.0, 2.0, 3.0, 4.0]);
            let wanted = Argument::Integer(1);
            let counted = call(
                c"aten::bincount",
                &[
                    Argument::Tensor(&Tensor::from_slice(&[0_i64, 2, 2])),
                    Argument::Given(&Argument::Tensor(&a)),
                    wanted,
                ],
                1,
            );
            let counted = counted.unwrap().pop().unwrap();
            assert_eq!(Vec::<f64>::try_from(&counted).unwrap(), [1.0, 0.0, 5.0]);
            let mean = [Argument::Tensor(&a), Argument::Absent];
            let mean = call(c"aten::mean", &mean, 1).unwrap().pop().unwrap();
            assert_eq!(mean.double_value(&[]), 2.0);
        }
        drop((a, b));
    }

    #[test]
    fn an_operation_that_fails_is_an_error() {
        let (a, b) = (
            Tensor::from_slice(&[1.0_f32, 2.0]),
            Tensor::from_slice(&[1.0_f32, 2.0, 3.0]),
        );
        // SAFETY: arguments and results match the schema; only the shapes do not fit.
        let failed = unsafe {
            call(
                c"aten::dot",
                &[Argument::Tensor(&a), Argument::Tensor(&b)],
                1,
            )
        };
        let error = failed.unwrap_err().to_string();
        assert!(error.contains("aten::dot failed"), "{error}");
    }
}
