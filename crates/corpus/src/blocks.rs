//! Reads files on one thread, parses their records on all cores, and returns the results in file order.

use std::{
    env, mem,
    num::NonZero,
    ops::ControlFlow,
    sync::{Mutex, atomic::Ordering, mpsc},
    thread,
};

use crate::{
    CorpusError, DomainSource,
    documents::{self, Passed, Record},
    raw::Raw,
    source::SourceFile,
};

/// Memory of the records that one thread parses at a time. This is enough to keep the threads busy, and the blocks in
/// flight take little memory.
const BLOCK_BYTES: usize = 256 << 10;
/// Number of blocks in flight for each parsing thread: one that it parses, and one that waits.
const BLOCKS_PER_THREAD: usize = 2;

/// Files, and the domains that read them together.
pub(crate) struct Reading<'a> {
    /// In reading order.
    pub(crate) files: Vec<&'a SourceFile>,
    pub(crate) domains: &'a [&'a DomainSource],
    /// Bytes of the files that were read so far.
    pub(crate) passed: Passed,
}

/// What was made of a record.
pub(crate) struct Found<T> {
    /// The number of its file.
    pub(crate) file: usize,
    /// The number of its domain.
    pub(crate) domain: usize,
    pub(crate) item: T,
}

/// Records with the numbers of their files.
type Block = Vec<(usize, Raw)>;
type Parsed<T> = Result<Vec<Found<T>>, CorpusError>;
/// Where the result of a block will arrive.
type Pending<T> = mpsc::Receiver<Parsed<T>>;
/// A block, and where its result belongs.
type Job<T> = (Block, mpsc::SyncSender<Parsed<T>>);

impl Reading<'_> {
    /// Passes what `make` makes of each record to `each`, in file order, until `each` breaks. Calls `make` on all
    /// cores. If a record belongs to several domains, they follow each other.
    pub(crate) fn each<T: Send>(
        &self,
        make: impl Fn(Record) -> T + Sync,
        mut each: impl FnMut(Found<T>) -> Result<ControlFlow<()>, CorpusError>,
    ) -> Result<(), CorpusError> {
        let threads = threads();
        let (order, blocks) = mpsc::sync_channel::<Pending<T>>(BLOCKS_PER_THREAD * threads);
        // The other channel bounds the number of jobs.
        let (jobs, queue) = mpsc::channel::<Job<T>>();
        let queue = Mutex::new(queue);
        thread::scope(|scope| {
            scope.spawn(move || {
                // If the receiver is gone, it needs no more.
                let _ = Sending { order, jobs }.send_all(self);
            });
            for _ in 0..threads {
                scope.spawn(|| {
                    // The lock is free again before the block is parsed.
                    let next = || queue.lock().ok()?.recv().ok();
                    while let Some((block, reply)) = next() {
                        let _ = reply.send(Ok(parse(block, self.domains, &make)));
                    }
                });
            }
            // An early return closes the channels, which ends the other threads.
            for pending in blocks {
                // A thread that drops its reply has panicked, and the scope passes that on.
                let Ok(parsed) = pending.recv() else { break };
                for found in parsed? {
                    if each(found)?.is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }
}

/// Number of threads that parse: as many as encode, which `RAYON_NUM_THREADS` can set.
fn threads() -> usize {
    let set = env::var("RAYON_NUM_THREADS").ok();
    let set = set
        .and_then(|text| text.parse().ok())
        .filter(|&set| set > 0);
    set.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get))
}

fn parse<T>(block: Block, domains: &[&DomainSource], make: &impl Fn(Record) -> T) -> Vec<Found<T>> {
    let mut all = Vec::with_capacity(block.len());
    for (file, raw) in block {
        let records = raw.parse(domains).into_iter();
        all.extend(records.map(|(domain, record)| Found {
            file,
            domain,
            item: make(record),
        }));
    }
    all
}

/// The receiver of the blocks is gone.
struct Gone;

/// The state of the reading thread.
struct Sending<T> {
    order: mpsc::SyncSender<Pending<T>>,
    jobs: mpsc::Sender<Job<T>>,
}

impl<T> Sending<T> {
    fn send_all(self, reading: &Reading<'_>) -> Result<(), Gone> {
        let Some(&source) = reading.domains.first() else {
            return Ok(());
        };
        let (mut block, mut size, mut bytes) = (Vec::new(), 0, 0);
        for (number, &file) in reading.files.iter().enumerate() {
            let raws = match documents::raw(file, source, Some(&reading.passed)) {
                Ok(raws) => raws,
                Err(error) => return self.fail(block, error),
            };
            for raw in raws {
                match raw {
                    Ok(raw) => {
                        size += raw.bytes;
                        block.push((number, raw));
                    }
                    Err(error) => return self.fail(block, error),
                }
                if size >= BLOCK_BYTES {
                    size = 0;
                    self.send(mem::take(&mut block))?;
                }
            }
            bytes += file.bytes;
            reading.passed.store(bytes, Ordering::Relaxed);
        }
        self.send(block)
    }

    fn send(&self, block: Block) -> Result<(), Gone> {
        let (reply, pending) = mpsc::sync_channel(1);
        self.order.send(pending).map_err(|_| Gone)?;
        self.jobs.send((block, reply)).map_err(|_| Gone)
    }

    /// Sends the records before an error, then the error.
    fn fail(&self, block: Block, error: CorpusError) -> Result<(), Gone> {
        self.send(block)?;
        let (reply, pending) = mpsc::sync_channel(1);
        let _ = reply.send(Err(error));
        self.order.send(pending).map_err(|_| Gone)
    }
}
