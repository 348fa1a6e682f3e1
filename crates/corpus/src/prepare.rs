//! Sources into prepared folders.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use serde::{Deserialize, Serialize};

use crate::{
    CorpusError, DomainSource, Packing, TokenizerFolder,
    documents::{self, Document},
    lock::lock,
    manifest::{DATA_FILES, FORMAT, MANIFEST, MadeFrom, Manifest, file_hash},
    quarantine::QUARANTINE_FILE,
    rows::{RowIndex, index_file, write_index},
    stale::stale,
    store::{TokenWriter, Tokens, Written},
    survey::{Seen, Survey, Use, survey},
};

/// What is to be prepared, and how.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Where the prepared domains are, one folder each.
    pub folder: PathBuf,
    /// The domains.
    pub domains: Vec<DomainSource>,
    /// How documents are put into rows.
    pub packing: Packing,
    /// Tokens of a row.
    pub sequence_length: usize,
    /// Chooses the documents where a limit leaves some out.
    pub seed: u64,
    /// How documents are set aside for validation, where a domain has no files of its own for it.
    pub validation_by: ValidationBy,
    /// Share of the documents that is set aside, by a hash of their content.
    pub validation_share: f64,
    /// Validation documents of a domain at the most; by share, those over it are used for nothing.
    pub validation_documents: usize,
    /// Share of records that may be unusable.
    pub max_bad_share: f64,
    /// Bytes of text that are tokenized at a time: enough for all cores, little memory.
    pub batch_bytes: u64,
}

/// How documents are set aside for validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValidationBy {
    /// Those whose hash falls into a share.
    Share,
    /// A number of them, those with the smallest hashes.
    Count,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether nothing is done yet, because another process prepares in the same folder.
    pub waiting: bool,
    /// The domain.
    pub domain: String,
    /// Bytes of text tokenized.
    pub bytes: u64,
    /// Of how many.
    pub total_bytes: u64,
}

/// What a prepared domain holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainReport {
    /// The domain.
    pub domain: String,
    /// Whether it was made now, or found as it should be.
    pub prepared: bool,
    /// Documents to train on.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// Rows of a pass.
    pub rows: u64,
    /// Validation documents.
    pub validation_documents: u64,
    /// Exact duplicates left out.
    pub duplicates: u64,
    /// Documents left out because they are too short.
    pub short: u64,
    /// Records that could not be used.
    pub quarantined: u64,
}

/// Prepares what is missing or stale (`force`: everything), and reports on each domain.
///
/// A domain's folder is written beside its place and renamed when it is whole; stopped in between, the next call goes on with
/// what was written. While another process prepares in the same folder, it waits for that.
pub fn prepare(
    options: &PrepareOptions,
    tokenizer: &TokenizerFolder,
    force: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<DomainReport>, CorpusError> {
    // What is prepared may lie where nobody may write.
    if !force && stale(options, tokenizer)?.is_empty() {
        return as_prepared(options);
    }
    fs::create_dir_all(&options.folder).map_err(CorpusError::io("create", &options.folder))?;
    let _lock = lock(&options.folder, progress)?;
    options
        .domains
        .iter()
        .map(|domain| prepare_domain(options, domain, tokenizer, force, progress))
        .collect()
}

/// Reports on domains as they were prepared, whatever their sources are now.
pub fn as_prepared(options: &PrepareOptions) -> Result<Vec<DomainReport>, CorpusError> {
    let of = |domain: &DomainSource| {
        let folder = options.folder.join(&domain.name);
        let manifest = Manifest::read(&folder)?.ok_or_else(|| CorpusError::NotPrepared {
            domain: domain.name.clone(),
            folder: options.folder.clone(),
        })?;
        report(options, domain, &folder, &manifest, false)
    };
    options.domains.iter().map(of).collect()
}

fn prepare_domain(
    options: &PrepareOptions,
    domain: &DomainSource,
    tokenizer: &TokenizerFolder,
    force: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<DomainReport, CorpusError> {
    let now = MadeFrom::now(options, domain, tokenizer)?;
    let folder = options.folder.join(&domain.name);
    let current = Manifest::read(&folder)?
        .filter(|manifest| !force && manifest.format == FORMAT && manifest.made_from == now);
    let prepared = current.is_none();
    let manifest = match current {
        Some(manifest) => manifest,
        None => tokenize(options, domain, tokenizer, now, &folder, progress)?,
    };
    report(options, domain, &folder, &manifest, prepared)
}

/// What a prepared domain holds; its row index is made where it is missing.
fn report(
    options: &PrepareOptions,
    domain: &DomainSource,
    folder: &Path,
    manifest: &Manifest,
    prepared: bool,
) -> Result<DomainReport, CorpusError> {
    let index = index_file(folder, options.packing, options.sequence_length);
    let rows = if index.exists() {
        RowIndex::open(&index)?.rows
    } else {
        let tokens = Tokens::open(folder, "", manifest)?;
        let length = options.sequence_length as u64;
        write_index(index, options.packing, &tokens, manifest.documents, length)?
    };
    if rows == 0 {
        return Err(CorpusError::TooLittle {
            domain: domain.name.clone(),
            what: "has no text for a single row: add files, or lower corpus.validation_share"
                .to_owned(),
        });
    }
    Ok(DomainReport {
        domain: domain.name.clone(),
        prepared,
        documents: manifest.documents,
        tokens: manifest.tokens,
        text_bytes: manifest.text_bytes,
        rows,
        validation_documents: manifest.validation_documents,
        duplicates: manifest.duplicates,
        short: manifest.short,
        quarantined: manifest.quarantined,
    })
}

/// How far a domain's files are, so that a stopped preparation goes on.
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
struct Batch {
    documents: Vec<(Document, Use)>,
    /// Documents read so far, used or not.
    read: usize,
}

fn tokenize(
    options: &PrepareOptions,
    domain: &DomainSource,
    tokenizer: &TokenizerFolder,
    made_from: MadeFrom,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, CorpusError> {
    let survey = survey(options, domain, &made_from)?;
    let temporary = options.folder.join(format!(".{}.tmp", domain.name));
    let mut writing = Writing::begin(&temporary, domain, tokenizer, &made_from)?;
    let used = survey.documents.iter();
    let used = used.filter(|document| document.usage != Use::Nothing);
    let total_bytes = used.map(|document| u64::from(document.bytes)).sum();
    let already = &survey.documents[..writing.saved.documents.min(survey.documents.len())];
    let mut bytes: u64 = already
        .iter()
        .filter(|document| document.usage != Use::Nothing)
        .map(|document| u64::from(document.bytes))
        .sum();
    let start = already.len();
    // One batch is tokenized on all cores while the next is read.
    let (sender, batches) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let (made_from, documents) = (&made_from, &survey.documents);
        scope.spawn(move || {
            let read = read_batches(
                options.batch_bytes,
                domain,
                made_from,
                documents,
                start,
                &sender,
            );
            // Whoever went away has an error of their own to tell.
            if let Err(error) = read {
                let _ = sender.send(Err(error));
            }
        });
        for batch in batches {
            let batch: Batch = batch?;
            bytes += batch
                .documents
                .iter()
                .map(|(document, _)| document.bytes())
                .sum::<u64>();
            writing.write(batch)?;
            progress(Progress {
                waiting: false,
                domain: domain.name.clone(),
                bytes,
                total_bytes,
            });
        }
        Ok::<(), CorpusError>(())
    })?;
    writing.finish(&survey, folder)
}

/// Reads the sources again and sends what is used on, `batch_bytes` at a time, from document `start` on.
fn read_batches(
    batch_bytes: u64,
    domain: &DomainSource,
    made_from: &MadeFrom,
    documents: &[Seen],
    start: usize,
    sender: &mpsc::SyncSender<Result<Batch, CorpusError>>,
) -> Result<(), CorpusError> {
    let (mut batch, mut bytes, mut next) = (Vec::new(), 0, 0);
    let send = |batch: &mut Vec<(Document, Use)>, read: usize| {
        let documents = std::mem::take(batch);
        // The receiver ends early only with an error of its own.
        sender
            .send(Ok(Batch { documents, read }))
            .map_err(|_| CorpusError::Interrupted)
    };
    for (file, _) in made_from.files() {
        documents::read(file, domain, &mut |record| {
            let Ok(document) = record.document else {
                return Ok(());
            };
            let changed =
                || CorpusError::damaged(&file.path, "changed while it was read: prepare again");
            let seen = documents.get(next).ok_or_else(changed)?;
            next += 1;
            if next <= start {
                return Ok(());
            }
            if seen.hash != document.hash() {
                return Err(changed());
            }
            if seen.usage != Use::Nothing {
                bytes += document.bytes();
                batch.push((document, seen.usage));
            }
            if bytes >= batch_bytes {
                bytes = 0;
                send(&mut batch, next)?;
            }
            Ok(())
        })?;
    }
    send(&mut batch, next)
}

/// Documents on their way into the token files.
struct Writing<'a> {
    folder: PathBuf,
    tokenizer: &'a TokenizerFolder,
    train: TokenWriter,
    validation: TokenWriter,
    most_tokens: u64,
    /// What is durable.
    saved: Saved,
}

impl<'a> Writing<'a> {
    /// Goes on with what is in `folder` where that was made from the same, otherwise begins anew.
    fn begin(
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
            if folder.exists() {
                fs::remove_dir_all(folder).map_err(CorpusError::io("remove", folder))?;
            }
            fs::create_dir_all(folder).map_err(CorpusError::io("create", folder))?;
        }
        let saved = found.unwrap_or(nothing);
        let (width, prompts) = (tokenizer.token_bytes(), domain.prompt.is_some());
        Ok(Self {
            train: TokenWriter::open(folder, "", width, prompts, saved.train)?,
            validation: TokenWriter::open(folder, "validation-", width, prompts, saved.validation)?,
            folder: folder.to_owned(),
            tokenizer,
            most_tokens: domain.limits.tokens.unwrap_or(u64::MAX),
            saved,
        })
    }

    fn write(&mut self, batch: Batch) -> Result<(), CorpusError> {
        let (documents, usages): (Vec<Document>, Vec<Use>) = batch.documents.into_iter().unzip();
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
        // Renamed only when the tokens are durable: what it says is in the files is.
        let (path, partial) = (
            self.folder.join(SAVED),
            self.folder.join("progress.partial"),
        );
        let text = serde_json::to_vec(&self.saved).unwrap_or_default();
        fs::write(&partial, text).map_err(CorpusError::io("write", &partial))?;
        fs::rename(&partial, &path).map_err(CorpusError::io("write", &path))
    }

    fn finish(self, survey: &Survey, folder: &Path) -> Result<Manifest, CorpusError> {
        let temporary = self.folder;
        let hashes = DATA_FILES
            .iter()
            .filter(|name| temporary.join(name).exists())
            .map(|name| Ok(((*name).to_owned(), file_hash(&temporary.join(name))?)))
            .collect::<Result<BTreeMap<_, _>, CorpusError>>()?;
        let mut content = blake3::Hasher::new();
        for (name, hash) in &hashes {
            content.update(name.as_bytes()).update(hash.as_bytes());
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
            quarantined: survey.quarantine.list.len() as u64,
            hashes,
            content_hash: content.finalize().to_hex().to_string(),
        };
        let mut quarantine = Vec::new();
        for entry in &survey.quarantine.list {
            quarantine.extend(serde_json::to_vec(entry).unwrap_or_default());
            quarantine.push(b'\n');
        }
        let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        for (name, contents) in [(QUARANTINE_FILE, quarantine), (MANIFEST, text)] {
            let path = temporary.join(name);
            fs::write(&path, contents).map_err(CorpusError::io("write", &path))?;
        }
        let saved = temporary.join(SAVED);
        if saved.exists() {
            fs::remove_file(&saved).map_err(CorpusError::io("remove", &saved))?;
        }
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(CorpusError::io("replace", folder))?;
        }
        fs::rename(&temporary, folder).map_err(CorpusError::io("create", folder))?;
        Ok(manifest)
    }
}

/// Compares every prepared file with its manifest: the names of the domains and how many bytes were read.
pub fn verify(options: &PrepareOptions) -> Result<Vec<(String, u64)>, CorpusError> {
    let of = |domain: &DomainSource| {
        let folder = options.folder.join(&domain.name);
        let manifest = Manifest::read(&folder)?.ok_or_else(|| CorpusError::NotPrepared {
            domain: domain.name.clone(),
            folder: options.folder.clone(),
        })?;
        let mut bytes = 0;
        for (name, expected) in &manifest.hashes {
            let path = folder.join(name);
            if file_hash(&path)? != *expected {
                return Err(CorpusError::damaged(
                    &path,
                    "does not have the content that its manifest.json says: prepare it again (--force)",
                ));
            }
            bytes += fs::metadata(&path)
                .map_err(CorpusError::io("read", &path))?
                .len();
        }
        for entry in fs::read_dir(&folder).map_err(CorpusError::io("read", &folder))? {
            let path = entry.map_err(CorpusError::io("read", &folder))?.path();
            if RowIndex::is_one(&path) {
                RowIndex::verify(&path)?;
                bytes += fs::metadata(&path)
                    .map_err(CorpusError::io("read", &path))?
                    .len();
            }
        }
        Ok((domain.name.clone(), bytes))
    };
    options.domains.iter().map(of).collect()
}
