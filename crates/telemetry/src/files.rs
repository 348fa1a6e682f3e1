//! A run's own files and its report, for the links at the end of its page.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use axum::{
    extract::{Path as InAddress, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use ddk_report::run_report;
use ddk_run::RunView;
use rustix::fs::OFlags;

use crate::{
    api::FileEntry,
    server::{Asked, blocking, no_such_run, values},
};

/// The files that can be requested. Only these names become a part of a path.
const FILES: [&str; 10] = [
    "config.toml",
    "inputs.json",
    "summary.json",
    "run.jsonl",
    "mixture.jsonl",
    "events.jsonl",
    "samples.jsonl",
    "texts.jsonl",
    "overrides.jsonl",
    "run.log",
];
/// The report that a run writes at its end.
const REPORT: &str = "report.html";
/// Maximum size of an answer, because it is in memory as a whole.
const MOST_BYTES: u64 = 8 << 20;

/// The report has its style and script inline. `sandbox` keeps it from acting as a page of this server.
const REPORT_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; \
                             style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Lists the files in a run's folder that can be requested.
pub(crate) fn list(view: &RunView) -> Vec<FileEntry> {
    let entry = |name: &&str| {
        let found = fs::symlink_metadata(view.folder().join(name)).ok()?;
        found.is_file().then(|| FileEntry {
            name: (*name).to_owned(),
            bytes: found.len(),
        })
    };
    FILES.iter().filter_map(entry).collect()
}

/// What a request for a file gets.
enum Found {
    /// The bytes.
    Bytes(Vec<u8>),
    /// The file has this many bytes, which is too many for one answer.
    TooLong(u64),
}

/// Reads a run's file, from byte `from` on if that is given. Returns nothing if there is no such file.
fn read(folder: &Path, name: &str, from: Option<u64>) -> Option<Found> {
    let name = FILES.iter().find(|known| **known == name)?;
    contents(&folder.join(name), from).ok().flatten()
}

/// Reads a file that is not a link.
fn contents(path: &Path, from: Option<u64>) -> io::Result<Option<Found>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Ok(None);
    }
    if from.is_none() && about.len() > MOST_BYTES {
        return Ok(Some(Found::TooLong(about.len())));
    }
    file.seek(SeekFrom::Start(from.unwrap_or(0)))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(Found::Bytes(bytes)))
}

/// Answers with a file.
fn answer(name: &str, found: Found) -> Response {
    let kind = match name.rsplit('.').next() {
        Some("json") => "application/json",
        _ => "text/plain; charset=utf-8",
    };
    match found {
        Found::Bytes(bytes) => ([(header::CONTENT_TYPE, kind)], bytes).into_response(),
        Found::TooLong(bytes) => {
            let text = format!(
                "{name} has {bytes} bytes, and an answer at most {MOST_BYTES}: add from=N to the address to read on \
                 from byte N, or read the file in the run's folder\n"
            );
            (StatusCode::PAYLOAD_TOO_LARGE, text).into_response()
        }
    }
}

/// The report of a run: the one that it wrote at its end, otherwise a new one that covers the run so far.
fn answer_report(view: &RunView) -> Response {
    let written = view.summary().and_then(|_| {
        let found = contents(&view.folder().join(REPORT), None);
        match found.ok().flatten()? {
            Found::Bytes(bytes) => Some(bytes),
            Found::TooLong(_) => None,
        }
    });
    let page = written.map_or_else(|| run_report(view, &[]).html().map(String::into_bytes), Ok);
    match page {
        Ok(page) => {
            let headers = [
                (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                (header::CONTENT_SECURITY_POLICY, REPORT_POLICY),
            ];
            (headers, page).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "cannot make a report");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

/// Sends a file of the run's folder.
pub(crate) async fn file(
    InAddress(name): InAddress<String>,
    (State(site), Query(query)): Asked,
) -> Response {
    let asked = name.clone();
    let found = blocking(move || {
        let source = site.runs.find(values(&query, "name").next())?;
        let from = values(&query, "from").find_map(|from| from.parse().ok());
        read(&source.look(|view| view.folder().to_owned()), &asked, from)
    });
    let found = found.await;
    found.map_or_else(no_such_run, |found| answer(&name, found))
}

/// Sends the report of the run.
pub(crate) async fn report((State(site), Query(query)): Asked) -> Response {
    let report = blocking(move || {
        let source = site.runs.find(values(&query, "name").next())?;
        Some(source.look(answer_report))
    });
    report.await.unwrap_or_else(no_such_run)
}
