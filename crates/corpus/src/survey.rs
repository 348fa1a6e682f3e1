//! Reads a domain for the first time, to find its documents and decide how to use each of them.

use std::{cell::OnceCell, collections::HashSet, ops::ControlFlow};

use crate::{
    CorpusError, DomainSource, PrepareOptions, ValidationSplit, documents,
    manifest::MadeFrom,
    quarantine::Quarantine,
    source::{SourceFile, Use},
};

/// A document as the first reading records it. It takes 24 bytes, so that a hundred million fit in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) hash: [u8; 16],
    pub(crate) bytes: u32,
    pub(crate) usage: Use,
}

pub(crate) struct Survey {
    /// In reading order: documents of validation files come first.
    pub(crate) documents: Vec<Seen>,
    pub(crate) duplicates: u64,
    /// Number of documents left out because they are shorter than the limit.
    pub(crate) short: u64,
    pub(crate) quarantine: Quarantine,
}

pub(crate) fn survey(
    options: &PrepareOptions,
    domain: &DomainSource,
    sources: &MadeFrom,
) -> Result<Survey, CorpusError> {
    let mut survey = Survey {
        documents: Vec::new(),
        duplicates: 0,
        short: 0,
        quarantine: Quarantine::default(),
    };
    let mut known = HashSet::new();
    let files: Vec<(&SourceFile, Use)> = sources.files().collect();
    let read_files = files
        .iter()
        .filter(|(file, _)| documents::is_of(file, domain));
    survey.quarantine.bytes = read_files.map(|(file, _)| file.bytes).sum();
    let following = Following::new(&files, domain);
    for (number, &(file, usage)) in files.iter().enumerate() {
        survey.quarantine.begin_file();
        let flow = documents::read(file, domain, &mut |record| {
            survey.quarantine.records += 1;
            match record.document {
                Ok(document) => {
                    let (hash, bytes) = (document.hash(), document.bytes());
                    let short = bytes < domain.limits.shortest;
                    // Validation files are read first, so DDK never trains on a text that they contain.
                    let new = !short && known.insert(hash);
                    survey.short += u64::from(short);
                    survey.duplicates += u64::from(!short && !new);
                    survey.documents.push(Seen {
                        hash,
                        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                        usage: if new { usage } else { Use::Nothing },
                    });
                }
                Err(unusable) => {
                    let lost = record.ends_file.then_some(file.bytes);
                    let quarantine = &mut survey.quarantine;
                    quarantine.add(&domain.name, &file.path, record.line, unusable, lost);
                }
            }
            let quarantine = &survey.quarantine;
            let due = record.ends_file || quarantine.records.is_multiple_of(CHECKED_EVERY);
            let more = || Some(record.more?.saturating_add(following.after(number)?));
            Ok(
                if due && quarantine.is_hopeless(options.max_bad_fraction, more) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                },
            )
        })?;
        if flow.is_break() {
            let quarantine = &survey.quarantine;
            quarantine.check(&domain.name, options.max_bad_fraction, false)?;
        }
    }
    drop(known);
    survey
        .quarantine
        .check(&domain.name, options.max_bad_fraction, true)?;
    let lacking = |what: &str| {
        Err(CorpusError::TooLittle {
            domain: domain.name.clone(),
            what: what.to_owned(),
        })
    };
    if survey.documents.is_empty() {
        return lacking("is empty: none of its files contains text");
    }
    choose(options, domain, &mut survey.documents);
    let has = |usage| {
        survey
            .documents
            .iter()
            .any(|document| document.usage == usage)
    };
    if !has(Use::Train) {
        return lacking(
            "has no document to train on: add files, or lower corpus.validation_fraction",
        );
    }
    if !has(Use::Validation) {
        return lacking(match survey.documents.len() {
            1 => {
                "has only one document, and validation needs another one (files of records end in .jsonl or \
                 .parquet)"
            }
            _ => "has no validation document: add files, or raise corpus.validation_fraction",
        });
    }
    Ok(survey)
}

/// Number of records between checks for too many bad ones. A domain with fewer records is read to its end, so its
/// error counts all of them.
const CHECKED_EVERY: u64 = 1000;

/// Bounds the number of usable records after each file.
struct Following<'a> {
    files: &'a [(&'a SourceFile, Use)],
    domain: &'a DomainSource,
    /// Maximum number after each file, computed on first use.
    after: OnceCell<Vec<Option<u64>>>,
}

impl<'a> Following<'a> {
    fn new(files: &'a [(&'a SourceFile, Use)], domain: &'a DomainSource) -> Self {
        Self {
            files,
            domain,
            after: OnceCell::new(),
        }
    }

    /// Returns the maximum number after the file with this number; `None` if unknown.
    fn after(&self, number: usize) -> Option<u64> {
        let after = self.after.get_or_init(|| {
            let mut counts = vec![Some(0); self.files.len()];
            for number in (1..self.files.len()).rev() {
                let of_file = documents::most_records(self.files[number].0, self.domain);
                let later = counts[number];
                counts[number - 1] = of_file.zip(later).map(|(a, b)| a.saturating_add(b));
            }
            counts
        });
        after.get(number).copied().flatten()
    }
}

/// Sets documents aside for validation by the hash of their content alone, so that the same text is never on both
/// sides. Then takes training documents up to the limits, in an order drawn from the seed and the content.
fn choose(options: &PrepareOptions, domain: &DomainSource, documents: &mut [Seen]) {
    let place = |hash: &[u8; 16]| {
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        u64::from_be_bytes(first) as f64 / 2_f64.powi(64)
    };
    let mut candidates: Vec<usize> = (0..documents.len())
        .filter(|&index| {
            if domain.validation_files.is_empty() {
                let hash = &documents[index].hash;
                documents[index].usage == Use::Train
                    && match options.validation_split {
                        ValidationSplit::Fraction => place(hash) < options.validation_fraction,
                        ValidationSplit::Count => true,
                    }
            } else {
                documents[index].usage == Use::Validation
            }
        })
        .collect();
    candidates.sort_unstable_by_key(|&index| documents[index].hash);
    for (rank, index) in candidates.into_iter().enumerate() {
        let own = !domain.validation_files.is_empty()
            || options.validation_split == ValidationSplit::Fraction;
        match (rank < options.validation_documents, own) {
            (true, _) => documents[index].usage = Use::Validation,
            (false, true) => documents[index].usage = Use::Nothing,
            // With `Count`, documents that validation does not need are trained on.
            (false, false) => {}
        }
    }
    let (most_bytes, most_documents) = (domain.limits.bytes, domain.limits.documents);
    if most_bytes.is_none() && most_documents.is_none() {
        return;
    }
    let mut rest: Vec<(blake3::Hash, usize)> = (0..documents.len())
        .filter(|&index| documents[index].usage == Use::Train)
        .map(|index| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&options.seed.to_le_bytes());
            hasher.update(&documents[index].hash);
            (hasher.finalize(), index)
        })
        .collect();
    rest.sort_unstable_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()).then(a.1.cmp(&b.1)));
    let (mut bytes, mut count) = (0, 0);
    for (_, index) in rest {
        let more = bytes + u64::from(documents[index].bytes);
        let fits = most_bytes.is_none_or(|most| more <= most)
            && most_documents.is_none_or(|most| count < most);
        if fits {
            (bytes, count) = (more, count + 1);
        } else {
            documents[index].usage = Use::Nothing;
        }
    }
}
