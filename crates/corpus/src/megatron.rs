//! Reads Megatron's indexed datasets: token ids in a `.bin` file, and where each document begins in an `.idx` file.
//!
//! The index holds, in little-endian order: the magic number, the version (u64), a code of the dtype (u8), the number
//! of sequences (u64) and of boundaries of documents (u64). Then follow the tokens of each sequence (i32), the offset
//! of each in the `.bin` file in bytes (i64), and the boundaries of documents in sequences (i64).

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    iter,
    os::unix::fs::FileExt,
    path::PathBuf,
};

use crate::{
    CorpusError,
    format::{is_data, pair},
    raw::{Content, Input, More, Raw, Raws, only},
    source::SourceFile,
};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const HEADER_BYTES: usize = 34;

/// The integer type of the token ids.
#[derive(Debug, Clone, Copy)]
struct Dtype {
    bytes: usize,
    is_signed: bool,
}

impl Dtype {
    /// By its code in the index.
    fn of(code: u8) -> Option<Self> {
        let (bytes, is_signed) = match code {
            1 => (1, false),
            2 => (1, true),
            3 => (2, true),
            4 => (4, true),
            5 => (8, true),
            8 => (2, false),
            _ => return None,
        };
        Some(Self { bytes, is_signed })
    }

    fn decode(self, bytes: &[u8]) -> Vec<i64> {
        let number = |bytes: &[u8]| {
            let is_negative = self.is_signed && bytes.last().is_some_and(|last| last & 0x80 != 0);
            let mut whole = if is_negative { [0xff; 8] } else { [0; 8] };
            whole[..bytes.len()].copy_from_slice(bytes);
            i64::from_le_bytes(whole)
        };
        bytes.chunks_exact(self.bytes).map(number).collect()
    }
}

/// The header of an `.idx` file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Index {
    dtype: Dtype,
    sequences: u64,
    boundaries: u64,
}

impl Index {
    /// Whether the bytes at the start of a file are those of an index.
    pub(crate) fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Number of documents of a file; `None` if it cannot be read. The `.bin` file counts none, as only its index is
    /// read.
    pub(crate) fn count(file: &SourceFile) -> Option<u64> {
        if is_data(&file.path) {
            return Some(0);
        }
        let opened = File::open(&file.path).ok()?;
        // An index that cannot be used counts as one unusable record.
        let documents = |index: Self| index.boundaries - 1;
        Some(Self::read(&opened, file.bytes).ok()?.map_or(1, documents))
    }

    /// Reads the header. The inner error says why the index cannot be used.
    fn read(file: &File, bytes: u64) -> io::Result<Result<Self, String>> {
        let mut header = [0; HEADER_BYTES];
        if bytes < HEADER_BYTES as u64 {
            return Ok(Err(format!(
                "the index has {bytes} bytes, expected a header of {HEADER_BYTES}"
            )));
        }
        file.read_exact_at(&mut header, 0)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (version, code, sequences, boundaries) =
            (number(9), header[17], number(18), number(26));
        if !Self::begins(&header) {
            return Ok(Err(
                "not an index of Megatron: it does not begin with MMIDIDX".to_owned(),
            ));
        }
        if version != 1 {
            return Ok(Err(format!(
                "the index has the version {version}, expected 1"
            )));
        }
        let Some(dtype) = Dtype::of(code) else {
            return Ok(Err(format!(
                "the index has the dtype {code}, expected an integer (1 to 5, or 8)"
            )));
        };
        let needed = sequences
            .checked_mul(12)
            .zip(boundaries.checked_mul(8))
            .and_then(|(sequences, boundaries)| sequences.checked_add(boundaries))
            .and_then(|numbers| numbers.checked_add(HEADER_BYTES as u64));
        if boundaries == 0 || needed.is_none_or(|needed| needed > bytes) {
            return Ok(Err(format!(
                "the index is cut: it has {bytes} bytes, too few for {sequences} sequences and {boundaries} boundaries \
                 of documents"
            )));
        }
        Ok(Ok(Self {
            dtype,
            sequences,
            boundaries,
        }))
    }
}

/// Reads the documents of an index and its data file.
pub(crate) fn read(input: Input<'_>) -> Result<Raws<'_>, CorpusError> {
    let file = input.file;
    if is_data(&file.path) {
        return Ok(Box::new(iter::empty()));
    }
    let [_, data] = pair(&file.path);
    let failed = || CorpusError::io("read", &file.path);
    let opened = File::open(&file.path).map_err(failed())?;
    let index = match Index::read(&opened, file.bytes).map_err(failed())? {
        Ok(index) => index,
        Err(reason) => return Ok(only(Ok(Raw::damage(1, reason)))),
    };
    let tokens = File::open(&data).map_err(CorpusError::io("read", &data))?;
    let data_bytes = fs::metadata(&data).map_err(CorpusError::io("read", &data))?;
    let sizes = HEADER_BYTES as u64;
    let offsets = sizes + 4 * index.sequences;
    let boundaries = offsets + 8 * index.sequences;
    let at = |place| -> io::Result<BufReader<File>> {
        let mut file = File::open(&file.path)?;
        file.seek(SeekFrom::Start(place))?;
        Ok(BufReader::new(file))
    };
    let mut documents = Documents {
        index,
        sizes: at(sizes).map_err(failed())?,
        offsets: at(offsets).map_err(failed())?,
        boundaries: at(boundaries).map_err(failed())?,
        tokens,
        data,
        data_bytes: data_bytes.len(),
        next: None,
    };
    let mut lines = 1..index.boundaries;
    Ok(Box::new(iter::from_fn(move || {
        let line = lines.next()?;
        let more = More::Records(documents.index.boundaries - 1 - line);
        Some(match documents.document(input.longest) {
            Ok(Ok(content)) => Ok(Raw::new(line, content, more)),
            Ok(Err(reason)) => Ok(Raw::damage(line, reason)),
            Err(error) => Err(CorpusError::io("read", &file.path)(error)),
        })
    })))
}

/// The documents of an index, read from its three lists at once.
struct Documents {
    index: Index,
    sizes: BufReader<File>,
    offsets: BufReader<File>,
    boundaries: BufReader<File>,
    tokens: File,
    data: PathBuf,
    data_bytes: u64,
    /// The sequence that the next document begins with.
    next: Option<u64>,
}

fn number(reader: &mut impl Read) -> io::Result<i64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    Ok(i64::from_le_bytes(bytes))
}

impl Documents {
    /// Reads the next document. The inner error says why the rest of the index cannot be used.
    fn document(&mut self, longest: u64) -> io::Result<Result<Content, String>> {
        let start = match self.next {
            Some(start) => start,
            None => {
                let start = number(&mut self.boundaries)?;
                if start != 0 {
                    return Ok(Err(format!(
                        "the first document begins at sequence {start}, expected 0"
                    )));
                }
                0
            }
        };
        let end = number(&mut self.boundaries)?;
        let valid = u64::try_from(end).ok();
        let Some(end) = valid.filter(|end| (start..=self.index.sequences).contains(end)) else {
            return Ok(Err(format!(
                "a document ends at sequence {end}, expected {start} to {}",
                self.index.sequences
            )));
        };
        self.next = Some(end);
        let (mut ids, mut bytes, mut wrong, mut too_long) = (Vec::new(), Vec::new(), None, false);
        for _ in start..end {
            let mut size = [0; 4];
            self.sizes.read_exact(&mut size)?;
            let (size, offset) = (i32::from_le_bytes(size), number(&mut self.offsets)?);
            let dtype = self.index.dtype;
            let length = u64::try_from(size)
                .ok()
                .map(|size| size * dtype.bytes as u64);
            let place = u64::try_from(offset)
                .ok()
                .zip(length)
                .filter(|(offset, length)| {
                    let end = offset.checked_add(*length);
                    end.is_some_and(|end| end <= self.data_bytes)
                });
            let Some((offset, length)) = place else {
                wrong.get_or_insert_with(|| {
                    format!(
                        "{size} tokens at byte {offset} are not in {}, which has {} bytes",
                        self.data.display(),
                        self.data_bytes
                    )
                });
                continue;
            };
            too_long |= 4 * (ids.len() as u64 + length / dtype.bytes as u64) > longest;
            if too_long || wrong.is_some() {
                continue;
            }
            bytes.resize(length as usize, 0);
            self.tokens.read_exact_at(&mut bytes, offset)?;
            ids.extend(dtype.decode(&bytes));
        }
        Ok(Ok(match wrong {
            Some(reason) => Content::Unusable(reason),
            None if too_long => Content::TooLong,
            None => Content::Tokens(ids),
        }))
    }
}
