//! Sources into prepared folders.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use crate::{
    CorpusError, DomainSource, TokenizerFolder, documents,
    manifest::{DATA_FILES, FORMAT, MANIFEST, MadeFrom, Manifest},
    quarantine::{QUARANTINE_FILE, Quarantine, Quarantined},
    rows::{index_file, write_concat},
    store::{TokenWriter, Tokens},
};

/// Text that is tokenized at a time: enough for all cores, little memory.
const BATCH_BYTES: usize = 4 << 20;

/// What is to be prepared, and how.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Where the prepared domains are, one folder each.
    pub folder: PathBuf,
    /// The domains.
    pub domains: Vec<DomainSource>,
    /// Tokens of a row.
    pub sequence_length: usize,
    /// Chooses the documents where a limit leaves some out.
    pub seed: u64,
    /// Share of the documents that is set aside for validation, by a hash of their content.
    pub validation_share: f64,
    /// Validation documents of a domain at the most; those over it are used for nothing.
    pub validation_documents: usize,
    /// Share of records that may be unusable.
    pub max_bad_share: f64,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
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
    /// Records that could not be used.
    pub quarantined: u64,
}

/// The domains that are not prepared as the options ask, each with the reason.
pub fn stale(
    options: &PrepareOptions,
    tokenizer: &TokenizerFolder,
) -> Result<Vec<(String, String)>, CorpusError> {
    let mut stale = Vec::new();
    for domain in &options.domains {
        let now = made_from(options, domain, tokenizer)?;
        let folder = options.folder.join(&domain.name);
        let reason = match Manifest::read(&folder)? {
            None => Some("it is not prepared yet".to_owned()),
            Some(manifest) if manifest.format != FORMAT => {
                Some("it was prepared by another version of this program".to_owned())
            }
            Some(manifest) => manifest.made_from.difference(&now),
        };
        let no_rows = || {
            format!(
                "there are no rows of {} tokens yet",
                options.sequence_length
            )
        };
        let reason = reason
            .or_else(|| (!index_file(&folder, options.sequence_length).exists()).then(no_rows));
        stale.extend(reason.map(|reason| (domain.name.clone(), reason)));
    }
    Ok(stale)
}

/// Prepares what is missing or stale (`force`: everything), and reports on each domain.
///
/// A domain's folder is written beside its place and renamed when it is whole.
pub fn prepare(
    options: &PrepareOptions,
    tokenizer: &TokenizerFolder,
    force: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<DomainReport>, CorpusError> {
    fs::create_dir_all(&options.folder).map_err(CorpusError::io("create", &options.folder))?;
    options
        .domains
        .iter()
        .map(|domain| prepare_domain(options, domain, tokenizer, force, progress))
        .collect()
}

fn made_from(
    options: &PrepareOptions,
    domain: &DomainSource,
    tokenizer: &TokenizerFolder,
) -> Result<MadeFrom, CorpusError> {
    Ok(MadeFrom {
        sources: domain.expand()?,
        text_field: domain.text_field.clone(),
        only: domain.only.clone(),
        max_bytes: domain.max_bytes,
        seed: options.seed,
        validation_share: options.validation_share,
        validation_documents: options.validation_documents,
        tokenizer_hash: tokenizer.hash().to_owned(),
    })
}

fn prepare_domain(
    options: &PrepareOptions,
    domain: &DomainSource,
    tokenizer: &TokenizerFolder,
    force: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<DomainReport, CorpusError> {
    let now = made_from(options, domain, tokenizer)?;
    let folder = options.folder.join(&domain.name);
    let current = Manifest::read(&folder)?
        .filter(|manifest| !force && manifest.format == FORMAT && manifest.made_from == now);
    let prepared = current.is_none();
    let manifest = match current {
        Some(manifest) => manifest,
        None => tokenize(options, domain, tokenizer, now, &folder, progress)?,
    };
    let index = index_file(&folder, options.sequence_length);
    let rows = if index.exists() {
        crate::rows::RowIndex::open(&index)?.rows
    } else {
        let tokens = Tokens::open(
            &folder,
            "",
            manifest.token_bytes,
            manifest.tokens,
            manifest.documents,
        )?;
        write_concat(
            index,
            &tokens,
            manifest.documents,
            options.sequence_length as u64,
        )?
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
        quarantined: manifest.quarantined,
    })
}

/// What becomes of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Train,
    Validation,
    Nothing,
}

/// A document as the first reading sees it.
struct Seen {
    hash: [u8; 32],
    bytes: u64,
    usage: Use,
}

/// The first reading of a domain: which documents there are, and what becomes of each.
struct Survey {
    documents: Vec<Seen>,
    duplicates: u64,
    quarantine: Quarantine,
}

fn survey(
    options: &PrepareOptions,
    domain: &DomainSource,
    sources: &MadeFrom,
) -> Result<Survey, CorpusError> {
    let mut survey = Survey {
        documents: Vec::new(),
        duplicates: 0,
        quarantine: Quarantine::default(),
    };
    let mut known = HashSet::new();
    for file in &sources.sources {
        documents::read(file, domain, |record| {
            survey.quarantine.records += 1;
            match record.text {
                Ok(text) => {
                    let hash = *blake3::hash(text.as_bytes()).as_bytes();
                    let new = known.insert(hash);
                    survey.duplicates += u64::from(!new);
                    survey.documents.push(Seen {
                        hash,
                        bytes: text.len() as u64,
                        usage: if new { Use::Train } else { Use::Nothing },
                    });
                }
                Err(reason) => survey.quarantine.list.push(Quarantined {
                    domain: domain.name.clone(),
                    file: file.path.clone(),
                    line: record.line,
                    reason,
                }),
            }
            Ok(())
        })?;
    }
    survey
        .quarantine
        .check(&domain.name, options.max_bad_share)?;
    if survey.documents.is_empty() {
        return Err(CorpusError::TooLittle {
            domain: domain.name.clone(),
            what: "is empty: none of its files holds text".to_owned(),
        });
    }
    choose(options, domain, &mut survey.documents);
    for (usage, what) in [
        (
            Use::Train,
            "has no document to train on: add files, or lower corpus.validation_share",
        ),
        (
            Use::Validation,
            "has no validation document: add files, or raise corpus.validation_share",
        ),
    ] {
        if !survey
            .documents
            .iter()
            .any(|document| document.usage == usage)
        {
            return Err(CorpusError::TooLittle {
                domain: domain.name.clone(),
                what: what.to_owned(),
            });
        }
    }
    Ok(survey)
}

/// Sets documents aside for validation by their content's hash alone, so that the same text is never on both sides; then, in
/// an order drawn from the seed and the content, takes documents to train on until the limit on bytes is reached.
fn choose(options: &PrepareOptions, domain: &DomainSource, documents: &mut [Seen]) {
    let place = |hash: &[u8; 32]| {
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        u64::from_be_bytes(first) as f64 / 2_f64.powi(64)
    };
    let mut aside: Vec<usize> = Vec::new();
    let mut rest: Vec<(blake3::Hash, usize)> = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        if document.usage == Use::Nothing {
            continue;
        }
        if place(&document.hash) < options.validation_share {
            aside.push(index);
        } else {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&options.seed.to_le_bytes());
            hasher.update(&document.hash);
            rest.push((hasher.finalize(), index));
        }
    }
    aside.sort_by_key(|&index| documents[index].hash);
    for (rank, index) in aside.into_iter().enumerate() {
        documents[index].usage = match rank < options.validation_documents {
            true => Use::Validation,
            false => Use::Nothing,
        };
    }
    let Some(limit) = domain.max_bytes else {
        return;
    };
    rest.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    let mut taken = 0;
    for (_, index) in rest {
        if taken + documents[index].bytes <= limit {
            taken += documents[index].bytes;
        } else {
            documents[index].usage = Use::Nothing;
        }
    }
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
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(CorpusError::io("remove", &temporary))?;
    }
    fs::create_dir_all(&temporary).map_err(CorpusError::io("create", &temporary))?;
    let token_bytes = if tokenizer.vocabulary() <= 1 << 16 {
        2
    } else {
        4
    };
    let mut writing = Writing {
        tokenizer,
        train: TokenWriter::create(&temporary, "", token_bytes)?,
        validation: TokenWriter::create(&temporary, "validation-", token_bytes)?,
        batch: Vec::new(),
        batch_bytes: 0,
        text_bytes: 0,
    };
    let used = |document: &&Seen| document.usage != Use::Nothing;
    let total_bytes = survey
        .documents
        .iter()
        .filter(used)
        .map(|document| document.bytes)
        .sum();
    let (mut next, mut bytes) = (0, 0);
    for file in &made_from.sources {
        documents::read(file, domain, |record| {
            let Ok(text) = record.text else {
                return Ok(());
            };
            let seen = survey.documents.get(next);
            next += 1;
            let changed =
                || CorpusError::damaged(&file.path, "changed while it was read: prepare again");
            let seen = seen
                .filter(|seen| seen.hash == *blake3::hash(text.as_bytes()).as_bytes())
                .ok_or_else(changed)?;
            if seen.usage != Use::Nothing {
                bytes += seen.bytes;
                writing.add(text, seen.usage)?;
                progress(Progress {
                    domain: domain.name.clone(),
                    bytes,
                    total_bytes,
                });
            }
            Ok(())
        })?;
    }
    writing.flush()?;
    let Writing {
        train,
        validation,
        text_bytes,
        ..
    } = writing;
    let mut manifest = Manifest {
        format: FORMAT,
        made_from,
        token_bytes,
        tokens: train.token_count,
        documents: train.document_count,
        text_bytes,
        validation_tokens: validation.token_count,
        validation_documents: validation.document_count,
        duplicates: survey.duplicates,
        quarantined: survey.quarantine.list.len() as u64,
        content_hash: String::new(),
    };
    train.finish()?;
    validation.finish()?;
    manifest.content_hash = content_hash(&temporary)?;
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
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(CorpusError::io("replace", folder))?;
    }
    fs::rename(&temporary, folder).map_err(CorpusError::io("create", folder))?;
    Ok(manifest)
}

/// Documents on their way into the token files, tokenized in batches, written in their order.
struct Writing<'a> {
    tokenizer: &'a TokenizerFolder,
    train: TokenWriter,
    validation: TokenWriter,
    batch: Vec<(String, Use)>,
    batch_bytes: usize,
    text_bytes: u64,
}

impl Writing<'_> {
    fn add(&mut self, text: String, usage: Use) -> Result<(), CorpusError> {
        self.batch_bytes += text.len();
        self.batch.push((text, usage));
        if self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CorpusError> {
        let (texts, usages): (Vec<String>, Vec<Use>) = self.batch.drain(..).unzip();
        self.batch_bytes = 0;
        let lengths: Vec<u64> = texts.iter().map(|text| text.len() as u64).collect();
        let encoded = self.tokenizer.encode_documents(texts)?;
        for ((tokens, usage), bytes) in encoded.iter().zip(usages).zip(lengths) {
            if usage == Use::Validation {
                self.validation.append(tokens)?;
            } else {
                self.train.append(tokens)?;
                self.text_bytes += bytes;
            }
        }
        Ok(())
    }
}

fn content_hash(folder: &Path) -> Result<String, CorpusError> {
    let mut hasher = blake3::Hasher::new();
    for name in DATA_FILES {
        let path = folder.join(name);
        hasher.update(name.as_bytes());
        File::open(&path)
            .and_then(|file| hasher.update_reader(BufReader::new(file)).map(|_| ()))
            .map_err(CorpusError::io("read", &path))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
