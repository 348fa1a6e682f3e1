//! The cache's layout: `refs/REVISION`, `snapshots/COMMIT/FILE`, `blobs/ETAG`, and locks beside all repositories.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{HubError, Name, error::disk, listing::Listing};

/// Whether a revision is a commit, which never moves.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A repository's part of the cache.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub(crate) fn new(cache: &Path, name: &Name) -> Self {
        let own = format!("{}--{}", name.kind().plural(), name.id().replace('/', "--"));
        Self {
            folder: cache.join(&own),
            locks: cache.join(".locks").join(own),
        }
    }

    pub(crate) fn exists(&self) -> bool {
        self.folder.join("snapshots").exists()
    }

    /// The commit of a branch or tag, as of the last download.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Records the commit of a branch or tag.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        self.write(&self.folder.join("refs").join(revision), commit.as_bytes())
    }

    /// The folder with the files of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The contents with this hash.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The part of the contents that has arrived.
    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Makes a file of a commit a link to its contents.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        ddk_files::create_folder(ddk_files::parent(&path))?;
        let up = "../".repeat(2 + file.matches('/').count());
        let temporary = path.with_added_extension(format!("link-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        symlink(format!("{up}blobs/{etag}"), &temporary).map_err(disk("link", &path))?;
        fs::rename(&temporary, &path).map_err(disk("link", &path))
    }

    /// Waits until no other process downloads these contents, and keeps others from it. Calls `waits` if another one
    /// does. The lock is the one of the Python library.
    pub(crate) fn lock(&self, etag: &str, waits: impl FnOnce()) -> Result<File, HubError> {
        ddk_files::create_folder(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let options = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = options.map_err(disk("create", &path))?;
        if file.try_lock().is_err() {
            waits();
            file.lock().map_err(disk("lock", &path))?;
        }
        Ok(file)
    }

    /// What the Hub said is in a commit, if DDK has asked before.
    pub(crate) fn listing(&self, commit: &str) -> Option<Listing> {
        let text = fs::read(self.listing_file(commit)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(crate) fn keep_listing(&self, commit: &str, listing: &Listing) -> Result<(), HubError> {
        let text = serde_json::to_vec(listing).unwrap_or_default();
        self.write(&self.listing_file(commit), &text)
    }

    /// Replaces a small file, one process at a time.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), HubError> {
        let _lock = self.lock("ddk", || {})?;
        ddk_files::create_folder(ddk_files::parent(path))?;
        Ok(ddk_files::write_atomically(path, bytes)?)
    }

    fn listing_file(&self, commit: &str) -> PathBuf {
        self.folder.join(".ddk").join(format!("{commit}.json"))
    }

    /// The files of a commit that are here, by their paths within it, sorted.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let (root, mut found) = (self.snapshot(commit), Vec::new());
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file()
                    && let Ok(inside) = path.strip_prefix(&root)
                {
                    found.extend(inside.to_str().map(str::to_owned));
                }
            }
        }
        found.sort();
        found
    }
}
