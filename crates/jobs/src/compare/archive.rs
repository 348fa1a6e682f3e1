//! Keeps the records of finished runs in an archive: a few small files, enough to compare the runs again. A repository
//! can hold them.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::plan::Planned;

/// The files of a run that a comparison reads.
const RECORDS: [&str; 4] = [
    "config.toml",
    "inputs.json",
    "mixture.jsonl",
    "summary.json",
];
/// The folder of the preliminary runs. A comparison reads only what they cost.
const PHASES: &str = "phases";

/// Copies the records of a finished run to the archive. Does nothing if the archive has them, or if there is none.
pub(super) fn keep(run: &Planned) -> Result<()> {
    let Some(archive) = run
        .archive
        .as_ref()
        .filter(|archive| *archive != run.records())
    else {
        return Ok(());
    };
    copy(&run.folder, archive).with_context(|| {
        let (from, to) = (run.folder.display(), archive.display());
        format!("cannot copy the records of {from} to {to}")
    })
}

/// Copies to a new folder beside `to`, and renames it, so that an archived run is always complete.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut partial = to.as_os_str().to_owned();
    partial.push(OsStr::new(".partial"));
    let partial = PathBuf::from(partial);
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    ddk_files::create_folder(&partial)?;
    for name in RECORDS {
        fs::copy(from.join(name), partial.join(name))?;
    }
    for entry in fs::read_dir(from.join(PHASES)).into_iter().flatten() {
        let phase = entry?;
        let summary = phase.path().join("summary.json");
        if summary.exists() {
            let kept = partial.join(PHASES).join(phase.file_name());
            ddk_files::create_folder(&kept)?;
            fs::copy(summary, kept.join("summary.json"))?;
        }
    }
    Ok(ddk_files::rename(&partial, to)?)
}
