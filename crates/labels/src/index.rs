//! Knows where each label is, and learns what other processes add.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ddk_files::FileError;
use indexmap::{IndexMap, map::Entry};

use crate::{
    format::{Id, Location, RECORD, decode, header},
    report::{Report, Reports},
};

/// Two changes of a folder within this time may leave the same modification time.
const CLOCK_TICK: Duration = Duration::from_secs(1);

/// The labels of a set, as far as its index files have been read.
#[derive(Debug)]
pub(crate) struct Index {
    folder: PathBuf,
    labels: HashMap<Id, Location>,
    /// Further labels of the same sequences, from processes that labeled them at once or after damage.
    spare: HashMap<Id, Vec<Location>>,
    /// Segments by name; a segment's number is its place here.
    segments: IndexMap<String, Progress>,
    /// The folder's modification time when it was listed, if it shows each later change.
    listed: Option<SystemTime>,
}

/// How far the index file of a segment has been read.
#[derive(Debug)]
struct Progress {
    read: u64,
    /// Nothing more will come.
    finished: bool,
}

impl Index {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            labels: HashMap::new(),
            spare: HashMap::new(),
            segments: IndexMap::new(),
            listed: None,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.labels.len() as u64
    }

    pub(crate) fn get(&self, id: &Id) -> Option<Location> {
        self.labels.get(id).copied()
    }

    pub(crate) fn insert(&mut self, id: Id, location: Location) {
        if let Some(other) = self.labels.insert(id, location) {
            self.spare.entry(id).or_default().push(other);
        }
    }

    /// Forgets a label, so that the next one of the same sequence takes its place.
    pub(crate) fn forget(&mut self, id: &Id, location: &Location) {
        let spare = self.spare.get_mut(id);
        if self.labels.get(id) != Some(location) {
            if let Some(spare) = spare {
                spare.retain(|other| other != location);
            }
        } else if let Some(next) = spare.and_then(Vec::pop) {
            self.labels.insert(*id, next);
        } else {
            self.labels.remove(id);
        }
    }

    /// The path of a segment, without its extension.
    pub(crate) fn path(&self, segment: u32) -> PathBuf {
        let name = self.segments.get_index(segment as usize);
        self.folder.join(name.map_or("", |(name, _)| name))
    }

    /// Adds a segment that this process writes, and returns its number.
    pub(crate) fn add_own(&mut self, name: String) -> u32 {
        let own = Progress {
            read: 0,
            finished: true,
        };
        self.segments.insert_full(name, own).0 as u32
    }

    /// Reads what other processes have added. Costs a few system calls if that is nothing.
    pub(crate) fn refresh(&mut self, reports: &mut Reports) -> Result<(), FileError> {
        let modified = fs::metadata(&self.folder).and_then(|metadata| metadata.modified());
        let modified = modified.map_err(FileError::at("read", &self.folder))?;
        if self.listed != Some(modified) {
            let shows_changes = modified + CLOCK_TICK < SystemTime::now();
            let listed = self.list();
            listed.map_err(FileError::at("read", &self.folder))?;
            self.listed = shows_changes.then_some(modified);
        }
        for number in 0..self.segments.len() {
            if !self.segments[number].finished {
                let path = self.path(number as u32).with_extension("idx");
                match self.read_on(number, &path, reports) {
                    // Its writer could not use it and has removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.segments[number].finished = true
                    }
                    read => read.map_err(FileError::at("read", &path))?,
                }
            }
        }
        Ok(())
    }

    fn list(&mut self) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.strip_suffix(".idx"))
                    .map(str::to_owned),
            );
        }
        // By time of creation: of two labels of a sequence, the newer one more likely replaces a damaged one.
        names.sort_unstable();
        for name in names {
            if let Entry::Vacant(new) = self.segments.entry(name) {
                new.insert(Progress {
                    read: 0,
                    finished: false,
                });
            }
        }
        Ok(())
    }

    /// Reads the rest of an index file. Leaves a torn end for the next time.
    fn read_on(&mut self, number: usize, path: &Path, reports: &mut Reports) -> io::Result<()> {
        let start = self.segments[number].read;
        if fs::metadata(path)?.len() < start + RECORD as u64 {
            return Ok(());
        }
        // Before the read, so that the read finds the last record of a writer that is gone.
        let mut finished = writer_is_gone(&path.with_extension("seg"));
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let (mut read, mut record) = (start, [0; RECORD]);
        while fill(&mut reader, &mut record)? {
            if read == 0 && record == header() {
                read += RECORD as u64;
            } else if read > 0
                && let Some((id, location)) = decode(&record, number as u32)
            {
                self.insert(id, location);
                read += RECORD as u64;
            } else {
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest)?;
                // A crash of the machine may leave zeros where data was on its way to the disk.
                let zeros = record.iter().chain(&rest).all(|byte| *byte == 0);
                if rest.len() >= RECORD && !zeros {
                    reports.add(Report::damaged(path, read, "the checksum differs"));
                    finished = true;
                }
                break;
            }
        }
        self.segments[number] = Progress { read, finished };
        Ok(())
    }
}

/// Reads a whole record. Returns false if fewer bytes are left.
fn fill(reader: &mut impl Read, record: &mut [u8; RECORD]) -> io::Result<bool> {
    match reader.read_exact(record) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

/// A writer locks its segment before it creates the index. Without locks, it may still be there.
fn writer_is_gone(segment: &Path) -> bool {
    match File::open(segment) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::encode;
    use std::process::Command;

    const FOLDER: &str = "DDK_TEST_INDEX_FOLDER";
    const LABELS: u64 = 1_000_000;

    fn id(number: u64) -> Id {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    fn location(number: u64, segment: u32) -> Location {
        Location {
            offset: number,
            checksum: number,
            length: 1,
            segment,
        }
    }

    #[test]
    fn labels_of_a_sequence_take_turns_until_none_is_left() {
        let mut index = Index::new(Path::new("nowhere"));
        let [a, b, c] = [1, 2, 3].map(|segment| location(0, segment));
        for location in [a, b, c] {
            index.insert(id(0), location);
        }
        assert_eq!((index.get(&id(0)), index.len()), (Some(c), 1));
        index.forget(&id(0), &a);
        index.forget(&id(0), &c);
        assert_eq!(index.get(&id(0)), Some(b));
        // Another thread has found the same damage.
        index.forget(&id(0), &c);
        assert_eq!(index.get(&id(0)), Some(b));
        index.forget(&id(0), &b);
        assert_eq!((index.get(&id(0)), index.len()), (None, 0));
    }

    fn resident_bytes() -> u64 {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    /// The test below runs this as a child, because other tests would disturb it.
    #[test]
    fn child_that_reads_a_million_records() {
        if let Ok(folder) = std::env::var(FOLDER) {
            let before = resident_bytes();
            let mut index = Index::new(Path::new(&folder));
            index.refresh(&mut Reports::default()).unwrap();
            let grown = resident_bytes() - before;
            assert_eq!(index.len(), LABELS);
            assert_eq!(index.get(&id(77)), Some(location(77, 0)));
            println!("{grown} bytes for {LABELS} labels");
            assert!((50 << 20..150_000_000).contains(&grown), "{grown} bytes");
        }
    }

    #[test]
    fn a_million_labels_need_less_than_150_mb() {
        let folder = tempfile::tempdir().unwrap();
        let records = (0..LABELS).flat_map(|number| encode(&id(number), &location(number, 0)));
        let bytes: Vec<u8> = header().into_iter().chain(records).collect();
        fs::write(folder.path().join("labels-0.idx"), bytes).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "index::tests::child_that_reads_a_million_records",
                "--nocapture",
            ])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && output.contains("bytes for 1000000 labels"),
            "{child:?}"
        );
        print!("{output}");
    }
}
