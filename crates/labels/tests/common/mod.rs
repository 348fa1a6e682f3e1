//! Shared by the tests: a folder with a set, ids, labels, and random numbers.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use ddk_labels::{LabelSet, Provenance};

pub struct Place {
    _folder: Option<tempfile::TempDir>,
    pub cache: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            cache: folder.path().join("cache"),
            _folder: Some(folder),
        }
    }

    /// A place of another process.
    pub fn at(cache: &Path) -> Self {
        Self {
            cache: cache.to_owned(),
            _folder: None,
        }
    }

    pub fn open(&self, max_bytes: Option<u64>) -> LabelSet {
        LabelSet::open(&self.cache, "set", &provenance("a"), max_bytes).unwrap()
    }

    pub fn find(&self) -> LabelSet {
        LabelSet::find(&self.cache, "set", &provenance("a"))
            .unwrap()
            .unwrap()
    }
}

pub fn provenance(teacher: &str) -> Provenance {
    Provenance::new([
        ("teacher", teacher.to_owned()),
        ("dtype", "bf16".to_owned()),
    ])
}

pub fn id(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// Random bytes; their number depends on the label's.
pub fn label(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 1 + random(number) as usize % 3000];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub fn random(seed: u64) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id(seed)[..8]);
    u64::from_le_bytes(bytes) >> 1
}

pub fn scale() -> u64 {
    let scale = std::env::var("DDK_TEST_SCALE").ok();
    scale.and_then(|text| text.parse().ok()).unwrap_or(1)
}
