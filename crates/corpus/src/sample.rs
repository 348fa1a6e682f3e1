//! Inspects a source's records without preparing them.

use std::collections::BTreeSet;

use crate::{
    CorpusError, DomainSource, Doubts, FileFormat, Quarantined, Template, document::Document,
    documents::read, error::having, survey::only_one,
};

/// Maximum number of records in a sample.
const RECORDS: u64 = 100;
/// Bytes of text after which a sample ends.
const BYTES: u64 = 16 << 20;

/// The first records of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirstRecords {
    /// Number of records read.
    pub records: u64,
    /// Number of unusable records.
    pub bad: u64,
    /// The first unusable record.
    pub first_bad: Option<Quarantined>,
    /// The fields of the first record that lacks the required one.
    pub fields: Vec<String>,
    /// Number of conversations with turns of the assistant that are not learned, because the chat template changes
    /// them once other messages follow.
    pub rewritten: u64,
    /// What is unusual in conversations.
    pub doubts: Doubts,
    /// Number of different documents.
    pub distinct: u64,
    /// Whether these are all records.
    pub whole: bool,
}

impl FirstRecords {
    /// Returns why none of a source's first records is usable; `None` if some are.
    pub fn problem(&self, domain: &str) -> Option<String> {
        match &self.first_bad {
            _ if self.records == 0 => Some(format!(
                "domain `{domain}` is empty: none of its files contains text"
            )),
            Some(first) if self.bad == self.records => Some(format!(
                "domain `{domain}`: no record can be used; the first is in {} at {}: {}{}",
                first.file.display(),
                first.place(),
                first.reason,
                having(&self.fields)
            )),
            _ => None,
        }
    }
}

impl FirstRecords {
    /// Returns the error of a source whose only document cannot be both for training and for validation.
    pub fn too_few(&self, source: &DomainSource) -> Option<CorpusError> {
        let is_one = self.whole && self.distinct == 1;
        (is_one && source.validation_files.is_empty()).then(|| CorpusError::TooLittle {
            domain: source.name.clone(),
            what: only_one(self.records - self.bad),
        })
    }
}

/// Reads the first records of a source.
///
/// # Errors
/// As for [`crate::prepare`]: a file that is missing, cannot be read, or has an unknown format.
pub fn sample(source: &DomainSource) -> Result<FirstRecords, CorpusError> {
    let (mut sample, mut bytes) = (FirstRecords::default(), 0);
    let mut hashes = BTreeSet::new();
    for file in source.expand(&source.files)? {
        for record in read(&file, source)? {
            let record = record?;
            sample.records += 1;
            match record.document {
                Ok(document) => {
                    bytes += document.bytes();
                    sample.distinct += u64::from(hashes.insert(document.hash()));
                    if let Document::Conversation {
                        rewritten, doubts, ..
                    } = document
                    {
                        sample.rewritten += u64::from(rewritten);
                        sample.doubts.merge(doubts);
                    }
                }
                Err(unusable) => {
                    sample.bad += 1;
                    if sample.fields.is_empty() {
                        sample.fields = unusable.fields;
                    }
                    sample.first_bad.get_or_insert_with(|| Quarantined {
                        domain: source.name.clone(),
                        file: file.path.clone(),
                        line: record.line,
                        reason: unusable.reason,
                    });
                }
            }
            if sample.records >= RECORDS || bytes >= BYTES {
                return Ok(sample);
            }
        }
    }
    sample.whole = true;
    Ok(sample)
}

/// Returns the text of a source's first record that has one.
///
/// # Errors
/// As for [`sample`].
pub fn first_document(source: &DomainSource) -> Result<Option<String>, CorpusError> {
    for file in source.expand(&source.files)? {
        for record in read(&file, source)? {
            if let Some(text) = record?.document.ok().and_then(Document::into_whole_text) {
                return Ok(Some(text));
            }
        }
    }
    Ok(None)
}

/// Returns the values of a field in the records of a source, sorted.
///
/// # Errors
/// As for [`sample`].
pub fn field_values(source: &DomainSource, path: &str) -> Result<Vec<String>, CorpusError> {
    let by_field = DomainSource {
        text: Template::field(path),
        prompt: None,
        chat: None,
        tokens: None,
        ..source.clone()
    };
    let mut values = BTreeSet::new();
    for file in by_field.expand(&by_field.files)? {
        if file.format.records != FileFormat::Text {
            for record in read(&file, &by_field)? {
                values.extend(record?.document.ok().and_then(Document::into_whole_text));
            }
        }
    }
    Ok(values.into_iter().collect())
}
