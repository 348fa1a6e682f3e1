//! Reads a file that another process appends to: only what is new, or from the start again if the file was cut back.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::PathBuf,
};

/// Number of bytes before the current offset that must be unchanged.
const REMEMBERED: usize = 256;

/// A JSON Lines file and how far it has been read.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    offset: u64,
    /// The last bytes before `offset`. A run that resumes from a checkpoint cuts its files back, and may write past
    /// the old end before the next read.
    before: Vec<u8>,
}

/// What a read finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// The file is not the same as before: discard everything read from it.
    Anew,
    /// The next line, without its line break.
    Line(&'a [u8]),
}

impl Tail {
    /// Starts at the beginning of a file.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            offset: 0,
            before: Vec::new(),
        }
    }

    /// Passes each new complete line to `each`, in order. A missing file counts as empty. A last line without a line
    /// break is left for the next read.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
    pub fn read(&mut self, mut each: impl FnMut(Found<'_>)) -> io::Result<()> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::open("/dev/null")?,
            opened => opened?,
        };
        if !self.follows_on(&mut file)? {
            (self.offset, self.before) = (0, Vec::new());
            each(Found::Anew);
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
                return Ok(());
            }
            self.offset += line.len() as u64;
            self.before.extend_from_slice(&line);
            let extra = self.before.len().saturating_sub(REMEMBERED);
            self.before.drain(..extra);
            line.pop();
            if !line.is_empty() {
                each(Found::Line(&line));
            }
        }
    }

    fn follows_on(&self, file: &mut File) -> io::Result<bool> {
        if file.metadata()?.len() < self.offset {
            return Ok(false);
        }
        let mut there = vec![0; self.before.len()];
        file.seek(SeekFrom::Start(self.offset - there.len() as u64))?;
        file.read_exact(&mut there)?;
        Ok(there == self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Returns what is found, as text.
    fn found(tail: &mut Tail) -> Vec<String> {
        let mut all = Vec::new();
        let each = |found: Found<'_>| {
            all.push(match found {
                Found::Anew => "(anew)".to_owned(),
                Found::Line(line) => String::from_utf8_lossy(line).into_owned(),
            });
        };
        tail.read(each).unwrap();
        all
    }

    #[test]
    fn only_new_whole_lines_are_given_and_a_cut_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let mut tail = Tail::new(path.clone());
        assert!(found(&mut tail).is_empty());
        fs::write(&path, "one\ntwo\nthr").unwrap();
        assert_eq!(found(&mut tail), ["one", "two"]);
        fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(found(&mut tail), ["three"]);
        assert!(found(&mut tail).is_empty());
        // Cut back.
        fs::write(&path, "one\n").unwrap();
        assert_eq!(found(&mut tail), ["(anew)", "one"]);
        // Cut back, and longer than before at the next read.
        fs::write(&path, "uno\ndos\ntres\n").unwrap();
        assert_eq!(found(&mut tail), ["(anew)", "uno", "dos", "tres"]);
        // Gone.
        fs::remove_file(&path).unwrap();
        assert_eq!(found(&mut tail), ["(anew)"]);
        assert!(found(&mut tail).is_empty());
    }

    #[test]
    fn a_file_that_stays_as_it_was_up_to_the_place_reached_is_read_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let mut text: String = (0..500).map(|step| format!("step {step}\n")).collect();
        fs::write(&path, &text).unwrap();
        let mut tail = Tail::new(path.clone());
        assert_eq!(found(&mut tail).len(), 500);
        text.push_str("step 500\n");
        fs::write(&path, &text).unwrap();
        assert_eq!(found(&mut tail), ["step 500"]);
    }
}
