//! Keeps a checksum for each block of a prepared file, to detect damage when a block is first read.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    CorpusError,
    manifest::{FileRecord, MANIFEST, Manifest},
};

/// Bytes per block; the last block of a file may be shorter.
pub(crate) const BLOCK_BYTES: u64 = 1 << 20;
/// Bytes of a block's checksum, a BLAKE3 hash.
pub(crate) const SUM_BYTES: usize = blake3::OUT_LEN;
/// The block checksums of all data files of a domain, in the order of the file names.
pub(crate) const CHECKSUMS_FILE: &str = "checksums.bin";

/// Returns the size and hash of a file, and the concatenated checksums of its blocks.
pub(crate) fn of_file(path: &Path) -> Result<(FileRecord, Vec<u8>), CorpusError> {
    let failed = || CorpusError::io("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let (mut whole, mut sums, mut bytes) = (blake3::Hasher::new(), Vec::new(), 0);
    let mut block = Vec::with_capacity(BLOCK_BYTES as usize);
    loop {
        block.clear();
        let read = file.by_ref().take(BLOCK_BYTES).read_to_end(&mut block);
        if read.map_err(failed())? == 0 {
            break;
        }
        bytes += block.len() as u64;
        whole.update(&block);
        sums.extend_from_slice(blake3::hash(&block).as_bytes());
    }
    let hash = whole.finalize().to_hex().to_string();
    Ok((FileRecord { bytes, hash }, sums))
}

/// Reads the concatenated checksums of each data file of a domain, and compares [`CHECKSUMS_FILE`] with the manifest.
pub(crate) fn read(
    folder: &Path,
    manifest: &Manifest,
) -> Result<BTreeMap<String, Vec<u8>>, CorpusError> {
    let path = folder.join(CHECKSUMS_FILE);
    let bytes = fs::read(&path).map_err(CorpusError::io("read", &path))?;
    if manifest.block_bytes != BLOCK_BYTES {
        let found = manifest.block_bytes;
        let reason = format!("block_bytes is {found}, expected {BLOCK_BYTES}");
        return Err(CorpusError::damaged(&folder.join(MANIFEST), reason));
    }
    let damaged = || CorpusError::lost(&path, "does not match its manifest.json");
    let (mut sums, mut rest) = (BTreeMap::new(), &bytes[..]);
    for (name, file) in &manifest.files {
        let length = file.bytes.div_ceil(BLOCK_BYTES) as usize * SUM_BYTES;
        let of_file = rest.split_off(..length).ok_or_else(damaged)?;
        sums.insert(name.clone(), of_file.to_vec());
    }
    if blake3::hash(&bytes).to_hex().to_string() != manifest.checksums_hash || !rest.is_empty() {
        return Err(damaged());
    }
    Ok(sums)
}

/// The checksum of each block of a file, and whether this process has already verified the block. Two threads may
/// verify the same block; both get the same result.
#[derive(Debug)]
pub(crate) struct Blocks(Vec<([u8; SUM_BYTES], AtomicBool)>);

impl Blocks {
    /// Splits concatenated checksums.
    pub(crate) fn new(sums: &[u8]) -> Self {
        let (sums, _) = sums.as_chunks();
        Self(sums.iter().map(|sum| (*sum, false.into())).collect())
    }

    /// Whether this process has verified the block and found it intact.
    pub(crate) fn is_verified(&self, block: u64) -> bool {
        let block = self.0.get(block as usize);
        block.is_some_and(|(_, verified)| verified.load(Ordering::Relaxed))
    }

    /// Compares a block's bytes with its checksum.
    pub(crate) fn verify(&self, block: u64, bytes: &[u8]) -> bool {
        self.0.get(block as usize).is_some_and(|(sum, verified)| {
            let same = blake3::hash(bytes).as_bytes() == sum;
            verified.fetch_or(same, Ordering::Relaxed);
            same
        })
    }
}
