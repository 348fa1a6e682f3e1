//! Records that cannot be used.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::CorpusError;

/// The list of a domain's unusable records, in its prepared folder.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";

/// A line of `quarantine.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The domain.
    pub domain: String,
    /// The source.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
    /// Why it cannot be used.
    pub reason: String,
}

/// Gathers a domain's unusable records.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    pub(crate) list: Vec<Quarantined>,
    pub(crate) records: u64,
    /// Of all files.
    pub(crate) bytes: u64,
    /// Of the files that could not be read to their end: how many records are lost there nobody knows.
    pub(crate) damaged_bytes: u64,
    /// The first such place, by its number in the list.
    pub(crate) damaged: Option<usize>,
}

impl Quarantine {
    /// Fails where more than `limit` of the records are bad, and names the source with most of them; and where more than that
    /// of the files' bytes are in files that are cut or damaged.
    pub(crate) fn check(&self, domain: &str, limit: f64) -> Result<(), CorpusError> {
        let bad = self.list.len() as u64;
        let most = |all: u64| limit * all as f64;
        if self.damaged_bytes as f64 > most(self.bytes)
            && let Some(entry) = self.damaged.and_then(|index| self.list.get(index))
        {
            return Err(CorpusError::TooMuchDamaged {
                domain: domain.to_owned(),
                share: self.damaged_bytes as f64 / self.bytes.max(1) as f64,
                limit,
                path: entry.file.clone(),
                line: entry.line,
                reason: entry.reason.clone(),
            });
        }
        if bad as f64 <= most(self.records) {
            return Ok(());
        }
        let of_file = |file: &PathBuf| self.list.iter().filter(|entry| entry.file == *file).count();
        let worst = self
            .list
            .iter()
            .max_by_key(|entry| (of_file(&entry.file), std::cmp::Reverse(entry.line)));
        match worst {
            None => Ok(()),
            Some(worst) => Err(CorpusError::TooManyBad {
                domain: domain.to_owned(),
                bad,
                records: self.records,
                limit,
                path: worst.file.clone(),
                line: worst.line,
                reason: worst.reason.clone(),
            }),
        }
    }
}
