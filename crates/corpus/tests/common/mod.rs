//! Helpers that the corpus tests share.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ddk_corpus::{
    CorpusError, DomainReport, DomainSource, Limits, Packing, PrepareOptions, PreparedDomain,
    SequenceOptions, Template, TokenizerFolder, ValidationSplit, prepare, train_tokenizer,
};

/// Options for sequences of documents joined and cut.
pub fn rows_of(sequence_length: usize) -> SequenceOptions {
    SequenceOptions {
        packing: Packing::Concat,
        sequence_length,
        completion_only_loss: false,
    }
}

/// A folder with sources of two kinds and a tokenizer.
pub struct Place {
    /// The folder, if this place owns it. It is removed when the place is dropped.
    own: Option<tempfile::TempDir>,
    path: PathBuf,
}

pub fn sentence(number: u64) -> String {
    let words = [
        "river", "stone", "cloud", "ember", "forest", "signal", "harbour", "lantern",
    ];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut text = format!("{number}:");
    for _ in 0..5 + number % 23 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text.push(' ');
        text.push_str(words[(state >> 61) as usize]);
    }
    text
}

impl Place {
    pub fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        let place = Self {
            path: own.path().to_owned(),
            own: Some(own),
        };
        let records: String = (0..200)
            .map(|number| format!("{}\n", serde_json::json!({ "text": sentence(number) })))
            .collect();
        place.write("records.jsonl", records.as_bytes());
        for number in 200..260 {
            place.write(
                &format!("files/{}/{number}.md", number % 3),
                sentence(number).as_bytes(),
            );
        }
        train_tokenizer((0..260).map(sentence), 320, &place.path("tokenizer")).unwrap();
        place
    }

    /// Opens a place that another process made.
    pub fn at(folder: &Path) -> Self {
        Self {
            own: None,
            path: folder.to_owned(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn tokenizer(&self) -> TokenizerFolder {
        TokenizerFolder::open(&self.path("tokenizer"), None).unwrap()
    }

    pub fn source(&self, name: &str, file: &str) -> DomainSource {
        DomainSource {
            name: name.to_owned(),
            files: vec![self.path(file).to_string_lossy().into_owned()],
            validation_files: Vec::new(),
            format: None,
            text: Template::field("text"),
            prompt: None,
            chat: None,
            tokens: None,
            only: None,
            limits: Limits::default(),
        }
    }

    pub fn options(&self, domains: Vec<DomainSource>) -> PrepareOptions {
        PrepareOptions {
            folder: self.path("prepared"),
            domains,
            packing: Packing::Concat,
            sequence_length: 16,
            seed: 3,
            validation_split: ValidationSplit::Fraction,
            validation_fraction: 0.1,
            validation_documents: 10,
            max_bad_fraction: 0.01,
            batch_bytes: 1000,
            documents_in_memory: 1 << 20,
        }
    }

    pub fn both(&self) -> PrepareOptions {
        self.options(vec![
            self.source("files", "files"),
            self.source("records", "records.jsonl"),
        ])
    }

    pub fn prepare(&self, options: &PrepareOptions) -> Result<Vec<DomainReport>, CorpusError> {
        prepare(options, &self.tokenizer(), false, &mut |_| ())
    }

    pub fn open(&self, name: &str) -> PreparedDomain {
        PreparedDomain::open(&self.path("prepared"), name, rows_of(16)).unwrap()
    }
}

pub fn all_rows(domain: &PreparedDomain) -> Vec<Vec<u32>> {
    (0..domain.rows())
        .map(|row| domain.sequence(row).unwrap().tokens)
        .collect()
}

/// Contents of a prepared domain's files by name, without the manifest, which contains times.
pub fn data_files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "manifest.json")
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}
