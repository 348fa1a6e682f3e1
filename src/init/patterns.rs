//! Selects files for a domain: by a folder, by globs, or by their names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use ddk_corpus::Detected;

use super::entry::Entry;

/// Returns patterns that select exactly these of an entry's files.
pub(super) fn patterns(entry: &Entry, files: &[&Detected]) -> Vec<String> {
    if entry.is_of_hub {
        return vec![entry.path.display().to_string()];
    }
    if !entry.is_folder {
        return paths(files);
    }
    let folder = entry.path.display().to_string();
    if let Some(beside) = &entry.beside {
        return documents(&folder, files, beside);
    }
    let is_chosen = |file: &Detected| files.iter().any(|chosen| chosen.path == file.path);
    // DDK skips hidden files and descriptions of data sets by itself.
    let is_read = |file: &&Detected| {
        let reason = file.shape.as_ref().err();
        !reason.is_some_and(|reason| ["hidden", "describes a data set"].contains(&&**reason))
    };
    let others = entry.files.iter().filter(is_read);
    let others: Vec<&Detected> = others.filter(|file| !is_chosen(file)).collect();
    if others.is_empty() {
        return vec![folder];
    }
    let is_glob = |text: &str| text.contains(['*', '?', '[', ']']);
    if files.len() == 1 || is_glob(&folder) {
        return paths(files);
    }
    // Whether the endings select chosen files only.
    let mut endings: BTreeMap<String, bool> = BTreeMap::new();
    for file in &entry.files {
        let ending = ending_of(file);
        let selects = !ending.is_empty() && is_chosen(file);
        *endings.entry(ending).or_insert(true) &= selects;
    }
    let selects = |file: &&Detected| endings.get(&ending_of(file)) == Some(&true);
    if files.iter().all(selects) {
        let chosen: BTreeSet<String> = files.iter().map(|file| ending_of(file)).collect();
        let glob = |ending: &String| format!("{folder}/**/*{ending}");
        return chosen.iter().map(glob).collect();
    }
    // The shorter list.
    if others.len() < files.len() {
        let left_out = others
            .iter()
            .map(|file| format!("!{}", file.path.display()));
        return std::iter::once(folder).chain(left_out).collect();
    }
    paths(files)
}

/// Selects documents of a folder by their endings, without the files `beside` them.
fn documents(folder: &str, files: &[&Detected], beside: &[PathBuf]) -> Vec<String> {
    let endings: BTreeSet<String> = files.iter().map(|file| ending_of(file)).collect();
    if endings.contains("") || folder.contains(['*', '?', '[', ']']) {
        return paths(files);
    }
    let is_selected = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        endings.iter().any(|ending| name.ends_with(ending.as_str())) && path.is_file()
    };
    let globs = endings.iter().map(|ending| format!("{folder}/*{ending}"));
    let others = beside.iter().filter(is_selected);
    let others = others.map(|path| format!("!{}", path.display()));
    globs.chain(others).collect()
}

fn paths(files: &[&Detected]) -> Vec<String> {
    let path = |file: &&Detected| file.path.display().to_string();
    files.iter().map(path).collect()
}

/// The part of a file's name after its stem: `.txt.gz`.
fn ending_of(file: &Detected) -> String {
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(&file.stem())
        .unwrap_or_default()
        .to_owned()
}
