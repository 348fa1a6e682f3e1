//! Reads domains for the first time, to find their documents and decide how to use each of them.

use std::{cell::LazyCell, ops::ControlFlow, path::Path, sync::atomic::Ordering};

use crate::{
    CorpusError, DomainSource, PrepareOptions, PreparePhase, Progress,
    blocks::{Found, Reading},
    choice::{Candidates, Choice, choose},
    documents::{self, Passed, Record},
    group::Group,
    quarantine::{Quarantine, Unusable},
    source::{SourceFile, Use},
    spool::{Checks, Entries, Entry},
};

/// What the first reading found out about a domain.
pub(crate) struct Survey {
    pub(crate) choice: Choice,
    pub(crate) checks: Checks,
    /// Number of documents left out because they are shorter than the limit.
    pub(crate) short: u64,
    pub(crate) quarantine: Quarantine,
}

/// Bytes of source files between two reports of progress.
const REPORTED_EVERY: u64 = 1 << 20;

/// What a domain lacks whose documents are all the same, or which has one only.
pub(crate) fn only_one(documents: u64) -> &'static str {
    match documents {
        1 => {
            "has only one document, and validation needs another one (a file of records, such as .jsonl, holds many; \
             see docs/corpora.md)"
        }
        _ => {
            "has the same text in all of its documents, and validation needs another one: is text_field or \
             text_template the wrong one?"
        }
    }
}

/// Reads the files of a group once, for all its domains.
pub(crate) fn survey(
    options: &PrepareOptions,
    group: &Group<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Survey>, CorpusError> {
    let files = group.files();
    let reading = Reading {
        files: files.iter().map(|(file, _)| *file).collect(),
        domains: &group.domains,
        passed: Passed::new(0),
    };
    let total_bytes = reading.files.iter().map(|file| file.bytes).sum();
    let mut tell = |bytes| {
        progress(Progress {
            phase: PreparePhase::Surveying,
            domain: group.name(),
            bytes,
            total_bytes,
            ..Progress::default()
        });
    };
    tell(0);
    let most = options.documents_in_memory / group.domains.len().max(1);
    let members = group.members.iter();
    let mut surveys: Vec<Surveying> = members
        .map(|member| Surveying::new(member.domain, &member.spool, most, &files))
        .collect();
    let all_files = &files;
    let domains = group.domains.iter();
    let later: Vec<_> = domains
        .map(|domain| LazyCell::new(move || following(all_files, domain)))
        .collect();
    let mut told = 0;
    reading.each(Seen::of, |found| {
        let (file, usage) = files[found.file];
        let survey = &mut surveys[found.domain];
        let (number, later) = (found.file, &later[found.domain]);
        let after = || later[number];
        survey.add(found, file, usage, options.max_bad_fraction, after)?;
        let passed = reading.passed.load(Ordering::Relaxed);
        if passed >= told + REPORTED_EVERY {
            told = passed;
            tell(passed.min(total_bytes));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    tell(total_bytes);
    let members = surveys.into_iter().zip(&group.members);
    members
        .map(|(survey, member)| survey.finish(options, &member.spool, most))
        .collect()
}

/// What the first reading needs of a record.
struct Seen {
    line: u64,
    /// The document's hash and its bytes.
    document: Result<([u8; 16], u64), Unusable>,
    ends_file: bool,
    more: Option<u64>,
}

impl Seen {
    fn of(record: Record) -> Self {
        let document = record.document;
        Self {
            line: record.line,
            document: document.map(|document| (document.hash(), document.bytes())),
            ends_file: record.ends_file,
            more: record.more,
        }
    }
}

/// Number of records between checks for too many bad ones. A domain with fewer records is read to its end, so its
/// error counts all of them.
const CHECKED_EVERY: u64 = 1000;

/// A domain that is being surveyed.
struct Surveying<'a> {
    domain: &'a DomainSource,
    entries: Entries,
    checks: Checks,
    documents: u64,
    from_validation_files: u64,
    short: u64,
    quarantine: Quarantine,
    /// The number of the file that the last record came from.
    file: Option<usize>,
}

impl<'a> Surveying<'a> {
    /// `most`: the number of documents to hold in memory.
    fn new(
        domain: &'a DomainSource,
        spool: &Path,
        most: usize,
        files: &[(&SourceFile, Use)],
    ) -> Self {
        let read_files = files
            .iter()
            .filter(|(file, _)| documents::is_of(file, domain));
        Self {
            domain,
            entries: Entries::new(spool, most),
            checks: Checks::new(spool, most),
            documents: 0,
            from_validation_files: 0,
            short: 0,
            quarantine: Quarantine::of(read_files.map(|(file, _)| file.bytes).sum()),
            file: None,
        }
    }

    /// Adds a record of a file. `after`: returns the maximum number of usable records in the files after it.
    fn add(
        &mut self,
        found: Found<Seen>,
        file: &SourceFile,
        usage: Use,
        max_bad_fraction: f64,
        after: impl Fn() -> Option<u64>,
    ) -> Result<(), CorpusError> {
        let (record, name) = (found.item, &self.domain.name);
        if self.file.replace(found.file) != Some(found.file) {
            self.quarantine.begin_file();
        }
        self.quarantine.records += 1;
        match record.document {
            Ok((hash, bytes)) => {
                self.checks.push(hash)?;
                let is_short = bytes < self.domain.limits.shortest;
                self.short += u64::from(is_short);
                if !is_short {
                    self.entries.push(Entry {
                        key: hash,
                        number: self.documents,
                        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                    })?;
                }
                self.documents += 1;
                if usage == Use::Validation {
                    self.from_validation_files = self.documents;
                }
            }
            Err(unusable) => {
                let lost = record.ends_file.then_some(file.bytes);
                self.quarantine
                    .add(name, &file.path, record.line, unusable, lost);
            }
        }
        let quarantine = &self.quarantine;
        let due = record.ends_file || quarantine.records.is_multiple_of(CHECKED_EVERY);
        let more = || Some(record.more?.saturating_add(after()?));
        if due && quarantine.is_hopeless(max_bad_fraction, more) {
            quarantine.check(name, max_bad_fraction, false)?;
        }
        Ok(())
    }

    fn finish(
        self,
        options: &PrepareOptions,
        spool: &Path,
        most: usize,
    ) -> Result<Survey, CorpusError> {
        let domain = self.domain;
        self.quarantine
            .check(&domain.name, options.max_bad_fraction, true)?;
        let candidates = Candidates {
            entries: self.entries,
            documents: self.documents,
            from_validation_files: self.from_validation_files,
        };
        let choice = choose(options, domain, candidates, Entries::new(spool, most))?;
        let what = if self.documents == 0 {
            "is empty: none of its files contains text"
        } else if choice.train == 0 {
            "has no document to train on: add files, or lower corpus.validation_fraction"
        } else if choice.validation > 0 {
            return Ok(Survey {
                choice,
                checks: self.checks,
                short: self.short,
                quarantine: self.quarantine,
            });
        } else if self.documents == choice.duplicates + 1 {
            only_one(self.documents)
        } else {
            "has no validation document: add files, or raise corpus.validation_fraction"
        };
        Err(CorpusError::TooLittle {
            domain: domain.name.clone(),
            what,
        })
    }
}

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
