//! A record before it is parsed, so that one thread can read a file and others can parse its records; and what the
//! readers of all formats share: decompression, byte-order marks, damage, and lines.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    iter,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::Value;

use crate::{CorpusError, format::Compression, source::SourceFile};

/// A record as read from a file.
pub(crate) struct Raw {
    /// The line or row, or the number of an element of a JSON array; from 1.
    pub(crate) line: u64,
    pub(crate) content: Content,
    /// Whether the rest of the file cannot be read.
    pub(crate) ends_file: bool,
    /// What follows in the file at most.
    pub(crate) more: More,
    /// Bytes of memory that the record takes, approximately.
    pub(crate) bytes: usize,
}

/// What a record holds, not yet parsed.
pub(crate) enum Content {
    /// JSON.
    Json(Vec<u8>),
    /// A row of a table, and how it becomes a value.
    Row(Later),
    /// A whole file that is one document.
    Whole(Vec<u8>),
    /// Token ids that others made.
    Tokens(Vec<i64>),
    /// Nothing usable, and why.
    Unusable(String),
    /// A record over the limit on its size.
    TooLong,
}

/// Makes a value when another thread calls it.
pub(crate) type Later = Box<dyn FnOnce() -> Result<Value, String> + Send>;

/// What can follow in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum More {
    /// At most this many bytes of JSON.
    Bytes(u64),
    /// At most this many records.
    Records(u64),
    /// Unknown.
    Unknown,
}

/// Bytes of memory that a record takes besides its text, approximately.
const OVERHEAD: usize = 128;

impl Raw {
    pub(crate) fn new(line: u64, content: Content, more: More) -> Self {
        let bytes = match &content {
            Content::Json(bytes) | Content::Whole(bytes) => bytes.len(),
            Content::Tokens(ids) => 8 * ids.len(),
            Content::Row(_) | Content::Unusable(_) | Content::TooLong => 0,
        };
        Self {
            line,
            content,
            ends_file: false,
            more,
            bytes: bytes + OVERHEAD,
        }
    }

    /// A row of a table. `bytes`: the memory that it takes until it is parsed.
    pub(crate) fn row(
        line: u64,
        bytes: usize,
        more: More,
        value: impl FnOnce() -> Result<Value, String> + Send + 'static,
    ) -> Self {
        Self {
            bytes: bytes + OVERHEAD,
            ..Self::new(line, Content::Row(Box::new(value)), more)
        }
    }

    /// A place after which the file cannot be read.
    pub(crate) fn damage(line: u64, reason: String) -> Self {
        Self {
            ends_file: true,
            ..Self::new(line, Content::Unusable(reason), More::Records(0))
        }
    }
}

/// The raw records of a file, until the disk fails.
pub(crate) type Raws<'a> = Box<dyn Iterator<Item = Result<Raw, CorpusError>> + Send + 'a>;

/// A single record that ends its file: a failure to begin it.
pub(crate) fn only<'a>(record: Result<Raw, CorpusError>) -> Raws<'a> {
    Box::new(iter::once(record))
}

/// Counts the bytes of files that were read. Several threads may look at it.
pub(crate) type Passed = AtomicU64;

/// A file to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) file: &'a SourceFile,
    /// Maximum bytes of a document.
    pub(crate) longest: u64,
    /// Where to add the bytes that were read.
    pub(crate) passed: Option<&'a Passed>,
}

/// A file that counts the bytes read from it.
struct Counted<'a> {
    file: File,
    passed: Option<&'a Passed>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if let Some(passed) = self.passed {
            passed.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(count)
    }
}

/// The contents of a file, decompressed.
pub(crate) type Contents<'a> = Box<dyn Read + Send + 'a>;
/// The contents after a byte-order mark.
pub(crate) type Unmarked<'a> = BufReader<io::Chain<Cursor<Vec<u8>>, Contents<'a>>>;

/// The largest zstd window that DDK accepts, as a power of two: 128 MiB, the default limit of the zstd tool. The
/// decoder allocates what a file asks for, so a larger window could take all memory.
const ZSTD_WINDOW_LOG: u32 = 27;

impl<'a> Input<'a> {
    /// Opens the file and decompresses it.
    pub(crate) fn open(&self) -> Result<Contents<'a>, CorpusError> {
        let failed = || CorpusError::io("read", &self.file.path);
        let opened = Counted {
            file: File::open(&self.file.path).map_err(failed())?,
            passed: self.passed,
        };
        Ok(match self.file.format.compression {
            Compression::None => Box::new(opened),
            Compression::Gzip => {
                Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(opened)))
            }
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::new(opened).map_err(failed())?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed())?;
                Box::new(decoder)
            }
        })
    }

    /// Opens the file after its byte-order mark. The inner error is a record that says why it cannot be read.
    pub(crate) fn open_unmarked(&self) -> Result<Result<Unmarked<'a>, Raw>, CorpusError> {
        let mut reader = self.open()?;
        let mut start = Vec::new();
        let length = UTF8_MARK.len() as u64;
        if let Err(error) = reader.by_ref().take(length).read_to_end(&mut start) {
            return self.broken(1, error).map(Err);
        }
        Ok(match strip_mark(&mut start) {
            Ok(()) => Ok(BufReader::with_capacity(
                1 << 16,
                Cursor::new(start).chain(reader),
            )),
            Err(reason) => Err(Raw::damage(1, reason)),
        })
    }

    /// Handles a read error: returns a disk error as an error, and damage in compressed data as an unusable record.
    pub(crate) fn broken(&self, line: u64, error: io::Error) -> Result<Raw, CorpusError> {
        let reason = match self.file.format.compression {
            Compression::None => return Err(CorpusError::io("read", &self.file.path)(error)),
            // zstd's message for a window over the limit (ZSTD_error_frameParameter_windowTooLarge).
            Compression::Zstd if error.to_string().contains("too much memory") => format!(
                "its zstd window is over {} MiB: compress it again without --long or --ultra",
                (1_u64 << ZSTD_WINDOW_LOG) >> 20
            ),
            _ => format!("the file is cut or damaged here: {error}"),
        };
        Ok(Raw::damage(line, reason))
    }

    /// Maximum bytes of a record to keep. It is longer than its text.
    pub(crate) fn longest_record(&self) -> u64 {
        self.longest.saturating_mul(2).saturating_add(1 << 16)
    }

    /// Number of bytes that follow the first `consumed`; `None` for a compressed file.
    pub(crate) fn left(&self, consumed: u64) -> Option<u64> {
        let is_plain = self.file.format.compression == Compression::None;
        is_plain.then(|| self.file.bytes.saturating_sub(consumed))
    }
}

/// The byte-order mark that Windows programs put before UTF-8 text.
pub(crate) const UTF8_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Removes a UTF-8 byte-order mark from the start of a file; refuses the marks of other encodings.
pub(crate) fn strip_mark(bytes: &mut Vec<u8>) -> Result<(), String> {
    if bytes.starts_with(&UTF8_MARK) {
        bytes.drain(..UTF8_MARK.len());
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(
            "UTF-16 by its byte-order mark: convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`"
                .to_owned(),
        );
    }
    Ok(())
}

/// Reads a file of JSON Lines.
pub(crate) fn read_lines(input: Input<'_>) -> Result<Raws<'_>, CorpusError> {
    let mut reader = match input.open_unmarked()? {
        Ok(reader) => reader,
        Err(record) => return Ok(only(Ok(record))),
    };
    // Do not even keep a line beyond this length.
    let longest = input.longest_record();
    let (mut lines, mut consumed) = (1.., 0_u64);
    let mut next = move || {
        for line in &mut lines {
            let mut bytes = Vec::new();
            let (length, too_long) = match read_line(&mut reader, longest, &mut bytes) {
                Ok(read) => read,
                Err(error) => return input.broken(line, error).map(Some),
            };
            if length == 0 {
                break;
            }
            consumed += length;
            bytes.truncate(bytes.trim_ascii_end().len());
            // A blank line is not a record.
            if bytes.is_empty() {
                continue;
            }
            let content = if too_long {
                Content::TooLong
            } else {
                Content::Json(bytes)
            };
            let more = input.left(consumed).map_or(More::Unknown, More::Bytes);
            return Ok(Some(Raw::new(line, content, more)));
        }
        Ok(None)
    };
    Ok(Box::new(iter::from_fn(move || next().transpose())))
}

/// Reads a line, but keeps at most `longest` bytes of it. Returns the length of the line in bytes, and whether it is
/// too long.
fn read_line(
    reader: &mut impl BufRead,
    longest: u64,
    line: &mut Vec<u8>,
) -> io::Result<(u64, bool)> {
    let mut length = reader.by_ref().take(longest).read_until(b'\n', line)?;
    let too_long = length as u64 == longest && line.last() != Some(&b'\n');
    if too_long {
        length += reader.skip_until(b'\n')?;
    }
    Ok((length as u64, too_long))
}
