//! Writes the folder of a domain, and resumes it after an interruption.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use ddk_files::Swap;
use serde::{Deserialize, Serialize};

use crate::{
    CorpusError, DomainSource, TokenizerFolder,
    checksums::{self, BLOCK_BYTES, CHECKSUMS_FILE},
    document::Document,
    manifest::{DATA_FILES, FORMAT, MANIFEST, MadeFrom, Manifest},
    quarantine::QUARANTINE_FILE,
    source::Use,
    store::{TokenWriter, Written},
    survey::Survey,
};

/// The final, the temporary and the old folder of a domain.
pub(crate) fn places(corpus: &Path, domain: &str) -> Swap {
    Swap {
        folder: corpus.join(domain),
        temporary: corpus.join(format!(".{domain}.tmp")),
        old: corpus.join(format!(".{domain}.old")),
    }
}

/// The name that the temporary files of a domain's survey have for a moment.
pub(crate) fn spool(corpus: &Path, domain: &str) -> PathBuf {
    corpus.join(format!(".{domain}.survey"))
}

/// Moves the finished folder into place.
pub(crate) fn publish(places: &Swap) -> Result<(), CorpusError> {
    ddk_files::remove(&places.temporary.join(SAVED))?;
    Ok(places.publish(false)?)
}

/// Cleans up after an interrupted process: moves a finished folder that is `wanted` into place, or restores the
/// previous one.
pub(crate) fn recover(places: &Swap, wanted: &MadeFrom) -> Result<(), CorpusError> {
    // The manifest is written last, and atomically.
    let finished = Manifest::read(&places.temporary).unwrap_or_default();
    if finished.is_some_and(|manifest| manifest.made_from == *wanted) {
        return publish(places);
    }
    Ok(places.recover()?)
}

/// Progress of a domain's files, from which a stopped preparation resumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    made_from: MadeFrom,
    /// Number of documents (used or not) that the files cover.
    pub(crate) documents: u64,
    train: Written,
    validation: Written,
    text_bytes: u64,
    /// Whether a document did not fit into the token limit. After that, DDK adds no training documents.
    pub(crate) full: bool,
}

const SAVED: &str = "progress.json";

/// Documents to tokenize together, in order.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) documents: Vec<(Document, Use)>,
    /// Number of documents read so far, used or not.
    pub(crate) read: u64,
    /// Bytes of text since the previous batch, including skipped text.
    pub(crate) bytes: u64,
}

/// A domain's files being written.
pub(crate) struct Writing<'a> {
    folder: PathBuf,
    tokenizer: &'a TokenizerFolder,
    train: TokenWriter,
    validation: TokenWriter,
    most_tokens: u64,
    /// The durable progress.
    pub(crate) saved: Saved,
}

impl<'a> Writing<'a> {
    /// Resumes from `folder` if it has the same inputs, otherwise starts over.
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
        let (width, masked) = (tokenizer.token_bytes(), domain.is_masked());
        Ok(Self {
            train: TokenWriter::open(folder, "", width, masked, saved.train)?,
            validation: TokenWriter::open(folder, "validation-", width, masked, saved.validation)?,
            folder: folder.to_owned(),
            tokenizer,
            most_tokens: domain.limits.tokens.unwrap_or(u64::MAX),
            saved,
        })
    }

    pub(crate) fn write(&mut self, batch: Batch) -> Result<(), CorpusError> {
        let full = self.saved.full;
        // The reader may have learned too late that the token limit is reached.
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
        // Write this only after the tokens are durable, so that it never claims more than the files hold.
        ddk_files::replace(&self.folder.join(SAVED), |out| {
            Ok(serde_json::to_writer(out, &self.saved)?)
        })?;
        Ok(())
    }

    /// Writes everything in the folder except tokens. The manifest comes last and completes the folder.
    pub(crate) fn finish(mut self, survey: &Survey) -> Result<Manifest, CorpusError> {
        self.train.sync()?;
        self.validation.sync()?;
        let folder = self.folder;
        let (mut files, mut sums) = (BTreeMap::new(), Vec::new());
        let mut content = blake3::Hasher::new();
        for name in DATA_FILES {
            let path = folder.join(name);
            if path.exists() {
                let (file, blocks) = checksums::of_file(&path)?;
                content.update(name.as_bytes()).update(file.hash.as_bytes());
                files.insert(name.to_owned(), file);
                sums.extend(blocks);
            }
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
            spare: survey.choice.spare,
            duplicates: survey.choice.duplicates,
            short: survey.short,
            quarantined: survey.quarantine.bad,
            files,
            block_bytes: BLOCK_BYTES,
            checksums_hash: blake3::hash(&sums).to_hex().to_string(),
            content_hash: content.finalize().to_hex().to_string(),
        };
        ddk_files::replace(&folder.join(QUARANTINE_FILE), |out| {
            for entry in &survey.quarantine.list {
                serde_json::to_writer(&mut *out, entry)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })?;
        ddk_files::write_atomically(&folder.join(CHECKSUMS_FILE), &sums)?;
        ddk_files::replace(&folder.join(MANIFEST), |out| {
            Ok(serde_json::to_writer_pretty(out, &manifest)?)
        })?;
        Ok(manifest)
    }
}
