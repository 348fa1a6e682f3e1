//! Finds the last save that a run's events record, and sets the run's files aside to start it over.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    RunFileError, RunFolder,
    folder::LOCK,
    journal::{EVENTS, record_event},
    read,
    records::EventKind,
};

/// Files that stay when everything else is set aside: the lock, the events, the log.
const KEPT: [&str; 3] = [LOCK, EVENTS, "run.log"];
/// Files to set aside last, in this order: without `config.toml`, the folder holds no run.
const LAST: [&str; 3] = ["checkpoints", "config.toml", "inputs.json"];

/// Returns the step of the last save in `events.jsonl` since the run was last started over.
///
/// # Errors
/// If `events.jsonl` cannot be read, or if it is missing although `run.jsonl` has steps.
pub fn recorded_save(folder: &Path) -> Result<Option<u64>, RunFileError> {
    let (events, steps) = (folder.join(EVENTS), folder.join("run.jsonl"));
    if !events.exists() {
        let has_steps = fs::metadata(&steps).is_ok_and(|metadata| metadata.len() > 0);
        let missing = RunFileError::io("read", &events)(io::ErrorKind::NotFound.into());
        return if has_steps { Err(missing) } else { Ok(None) };
    }
    let events = read::events(folder)?;
    let since = events
        .iter()
        .rposition(|event| event.kind == EventKind::StartedOver);
    let counts = &events[since.map_or(0, |index| index + 1)..];
    let last = counts.iter().rfind(|event| event.kind == EventKind::Saved);
    Ok(last.map(|event| event.step))
}

impl RunFolder {
    /// Returns the names in a run's folder that starting over would set aside; empty if there is no folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn made(path: &Path) -> Result<Vec<String>, RunFileError> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let is_aside = |name: &str| {
            let number = name.strip_prefix("aside-");
            number.is_some_and(|number| number.parse::<u64>().is_ok())
        };
        let mut names = read::names(path)?;
        names.retain(|name| !KEPT.contains(&name.as_str()) && !is_aside(name));
        Ok(names)
    }

    /// Moves everything that the run has made into a folder `aside-1`, `aside-2`, … within the run's folder, so that
    /// the run starts over at step 0. `events.jsonl` keeps its lines and records this. If interrupted, call it again.
    ///
    /// # Errors
    /// If the run's folder cannot be read, or if a file cannot be written or moved.
    pub fn start_over(&self) -> Result<PathBuf, RunFileError> {
        let path = self.path();
        let aside = (1..)
            .map(|number| path.join(format!("aside-{number}")))
            .find(|aside| !aside.exists())
            .unwrap_or_else(|| path.join("aside"));
        let mut names = Self::made(path)?;
        names.sort_by_key(|name| LAST.iter().position(|last| last == name));
        fs::create_dir(&aside).map_err(RunFileError::io("create", &aside))?;
        // Record this first. Otherwise, a run with its checkpoints set aside would look like one that has lost them.
        let message = format!("at step 0; the old files are in {}", aside.display());
        record_event(path, 0, EventKind::StartedOver, &message)?;
        for name in names {
            ddk_files::rename(&path.join(&name), &aside.join(name))?;
        }
        ddk_files::sync_folder(&aside)?;
        ddk_files::sync_folder(path)?;
        Ok(aside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(files: &[&str]) -> (tempfile::TempDir, RunFolder) {
        let scratch = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&scratch.path().join("run")).unwrap();
        for file in files {
            fs::write(folder.path().join(file), "").unwrap();
        }
        (scratch, folder)
    }

    #[test]
    fn the_last_save_since_the_last_start_over_is_recorded() {
        let (_scratch, folder) = run(&[]);
        let (path, saved) = (folder.path(), || recorded_save(folder.path()).unwrap());
        assert_eq!(saved(), None);
        record_event(path, 0, EventKind::Started, "process 1").unwrap();
        assert_eq!(saved(), None);
        record_event(path, 3, EventKind::Saved, "9 bytes").unwrap();
        record_event(path, 6, EventKind::Saved, "9 bytes").unwrap();
        record_event(path, 9, EventKind::SaveFailed, "disk full").unwrap();
        assert_eq!(saved(), Some(6));
        folder.start_over().unwrap();
        assert_eq!(saved(), None);
        record_event(path, 3, EventKind::Saved, "9 bytes").unwrap();
        assert_eq!(saved(), Some(3));
    }

    #[test]
    fn steps_without_events_are_no_new_run() {
        let (_scratch, folder) = run(&["run.jsonl"]);
        assert_eq!(
            recorded_save(folder.path()).unwrap(),
            None,
            "no step was made"
        );
        fs::write(folder.path().join("run.jsonl"), "{}\n").unwrap();
        let error = recorded_save(folder.path()).unwrap_err().to_string();
        assert!(error.contains("events.jsonl"), "{error}");
    }

    #[test]
    fn all_that_a_run_has_made_is_set_aside_and_nothing_is_lost() {
        let (_scratch, folder) = run(&["config.toml", "inputs.json", "run.jsonl", "run.log"]);
        fs::create_dir_all(folder.path().join("checkpoints/step-00000003")).unwrap();
        let names = |path: &Path| {
            let names = fs::read_dir(path).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let aside = folder.start_over().unwrap();
        assert_eq!(names(folder.path()), ["aside-1", EVENTS, LOCK, "run.log"]);
        assert_eq!(
            names(&aside),
            ["checkpoints", "config.toml", "inputs.json", "run.jsonl"]
        );
        assert!(aside.join("checkpoints/step-00000003").exists());
        fs::write(folder.path().join("run.jsonl"), "").unwrap();
        let second = folder.start_over().unwrap();
        assert_eq!(names(&second), ["run.jsonl"]);
        assert_eq!(read::events(folder.path()).unwrap().len(), 2);
        assert!(!RunFolder::holds_a_run(folder.path()));
    }
}
