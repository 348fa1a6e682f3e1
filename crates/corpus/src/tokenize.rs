//! Reads domains for the second time and writes their documents to token files.

use std::{
    mem,
    ops::ControlFlow,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use crate::{
    CorpusError, PrepareOptions, PreparePhase, Progress, TokenizerFolder,
    blocks::Reading,
    document::Document,
    documents::{Passed, Record},
    group::Group,
    manifest::Manifest,
    source::{SourceFile, Use},
    spool::{Checks, ReadChecks},
    survey::{Survey, survey},
    writing::{self, Batch, Writing},
};

/// Tokenizes the domains of a group and moves their folders into place.
pub(crate) fn tokenize(
    options: &PrepareOptions,
    group: Group<'_>,
    tokenizer: &TokenizerFolder,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Manifest>, CorpusError> {
    let surveys = survey(options, &group, progress)?;
    let mut writings = Vec::new();
    for member in &group.members {
        let folder = &member.places.temporary;
        let writing = Writing::begin(folder, member.domain, tokenizer, &member.made_from)?;
        writings.push(writing);
    }
    let is_full: Vec<AtomicBool> = writings
        .iter()
        .map(|writing| AtomicBool::new(writing.saved.full))
        .collect();
    let batching = Batching {
        batch_bytes: options.batch_bytes,
        group: &group,
        is_full: &is_full,
    };
    let members = surveys.iter().zip(&writings);
    let domains = members
        .map(|(survey, writing)| Batched::new(survey, writing.saved.documents))
        .collect();
    let total_bytes = surveys.iter().map(|survey| survey.choice.bytes).sum();
    let mut bytes = 0;
    let name = group.name();
    // One batch is tokenized on all cores while the next is read.
    let (sender, batches) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        scope.spawn(move || {
            // If the receiver is gone, it reports its own error.
            if let Err(error) = batching.send_all(domains, &sender) {
                let _ = sender.send(Err(error));
            }
        });
        for batch in batches {
            let (domain, batch): (usize, Batch) = batch?;
            let writing = &mut writings[domain];
            bytes += batch.bytes;
            writing.write(batch)?;
            is_full[domain].store(writing.saved.full, Ordering::Relaxed);
            progress(Progress {
                phase: PreparePhase::Tokenizing,
                domain: name.clone(),
                bytes,
                total_bytes,
                ..Progress::default()
            });
        }
        Ok::<(), CorpusError>(())
    })?;
    let members = writings.into_iter().zip(&surveys).zip(&group.members);
    members
        .map(|((writing, survey), member)| {
            let manifest = writing.finish(survey)?;
            writing::publish(&member.places)?;
            Ok(manifest)
        })
        .collect()
}

/// Amount of text, in multiples of `batch_bytes`, after which a batch is sent even if most of that text was skipped.
/// This keeps the reported progress current.
const PASSED_OVER: u64 = 64;
/// Amount of text, in multiples of `batch_bytes`, that waits in the batches of all domains together.
const WAITING: u64 = 8;
/// Bytes that a document takes besides its text, at least. They count toward the size of a batch, so that batches of
/// short documents do not take much more memory than others.
const OVERHEAD: u64 = 64;

type Sender = mpsc::SyncSender<Result<(usize, Batch), CorpusError>>;

/// The thread that reads and fills batches.
struct Batching<'a> {
    batch_bytes: u64,
    group: &'a Group<'a>,
    /// For each domain, whether its token limit is reached. From then on, only its validation documents are used.
    is_full: &'a [AtomicBool],
}

/// A domain that is being read.
struct Batched<'a> {
    survey: &'a Survey,
    checks: ReadChecks<'a>,
    /// The document to start at.
    start: u64,
    next: u64,
    /// Number of documents up to the last one that is used, and up to the last one for validation.
    end: u64,
    end_of_validation: u64,
    batch: Batch,
    /// Bytes of the documents in the batch, with their overhead.
    size: u64,
    done: bool,
}

impl<'a> Batched<'a> {
    fn new(survey: &'a Survey, start: u64) -> Self {
        let uses = &survey.choice.uses;
        Self {
            survey,
            checks: survey.checks.read(),
            start,
            next: 0,
            end: uses.end_of(|usage| usage != Use::Nothing),
            end_of_validation: uses.end_of(|usage| usage == Use::Validation),
            batch: Batch::default(),
            size: 0,
            done: false,
        }
    }

    /// Adds the next document of a file.
    fn add(
        &mut self,
        document: Document,
        hash: [u8; 16],
        full: bool,
        file: &SourceFile,
    ) -> Result<(), CorpusError> {
        let check = self.checks.next()?.ok_or_else(|| changed(file))?;
        let usage = self.survey.choice.uses.get(self.next);
        self.next += 1;
        if usage != Use::Nothing {
            self.batch.bytes += document.bytes();
        }
        if self.next > self.start {
            if check != Checks::of(hash) {
                return Err(changed(file));
            }
            if usage == Use::Validation || (usage == Use::Train && !full) {
                self.size += document.bytes() + OVERHEAD;
                self.batch.documents.push((document, usage));
            }
        }
        self.done = self.next
            >= if full {
                self.end_of_validation
            } else {
                self.end
            };
        Ok(())
    }

    fn take(&mut self) -> Batch {
        self.size = 0;
        self.batch.read = self.next;
        mem::take(&mut self.batch)
    }
}

fn changed(file: &SourceFile) -> CorpusError {
    CorpusError::damaged(&file.path, "changed while it was read: prepare again")
}

impl Batching<'_> {
    /// Reads the sources again and sends the documents that are used, `batch_bytes` at a time.
    fn send_all(&self, mut domains: Vec<Batched<'_>>, sender: &Sender) -> Result<(), CorpusError> {
        let files: Vec<&SourceFile> = self
            .group
            .files()
            .into_iter()
            .map(|(file, _)| file)
            .collect();
        let reading = Reading {
            files: files.clone(),
            domains: &self.group.domains,
            passed: Passed::new(0),
        };
        let document = |record: Record| {
            let document = record.document.ok()?;
            let hash = document.hash();
            Some((document, hash))
        };
        let mut waiting = 0;
        let mut left = domains.len();
        reading.each(document, |found| {
            let domain = &mut domains[found.domain];
            let Some((document, hash)) = found.item.filter(|_| !domain.done) else {
                return Ok(ControlFlow::Continue(()));
            };
            let before = domain.size;
            let full = self.is_full[found.domain].load(Ordering::Relaxed);
            domain.add(document, hash, full, files[found.file])?;
            waiting += domain.size - before;
            left -= usize::from(domain.done);
            let due = domain.done
                || domain.size >= self.batch_bytes
                || domain.batch.bytes >= self.batch_bytes.saturating_mul(PASSED_OVER);
            let number = if due {
                found.domain
            } else if waiting >= self.batch_bytes.saturating_mul(WAITING) {
                let sizes = domains.iter().enumerate();
                let largest = sizes.max_by_key(|(_, domain)| domain.size);
                largest.map_or(found.domain, |(number, _)| number)
            } else {
                return Ok(ControlFlow::Continue(()));
            };
            waiting -= domains[number].size;
            let batch = domains[number].take();
            // The receiver stops early only because of an error of its own.
            let gone = sender.send(Ok((number, batch))).is_err();
            Ok(if gone || left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        // The first reading found more documents, unless the receiver is gone.
        match (left, files.last()) {
            (1.., Some(file)) => Err(changed(file)),
            _ => Ok(()),
        }
    }
}
