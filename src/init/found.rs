//! Says what the files of the data are. Many files of one kind share a line.

use std::{collections::BTreeMap, path::Path};

use ddk_corpus::{Detected, Shape};

/// Maximum number of files of one kind to list one by one.
const ONE_BY_ONE: usize = 3;
/// Maximum number of lines about a folder, or about its skipped files if the others must be listed.
const LINES: usize = 20;

/// Returns what to print about the files of a folder. `each_is_a_domain`: list all files that have a text, because each
/// of them becomes a domain.
pub(super) fn lines(folder: &Path, files: &[&Detected], each_is_a_domain: bool) -> Vec<String> {
    let mut kinds: BTreeMap<String, Vec<&Detected>> = BTreeMap::new();
    for file in files {
        kinds.entry(kind(file)).or_default().push(file);
    }
    let (mut printed, mut skipped) = (Vec::new(), 0);
    let (mut left, mut left_skipped) = (0, 0);
    for file in files {
        let is_skipped = file.shape.is_err();
        let must_be_listed = each_is_a_domain && !is_skipped;
        let kind = kind(file);
        let (text, count) = match kinds.get(&kind) {
            Some(alike) if alike.len() > ONE_BY_ONE && !must_be_listed => {
                let line = (of_files(folder, alike), alike.len());
                // One line is for all of them.
                kinds.insert(kind, Vec::new());
                line
            }
            // In the line of an earlier file.
            Some(alike) if alike.is_empty() => continue,
            _ => (of_file(file), 1),
        };
        let before = if each_is_a_domain {
            skipped
        } else {
            printed.len()
        };
        if must_be_listed || before < LINES {
            printed.push(text);
            skipped += usize::from(is_skipped);
        } else {
            left += count;
            left_skipped += if is_skipped { count } else { 0 };
        }
    }
    if left > 0 {
        printed.push(format!(
            "{}: {left} more, {left_skipped} of them skipped",
            folder.display()
        ));
    }
    printed
}

/// Files of the same kind need the same settings, or DDK skips them for the same reason.
fn kind(file: &Detected) -> String {
    match &file.shape {
        Ok(shape) => format!("{:?}: {}", file.format, shape.describe()),
        Err(reason) => format!("skipped: {reason}"),
    }
}

fn of_file(file: &Detected) -> String {
    let path = file.path.display();
    match &file.shape {
        Ok(Shape::Text) => format!("{path}: {}", file.describe()),
        Ok(shape) => format!(
            "{path}: {}: {}{}",
            file.describe(),
            shape.describe(),
            ignored(file)
        ),
        Err(reason) if file.format.is_some() => {
            format!("{path}: skipped: {}: {reason}", file.describe())
        }
        Err(reason) => format!("{path}: skipped: {reason}"),
    }
}

/// Names the answers that a model must not learn.
fn ignored(file: &Detected) -> String {
    let name = |field: &str| format!("; `{field}` is ignored");
    file.ignored().map(name).unwrap_or_default()
}

/// Warns about a file with more unusable records than `ddk prepare` allows by default, and about unusual conversations.
pub(super) fn warnings(file: &Detected, most: f64) -> Vec<String> {
    let too_many = file.shape.is_ok() && file.bad as f64 > most * file.records as f64;
    let too_many = too_many.then(|| {
        format!(
            "{} of {} records cannot be used, more than corpus.max_bad_fraction = {most} allows: fix them, or raise it",
            file.bad, file.records
        )
    });
    let all = format!("{} conversations", file.records - file.bad);
    let all = too_many.into_iter().chain(file.doubts.describe(&all));
    let path = file.path.display();
    all.map(|what| format!("warning: {path}: {what}")).collect()
}

/// A line about several files of the same kind.
fn of_files(folder: &Path, files: &[&Detected]) -> String {
    let (shown, count) = (folder.display(), files.len());
    let Some(first) = files.first() else {
        return format!("{shown}: no files");
    };
    let together = Detected {
        records: files.iter().map(|file| file.records).sum(),
        bad: files.iter().map(|file| file.bad).sum(),
        whole: files.iter().all(|file| file.whole),
        ..(*first).clone()
    };
    match &first.shape {
        Ok(Shape::Text) => format!("{shown}: {count} files: text, one document each"),
        Ok(shape) => format!(
            "{shown}: {count} files: {}: {}{}",
            together.describe(),
            shape.describe(),
            ignored(first)
        ),
        Err(reason) => format!(
            "{shown}: {count} files skipped: {reason}; the first is {}",
            first.path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use ddk_corpus::FileFormat;

    use super::*;

    fn file(number: u64, shape: Result<Shape, String>) -> Detected {
        Detected {
            format: Some(FileFormat::Jsonl),
            records: 10 + number,
            shape,
            ..Detected::skipped(Path::new(&format!("data/web/{number}.jsonl")), "")
        }
    }

    fn said(files: &[Detected], each_is_a_domain: bool) -> Vec<String> {
        let files: Vec<&Detected> = files.iter().collect();
        lines(Path::new("data/web"), &files, each_is_a_domain)
    }

    #[test]
    fn many_files_of_a_kind_share_a_line_and_few_have_their_own() {
        let of_text = || Ok(Shape::Field("text".to_owned()));
        let odd = file(99, Err("no text field".to_owned()));
        let few: Vec<Detected> = (0..3).map(|number| file(number, of_text())).collect();
        let one_by_one = said(&[&few[..], std::slice::from_ref(&odd)].concat(), false);
        assert_eq!(one_by_one.len(), 4);
        assert_eq!(
            one_by_one[0],
            "data/web/0.jsonl: JSON Lines, 10 records: text in `text`"
        );
        assert_eq!(
            one_by_one[3],
            "data/web/99.jsonl: skipped: JSON Lines, 109 records: no text field"
        );
        let many: Vec<Detected> = (0..4).map(|number| file(number, of_text())).collect();
        let many = [&many[..], &[odd]].concat();
        assert_eq!(
            said(&many, false),
            [
                "data/web: 4 files: JSON Lines, 46 records: text in `text`",
                "data/web/99.jsonl: skipped: JSON Lines, 109 records: no text field"
            ]
        );
        // As domains of their own, all are listed.
        assert_eq!(said(&many, true).len(), 5);
    }

    #[test]
    fn skipped_files_of_a_kind_share_a_line_and_other_kinds_end_somewhere() {
        let hidden: Vec<Detected> = (0..7)
            .map(|number| file(number, Err("hidden".to_owned())))
            .collect();
        for each in [false, true] {
            assert_eq!(
                said(&hidden, each),
                ["data/web: 7 files skipped: hidden; the first is data/web/0.jsonl"]
            );
        }
        let all_differ: Vec<Detected> = (0..30)
            .map(|number| file(number, Err(format!("line {number}: not JSON"))))
            .collect();
        let said = said(&all_differ, false);
        assert_eq!(said.len(), LINES + 1);
        assert_eq!(said[LINES], "data/web: 10 more, 10 of them skipped");
    }
}
