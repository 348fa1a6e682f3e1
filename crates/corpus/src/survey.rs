//! Reads a domain for the first time, to find its documents and decide how to use each of them.

use std::{cell::LazyCell, collections::HashSet};

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

#[derive(Default)]
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
    let (mut survey, mut known) = (Survey::default(), HashSet::new());
    let files: Vec<(&SourceFile, Use)> = sources.files().collect();
    let read_files = files
        .iter()
        .filter(|(file, _)| documents::is_of(file, domain));
    survey.quarantine.bytes = read_files.map(|(file, _)| file.bytes).sum();
    let following = LazyCell::new(|| following(&files, domain));
    for (number, &(file, usage)) in files.iter().enumerate() {
        survey.quarantine.begin_file();
        for record in documents::read(file, domain)? {
            let record = record?;
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
            let more = || Some(record.more?.saturating_add(following[number]?));
            if due && quarantine.is_hopeless(options.max_bad_fraction, more) {
                quarantine.check(&domain.name, options.max_bad_fraction, false)?;
            }
        }
    }
    drop(known);
    survey
        .quarantine
        .check(&domain.name, options.max_bad_fraction, true)?;
    choose(options, domain, &mut survey.documents);
    let has = |usage| survey.documents.iter().any(|seen| seen.usage == usage);
    let what = if survey.documents.is_empty() {
        "is empty: none of its files contains text"
    } else if !has(Use::Train) {
        "has no document to train on: add files, or lower corpus.validation_fraction"
    } else if has(Use::Validation) {
        return Ok(survey);
    } else if survey.documents.len() == 1 {
        "has only one document, and validation needs another one (docs/corpora.md lists the formats of records)"
    } else {
        "has no validation document: add files, or raise corpus.validation_fraction"
    };
    Err(CorpusError::TooLittle {
        domain: domain.name.clone(),
        what,
    })
}

/// Number of records between checks for too many bad ones. A domain with fewer records is read to its end, so its
/// error counts all of them.
const CHECKED_EVERY: u64 = 1000;

/// Returns the maximum number of usable records after each file; `None` if unknown.
fn following(files: &[(&SourceFile, Use)], domain: &DomainSource) -> Vec<Option<u64>> {
    let mut counts = vec![Some(0); files.len()];
    for number in (1..files.len()).rev() {
        let of_file = documents::most_records(files[number].0, domain);
        let later = counts[number];
        counts[number - 1] = of_file.zip(later).map(|(a, b)| a.saturating_add(b));
    }
    counts
}

/// Sets documents aside for validation by the hash of their content alone, so that the same text is never on both
/// sides. Then takes training documents up to the limits, in an order drawn from the seed and the content.
fn choose(options: &PrepareOptions, domain: &DomainSource, documents: &mut [Seen]) {
    let own_files = !domain.validation_files.is_empty();
    let by_count = !own_files && options.validation_split == ValidationSplit::Count;
    // A hash as a number in [0, 1).
    let place = |hash| (u128::from_be_bytes(hash) >> 64) as f64 / 2_f64.powi(64);
    let mut candidates: Vec<&mut Seen> = documents
        .iter_mut()
        .filter(|seen| match seen.usage {
            Use::Train => {
                by_count || (!own_files && place(seen.hash) < options.validation_fraction)
            }
            Use::Validation => true,
            Use::Nothing => false,
        })
        .collect();
    candidates.sort_unstable_by_key(|seen| seen.hash);
    for (rank, seen) in candidates.into_iter().enumerate() {
        if rank < options.validation_documents {
            seen.usage = Use::Validation;
        } else if !by_count {
            // With `Count`, documents that validation does not need are trained on.
            seen.usage = Use::Nothing;
        }
    }
    if !domain.limits.chooses() {
        return;
    }
    let mut rest: Vec<([u8; 32], &mut Seen)> = documents
        .iter_mut()
        .filter(|seen| seen.usage == Use::Train)
        .map(|seen| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&options.seed.to_le_bytes());
            hasher.update(&seen.hash);
            (hasher.finalize().into(), seen)
        })
        .collect();
    rest.sort_unstable_by_key(|(order, _)| *order);
    let (mut bytes, mut count) = (0, 0);
    for (_, seen) in rest {
        let more = bytes + u64::from(seen.bytes);
        let fits = domain.limits.bytes.is_none_or(|most| more <= most)
            && domain.limits.documents.is_none_or(|most| count < most);
        if fits {
            (bytes, count) = (more, count + 1);
        } else {
            seen.usage = Use::Nothing;
        }
    }
}
