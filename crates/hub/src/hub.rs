//! The Hub with its cache: finds a revision's files here, and downloads those that are missing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use glob::{MatchOptions, Pattern};
use rustix::fs::statvfs;

use crate::{
    Event, HubError, Kind, Name, Options, Parts,
    cache::{Repository, is_commit},
    download::Job,
    http::Http,
    listing::{Listing, RemoteFile, RevisionAnswer},
    model,
};

/// Maximum number of files that an error names.
const LISTED: usize = 5;

/// A callback for what happens during a download.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(Event<'_>);

/// A model or a data set in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The commit.
    pub revision: String,
    /// The folder with the commit's files.
    pub folder: PathBuf,
    /// The wanted files of a data set, sorted.
    pub files: Vec<PathBuf>,
}

/// The Hub, and the cache on this machine.
#[derive(Debug)]
pub struct Hub {
    http: Http,
    options: Options,
    /// The commits that this process uses. All uses of a revision have the same one, even if it moves meanwhile.
    chosen: Mutex<BTreeMap<String, String>>,
}

impl Hub {
    /// Creates a client. It connects to nothing yet.
    ///
    /// # Errors
    /// If the endpoint is no address, or if the token cannot be sent.
    pub fn new(options: Options) -> Result<Self, HubError> {
        Ok(Self {
            http: Http::new(&options)?,
            options,
            chosen: Mutex::default(),
        })
    }

    /// Returns whether the cache has some of the repository.
    pub fn knows(&self, name: &Name) -> bool {
        Repository::new(&self.options.cache, name).exists()
    }

    /// Finds a model, and downloads the parts that are missing. `pinned`: the commit to use, whatever the revision is
    /// now. Without one, a complete revision in the cache is used without asking the Hub whether there is a newer one.
    ///
    /// # Errors
    /// If the Hub has no such model or forbids access, if the model has no safetensors, if it is not complete here and
    /// connections are forbidden, or if the download or the cache fails.
    pub fn model(
        &self,
        name: &Name,
        pinned: Option<&str>,
        parts: &Parts<'_>,
        tell: Tell<'_>,
    ) -> Result<Found, HubError> {
        let mut snapshot = self.open(name, pinned);
        if let Some(snapshot) = &snapshot
            && snapshot.has_model(parts)
        {
            return Ok(snapshot.found(Vec::new()));
        }
        let mut current = self.current(name, snapshot.take(), tell)?;
        let all = current.paths();
        let small: Vec<&str> = all
            .iter()
            .map(String::as_str)
            .filter(|path| model::is_small(path))
            .collect();
        if !small.contains(&model::CONFIG) && !matches!(parts, Parts::Tokenizer) {
            let expected = "expected a model in the Hugging Face format";
            return Err(HubError::lacks(name, model::CONFIG, expected));
        }
        // Fail before the download of anything large.
        model::has_weights(name, &all, parts)?;
        current.fetch(&small, tell)?;
        let weights = model::weights(name, &current.folder(), &all, parts)?;
        current.fetch(
            &weights.iter().map(String::as_str).collect::<Vec<_>>(),
            tell,
        )?;
        current.keep()?;
        Ok(current.found(Vec::new()))
    }

    /// Finds files of a data set, and downloads those that are missing. The name's path chooses them: one file, those
    /// that match a glob, or all below a folder that are `data`. If some names in a folder say that they are for
    /// training (`train`), the others are left out.
    ///
    /// # Errors
    /// As for [`Self::model`], and if no file matches.
    pub fn dataset(
        &self,
        name: &Name,
        pinned: Option<&str>,
        data: &dyn Fn(&str) -> bool,
        tell: Tell<'_>,
    ) -> Result<Found, HubError> {
        let mut snapshot = self.open(name, pinned);
        if let Some(snapshot) = &snapshot {
            let listed = snapshot.listing.is_some();
            let wanted = chosen(&snapshot.paths(), name.path(), data)?;
            let complete = wanted.iter().all(|path| snapshot.has(path));
            // Without the Hub's list, nobody knows what is missing.
            if !wanted.is_empty() && complete && (listed || self.options.offline) {
                return Ok(snapshot.found(wanted));
            }
        }
        let mut current = self.current(name, snapshot.take(), tell)?;
        let all = current.paths();
        let wanted = chosen(&all, name.path(), data)?;
        if wanted.is_empty() {
            let shown: Vec<&str> = all.iter().map(String::as_str).take(LISTED).collect();
            let more = if all.len() > LISTED { ", …" } else { "" };
            let missing = match name.path() {
                Some(path) => format!("file that matches {path}"),
                None => "file of a known data format".to_owned(),
            };
            let expected = format!("it has {}{more}", shown.join(", "));
            return Err(HubError::lacks(name, missing, expected));
        }
        current.fetch(&wanted.iter().map(String::as_str).collect::<Vec<_>>(), tell)?;
        current.keep()?;
        Ok(current.found(wanted))
    }

    /// The snapshot to use as far as it is known here.
    fn open<'a>(&'a self, name: &'a Name, pinned: Option<&str>) -> Option<Snapshot<'a>> {
        let repository = Repository::new(&self.options.cache, name);
        let revision = name.revision();
        let fixed = pinned
            .or(is_commit(revision).then_some(revision))
            .map(str::to_owned);
        let fixed = fixed.or_else(|| self.lock().get(&name.key()).cloned());
        let is_fixed = fixed.is_some();
        let commit = fixed.or_else(|| repository.commit(revision))?;
        Some(Snapshot {
            hub: self,
            name,
            listing: repository.listing(&commit),
            repository,
            commit,
            is_fixed,
        })
    }

    /// The snapshot with the Hub's list of its files. If the commit is not fixed, asks for the current one.
    fn current<'a>(
        &'a self,
        name: &'a Name,
        known: Option<Snapshot<'a>>,
        tell: Tell<'_>,
    ) -> Result<Snapshot<'a>, HubError> {
        if self.options.offline {
            let missing = known.as_ref().map_or_else(String::new, Snapshot::missing);
            let fixed = known
                .filter(|known| known.is_fixed)
                .map(|known| known.commit);
            return Err(HubError::Offline {
                name: name.to_string(),
                cache: self.options.cache.clone(),
                what: missing,
                command: name.command(fixed.as_deref()),
            });
        }
        let fixed = match known {
            Some(snapshot) if snapshot.is_fixed && snapshot.listing.is_some() => {
                return Ok(snapshot);
            }
            Some(snapshot) if snapshot.is_fixed => Some(snapshot.commit),
            _ => None,
        };
        let revision = fixed.as_deref().unwrap_or(name.revision());
        let address = self.http.api(name, revision);
        let what = name.to_string();
        let answer: RevisionAnswer = self.http.persist(&what, tell, |_| {
            (false, self.http.json(name, revision, &address))
        })?;
        let commit = answer.sha.to_lowercase();
        if !is_commit(&commit) {
            let reason = format!("it names the commit {:?}", answer.sha);
            return Err(HubError::not_a_hub(&address, reason));
        }
        let repository = Repository::new(&self.options.cache, name);
        let listing = answer.listing(&address)?;
        repository.keep_listing(&commit, &listing)?;
        self.lock().insert(name.key(), commit.clone());
        Ok(Snapshot {
            hub: self,
            name,
            repository,
            commit,
            listing: Some(listing),
            is_fixed: true,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A commit of a repository, in part or whole in the cache.
struct Snapshot<'a> {
    hub: &'a Hub,
    name: &'a Name,
    repository: Repository,
    commit: String,
    /// The Hub's list of its files.
    listing: Option<Listing>,
    /// Whether no other commit may take its place.
    is_fixed: bool,
}

impl Snapshot<'_> {
    fn folder(&self) -> PathBuf {
        self.repository.snapshot(&self.commit)
    }

    fn has(&self, path: &str) -> bool {
        self.folder().join(path).is_file()
    }

    /// All files of the commit. Without the Hub's list, those that are here.
    fn paths(&self) -> Vec<String> {
        match &self.listing {
            Some(listing) => listing.files.iter().map(|file| file.path.clone()).collect(),
            None => self.repository.files(&self.commit),
        }
    }

    /// Whether these parts of a model are here.
    fn has_model(&self, parts: &Parts<'_>) -> bool {
        let all = self.paths();
        let mut small = all.iter().filter(|path| model::is_small(path));
        let needed: &[&str] = match (&self.listing, parts) {
            (Some(_), Parts::Tokenizer) => &[],
            (Some(_), _) => &[model::CONFIG],
            // Other programs download only what they need. These two they need for a whole model.
            (None, _) => &[model::CONFIG, model::TOKENIZER],
        };
        let weights = || model::weights(self.name, &self.folder(), &all, parts);
        small.all(|path| self.has(path))
            && needed.iter().all(|path| self.has(path))
            && weights().is_ok_and(|weights| weights.iter().all(|path| self.has(path)))
    }

    /// Says which file is missing, in parentheses, if the list is known.
    fn missing(&self) -> String {
        let paths = self
            .listing
            .as_ref()
            .map_or_else(Vec::new, |_| self.paths());
        let is_read = |path: &&String| match self.name.kind() {
            Kind::Model => model::is_small(path) || path.ends_with(".safetensors"),
            Kind::Dataset => true,
        };
        let mut missing = paths.iter().filter(|path| is_read(path) && !self.has(path));
        missing
            .next()
            .map_or_else(String::new, |first| format!(" (it lacks {first})"))
    }

    fn found(&self, files: Vec<String>) -> Found {
        let folder = self.folder();
        self.hub.lock().insert(self.name.key(), self.commit.clone());
        Found {
            revision: self.commit.clone(),
            files: files.iter().map(|file| folder.join(file)).collect(),
            folder,
        }
    }

    /// Downloads those of these files that are missing.
    fn fetch(&mut self, paths: &[&str], tell: Tell<'_>) -> Result<(), HubError> {
        let listing = self
            .listing
            .as_ref()
            .map_or(&[][..], |listing| &listing.files);
        let missing = listing
            .iter()
            .filter(|file| paths.contains(&&*file.path) && !self.has(&file.path));
        let mut jobs = Vec::new();
        for RemoteFile { path, content } in missing {
            let address = self.hub.http.file(self.name, &self.commit, path);
            let content = match content {
                Some(content) => content.clone(),
                None => self.hub.http.persist(path, tell, |_| {
                    (
                        false,
                        self.hub.http.content(self.name, &self.commit, &address),
                    )
                })?,
            };
            jobs.push((path, content));
        }
        let total = jobs.iter().map(|(_, content)| content.size).sum();
        let here = jobs
            .iter()
            .map(|(_, content)| self.arrived(&content.etag))
            .sum();
        self.room(total, here)?;
        let mut done = 0;
        for (file, content) in &jobs {
            let job = Job {
                http: &self.hub.http,
                repository: &self.repository,
                name: self.name,
                commit: &self.commit,
                file,
                content,
                before: (done, total),
            };
            job.run(tell)?;
            done += content.size;
        }
        Ok(())
    }

    /// Bytes of some contents that are here.
    fn arrived(&self, etag: &str) -> u64 {
        let paths = [self.repository.blob(etag), self.repository.incomplete(etag)];
        let mut sizes = paths
            .iter()
            .filter_map(|path| Some(path.metadata().ok()?.len()));
        sizes.next().unwrap_or(0)
    }

    /// Fails if the disk has too little room.
    fn room(&self, total: u64, here: u64) -> Result<(), HubError> {
        let cache = &self.hub.options.cache;
        let existing = cache.ancestors().find(|folder| folder.exists());
        let Ok(disk) = statvfs(existing.unwrap_or(Path::new("."))) else {
            return Ok(());
        };
        let (needed, free) = (
            total.saturating_sub(here),
            disk.f_bavail.saturating_mul(disk.f_frsize),
        );
        if needed <= free {
            return Ok(());
        }
        Err(HubError::DiskFull {
            name: self.name.to_string(),
            folder: cache.clone(),
            needed: needed - free,
            free,
        })
    }

    /// Records which commit the revision is.
    fn keep(&self) -> Result<(), HubError> {
        self.repository
            .set_commit(self.name.revision(), &self.commit)
    }
}

/// The files of a data set that its name chooses.
fn chosen(
    all: &[String],
    path: Option<&str>,
    data: &dyn Fn(&str) -> bool,
) -> Result<Vec<String>, HubError> {
    let select = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        all.iter().filter(|path| wanted(path)).cloned().collect()
    };
    let path = path.unwrap_or_default();
    if all.iter().any(|other| other == path) {
        return Ok(vec![path.to_owned()]);
    }
    let folder = if path.is_empty() {
        String::new()
    } else {
        format!("{path}/")
    };
    if all.iter().any(|other| other.starts_with(&folder)) {
        let below = select(&|path| path.starts_with(&folder) && data(path));
        let train: Vec<String> = below
            .iter()
            .filter(|path| is_for_training(path))
            .cloned()
            .collect();
        return Ok(if train.is_empty() { below } else { train });
    }
    let pattern = Pattern::new(path);
    let pattern = pattern.map_err(|_| HubError::bad_name(path, "a file, a folder or a glob"))?;
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::new()
    };
    Ok(select(&|path| pattern.matches_with(path, options)))
}

/// Whether a path says that the file is for training.
fn is_for_training(path: &str) -> bool {
    let mut words = path.split(|letter: char| !letter.is_ascii_alphabetic());
    words.any(|word| ["train", "training"].contains(&&*word.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_chooses_a_file_a_folder_or_what_matches() {
        let all = [
            "README.md",
            "a/test-0.parquet",
            "a/train-0.parquet",
            "a/train-1.parquet",
            "b/x/one.jsonl",
            "b/y.jsonl",
        ];
        let all = all.map(str::to_owned);
        let is_data = |path: &str| path.ends_with(".parquet") || path.ends_with(".jsonl");
        let of = |path: Option<&str>| chosen(&all, path, &is_data).unwrap();
        assert_eq!(of(None), ["a/train-0.parquet", "a/train-1.parquet"]);
        assert_eq!(of(Some("a")), of(None));
        assert_eq!(of(Some("b")), ["b/x/one.jsonl", "b/y.jsonl"]);
        assert_eq!(of(Some("README.md")), ["README.md"]);
        assert_eq!(of(Some("*/test*")), ["a/test-0.parquet"]);
        assert_eq!(of(Some("b/*.jsonl")), ["b/y.jsonl"]);
        assert_eq!(of(Some("b/**/*.jsonl")), ["b/x/one.jsonl", "b/y.jsonl"]);
        assert_eq!(of(Some("c")), [""; 0]);
        assert!(chosen(&all, Some("a[/***"), &is_data).is_err());
    }
}
