//! Exposes a tensor's memory as a slice, for computation in Rust.

use tch::{Kind, Tensor};

use crate::takes_gpu_path;

/// Returns the numbers of a contiguous fp32 tensor on the CPU, in order. Returns `None` for any other tensor, and
/// on the GPU path.
///
/// # Safety
/// Nothing may write to the tensor's storage while the slice is in use, including through a shallow clone or view
/// in this thread or another.
pub unsafe fn as_slice(tensor: &Tensor) -> Option<&[f32]> {
    let pointer = pointer(tensor)?;
    // SAFETY: the tensor is contiguous, so `numel` numbers follow. It keeps its storage alive as long as it is
    // borrowed.
    Some(unsafe { std::slice::from_raw_parts(pointer, tensor.numel()) })
}

/// Works like [`as_slice`], for writing.
///
/// # Safety
/// Nothing else may read or write the tensor's storage while the slice is in use.
pub unsafe fn as_slice_mut(tensor: &mut Tensor) -> Option<&mut [f32]> {
    let pointer = pointer(tensor)?;
    // SAFETY: as above. The borrow is exclusive, and the caller promises that no alias is used.
    Some(unsafe { std::slice::from_raw_parts_mut(pointer, tensor.numel()) })
}

/// Whether no two of these contiguous tensors overlap in memory, so that slices of them may be used together.
pub fn are_apart(tensors: &[&Tensor]) -> bool {
    let range = |tensor: &&Tensor| {
        let start = tensor.data_ptr().addr();
        start..start + tensor.numel() * tensor.kind().elt_size_in_bytes()
    };
    let ranges: Vec<_> = tensors.iter().map(range).collect();
    ranges.iter().enumerate().all(|(at, range)| {
        let others = &ranges[at + 1..];
        others
            .iter()
            .all(|other| range.end <= other.start || other.end <= range.start)
    })
}

fn pointer(tensor: &Tensor) -> Option<*mut f32> {
    let plain = !takes_gpu_path(tensor.device())
        && tensor.kind() == Kind::Float
        && tensor.is_contiguous()
        && tensor.numel() > 0;
    plain.then(|| tensor.data_ptr().cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn tensors_are_apart_unless_they_share_memory() {
        let whole = Tensor::zeros([4, 3], (Kind::Float, Device::Cpu));
        let other = whole.copy();
        let (first, second) = (whole.narrow(0, 0, 2), whole.narrow(0, 2, 2));
        assert!(are_apart(&[&whole, &other]));
        assert!(are_apart(&[&other, &first, &second]));
        assert!(!are_apart(&[&whole, &whole.shallow_clone()]));
        assert!(!are_apart(&[&first, &other, &whole.narrow(0, 1, 2)]));
    }

    #[test]
    fn a_tensor_is_written_through_its_slice() {
        let mut tensor = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        // SAFETY: there is no other handle.
        unsafe { as_slice_mut(&mut tensor) }.unwrap()[4] = 7.0;
        assert_eq!(tensor.double_value(&[1, 1]), 7.0);
        // SAFETY: as above.
        unsafe {
            assert_eq!(as_slice(&tensor).unwrap().len(), 6);
            assert!(as_slice(&tensor.tr()).is_none());
            assert!(as_slice(&tensor.to_kind(Kind::Double)).is_none());
        }
    }
}
