//! A record before it is parsed, so that one thread can read a file and others can parse its records.

use serde_json::Value;

use crate::{
    CorpusError, DomainSource,
    documents::{Document, Record, record},
    quarantine::Unusable,
};

/// Parses a value when another thread calls it.
type Later<'a, T> = Box<dyn FnOnce() -> T + Send + 'a>;

/// A record as read from a file.
pub(crate) struct Raw<'a> {
    /// The line or row, from 1.
    pub(crate) line: u64,
    pub(crate) content: Content<'a>,
    /// Whether the rest of the file cannot be read.
    pub(crate) ends_file: bool,
    /// What follows in the file at most.
    pub(crate) more: More,
    /// Bytes of memory that the record takes, approximately.
    pub(crate) bytes: usize,
}

/// What a record holds, not yet parsed.
pub(crate) enum Content<'a> {
    /// Fields, which may belong to any of the domains that read the file.
    Value(Later<'a, Result<Value, String>>),
    /// A whole document of the only domain that reads the file.
    Document(Later<'a, Result<Document, Unusable>>),
}

/// The raw records of a file, until the disk fails.
pub(crate) type Raws<'a> = Box<dyn Iterator<Item = Result<Raw<'a>, CorpusError>> + 'a>;

/// What can follow in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum More {
    /// At most this many bytes.
    Bytes(u64),
    /// At most this many records.
    Records(u64),
    /// Unknown.
    Unknown,
}

impl More {
    /// Maximum number of usable records that can follow; `None` if unknown.
    fn records(self, source: &DomainSource) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.div_ceil(source.text.shortest_line())),
            Self::Records(records) => Some(records),
            Self::Unknown => None,
        }
    }
}

/// Bytes of memory that a record takes besides its text, approximately.
const OVERHEAD: usize = 128;

impl<'a> Raw<'a> {
    /// A record of fields. `bytes`: the length of what `value` holds until it is parsed.
    pub(crate) fn value(
        line: u64,
        bytes: usize,
        more: More,
        value: impl FnOnce() -> Result<Value, String> + Send + 'a,
    ) -> Self {
        Self {
            line,
            content: Content::Value(Box::new(value)),
            ends_file: false,
            more,
            bytes: bytes + OVERHEAD,
        }
    }

    /// A file that is one document.
    pub(crate) fn whole(
        bytes: usize,
        document: impl FnOnce() -> Result<Document, Unusable> + Send + 'a,
    ) -> Self {
        Self {
            line: 1,
            content: Content::Document(Box::new(document)),
            ends_file: false,
            more: More::Records(0),
            bytes: bytes + OVERHEAD,
        }
    }

    /// A place after which the file cannot be read.
    pub(crate) fn damage(line: u64, reason: String) -> Self {
        Self {
            line,
            content: Content::Value(Box::new(|| Err(reason))),
            ends_file: true,
            more: More::Records(0),
            bytes: OVERHEAD,
        }
    }

    /// Parses the record once, and returns it for each domain that it belongs to, with the domain's number.
    pub(crate) fn parse(self, sources: &[&DomainSource]) -> Vec<(usize, Record)> {
        let Self { line, more, .. } = self;
        let with_end = |record: Record| Record {
            ends_file: self.ends_file,
            ..record
        };
        match self.content {
            Content::Value(value) => {
                let value = value();
                let sources = sources.iter().enumerate();
                let records = sources.filter_map(|(number, source)| {
                    let value = value.as_ref().map_err(Clone::clone);
                    let record = record(line, value, more.records(source), source)?;
                    Some((number, with_end(record)))
                });
                records.collect()
            }
            Content::Document(document) => {
                let record = Record {
                    line,
                    document: document(),
                    ends_file: false,
                    more: Some(0),
                };
                vec![(0, with_end(record))]
            }
        }
    }
}
