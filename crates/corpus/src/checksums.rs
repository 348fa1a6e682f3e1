//! Keeps a checksum for each block of a prepared file, to detect damage when a block is first read.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
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

type Sum = [u8; SUM_BYTES];

/// Number of blocks in a file of `bytes` bytes.
pub(crate) fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

/// Computes the checksums of a file's blocks.
#[derive(Default)]
pub(crate) struct BlockSums {
    block: Vec<u8>,
    sums: Vec<u8>,
}

impl BlockSums {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK_BYTES as usize - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() as u64 == BLOCK_BYTES {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        self.sums
            .extend_from_slice(blake3::hash(&self.block).as_bytes());
        self.block.clear();
    }

    /// Returns the concatenated checksums.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if !self.block.is_empty() {
            self.end_block();
        }
        self.sums
    }
}

/// Returns the size and hash of a file, and the checksums of its blocks.
pub(crate) fn of_file(path: &Path) -> Result<(FileRecord, Vec<u8>), CorpusError> {
    let failed = || CorpusError::io("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let (mut whole, mut sums, mut bytes) = (blake3::Hasher::new(), BlockSums::default(), 0);
    let mut buffer = vec![0; BLOCK_BYTES as usize];
    loop {
        let count = file.read(&mut buffer).map_err(failed())?;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        whole.update(&buffer[..count]);
        sums.update(&buffer[..count]);
    }
    let hash = whole.finalize().to_hex().to_string();
    Ok((FileRecord { bytes, hash }, sums.finish()))
}

/// The checksums of a prepared domain's files.
pub(crate) struct Checksums {
    path: PathBuf,
    sums: Vec<Sum>,
    /// For each file: the number of its first block, and the number of its blocks.
    places: BTreeMap<String, (u64, u64)>,
}

impl Checksums {
    /// Reads [`CHECKSUMS_FILE`] and compares it with the manifest.
    pub(crate) fn read(folder: &Path, manifest: &Manifest) -> Result<Self, CorpusError> {
        let path = folder.join(CHECKSUMS_FILE);
        let bytes = std::fs::read(&path).map_err(CorpusError::io("read", &path))?;
        let (mut places, mut first) = (BTreeMap::new(), 0);
        for (name, file) in &manifest.files {
            let blocks = blocks_of(file.bytes);
            places.insert(name.clone(), (first, blocks));
            first += blocks;
        }
        if manifest.block_bytes != BLOCK_BYTES {
            let reason = format!(
                "block_bytes is {}, expected {BLOCK_BYTES}",
                manifest.block_bytes
            );
            return Err(CorpusError::damaged(&folder.join(MANIFEST), reason));
        }
        let whole = blake3::hash(&bytes).to_hex().to_string() == manifest.checksums_hash;
        if !whole || bytes.len() as u64 != first * SUM_BYTES as u64 {
            return Err(CorpusError::damaged(
                &path,
                "does not match its manifest.json: prepare the corpus again (ddk prepare CONFIG --force)",
            ));
        }
        Ok(Self {
            path,
            sums: sums(&bytes),
            places,
        })
    }

    /// Returns the checksums of one file.
    pub(crate) fn of(&self, name: &str) -> Result<Blocks, CorpusError> {
        let Some(&(first, count)) = self.places.get(name) else {
            let reason = format!(
                "has no checksums of {name}: prepare the corpus again (ddk prepare CONFIG --force)"
            );
            return Err(CorpusError::damaged(&self.path, reason));
        };
        let (first, count) = (first as usize, count as usize);
        Ok(Blocks::new(self.sums[first..first + count].to_vec()))
    }
}

/// Splits concatenated checksums.
pub(crate) fn sums(bytes: &[u8]) -> Vec<Sum> {
    bytes.as_chunks::<SUM_BYTES>().0.to_vec()
}

/// A file's checksums, and which of its blocks this process has already verified.
#[derive(Debug)]
pub(crate) struct Blocks {
    sums: Vec<Sum>,
    /// One bit per block. Two threads may verify the same block; both get the same result.
    verified: Vec<AtomicU64>,
}

impl Blocks {
    pub(crate) fn new(sums: Vec<Sum>) -> Self {
        let words = sums.len().div_ceil(64);
        Self {
            verified: (0..words).map(|_| AtomicU64::new(0)).collect(),
            sums,
        }
    }

    /// Whether this process has verified the block and found it intact.
    pub(crate) fn is_verified(&self, block: u64) -> bool {
        let word = self.verified.get((block / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (block % 64) & 1 == 1)
    }

    /// Compares a block's bytes with its checksum.
    pub(crate) fn verify(&self, block: u64, bytes: &[u8]) -> bool {
        let same = self
            .sums
            .get(block as usize)
            .is_some_and(|sum| blake3::hash(bytes).as_bytes() == sum);
        if let (true, Some(word)) = (same, self.verified.get((block / 64) as usize)) {
            word.fetch_or(1 << (block % 64), Ordering::Relaxed);
        }
        same
    }
}
