//! Finds the domains that are not prepared as the options ask.

use crate::{
    CorpusError, PrepareOptions, TokenizerFolder,
    manifest::{MANIFEST, MadeFrom, Manifest},
    packing::index_file,
};

/// A domain that is not prepared as the options ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// Its name.
    pub domain: String,
    /// What is missing, or has changed.
    pub reason: String,
    /// Content hash of the prepared domain that preparing again would replace.
    pub replaces: Option<String>,
}

/// Lists the domains that are not prepared as the options ask.
///
/// # Errors
/// If a pattern is invalid or matches no file, or if a source or a manifest cannot be read.
pub fn stale(
    options: &PrepareOptions,
    tokenizer: &TokenizerFolder,
) -> Result<Vec<Stale>, CorpusError> {
    let mut stale = Vec::new();
    for domain in &options.domains {
        let now = MadeFrom::now(options, domain, tokenizer)?;
        let folder = options.folder.join(&domain.name);
        let manifest = Manifest::read(&folder)?;
        let index = index_file(&folder, options.packing, options.sequence_length);
        let difference = manifest
            .as_ref()
            .and_then(|manifest| manifest.made_from.difference(&now));
        let replaced = manifest.as_ref().filter(|_| difference.is_some());
        let replaces = replaced.map(|manifest| manifest.content_hash.clone());
        let reason = match (manifest, difference) {
            (None, _) if folder.join(MANIFEST).exists() => {
                "it was prepared by another version of ddk".to_owned()
            }
            (None, _) => "no prepared data yet".to_owned(),
            (Some(_), Some(difference)) => difference,
            (Some(_), None) if !index.exists() => format!(
                "it has no sequences of {} tokens yet",
                options.sequence_length
            ),
            (Some(_), None) => continue,
        };
        stale.push(Stale {
            domain: domain.name.clone(),
            reason,
            replaces,
        });
    }
    Ok(stale)
}
