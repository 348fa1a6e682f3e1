//! Writes the labels of a set, until the disk or the limit ends that.

use std::sync::atomic::Ordering::Relaxed;

use ddk_files::FileError;

use crate::{
    LabelError, LabelSet, Report,
    format::{self, Id, RECORD},
    segment::{Segment, is_full},
};

/// Sizes after which a writer acts on its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Starts a new segment after this many bytes.
    pub(crate) segment: u64,
    /// Flushes after this many bytes, ...
    pub(crate) flush_bytes: u64,
    /// ... or after this many labels.
    pub(crate) flush_labels: usize,
}

const SIZES: Sizes = Sizes {
    segment: 1 << 30,
    flush_bytes: 64 << 20,
    flush_labels: 256,
};

/// What became of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is in the set. It survives a crash of the machine after the next flush.
    Stored,
    /// The set had a label of this sequence, and keeps that.
    AlreadyThere,
    /// The cache's folder has reached its limit, so this process stores no more.
    Full,
    /// The system has no space, so this process stores no more.
    DiskFull,
}

/// What a set that is open for writing has.
#[derive(Debug)]
pub(crate) struct Writer {
    segment: Option<Segment>,
    sizes: Sizes,
    limit: Option<u64>,
    /// Bytes of all sets: at opening, and what this process has added since.
    used: u64,
    stopped: Option<Put>,
}

impl Writer {
    pub(crate) fn new(limit: Option<u64>, used: u64) -> Self {
        Self {
            segment: None,
            sizes: SIZES,
            limit,
            used,
            stopped: None,
        }
    }
}

impl LabelSet {
    #[cfg(test)]
    pub(crate) fn with_sizes(self, sizes: Sizes) -> Self {
        self.writer.as_ref().unwrap().lock().sizes = sizes;
        self
    }

    /// Stores the label of a sequence, unless the set has one.
    ///
    /// # Errors
    /// If the set is open for reading only, or a write fails for another reason than lack of space.
    pub fn put(&self, id: &[u8; 32], label: &[u8]) -> Result<Put, LabelError> {
        let writer = self.writer()?;
        if self.index.read().get(id).is_some() {
            return Ok(Put::AlreadyThere);
        }
        if let Some(stopped) = writer.lock().stopped {
            return Ok(stopped);
        }
        if self.contains(id) {
            return Ok(Put::AlreadyThere);
        }
        if u32::try_from(label.len()).is_err() {
            return Err(LabelError::TooLong { bytes: label.len() });
        }
        let checksum = format::checksum(id, label);
        let writer = &mut *writer.lock();
        // Another thread may have been faster.
        if self.index.read().get(id).is_some() {
            return Ok(Put::AlreadyThere);
        }
        if let Some(stopped) = writer.stopped {
            return Ok(stopped);
        }
        // A new segment and its index have headers as long as a record.
        let records = if writer.segment.is_none() { 3 } else { 1 };
        let bytes = (label.len() + records * RECORD) as u64;
        if let Some(limit) = writer.limit
            && writer.used + bytes > limit
        {
            return self.stop(writer, Put::Full, Report::Full { limit });
        }
        match self.append(writer, id, label, checksum) {
            Err(error) if is_full(&error.source) => return self.stop_disk_full(writer),
            appended => appended?,
        }
        writer.used += bytes;
        self.stored.fetch_add(1, Relaxed);
        self.flush_if_due(writer)?;
        Ok(writer.stopped.unwrap_or(Put::Stored))
    }

    /// Makes all stored labels durable, and shows them to other processes.
    ///
    /// # Errors
    /// If a write fails for another reason than lack of space. The labels since the last flush are then forgotten.
    pub fn flush(&self) -> Result<(), LabelError> {
        match &self.writer {
            Some(writer) => self.flush_writer(&mut writer.lock()),
            None => Ok(()),
        }
    }

    fn append(
        &self,
        writer: &mut Writer,
        id: &Id,
        label: &[u8],
        checksum: u64,
    ) -> Result<(), FileError> {
        let segment = match &mut writer.segment {
            Some(segment) => segment,
            none => {
                // The lock keeps other threads from finding the new files in the folder before the index has them.
                let mut index = self.index.write();
                none.insert(Segment::create(&self.folder, |name| index.add_own(name))?)
            }
        };
        let location = segment.append(id, label, checksum)?;
        self.index.write().insert(*id, location);
        Ok(())
    }

    fn flush_if_due(&self, writer: &mut Writer) -> Result<(), LabelError> {
        let (sizes, segment) = (writer.sizes, writer.segment.as_ref());
        let is_long = segment.is_some_and(|segment| segment.bytes() >= sizes.segment);
        let (labels, bytes) = segment.map_or((0, 0), Segment::pending);
        if is_long || labels >= sizes.flush_labels || bytes >= sizes.flush_bytes {
            self.flush_writer(writer)?;
        }
        if is_long {
            writer.segment = None;
        }
        Ok(())
    }

    /// Flushes. Labels that cannot become durable are forgotten.
    fn flush_writer(&self, writer: &mut Writer) -> Result<(), LabelError> {
        let flushed = writer.segment.as_mut().map_or(Ok(()), Segment::flush);
        let Err(error) = flushed else {
            return Ok(());
        };
        if let Some(segment) = writer.segment.take() {
            let mut index = self.index.write();
            for (id, location) in segment.discard() {
                index.forget(&id, &location);
            }
        }
        if is_full(&error.source) {
            self.stop_disk_full(writer)?;
            return Ok(());
        }
        Err(error.into())
    }

    pub(crate) fn stop_disk_full(&self, writer: &mut Writer) -> Result<Put, LabelError> {
        let folder = self.folder.clone();
        self.stop(writer, Put::DiskFull, Report::DiskFull { folder })
    }

    /// Ends writing for this process. What is stored so far stays.
    fn stop(&self, writer: &mut Writer, put: Put, report: Report) -> Result<Put, LabelError> {
        writer.stopped = Some(put);
        self.reports.lock().add(report);
        self.flush_writer(writer)?;
        Ok(put)
    }
}

impl Drop for LabelSet {
    fn drop(&mut self) {
        // A failure costs labels, which the next run makes again.
        let _ = self.flush();
    }
}
