//! Downloads the contents of one file, in as many parts as the connection breaks it into.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    time::Duration,
};

use crate::{
    HubError, Name,
    cache::Repository,
    error::{Failure, disk},
    hash::Hasher,
    http::{Http, failure},
    listing::Content,
};

/// Bytes that are read at a time.
const PART: usize = 1 << 18;

/// What happens during a download.
#[derive(Debug)]
pub enum Event<'a> {
    /// More bytes have arrived.
    Transfer(Transfer<'a>),
    /// Another process downloads the file: waiting for it.
    Waits {
        /// The file.
        file: &'a str,
    },
    /// An attempt failed. Another one follows.
    Retries {
        /// The file or the request.
        what: &'a str,
        /// Why it failed.
        reason: &'a str,
        /// The time until the next attempt.
        wait: Duration,
    },
}

/// The state of a download, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Transfer<'a> {
    /// The repository.
    pub name: &'a str,
    /// The current file.
    pub file: &'a str,
    /// Bytes of the file that are here.
    pub done: u64,
    /// The file's size.
    pub total: u64,
    /// Bytes that are here of all files that were missing.
    pub all_done: u64,
    /// The size of all files that were missing.
    pub all_total: u64,
}

/// A file to download.
pub(crate) struct Job<'a> {
    pub(crate) http: &'a Http,
    pub(crate) repository: &'a Repository,
    pub(crate) name: &'a Name,
    pub(crate) commit: &'a str,
    pub(crate) file: &'a str,
    pub(crate) content: &'a Content,
    /// Bytes of earlier files, and of all files.
    pub(crate) before: (u64, u64),
}

/// The part of a file that has arrived, and its hash so far.
struct Partial {
    file: File,
    length: u64,
    hasher: Hasher,
    /// Whether an earlier process wrote some of it.
    is_old: bool,
}

impl Job<'_> {
    /// Downloads the file, unless another process does so meanwhile, and links it into the snapshot.
    pub(crate) fn run(&self, tell: &mut dyn FnMut(Event<'_>)) -> Result<(), HubError> {
        let (repository, etag) = (self.repository, &self.content.etag);
        let blob = repository.blob(etag);
        let waits = || tell(Event::Waits { file: self.file });
        let _lock = repository.lock(etag, waits)?;
        if !blob.exists() {
            self.download(&blob, tell)?;
        }
        repository.link(self.commit, self.file, etag)
    }

    fn download(&self, blob: &Path, tell: &mut dyn FnMut(Event<'_>)) -> Result<(), HubError> {
        let path = self.repository.incomplete(&self.content.etag);
        ddk_files::create_folder(ddk_files::parent(&path))?;
        let mut partial = self.open(&path)?;
        let address = self.http.file(self.name, self.commit, self.file);
        loop {
            self.http.persist(self.file, tell, |tell| {
                let before = partial.length;
                let outcome = self.attempt(&mut partial, (&path, &address), tell);
                (partial.length > before, outcome)
            })?;
            let is_old = partial.is_old;
            partial.file.sync_data().map_err(disk("write", &path))?;
            let found = partial.hasher.finish();
            let found = found.filter(|found| *found != self.content.etag.to_lowercase());
            let Some(found) = found else {
                return fs::rename(&path, blob).map_err(disk("rename", &path));
            };
            fs::remove_file(&path).map_err(disk("remove", &path))?;
            // What an earlier process left may be damaged. What arrived just now is what the server has.
            if !is_old {
                return Err(HubError::Damaged {
                    name: self.name.to_string(),
                    file: self.file.to_owned(),
                    found,
                    expected: self.content.etag.clone(),
                });
            }
            partial = self.open(&path)?;
        }
    }

    /// Opens what an earlier attempt left, and hashes it.
    fn open(&self, path: &Path) -> Result<Partial, HubError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path);
        let file = file.map_err(disk("write", path))?;
        let mut partial = Partial {
            file,
            length: 0,
            hasher: Hasher::new(&self.content.etag, self.content.size),
            is_old: false,
        };
        let mut buffer = vec![0; PART];
        loop {
            let count = partial.file.read(&mut buffer).map_err(disk("read", path))?;
            partial.length += count as u64;
            if count == 0 || partial.length > self.content.size {
                break;
            }
            partial.hasher.update(&buffer[..count]);
        }
        partial.is_old = partial.length > 0;
        if partial.length > self.content.size {
            self.restart(&mut partial).map_err(disk("write", path))?;
        }
        Ok(partial)
    }

    /// Forgets what has arrived.
    fn restart(&self, partial: &mut Partial) -> io::Result<()> {
        partial.file.set_len(0)?;
        partial.file.seek(SeekFrom::Start(0))?;
        partial.hasher = Hasher::new(&self.content.etag, self.content.size);
        (partial.length, partial.is_old) = (0, false);
        Ok(())
    }

    /// Asks for what is missing and writes it.
    fn attempt(
        &self,
        partial: &mut Partial,
        (path, address): (&Path, &str),
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Failure> {
        let size = self.content.size;
        self.tell(partial.length, tell);
        if partial.length == size {
            return Ok(());
        }
        let written = |error: io::Error| Failure::Final(self.unwritten(path, size, error));
        let mut answer = self
            .http
            .bytes(self.name, self.commit, address, partial.length)?;
        let start = match answer.status().as_u16() {
            206 => {
                let range = answer
                    .headers()
                    .get("Content-Range")
                    .and_then(|range| range.to_str().ok());
                let range = range.and_then(|range| range.strip_prefix("bytes "));
                range.and_then(|range| range.split_once('-')?.0.trim().parse().ok())
            }
            200 => Some(0),
            _ => None,
        };
        if start == Some(0) && partial.length > 0 {
            self.restart(partial).map_err(written)?;
        } else if start != Some(partial.length) {
            self.restart(partial).map_err(written)?;
            return Err(Failure::Passing(
                "the server sends another part of the file".to_owned(),
            ));
        }
        let mut body = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; PART];
        loop {
            let count = body
                .read(&mut buffer)
                .map_err(|error| failure(address, error.into()))?;
            if count == 0 {
                break;
            }
            if partial.length + count as u64 > size {
                let reason = format!("it sends more than the {size} bytes that it announced");
                return Err(Failure::Final(HubError::not_a_hub(address, reason)));
            }
            partial.file.write_all(&buffer[..count]).map_err(written)?;
            partial.hasher.update(&buffer[..count]);
            partial.length += count as u64;
            self.tell(partial.length, tell);
        }
        if partial.length < size {
            let (length, file) = (partial.length, self.file);
            return Err(Failure::Passing(format!(
                "{file} ended after {length} of {size} bytes"
            )));
        }
        Ok(())
    }

    fn unwritten(&self, path: &Path, size: u64, error: io::Error) -> HubError {
        if error.kind() != io::ErrorKind::StorageFull {
            return disk("write", path)(error);
        }
        let here = fs::metadata(path).map_or(0, |metadata| metadata.len());
        HubError::DiskFull {
            name: self.name.to_string(),
            folder: ddk_files::parent(path).to_owned(),
            needed: size.saturating_sub(here) + self.before.1.saturating_sub(self.before.0 + size),
            free: 0,
        }
    }

    fn tell(&self, done: u64, tell: &mut dyn FnMut(Event<'_>)) {
        tell(Event::Transfer(Transfer {
            name: self.name.id(),
            file: self.file,
            done,
            total: self.content.size,
            all_done: self.before.0 + done,
            all_total: self.before.1,
        }));
    }
}
