//! Recognizes what a file is: its format, and which fields of its records hold the text.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    CorpusError, Doubts, FileFormat,
    documents::{parse, text, without_mark},
    format::{Compression, Format, IS_LFS, LFS, decide, pair, stem},
    megatron::Index,
    raw::{Content, Input},
    records,
    shape::{Fields, Shape},
    source::{SourceFile, is_description},
};

/// Maximum number of records to look at.
const RECORDS: u64 = 1000;
/// Bytes of records after which the look at a file ends.
const BYTES: usize = 16 << 20;
/// Bytes of a text to look at.
const TEXT_BYTES: u64 = 1 << 20;
/// Maximum bytes of a record to look at.
const LONGEST: u64 = 64 << 20;

/// The format and the fields that DDK found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The file.
    pub path: PathBuf,
    /// Its format; `None` if it has none that DDK reads.
    pub format: Option<FileFormat>,
    /// Number of records sampled.
    pub records: u64,
    /// Number of these that cannot be used.
    pub bad: u64,
    /// Whether these are all records of the file.
    pub whole: bool,
    /// Where its text is, or why DDK skips the file.
    pub shape: Result<Shape, String>,
    /// The fields of its records, in order of their first appearance.
    pub fields: Vec<String>,
    /// Number of records with a text in each of these fields.
    pub texts: Vec<u64>,
    /// What is unusual in its conversations.
    pub doubts: Doubts,
}

impl Detected {
    /// A file that DDK skips, and why.
    pub fn skipped(path: &Path, reason: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            format: None,
            records: 0,
            bad: 0,
            whole: true,
            shape: Err(reason.into()),
            fields: Vec::new(),
            texts: Vec::new(),
            doubts: Doubts::default(),
        }
    }

    /// The file's name without its extensions of format and compression.
    pub fn stem(&self) -> String {
        stem(&self.path).to_string_lossy().into_owned()
    }

    /// The field with answers that DDK ignores, if the file has one beside those that it uses.
    pub fn ignored(&self) -> Option<&str> {
        let settings = self.shape.as_ref().ok()?.settings();
        let uses = |name: &str| settings.iter().any(|(_, value)| value.contains(name));
        let mut fields = self.fields.iter();
        let rejected = fields.find(|field| field.eq_ignore_ascii_case("rejected"))?;
        (!uses(rejected)).then_some(&**rejected)
    }

    /// Describes the format and the number of records, such as `JSON Lines, 20 records`.
    pub fn describe(&self) -> String {
        let Some(format) = self.format else {
            return "unknown".to_owned();
        };
        let name = match format {
            FileFormat::Jsonl => "JSON Lines",
            FileFormat::Json => "JSON",
            FileFormat::Parquet => "Parquet",
            FileFormat::Arrow => "Arrow",
            FileFormat::Csv => "CSV",
            FileFormat::Tsv => "TSV",
            FileFormat::Megatron => "Megatron",
            FileFormat::Text => return "text, one document".to_owned(),
        };
        let count = match (self.records, self.whole) {
            (1, true) => "1 record".to_owned(),
            (count, true) => format!("{count} records"),
            (count, false) => format!("{count} records sampled"),
        };
        match self.bad {
            0 => format!("{name}, {count}"),
            bad => format!("{name}, {count}, {bad} of them unusable"),
        }
    }
}

/// Recognizes a file, or all files below a folder, sorted by path. A folder's hidden entries count as one skipped file
/// each.
///
/// # Errors
/// If a file or folder cannot be read.
pub fn detect_in(path: &Path) -> Result<Vec<Detected>, CorpusError> {
    let mut found = Vec::new();
    collect(path, &mut found)?;
    Ok(found)
}

fn collect(path: &Path, found: &mut Vec<Detected>) -> Result<(), CorpusError> {
    if !path.is_dir() {
        // The tokens of an index are no file of their own.
        let [index, data] = pair(path);
        if path != data || !begins(&index, Index::begins)? {
            found.push(detect(path)?);
        }
        return Ok(());
    }
    let failed = || CorpusError::io("read", path);
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(failed())? {
        entries.push(entry.map_err(failed())?.path());
    }
    entries.sort();
    for entry in entries {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            found.push(Detected::skipped(&entry, "hidden"));
        } else {
            collect(&entry, found)?;
        }
    }
    Ok(())
}

fn begins(path: &Path, with: impl Fn(&[u8]) -> bool) -> Result<bool, CorpusError> {
    Ok(path.is_file() && with(&head(path)?))
}

/// The first bytes of a file.
fn head(path: &Path) -> Result<Vec<u8>, CorpusError> {
    let failed = || CorpusError::io("read", path);
    let (file, mut bytes) = (File::open(path).map_err(failed())?, Vec::new());
    file.take(512).read_to_end(&mut bytes).map_err(failed())?;
    Ok(bytes)
}

/// Recognizes a file by its name and its first records.
///
/// # Errors
/// If the file cannot be read.
pub fn detect(path: &Path) -> Result<Detected, CorpusError> {
    if is_description(path) {
        return Ok(Detected::skipped(path, "describes a data set"));
    }
    let head = head(path)?;
    if head.is_empty() {
        return Ok(Detected::skipped(path, "empty"));
    }
    if head.starts_with(LFS.as_bytes()) {
        return Ok(Detected::skipped(path, IS_LFS));
    }
    if Index::begins(&head) {
        return detect_megatron(path);
    }
    let format = match decide(path, None) {
        Ok(format) => format,
        Err(reason) => return Ok(Detected::skipped(path, binary(&head).unwrap_or(reason))),
    };
    let file = SourceFile::of(path.to_owned(), format)?;
    let plain = format.compression == Compression::None;
    let is_text = matches!(
        format.records,
        FileFormat::Text | FileFormat::Jsonl | FileFormat::Json | FileFormat::Csv | FileFormat::Tsv
    );
    if let (true, true, Some(reason)) = (plain, is_text, known_binary(&head, true)) {
        return Ok(Detected::skipped(path, reason));
    }
    if format.records == FileFormat::Text {
        return Ok(Detected {
            format: Some(FileFormat::Text),
            records: 1,
            shape: look_at_text(&file)?.map(|()| Shape::Text),
            ..Detected::skipped(path, "")
        });
    }
    look_at_records(&file)
}

fn detect_megatron(path: &Path) -> Result<Detected, CorpusError> {
    let [_, data] = pair(path);
    let format = Format {
        records: FileFormat::Megatron,
        compression: Compression::None,
    };
    let file = SourceFile::of(path.to_owned(), format)?;
    Ok(Detected {
        format: Some(FileFormat::Megatron),
        records: Index::count(&file).unwrap_or_default(),
        shape: if data.is_file() {
            Ok(Shape::Megatron)
        } else {
            Err(format!(
                "an index of Megatron, but there is no {}",
                data.display()
            ))
        },
        ..Detected::skipped(path, "")
    })
}

/// Starts of well-known binary files.
const KNOWN: [(&[u8], &str); 14] = [
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file (sound, video or image)"),
    (b"\x7fELF", "an executable"),
    (b"MZ", "an executable"),
    (b"PK\x03\x04", "a ZIP archive (or an office document)"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"SQLite format 3", "a SQLite database"),
];

/// What a binary file is. `by_name`: whether its name is that of a text, which may begin like a binary file.
fn known_binary(head: &[u8], by_name: bool) -> Option<String> {
    let is_text = by_name && !head.contains(&0) && is_utf8(head);
    let mut known = KNOWN
        .iter()
        .filter(|(start, _)| !is_text || *start == KNOWN[0].0);
    let (_, what) = known.find(|(start, _)| head.starts_with(start))?;
    Some(format!("binary: {what}"))
}

fn binary(head: &[u8]) -> Option<String> {
    let zero = || head.contains(&0).then(|| "binary".to_owned());
    known_binary(head, false).or_else(zero)
}

/// Whether bytes are UTF-8, except for a character that their end cuts off.
fn is_utf8(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    }
}

/// Returns why a file is no text.
fn look_at_text(file: &SourceFile) -> Result<Result<(), String>, CorpusError> {
    let (input, mut bytes) = (input(file), Vec::new());
    if let Err(error) = input.open()?.take(TEXT_BYTES).read_to_end(&mut bytes) {
        return match input.broken(1, error)?.content {
            Content::Unusable(reason) => Ok(Err(reason)),
            _ => Ok(Err("it cannot be read".to_owned())),
        };
    }
    let is_cut = bytes.len() as u64 == TEXT_BYTES;
    Ok(without_mark(bytes).and_then(|bytes| {
        if is_cut && is_utf8(&bytes) {
            return Ok(());
        }
        match text(bytes)?.trim() {
            "" => Err("empty".to_owned()),
            _ => Ok(()),
        }
    }))
}

fn input(file: &SourceFile) -> Input<'_> {
    Input {
        file,
        longest: LONGEST,
        passed: None,
    }
}

/// Whether a file begins as a JSON array does.
fn is_array(path: &Path) -> Result<bool, CorpusError> {
    let head = head(path)?;
    let is_jsonl = decide(path, None).is_ok_and(|format| format.records == FileFormat::Jsonl);
    Ok(is_jsonl && head.trim_ascii_start().starts_with(b"["))
}

fn look_at_records(file: &SourceFile) -> Result<Detected, CorpusError> {
    let (mut fields, mut bytes) = (Fields::default(), 0);
    let mut detected = Detected {
        format: Some(file.format.records),
        ..Detected::skipped(&file.path, "")
    };
    let mut first_bad = None;
    for raw in records::read(input(file))? {
        if detected.records == RECORDS || bytes > BYTES {
            detected.whole = false;
            break;
        }
        let raw = raw?;
        detected.records += 1;
        bytes += raw.bytes;
        let value = match raw.content {
            Content::Json(line) => text(line).and_then(|line| parse(&line)),
            Content::Row(value) => value(),
            Content::Unusable(reason) => Err(reason),
            _ => Err(format!("longer than {LONGEST} bytes")),
        };
        let value = value.and_then(|value| match value {
            Value::Object(record) => Ok(record),
            _ => Err("not an object".to_owned()),
        });
        match value {
            Ok(record) => fields.add(&record),
            Err(reason) => {
                detected.bad += 1;
                first_bad.get_or_insert_with(|| format!("line {}: {reason}", raw.line));
            }
        }
    }
    detected.shape = match first_bad {
        _ if detected.records == 0 => Err("empty: it has no record".to_owned()),
        Some(_) if 2 * detected.bad > detected.records && is_array(&file.path)? => {
            let reason = "a JSON array, not JSON Lines: name the file .json, or set format = \"json\" in its domain";
            Err(reason.to_owned())
        }
        Some(reason) if detected.bad == detected.records => {
            Err(format!("none of its records can be used; {reason}"))
        }
        Some(_) | None => fields.shape(),
    };
    if let Ok(shape) = &detected.shape {
        detected.bad = detected.records - fields.usable(shape);
        detected.doubts = fields.doubts(shape);
    }
    detected.fields = fields.names();
    detected.texts = fields.texts();
    Ok(detected)
}
