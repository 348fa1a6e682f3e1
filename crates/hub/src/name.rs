//! Names of repositories on the Hub, as a user writes them.

use std::fmt;

use crate::HubError;

/// Begins a name that can only be one of the Hub's.
const SCHEME: &str = "hf://";
/// Begins the name of a data set, after the scheme.
const DATASETS: &str = "datasets/";
/// The revision of a name that has none.
const MAIN: &str = "main";

/// What a repository contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl Kind {
    /// The word for it in addresses and in the cache.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// The word for it in messages.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }
}

/// A repository on the Hub, at a revision. For a data set, perhaps some of its files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    kind: Kind,
    id: String,
    revision: Option<String>,
    path: Option<String>,
}

impl Name {
    /// Returns whether a text can only be a name on the Hub: it begins with `hf://`.
    pub fn is_explicit(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Parses the name of a model: `ORG/NAME`, `ORG/NAME@REVISION`, or one of them after `hf://`. Only after `hf://`,
    /// a name may lack `ORG/`. Returns none for any other text, which is a path.
    ///
    /// # Errors
    /// If the text begins with `hf://` and continues with no name.
    pub fn model(text: &str) -> Result<Option<Self>, HubError> {
        let explicit = text.strip_prefix(SCHEME);
        let (id, revision) = revised(explicit.unwrap_or(text));
        let segments = id.split('/').count();
        let fits = segments == 2 || explicit.is_some() && segments == 1;
        let valid = fits && id.split('/').all(is_segment) && revision.is_none_or(is_revision);
        if !valid || id.starts_with(DATASETS) && explicit.is_some() {
            let expected = "hf://ORG/NAME or hf://ORG/NAME@REVISION";
            return match explicit {
                Some(_) => Err(HubError::bad_name(text, expected)),
                None => Ok(None),
            };
        }
        Ok(Some(Self {
            kind: Kind::Model,
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
            path: None,
        }))
    }

    /// Parses the name of a data set: `hf://datasets/ORG/NAME`, `hf://datasets/ORG/NAME@REVISION`, and after either of
    /// them perhaps `/` and a file, a folder or a glob. Returns none if the text does not begin with `hf://`.
    ///
    /// # Errors
    /// If the text begins with `hf://` and continues with no such name.
    pub fn dataset(text: &str) -> Result<Option<Self>, HubError> {
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Ok(None);
        };
        let expected = "hf://datasets/ORG/NAME, hf://datasets/ORG/NAME@REVISION, and after either of them perhaps \
                        /FILE, /FOLDER or a glob";
        let parsed = rest.strip_prefix(DATASETS).and_then(Self::of_dataset);
        let valid = |name: &Self| {
            let path = name.path.iter().flat_map(|path| path.split('/'));
            let mut segments = path.map(|segment| !segment.is_empty() && segment != "..");
            name.id.split('/').all(is_segment)
                && name.revision.as_deref().is_none_or(is_revision)
                && segments.all(|is_valid| is_valid)
        };
        let parsed = parsed.filter(valid);
        parsed.map_or_else(
            || Err(HubError::bad_name(text, expected)),
            |name| Ok(Some(name)),
        )
    }

    fn of_dataset(text: &str) -> Option<Self> {
        let text = text.trim_end_matches('/');
        let (first, rest) = text.split_once('/').unwrap_or((text, ""));
        // A revision ends the name, so the first segment may be the whole of it.
        let id_end = if first.contains('@') || rest.is_empty() {
            first.find('@').unwrap_or(first.len())
        } else {
            let second = rest.find(['/', '@']).unwrap_or(rest.len());
            first.len() + 1 + second
        };
        let (id, rest) = text.split_at(id_end);
        let (revision, path) = match rest.strip_prefix('@') {
            Some(rest) => {
                // The names of such revisions have three segments: refs/convert/parquet, refs/pr/7.
                let slashes = if rest.starts_with("refs/") { 2 } else { 0 };
                let end = rest.match_indices('/').nth(slashes);
                let end = end.map_or(rest.len(), |(at, _)| at);
                (Some(rest[..end].to_owned()), &rest[end..])
            }
            None => (None, rest),
        };
        let path = path.strip_prefix('/').filter(|path| !path.is_empty());
        Some(Self {
            kind: Kind::Dataset,
            id: id.to_owned(),
            revision,
            path: path.map(str::to_owned),
        })
    }

    /// A model or a data set.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name without revision and path, such as `Qwen/Qwen2.5-1.5B`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The branch, tag or commit. `main` if the user named none.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The file, folder or glob within the repository.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// What a revision is pinned by: the same for all names of the same repository and revision.
    pub fn key(&self) -> String {
        format!("{}/{}@{}", self.kind.plural(), self.id, self.revision())
    }

    /// The command that downloads it into the cache. `commit`: instead of the name's own revision.
    pub fn command(&self, commit: Option<&str>) -> String {
        let kind = match self.kind {
            Kind::Model => "",
            Kind::Dataset => " --repo-type dataset",
        };
        let revision = commit.or(self.revision.as_deref());
        let revision = revision.map(|revision| format!(" --revision {revision}"));
        format!(
            "hf download {}{kind}{}",
            self.id,
            revision.unwrap_or_default()
        )
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.id)?;
        match &self.revision {
            Some(revision) => write!(out, "@{revision}"),
            None => Ok(()),
        }
    }
}

fn revised(text: &str) -> (&str, Option<&str>) {
    match text.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (text, None),
    }
}

/// Whether the Hub allows this as the name of a repository, or of its owner.
fn is_segment(text: &str) -> bool {
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let begins = text.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_');
    begins && text.chars().all(is_allowed) && !text.contains("..") && !text.contains("--")
}

fn is_revision(text: &str) -> bool {
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-+".contains(letter);
    let mut segments = text.split('/');
    segments.all(|segment| {
        !segment.is_empty() && segment.chars().all(is_allowed) && !segment.starts_with('.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_told_from_paths() {
        let parts = |text: &str| {
            let name = Name::model(text).unwrap()?;
            Some((name.id().to_owned(), name.revision().to_owned()))
        };
        let name = |id: &str, revision: &str| Some((id.to_owned(), revision.to_owned()));
        assert_eq!(
            parts("Qwen/Qwen2.5-1.5B"),
            name("Qwen/Qwen2.5-1.5B", "main")
        );
        assert_eq!(parts("a/b@refs/pr/7"), name("a/b", "refs/pr/7"));
        assert_eq!(parts("hf://gpt2"), name("gpt2", "main"));
        assert_eq!(parts("hf://a/b@v1"), name("a/b", "v1"));
        for path in [
            "gpt2", "a/b/c", "./a/b", "../b", "/a/b", "a/", "~/b", "a/b@", "a/../b", "a/b@../c",
            "C:\\a", "",
        ] {
            assert_eq!(parts(path), None, "{path}");
        }
        for wrong in [
            "hf://",
            "hf://a/b/c",
            "hf://datasets/a",
            "hf://../x",
            "hf://a/b@",
        ] {
            let error = Name::model(wrong).unwrap_err().to_string();
            assert!(
                error.contains(wrong) && error.contains("hf://ORG/NAME"),
                "{error}"
            );
        }
    }

    #[test]
    fn data_sets_have_files() {
        let parts = |text: &str| {
            let name = Name::dataset(text).unwrap().unwrap();
            let path = name.path().unwrap_or("-").to_owned();
            [name.id().to_owned(), name.revision().to_owned(), path]
        };
        for (text, expected) in [
            ("hf://datasets/squad", ["squad", "main", "-"]),
            ("hf://datasets/a/b", ["a/b", "main", "-"]),
            ("hf://datasets/a/b/", ["a/b", "main", "-"]),
            ("hf://datasets/a/b/c/*.jsonl", ["a/b", "main", "c/*.jsonl"]),
            ("hf://datasets/a/b@v2/c", ["a/b", "v2", "c"]),
            ("hf://datasets/squad@v2/c/d", ["squad", "v2", "c/d"]),
            (
                "hf://datasets/a/b@refs/convert/parquet/x/**/*.parquet",
                ["a/b", "refs/convert/parquet", "x/**/*.parquet"],
            ),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
        assert!(Name::dataset("data/*.jsonl").unwrap().is_none());
        for wrong in [
            "hf://a/b",
            "hf://datasets/",
            "hf://datasets/a/b/../c",
            "hf://datasets/a/b@/c",
        ] {
            assert!(Name::dataset(wrong).is_err(), "{wrong}");
        }
        let name = Name::dataset("hf://datasets/a/b@v2/c").unwrap().unwrap();
        assert_eq!(
            name.command(None),
            "hf download a/b --repo-type dataset --revision v2"
        );
        assert_eq!(
            (name.key(), name.to_string()),
            ("datasets/a/b@v2".to_owned(), "a/b@v2".to_owned())
        );
    }
}
