//! Where the names from the Hugging Face Hub are on this machine.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::Settings;

/// The local places of the Hub's names. No part of a configuration: each command finds them out, and files and
/// comparisons keep the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The folder of each model or tokenizer.
    pub models: BTreeMap<PathBuf, PathBuf>,
    /// The files of each pattern.
    pub files: BTreeMap<String, Vec<String>>,
    /// The commit of each repository and revision. A run records them, and always uses the same ones.
    pub revisions: BTreeMap<String, String>,
}

impl Settings {
    /// Returns the local folder of a model or tokenizer. A path is its own place.
    pub fn local(&self, model: &Path) -> PathBuf {
        let place = self.places.models.get(model);
        place.map_or_else(|| model.to_owned(), Clone::clone)
    }

    /// Returns the local files, folders and globs of a domain's files.
    pub fn local_files(&self, patterns: &[String]) -> Vec<String> {
        let places = patterns
            .iter()
            .map(|pattern| match self.places.files.get(pattern) {
                Some(files) => files.clone(),
                None => vec![pattern.clone()],
            });
        places.flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_and_never_written() {
        let sets = ["teacher.model=\"a/b\"".to_owned()];
        let mut settings = crate::load(&[], &sets, []).unwrap().settings;
        let before = settings.clone();
        let text = settings.to_toml().unwrap();
        settings
            .places
            .models
            .insert("a/b".into(), "/cache/b".into());
        settings
            .places
            .files
            .insert("hf://x".to_owned(), vec!["/1".to_owned(), "/2".to_owned()]);
        assert_eq!(settings.local(Path::new("a/b")), Path::new("/cache/b"));
        assert_eq!(settings.local(Path::new("c")), Path::new("c"));
        let patterns = ["y", "hf://x"].map(str::to_owned);
        assert_eq!(settings.local_files(&patterns), ["y", "/1", "/2"]);
        assert_eq!(settings.to_toml().unwrap(), text);
        assert!(crate::diff(&before, &settings).unwrap().is_empty());
        let values = BTreeMap::from([("optimizer.lr".to_owned(), serde_json::json!(0.5))]);
        assert_eq!(settings.with(&values).unwrap().places, settings.places);
    }
}
