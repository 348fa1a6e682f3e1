//! Documents on their way into a domain's folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ddk_files::Swap;
use serde::{Deserialize, Serialize};

use crate::{
    CorpusError, DomainSource, TokenizerFolder,
    checksums::{self, BLOCK_BYTES, CHECKSUMS_FILE},
    documents::Document,
    manifest::{DATA_FILES, FORMAT, MANIFEST, MadeFrom, Manifest},
    quarantine::QUARANTINE_FILE,
    source::Use,
    store::{TokenWriter, Written},
    survey::Survey,
};

/// Where a domain is, and where it is on its way there.
pub(crate) fn places(corpus: &Path, domain: &str) -> Swap {
    Swap {
        folder: corpus.join(domain),
        temporary: corpus.join(format!(".{domain}.tmp")),
        old: corpus.join(format!(".{domain}.old")),
    }
}

/// Puts the finished folder into its place.
pub(crate) fn publish(places: &Swap) -> Result<(), CorpusError> {
    ddk_files::remove(&places.temporary.join(SAVED))?;
    Ok(places.publish(false)?)
}

/// Ends what a process that is gone was about: puts a finished folder that is `wanted` into its place, or
/// what was there before back.
pub(crate) fn recover(places: &Swap, wanted: &MadeFrom) -> Result<(), CorpusError> {
    // A manifest is written last, and whole or not at all.
    let finished = Manifest::read(&places.temporary).unwrap_or_default();
    if finished.is_some_and(|manifest| manifest.made_from == *wanted) {
        return publish(places);
    }
    Ok(places.recover()?)
}

/// How far a domain's files are, so that a stopped preparation resumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Saved {
    made_from: MadeFrom,
    /// Documents (used or not) whose tokens are in the files.
    documents: usize,
    train: Written,
    validation: Written,
    text_bytes: u64,
    /// Whether a document did not fit into the limit on tokens: that ends the domain.
    full: bool,
}

const SAVED: &str = "progress.json";

/// Documents that are tokenized together, in their order.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) documents: Vec<(Document, Use)>,
    /// Documents read so far, used or not.
    pub(crate) read: usize,
    /// Bytes of text since the previous batch, skipped text included.
    pub(crate) bytes: u64,
}

/// A domain's files being written.
pub(crate) struct Writing<'a> {
    folder: PathBuf,
    tokenizer: &'a TokenizerFolder,
    train: TokenWriter,
    validation: TokenWriter,
    most_tokens: u64,
    /// What is durable.
    saved: Saved,
}

impl<'a> Writing<'a> {
    /// Resumes what is in `folder` if that was made from the same, otherwise starts over.
    pub(crate) fn begin(
        folder: &Path,
        domain: &DomainSource,
        tokenizer: &'a TokenizerFolder,
        made_from: &MadeFrom,
    ) -> Result<Self, CorpusError> {
        let nothing = Saved {
            made_from: made_from.clone(),
            documents: 0,
            train: Written::default(),
            validation: Written::default(),
            text_bytes: 0,
            full: false,
        };
        let found = fs::read(folder.join(SAVED))
            .ok()
            .and_then(|text| serde_json::from_slice::<Saved>(&text).ok())
            .filter(|saved| saved.made_from == *made_from);
        if found.is_none() {
            ddk_files::remove(folder)?;
            ddk_files::create_folder(folder)?;
        }
        let saved = found.unwrap_or(nothing);
        let (width, masked) = (tokenizer.token_bytes(), domain.prompt.is_some());
        Ok(Self {
            train: TokenWriter::open(folder, "", width, masked, saved.train)?,
            validation: TokenWriter::open(folder, "validation-", width, masked, saved.validation)?,
            folder: folder.to_owned(),
            tokenizer,
            most_tokens: domain.limits.tokens.unwrap_or(u64::MAX),
            saved,
        })
    }

    /// Documents (used or not) that are in the files.
    pub(crate) fn documents(&self) -> usize {
        self.saved.documents
    }

    /// Whether the limit on tokens is reached.
    pub(crate) fn is_full(&self) -> bool {
        self.saved.full
    }

    pub(crate) fn write(&mut self, batch: Batch) -> Result<(), CorpusError> {
        let full = self.saved.full;
        // The reader may have learned too late that the limit is reached.
        let wanted = batch
            .documents
            .into_iter()
            .filter(|(_, usage)| !full || *usage == Use::Validation);
        let (documents, usages): (Vec<Document>, Vec<Use>) = wanted.unzip();
        if documents.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u64> = documents.iter().map(Document::bytes).collect();
        let encoded = self.tokenizer.encode_documents(documents)?;
        for ((document, usage), bytes) in encoded.iter().zip(usages).zip(bytes) {
            if usage == Use::Validation {
                self.validation.append(document)?;
                continue;
            }
            let more = self.train.written.tokens + document.tokens.len() as u64;
            self.saved.full |= more > self.most_tokens;
            if !self.saved.full {
                self.train.append(document)?;
                self.saved.text_bytes += bytes;
            }
        }
        self.train.sync()?;
        self.validation.sync()?;
        self.saved.documents = batch.read;
        self.saved.train = self.train.written;
        self.saved.validation = self.validation.written;
        // Only when the tokens are durable: what it says is in the files is.
        let path = self.folder.join(SAVED);
        let text = json(&path, &self.saved)?;
        Ok(ddk_files::write_atomically(&path, &text)?)
    }

    /// Writes all that belongs to the folder but tokens; the manifest, last, makes it whole.
    pub(crate) fn finish(mut self, survey: &Survey) -> Result<Manifest, CorpusError> {
        self.train.sync()?;
        self.validation.sync()?;
        let folder = self.folder;
        let (mut data_files, mut sums) = (BTreeMap::new(), BTreeMap::new());
        for name in DATA_FILES {
            let path = folder.join(name);
            if path.exists() {
                let (file, blocks) = checksums::of_file(&path)?;
                data_files.insert(name.to_owned(), file);
                sums.insert(name, blocks);
            }
        }
        let sums = sums.into_values().flatten().collect::<Vec<u8>>();
        let mut content = blake3::Hasher::new();
        for (name, file) in &data_files {
            content.update(name.as_bytes()).update(file.hash.as_bytes());
        }
        let manifest = Manifest {
            format: FORMAT,
            made_from: self.saved.made_from,
            token_bytes: self.tokenizer.token_bytes(),
            tokens: self.train.written.tokens,
            documents: self.train.written.documents,
            text_bytes: self.saved.text_bytes,
            validation_tokens: self.validation.written.tokens,
            validation_documents: self.validation.written.documents,
            duplicates: survey.duplicates,
            short: survey.short,
            quarantined: survey.quarantine.bad,
            files: data_files,
            block_bytes: BLOCK_BYTES,
            checksums_hash: blake3::hash(&sums).to_hex().to_string(),
            content_hash: content.finalize().to_hex().to_string(),
        };
        let mut quarantine = Vec::new();
        let path = folder.join(QUARANTINE_FILE);
        for entry in &survey.quarantine.list {
            quarantine.extend(json(&path, entry)?);
            quarantine.push(b'\n');
        }
        ddk_files::write_atomically(&path, &quarantine)?;
        ddk_files::write_atomically(&folder.join(CHECKSUMS_FILE), &sums)?;
        let path = folder.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(unwritable(&path))?;
        ddk_files::write_atomically(&path, &text)?;
        Ok(manifest)
    }
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, CorpusError> {
    serde_json::to_vec(value).map_err(unwritable(path))
}

fn unwritable(path: &Path) -> impl FnOnce(serde_json::Error) -> CorpusError {
    move |error| CorpusError::io("write", path)(error.into())
}
