//! Reads and writes safetensors files, tensor by tensor.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::Mmap;
use safetensors::{
    SafeTensors,
    tensor::{Dtype, Metadata},
};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// Bytes of tensors that this process has copied from files, and to files.
static LOADED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Returns the number of bytes of tensors that this process has loaded from model folders so far.
pub fn bytes_loaded() -> u64 {
    LOADED.load(Ordering::Relaxed)
}

/// Returns the number of bytes of tensors that this process has written so far.
pub fn bytes_written() -> u64 {
    WRITTEN.load(Ordering::Relaxed)
}

/// An open, memory-mapped file with a checked header. Tensors are copied out one by one.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// Offset of the data.
    data: usize,
}

/// Opens a safetensors file and checks that its header describes it.
///
/// # Errors
/// If the file cannot be read or is not a whole safetensors file.
pub fn read_tensors(path: &Path) -> Result<TensorFile, ModelError> {
    let file = File::open(path).map_err(ModelError::io("read", path))?;
    // SAFETY: the map is private and read-only. If another program truncates the file while it is mapped, this
    // process dies. Only a copy could prevent that, so checkpoints and exports are replaced only by rename.
    let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("read", path))?;
    let (length, header) = SafeTensors::read_metadata(&map).map_err(|error| {
        ModelError::malformed(path, format!("not a complete safetensors file: {error}"))
    })?;
    Ok(TensorFile {
        path: path.to_owned(),
        map,
        header,
        data: length + 8,
    })
}

impl TensorFile {
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let values = self.header.metadata().as_ref()?;
        values.get(key).map(String::as_str)
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.header.tensors().into_keys().collect()
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let info = self.header.info(name)?;
        Some(info.shape.iter().map(|&size| size as i64).collect())
    }

    /// Dtype and bytes of a tensor as stored in the file.
    pub(crate) fn bytes(&self, name: &str) -> Option<(Dtype, &[u8])> {
        let info = self.header.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data + start..self.data + end)?;
        Some((info.dtype, bytes))
    }

    /// Copies a tensor to `device` in dtype `kind`, directly from the mapped file, without an intermediate copy.
    ///
    /// # Errors
    /// If there is no such tensor, if its shape is not `shape`, if its dtype is not supported, or if libtorch
    /// fails.
    pub fn tensor_on(
        &self,
        name: &str,
        shape: &[i64],
        device: Device,
        kind: Kind,
    ) -> Result<Tensor, ModelError> {
        let (bytes, found) = self.find(name, shape)?;
        let size = found.elt_size_in_bytes();
        if !(bytes.as_ptr() as usize).is_multiple_of(size) {
            let copy = Tensor::f_from_data_size(bytes, shape, found)?;
            let copy = copy.f_to_kind(kind)?.f_to_device(device)?;
            LOADED.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return Ok(copy);
        }
        // SAFETY: `find` checked the shape, and opening the file checked that the number of bytes matches shape and
        // dtype. The bytes are aligned. The view is only read, and it is dropped before this function returns,
        // while `self` keeps the file mapped.
        let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, &[], found, Device::Cpu) }?;
        let copy = view.f_to_device_(device, kind, false, true)?;
        LOADED.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(copy)
    }

    /// Copies a tensor to the CPU in the file's dtype. Its shape must be `shape`.
    ///
    /// # Errors
    /// As for [`Self::tensor_on`].
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let (bytes, kind) = self.find(name, shape)?;
        Ok(Tensor::f_from_data_size(bytes, shape, kind)?)
    }

    /// Bytes and dtype of a tensor that must have the shape `shape`.
    fn find(&self, name: &str, shape: &[i64]) -> Result<(&[u8], Kind), ModelError> {
        let malformed = |reason: String| ModelError::malformed(&self.path, reason);
        let (dtype, bytes) = self
            .bytes(name)
            .ok_or_else(|| malformed(format!("there is no tensor `{name}`")))?;
        let found = self.shape(name).unwrap_or_default();
        if found != shape {
            return Err(malformed(format!(
                "the tensor `{name}` has the shape {found:?}, expected {shape:?}"
            )));
        }
        let kind = KINDS.iter().find(|(of_file, _)| *of_file == dtype);
        let (_, kind) = kind.ok_or_else(|| {
            malformed(format!(
                "the tensor `{name}` has the dtype {dtype:?} (supported: F32, F16, BF16, F64)"
            ))
        })?;
        Ok((bytes, *kind))
    }
}

/// The dtypes that DDK reads and writes, and libtorch's names for them.
const KINDS: [(Dtype, Kind); 5] = [
    (Dtype::F64, Kind::Double),
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
];

/// Writes tensors (on the CPU, sorted by the caller) one by one, without a copy of the whole file in memory.
///
/// # Errors
/// If a tensor's dtype is not supported, if it cannot be copied, or if `out` cannot be written.
pub fn write_tensors(
    tensors: &[(String, Tensor)],
    metadata: &[(&str, &str)],
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut entries: Map<String, Value> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    entries.insert("format".to_owned(), json!("pt"));
    let mut header = json!({ "__metadata__": entries });
    let mut offset = 0;
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let Some((dtype, _)) = KINDS.iter().find(|(_, of_tensor)| *of_tensor == kind) else {
            let reason = format!("cannot write {name}: dtype {kind:?}");
            return Err(io::Error::other(reason));
        };
        let end = offset + tensor.numel() * kind.elt_size_in_bytes();
        header[name] =
            json!({ "dtype": dtype, "shape": tensor.size(), "data_offsets": [offset, end] });
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    // Start the data at a multiple of 8 bytes, so that it can be mapped as numbers.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = Vec::new();
    for (name, tensor) in tensors {
        bytes.resize(tensor.numel() * tensor.kind().elt_size_in_bytes(), 0);
        tensor
            .f_contiguous()
            .and_then(|tensor| tensor.f_copy_data_u8(&mut bytes, tensor.numel()))
            .map_err(|error| io::Error::other(format!("cannot copy {name}: {error}")))?;
        out.write_all(&bytes)?;
        WRITTEN.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn tensors_of_each_dtype_come_back_bit_for_bit_and_the_public_reader_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let tensors: Vec<(String, Tensor)> =
            [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double]
                .into_iter()
                .enumerate()
                .map(|(index, kind)| {
                    let values = Tensor::randn([3, 5], (Kind::Float, Device::Cpu)).to_kind(kind);
                    (format!("t{index}"), values)
                })
                .collect();
        let mut bytes = Vec::new();
        write_tensors(&tensors, &[("updates", "17")], &mut bytes).unwrap();
        let public = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(public.len(), 4);
        fs::write(&path, &bytes).unwrap();
        let file = read_tensors(&path).unwrap();
        assert_eq!(file.metadata("updates"), Some("17"));
        for (name, tensor) in &tensors {
            let back = file.tensor(name, &[3, 5]).unwrap();
            assert!(back.kind() == tensor.kind() && back.equal(tensor), "{name}");
        }
        let error = file.tensor("t0", &[5, 3]).unwrap_err().to_string();
        assert!(error.contains("t0") && error.contains("[3, 5]"), "{error}");
        fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        let error = read_tensors(&path).unwrap_err().to_string();
        assert!(error.contains("t.safetensors"), "{error}");
    }
}
