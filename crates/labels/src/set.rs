//! Opens a set, and reads its labels and records.

use std::{
    collections::HashMap,
    fs::File,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ddk_files::FileError;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use crate::{
    LabelError, Provenance, Report, folder,
    format::{self, Id, Location},
    index::Index,
    records,
    report::Reports,
    segment::is_full,
    writer::Writer,
};

/// Maximum number of segments that a set keeps open for reading. A cache of a terabyte has a thousand.
const OPEN_FILES: usize = 128;

/// Counts of a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Number of sequences with a label, as far as this process knows.
    pub labels: u64,
    /// Size of the set on disk.
    pub bytes: u64,
    /// How often [`LabelSet::get`] found a label.
    pub hits: u64,
    /// How often it found none.
    pub misses: u64,
    /// Number of labels that this process has stored.
    pub stored: u64,
}

/// A folder of labels with the same provenance. Any number of threads and processes may use it at once.
///
/// A put waits for the disk after every 64 MiB or 256 labels; a get never does. Dropping a set flushes it.
#[derive(Debug)]
pub struct LabelSet {
    pub(crate) folder: PathBuf,
    /// `None` if the set is open for reading only. Locked before the others.
    pub(crate) writer: Option<Mutex<Writer>>,
    pub(crate) index: RwLock<Index>,
    files: Mutex<HashMap<u32, Arc<File>>>,
    pub(crate) reports: Mutex<Reports>,
    hits: AtomicU64,
    misses: AtomicU64,
    pub(crate) stored: AtomicU64,
    /// Keeps other processes from removing the set.
    _in_use: File,
}

impl LabelSet {
    /// Opens a set for reading and writing, and creates it if it is absent. `max_bytes` limits the whole cache `dir`,
    /// with all its sets. Other processes that write at the same time count for themselves.
    ///
    /// # Errors
    /// If the folder is read-only or cannot be read, or if its provenance has been changed.
    pub fn open(
        dir: &Path,
        slug: &str,
        provenance: &Provenance,
        max_bytes: Option<u64>,
    ) -> Result<Self, LabelError> {
        let folder = dir.join(provenance.name(slug));
        let in_use = folder::open(dir, &folder, provenance)?;
        let used = max_bytes.map_or(0, |_| folder::size(dir));
        let writer = Writer::new(max_bytes, used);
        Self::new(folder, in_use, Some(Mutex::new(writer)))
    }

    /// Opens a set for reading. Returns `None` if it is absent. Changes nothing on disk.
    ///
    /// # Errors
    /// If the folder cannot be read, or if its provenance has been changed.
    pub fn find(
        dir: &Path,
        slug: &str,
        provenance: &Provenance,
    ) -> Result<Option<Self>, LabelError> {
        let folder = dir.join(provenance.name(slug));
        let in_use = folder::find(&folder, provenance)?;
        in_use
            .map(|in_use| Self::new(folder, in_use, None))
            .transpose()
    }

    fn new(
        folder: PathBuf,
        in_use: File,
        writer: Option<Mutex<Writer>>,
    ) -> Result<Self, LabelError> {
        let mut reports = Reports::default();
        let mut index = Index::new(&folder);
        index.refresh(&mut reports)?;
        Ok(Self {
            folder,
            writer,
            index: RwLock::new(index),
            files: Mutex::default(),
            reports: Mutex::new(reports),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            _in_use: in_use,
        })
    }

    /// The set's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the set has a label of this sequence. Does not read the label.
    pub fn contains(&self, id: &[u8; 32]) -> bool {
        self.locate(id).is_ok_and(|location| location.is_some())
    }

    /// Reads and verifies the label of a sequence. Returns `None` if the set has none that is whole.
    ///
    /// # Errors
    /// If a file exists and cannot be opened.
    pub fn get(&self, id: &[u8; 32]) -> Result<Option<Vec<u8>>, LabelError> {
        while let Some(location) = self.locate(id)? {
            if let Some(label) = self.read(id, &location)? {
                self.hits.fetch_add(1, Relaxed);
                return Ok(Some(label));
            }
        }
        self.misses.fetch_add(1, Relaxed);
        Ok(None)
    }

    /// Reads a named value. Returns `None` if the set has none, or if it is damaged.
    ///
    /// # Errors
    /// If the key is not fit for a file name, or the file exists and cannot be read.
    pub fn record(&self, key: &str) -> Result<Option<Value>, LabelError> {
        let path = records::path(&self.folder, key)?;
        match records::read(&path) {
            Err(error) if error.source.kind() == ErrorKind::InvalidData => {
                self.reports
                    .lock()
                    .add(Report::damaged(&path, 0, "the checksum differs"));
                Ok(None)
            }
            read => Ok(read?),
        }
    }

    /// Keeps a named value, and replaces an older one. On a full disk, the set keeps the older one or none.
    ///
    /// # Errors
    /// If the set is open for reading only, the key is not fit for a file name, or the file cannot be written for
    /// another reason than lack of space.
    pub fn keep_record(&self, key: &str, value: &Value) -> Result<(), LabelError> {
        let mut writer = self.writer()?.lock();
        let path = records::path(&self.folder, key)?;
        // Processes that write the same record take turns.
        let _alone = folder::lock_cache(ddk_files::parent(&self.folder))?;
        match records::write(&path, value) {
            Err(error) if is_full(&error.source) => self.stop_disk_full(&mut writer).map(|_| ()),
            written => Ok(written?),
        }
    }

    /// Counts labels, bytes, and the calls of this process.
    pub fn stats(&self) -> Stats {
        Stats {
            labels: self.index.read().len(),
            bytes: folder::size(&self.folder),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            stored: self.stored.load(Relaxed),
        }
    }

    /// Takes the reports since the last call. Each thing is reported once.
    pub fn take_reports(&self) -> Vec<Report> {
        self.reports.lock().take()
    }

    pub(crate) fn writer(&self) -> Result<&Mutex<Writer>, LabelError> {
        let folder = &self.folder;
        self.writer.as_ref().ok_or_else(|| LabelError::ReadOnly {
            folder: folder.clone(),
        })
    }

    /// Finds a label, if necessary among those that other processes have added.
    fn locate(&self, id: &Id) -> Result<Option<Location>, FileError> {
        let known = self.index.read().get(id);
        if known.is_some() {
            return Ok(known);
        }
        let mut index = self.index.write();
        index.refresh(&mut self.reports.lock())?;
        Ok(index.get(id))
    }

    /// Reads a label. Forgets and reports one that is damaged.
    fn read(&self, id: &Id, location: &Location) -> Result<Option<Vec<u8>>, FileError> {
        let path = self
            .index
            .read()
            .path(location.segment)
            .with_extension("seg");
        let read = match self.open_segment(location.segment, &path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(FileError::at("open", &path)(error));
            }
            opened => opened.and_then(|file| format::read(&file, id, location)),
        };
        if let Err(error) = &read {
            self.index.write().forget(id, location);
            let report = Report::damaged(&path, location.offset, error);
            self.reports.lock().add(report);
        }
        Ok(read.ok())
    }

    fn open_segment(&self, number: u32, path: &Path) -> std::io::Result<Arc<File>> {
        let mut files = self.files.lock();
        if let Some(file) = files.get(&number) {
            return Ok(file.clone());
        }
        if files.len() >= OPEN_FILES {
            files.clear();
        }
        let file = Arc::new(File::open(path)?);
        files.insert(number, file.clone());
        Ok(file)
    }
}
