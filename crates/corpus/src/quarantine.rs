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
}

impl Quarantine {
    /// Fails where more than `limit` of the records are bad, and names the source with most of them.
    pub(crate) fn check(&self, domain: &str, limit: f64) -> Result<(), CorpusError> {
        let bad = self.list.len() as u64;
        if bad as f64 <= limit * self.records as f64 {
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
