//! Keeps what a survey finds: in memory up to a limit, then on disk.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::CorpusError;

/// Bytes to write or read at a time.
const PIECE: usize = 1 << 18;

/// A temporary file that only this process sees. It has no name, so the system frees its space however the process
/// ends.
struct Nameless {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Nameless {
    /// `path`: the name that the file has for a moment.
    fn create(path: &Path) -> Result<Self, CorpusError> {
        ddk_files::remove(path)?;
        ddk_files::step("create", path);
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let file = options.open(path).map_err(CorpusError::io("write", path))?;
        ddk_files::remove(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length: 0,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), CorpusError> {
        let written = self.file.write_all_at(bytes, self.length);
        written.map_err(CorpusError::io("write", &self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn read(&self, bytes: &mut [u8], place: u64) -> Result<(), CorpusError> {
        let read = self.file.read_exact_at(bytes, place);
        read.map_err(CorpusError::io("read", &self.path))
    }
}

/// A usable document, as the first reading finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What entries are sorted by: the document's hash, or its place in a random order. 128 bits tell all documents
    /// apart.
    pub(crate) key: [u8; 16],
    /// The document's number in reading order.
    pub(crate) number: u64,
    pub(crate) bytes: u32,
}

impl Entry {
    /// Bytes of an entry on disk.
    const BYTES: usize = 28;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.key);
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    fn of_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let (mut key, mut number, mut length) = ([0; 16], [0; 8], [0; 4]);
        key.copy_from_slice(&bytes[..16]);
        number.copy_from_slice(&bytes[16..24]);
        length.copy_from_slice(&bytes[24..]);
        Self {
            key,
            number: u64::from_le_bytes(number),
            bytes: u32::from_le_bytes(length),
        }
    }

    /// Entries with the same first byte of the key form a partition.
    fn partition(&self) -> usize {
        usize::from(self.key[0])
    }
}

const PARTITIONS: usize = 256;

/// Entries to sort. If there are more than a limit, they go to disk in runs. Each run holds its entries by partition,
/// and one partition at a time comes back to memory.
pub(crate) struct Entries {
    path: PathBuf,
    limit: usize,
    recent: Vec<Entry>,
    spilled: Option<Nameless>,
    /// For each run, where its partitions begin in the file, and where the last one ends.
    runs: Vec<Vec<u64>>,
}

impl Entries {
    /// `path`: the name that a temporary file has for a moment. `limit`: the number of entries to hold in memory.
    pub(crate) fn new(path: &Path, limit: usize) -> Self {
        Self {
            path: path.to_owned(),
            limit: limit.max(1),
            recent: Vec::new(),
            spilled: None,
            runs: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, entry: Entry) -> Result<(), CorpusError> {
        if self.recent.len() >= self.limit {
            self.spill()?;
        }
        self.recent.push(entry);
        Ok(())
    }

    fn spill(&mut self) -> Result<(), CorpusError> {
        let file = match &mut self.spilled {
            Some(file) => file,
            none => none.insert(Nameless::create(&self.path)?),
        };
        self.recent.sort_unstable_by_key(Entry::partition);
        let mut counts = [0_u64; PARTITIONS];
        let mut piece = Vec::with_capacity(PIECE + Entry::BYTES);
        let mut place = file.length;
        for entry in &self.recent {
            counts[entry.partition()] += 1;
            piece.extend_from_slice(&entry.to_bytes());
            if piece.len() >= PIECE {
                file.append(&piece)?;
                piece.clear();
            }
        }
        file.append(&piece)?;
        let mut places = Vec::with_capacity(PARTITIONS + 1);
        for count in counts {
            places.push(place);
            place += count * Entry::BYTES as u64;
        }
        places.push(place);
        self.runs.push(places);
        self.recent.clear();
        Ok(())
    }

    /// Passes all entries to `each`, sorted by key. Entries with the same key are in reading order.
    pub(crate) fn in_order(
        mut self,
        mut each: impl FnMut(Entry) -> Result<(), CorpusError>,
    ) -> Result<(), CorpusError> {
        if self.spilled.is_some() {
            self.spill()?;
        }
        let mut pass = |partition: &mut Vec<Entry>| {
            partition.sort_unstable_by_key(|entry| (entry.key, entry.number));
            partition.drain(..).try_for_each(&mut each)
        };
        let mut entries = self.recent;
        let Some(file) = &self.spilled else {
            return pass(&mut entries);
        };
        // This memory has the size of a run, which may be much larger than a partition.
        entries.shrink_to(0);
        let mut bytes = Vec::new();
        for partition in 0..PARTITIONS {
            for run in &self.runs {
                let (start, end) = (run[partition], run[partition + 1]);
                bytes.resize((end - start) as usize, 0);
                file.read(&mut bytes, start)?;
                entries.extend(bytes.as_chunks().0.iter().map(Entry::of_bytes));
            }
            pass(&mut entries)?;
        }
        Ok(())
    }
}

/// Half of each document's hash, in reading order, to notice a change between two readings.
pub(crate) struct Checks {
    path: PathBuf,
    limit: usize,
    recent: Vec<u64>,
    spilled: Option<Nameless>,
}

impl Checks {
    /// Like [`Entries::new`].
    pub(crate) fn new(path: &Path, limit: usize) -> Self {
        Self {
            path: path.to_owned(),
            limit: limit.max(1),
            recent: Vec::new(),
            spilled: None,
        }
    }

    /// The part of a hash that is compared.
    pub(crate) fn of(hash: [u8; 16]) -> u64 {
        // The other half of the hash decides more, so this one is the more independent.
        (u128::from_be_bytes(hash) & u128::from(u64::MAX)) as u64
    }

    pub(crate) fn push(&mut self, hash: [u8; 16]) -> Result<(), CorpusError> {
        if self.recent.len() >= self.limit {
            let file = match &mut self.spilled {
                Some(file) => file,
                none => none.insert(Nameless::create(&self.path)?),
            };
            for piece in self.recent.chunks(PIECE / 8) {
                let bytes: Vec<u8> = piece.iter().flat_map(|check| check.to_le_bytes()).collect();
                file.append(&bytes)?;
            }
            self.recent.clear();
        }
        self.recent.push(Self::of(hash));
        Ok(())
    }

    /// Returns the checks in order.
    pub(crate) fn read(&self) -> ReadChecks<'_> {
        ReadChecks {
            checks: self,
            place: 0,
            piece: Vec::new().into_iter(),
        }
    }
}

/// Reads checks in order.
pub(crate) struct ReadChecks<'a> {
    checks: &'a Checks,
    /// The number of the first check after the piece.
    place: usize,
    piece: std::vec::IntoIter<u64>,
}

impl ReadChecks<'_> {
    pub(crate) fn next(&mut self) -> Result<Option<u64>, CorpusError> {
        if let Some(check) = self.piece.next() {
            return Ok(Some(check));
        }
        let spilled = self.checks.spilled.as_ref();
        let on_disk = spilled.map_or(0, |file| file.length as usize / 8);
        let piece: Vec<u64> = match spilled {
            Some(file) if self.place < on_disk => {
                let mut bytes = vec![0; 8 * (on_disk - self.place).min(PIECE / 8)];
                file.read(&mut bytes, 8 * self.place as u64)?;
                let (numbers, _) = bytes.as_chunks();
                numbers
                    .iter()
                    .map(|bytes| u64::from_le_bytes(*bytes))
                    .collect()
            }
            _ => {
                let rest = self.checks.recent.iter().skip(self.place - on_disk);
                rest.take(PIECE / 8).copied().collect()
            }
        };
        self.place += piece.len();
        self.piece = piece.into_iter();
        Ok(self.piece.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        // Each key occurs about three times.
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&(number % 1000 / 3).to_le_bytes()).as_bytes()[..16]);
        Entry {
            key,
            number,
            bytes: number as u32 * 7,
        }
    }

    #[test]
    fn entries_are_sorted_whether_they_fit_in_memory_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries");
        let mut expected: Vec<Entry> = (0..3000).map(entry).collect();
        expected.sort_by_key(|entry| (entry.key, entry.number));
        for limit in [1, 7, 1000, 2999, 3000, 5000] {
            let mut entries = Entries::new(&path, limit);
            // Not in the order of their numbers.
            for number in (1500..3000).chain(0..1500) {
                entries.push(entry(number)).unwrap();
            }
            assert_eq!(entries.spilled.is_some(), limit < 3000, "{limit}");
            let mut found = Vec::new();
            let collect = |entry| {
                found.push(entry);
                Ok(())
            };
            entries.in_order(collect).unwrap();
            assert!(found == expected, "{limit}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        let nothing = Entries::new(&path, 3);
        nothing.in_order(|entry| panic!("{entry:?}")).unwrap();
    }

    #[test]
    fn checks_come_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checks");
        let count = 2 * (PIECE as u64 / 8) + 77;
        let hash = |number: u64| u128::from(number * 3).to_be_bytes();
        for limit in [5000, count as usize - 1, count as usize] {
            let mut checks = Checks::new(&path, limit);
            for number in 0..count {
                checks.push(hash(number)).unwrap();
            }
            assert_eq!(checks.spilled.is_some(), limit < count as usize);
            let mut read = checks.read();
            for number in 0..count {
                assert_eq!(read.next().unwrap(), Some(number * 3));
            }
            assert_eq!(read.next().unwrap(), None);
            assert_eq!(read.next().unwrap(), None);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
