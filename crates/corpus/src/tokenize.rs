//! Reads a domain for the second time and writes its documents to token files.

use std::{
    mem,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use ddk_files::Swap;

use crate::{
    CorpusError, DomainSource, PrepareOptions, Progress, TokenizerFolder, documents,
    manifest::{MadeFrom, Manifest},
    source::Use,
    survey::{Seen, survey},
    writing::{self, Batch, Writing},
};

/// Tokenizes a domain and moves its folder into place.
pub(crate) fn tokenize(
    options: &PrepareOptions,
    domain: &DomainSource,
    tokenizer: &TokenizerFolder,
    made_from: MadeFrom,
    places: &Swap,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, CorpusError> {
    let survey = survey(options, domain, &made_from)?;
    let mut writing = Writing::begin(&places.temporary, domain, tokenizer, &made_from)?;
    let bytes_of = |documents: &[Seen]| -> u64 {
        let used = documents.iter();
        let used = used.filter(|document| document.usage != Use::Nothing);
        used.map(|document| u64::from(document.bytes)).sum()
    };
    let start = writing.saved.documents.min(survey.documents.len());
    let total_bytes = bytes_of(&survey.documents);
    let mut bytes = bytes_of(&survey.documents[..start]);
    let reading = Reading {
        batch_bytes: options.batch_bytes,
        domain,
        made_from: &made_from,
        documents: &survey.documents,
        start,
        full: AtomicBool::new(writing.saved.full),
    };
    // One batch is tokenized on all cores while the next is read.
    let (sender, batches) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        let reading = &reading;
        scope.spawn(move || {
            // If the receiver is gone, it reports its own error.
            if let Err(error) = reading.send_batches(&sender) {
                let _ = sender.send(Err(error));
            }
        });
        for batch in batches {
            let batch: Batch = batch?;
            bytes += batch.bytes;
            writing.write(batch)?;
            reading.full.store(writing.saved.full, Ordering::Relaxed);
            progress(Progress {
                waiting: false,
                domain: domain.name.clone(),
                bytes,
                total_bytes,
            });
        }
        Ok::<(), CorpusError>(())
    })?;
    let manifest = writing.finish(&survey)?;
    writing::publish(places)?;
    Ok(manifest)
}

/// Amount of text, in multiples of `batch_bytes`, after which a batch is sent even if most of that text was skipped.
/// This keeps the reported progress current.
const PASSED_OVER: u64 = 64;

/// The state of the reading thread.
struct Reading<'a> {
    batch_bytes: u64,
    domain: &'a DomainSource,
    made_from: &'a MadeFrom,
    documents: &'a [Seen],
    /// The document to start at.
    start: usize,
    /// Whether the token limit is reached. From then on, only validation documents are used.
    full: AtomicBool,
}

impl Reading<'_> {
    /// Reads the sources again and sends the documents that are used, `batch_bytes` at a time.
    fn send_batches(
        &self,
        sender: &mpsc::SyncSender<Result<Batch, CorpusError>>,
    ) -> Result<(), CorpusError> {
        let end_of = |wanted: &dyn Fn(Use) -> bool| {
            let last = self.documents.iter().rposition(|seen| wanted(seen.usage));
            last.map_or(0, |last| last + 1)
        };
        let end = end_of(&|usage| usage != Use::Nothing);
        let end_of_validation = end_of(&|usage| usage == Use::Validation);
        let (mut batch, mut size, mut next) = (Batch::default(), 0, 0);
        'files: for (file, _) in self.made_from.files() {
            for record in documents::read(file, self.domain)? {
                let Ok(document) = record?.document else {
                    continue;
                };
                let changed =
                    || CorpusError::damaged(&file.path, "changed while it was read: prepare again");
                let seen: &Seen = self.documents.get(next).ok_or_else(changed)?;
                next += 1;
                let full = self.full.load(Ordering::Relaxed);
                if next > self.start {
                    if seen.hash != document.hash() {
                        return Err(changed());
                    }
                    if seen.usage != Use::Nothing {
                        batch.bytes += document.bytes();
                    }
                    if seen.usage == Use::Validation || (seen.usage == Use::Train && !full) {
                        size += document.bytes();
                        batch.documents.push((document, seen.usage));
                    }
                    if size >= self.batch_bytes
                        || batch.bytes >= self.batch_bytes.saturating_mul(PASSED_OVER)
                    {
                        size = 0;
                        batch.read = next;
                        // The receiver stops early only because of an error of its own.
                        if sender.send(Ok(mem::take(&mut batch))).is_err() {
                            return Ok(());
                        }
                    }
                }
                if next >= if full { end_of_validation } else { end } {
                    break 'files;
                }
            }
        }
        batch.read = next;
        let _ = sender.send(Ok(batch));
        Ok(())
    }
}
