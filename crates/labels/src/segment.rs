//! Writes a segment and its index.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use ddk_files::{FileError, step, sync_folder};

use crate::format::{Id, Location, RECORD, encode, header};

/// A segment that this process writes. No other process ever does.
#[derive(Debug)]
pub(crate) struct Segment {
    number: u32,
    data: Output,
    index: Output,
    /// Labels that are written and not yet in the index.
    pending: Vec<(Id, Location)>,
    /// The folder's entries for the two files are durable.
    names_are_durable: bool,
}

/// A file and its length, up to which everything is whole.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: File,
    end: u64,
}

impl Output {
    fn create(path: PathBuf) -> Result<Self, FileError> {
        step("create", &path);
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(FileError::at("create", &path))?;
        Ok(Self { path, file, end: 0 })
    }

    /// Writes at the end. A failure leaves the end where it was.
    fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        step("append", &self.path);
        let written = self.file.write_all_at(bytes, self.end);
        written.map_err(FileError::at("write", &self.path))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), FileError> {
        step("sync", &self.path);
        let synced = self.file.sync_data();
        synced.map_err(FileError::at("sync", &self.path))
    }

    /// Gives the space of a half-written piece back.
    fn cut(&self) {
        step("cut", &self.path);
        // If this fails, the piece is in nobody's way.
        let _ = self.file.set_len(self.end);
    }
}

impl Segment {
    /// Creates the files of a new segment. `number` learns the segment's name and returns its number.
    pub(crate) fn create(
        folder: &Path,
        number: impl FnOnce(String) -> u32,
    ) -> Result<Self, FileError> {
        let (name, data) = loop {
            let time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let name = format!("labels-{:014x}", time.as_micros());
            match Output::create(folder.join(&name).with_extension("seg")) {
                // Another process has created one in the same microsecond.
                Err(error) if error.source.kind() == ErrorKind::AlreadyExists => {}
                created => break (name, created?),
            }
        };
        // A file system without locks makes readers look for additions more often, nothing else.
        let _ = data.file.try_lock();
        let index_path = data.path.with_extension("idx");
        let begun = Output::create(index_path.clone()).and_then(|index| {
            let mut segment = Self {
                number: number(name),
                data,
                index,
                pending: Vec::new(),
                names_are_durable: false,
            };
            segment.data.append(&header())?;
            segment.index.append(&header())?;
            Ok(segment)
        });
        if begun.is_err() {
            remove_both(&index_path);
        }
        begun
    }

    /// Writes a label, which is pending until [`Self::flush`].
    pub(crate) fn append(
        &mut self,
        id: &Id,
        label: &[u8],
        checksum: u64,
    ) -> Result<Location, FileError> {
        let location = Location {
            offset: self.data.end,
            checksum,
            length: label.len() as u32,
            segment: self.number,
        };
        let written = self.data.append(label);
        if written.is_err() {
            self.data.cut();
        }
        written?;
        self.pending.push((*id, location));
        Ok(location)
    }

    /// Makes the pending labels durable, then their records.
    pub(crate) fn flush(&mut self) -> Result<(), FileError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.data.sync()?;
        if !self.names_are_durable {
            sync_folder(ddk_files::parent(&self.data.path))?;
            self.names_are_durable = true;
        }
        let records: Vec<u8> = self
            .pending
            .iter()
            .flat_map(|(id, location)| encode(id, location))
            .collect();
        let end = self.index.end;
        let written = self.index.append(&records).and_then(|()| self.index.sync());
        if written.is_err() {
            self.index.end = end;
            self.index.cut();
        }
        written?;
        self.pending.clear();
        Ok(())
    }

    /// Gives the segment up after a failure, with the space of its labels that are in no index. Returns those.
    pub(crate) fn discard(mut self) -> Vec<(Id, Location)> {
        if self.index.end <= RECORD as u64 {
            remove_both(&self.index.path);
        } else if let Some((_, first)) = self.pending.first() {
            self.data.end = first.offset;
            self.data.cut();
        }
        self.pending
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.data.end
    }

    /// Number and bytes of the pending labels.
    pub(crate) fn pending(&self) -> (usize, u64) {
        let lengths = self
            .pending
            .iter()
            .map(|(_, location)| u64::from(location.length));
        (self.pending.len(), lengths.sum())
    }
}

/// Removes an index without records, and its segment. If this fails, they are in nobody's way.
fn remove_both(index: &Path) {
    let _ = ddk_files::remove(index);
    let _ = ddk_files::remove(&index.with_extension("seg"));
}

/// Whether the system has no space for this file.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
