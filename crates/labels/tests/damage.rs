//! Damages files of a set: each label is then right or absent, and the set is whole after one more filling.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{fs, path::PathBuf};

use common::{Place, id, label, random, scale};
use ddk_labels::{LabelSet, Put, Report};

const LABELS: u64 = 12;

/// A set on disk, as one segment and its index.
struct Written {
    segment: Vec<u8>,
    index: Vec<u8>,
}

impl Written {
    fn new() -> Self {
        let place = Place::new();
        let set = place.open(None);
        for number in 0..LABELS {
            assert_eq!(set.put(&id(number), &label(number)).unwrap(), Put::Stored);
        }
        let folder = set.folder().to_owned();
        drop(set);
        let read = |extension| fs::read(file(&folder, extension)).unwrap();
        Self {
            segment: read("seg"),
            index: read("idx"),
        }
    }

    /// Writes these bytes as a set.
    fn place(segment: &[u8], index: &[u8]) -> Place {
        let place = Place::new();
        let folder = place.open(None).folder().to_owned();
        fs::write(folder.join("labels-0.seg"), segment).unwrap();
        fs::write(folder.join("labels-0.idx"), index).unwrap();
        place
    }
}

fn file(folder: &std::path::Path, extension: &str) -> PathBuf {
    let mut paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .find(|path| path.extension().is_some_and(|found| found == extension))
        .unwrap()
}

/// Numbers of the labels that are absent. All others must be right.
fn absent(set: &LabelSet) -> Vec<u64> {
    let numbers = 0..LABELS;
    let absent = numbers.filter(|number| {
        let found = set.get(&id(*number)).unwrap();
        assert!(
            found.as_ref().is_none_or(|found| *found == label(*number)),
            "{number}"
        );
        found.is_none()
    });
    absent.collect()
}

/// Stores the absent labels. Afterwards, old and new readers must find everything.
fn fill(place: &Place, set: LabelSet, absent: &[u64]) {
    let watching = place.find();
    for number in absent {
        assert!(!set.contains(&id(*number)));
        assert_eq!(set.put(&id(*number), &label(*number)).unwrap(), Put::Stored);
    }
    drop(set);
    for set in [watching, place.find()] {
        assert_eq!(self::absent(&set), [0; 0]);
    }
}

#[test]
fn a_flipped_byte_of_a_segment_costs_one_label_and_one_report() {
    let written = Written::new();
    for trial in 0..60 * scale() {
        let position = random(trial) as usize % written.segment.len();
        let mut segment = written.segment.clone();
        segment[position] ^= 1 << (random(trial + 1_000_000) % 8);
        let place = Written::place(&segment, &written.index);
        let set = place.open(None);
        let absent = absent(&set);
        let reports = set.take_reports();
        let in_header = position < 64;
        assert_eq!(absent.len(), usize::from(!in_header), "byte {position}");
        match reports.as_slice() {
            [] => assert!(in_header, "byte {position}"),
            [Report::Damaged { file, offset, .. }] => {
                assert!(file.ends_with("labels-0.seg"));
                let end = offset + label(absent[0]).len() as u64;
                assert!(
                    (*offset..end).contains(&(position as u64)),
                    "byte {position}"
                );
            }
            other => panic!("byte {position}: {other:?}"),
        }
        fill(&place, set, &absent);
        // The new label is tried first, so nobody finds the damage again.
        let set = place.find();
        assert_eq!(self::absent(&set), [0; 0]);
        assert_eq!(set.take_reports(), []);
    }
}

#[test]
fn a_flipped_byte_of_an_index_costs_the_rest_of_its_labels_and_one_report() {
    let written = Written::new();
    for trial in 0..60 * scale() {
        let position = random(trial) as usize % written.index.len();
        let mut index = written.index.clone();
        index[position] ^= 1 << (random(trial + 1_000_000) % 8);
        let place = Written::place(&written.segment, &index);
        let set = place.open(None);
        let absent = absent(&set);
        let record = position as u64 / 64;
        let first = record.saturating_sub(1);
        assert_eq!(
            absent,
            (first..LABELS).collect::<Vec<_>>(),
            "byte {position}"
        );
        // A damaged last record looks like one that is being written.
        let reports = set.take_reports();
        assert_eq!(
            reports.len(),
            usize::from(record < LABELS),
            "byte {position}"
        );
        for report in reports {
            let Report::Damaged { file, offset, .. } = &report else {
                panic!("{report:?}");
            };
            assert!(file.ends_with("labels-0.idx") && *offset == record * 64);
        }
        fill(&place, set, &absent);
    }
}

#[test]
fn a_torn_end_of_an_index_is_ignored_without_a_report() {
    let written = Written::new();
    let whole = written.index.len();
    for (cut, zeros) in (0..=whole)
        .step_by(29)
        .flat_map(|cut| [(cut, 0), (cut / 64 * 64, 200)])
    {
        let index = [&written.index[..cut], &vec![0; zeros]].concat();
        let place = Written::place(&written.segment, &index);
        let set = place.open(None);
        let absent = absent(&set);
        let left = (cut as u64 / 64).saturating_sub(1);
        assert_eq!(
            absent,
            (left..LABELS).collect::<Vec<_>>(),
            "{cut} bytes, {zeros} zeros"
        );
        assert_eq!(set.take_reports(), []);
        fill(&place, set, &absent);
    }
}

#[test]
fn a_cut_or_absent_segment_costs_its_labels() {
    let written = Written::new();
    for cut in [0, 64, 1000, written.segment.len() - 1] {
        let place = Written::place(&written.segment[..cut], &written.index);
        let set = place.open(None);
        let absent = absent(&set);
        assert!(absent.contains(&(LABELS - 1)));
        assert_eq!(set.take_reports().len(), absent.len());
        fill(&place, set, &absent);
    }
    let place = Written::place(&[], &written.index);
    let set = place.open(None);
    fs::remove_file(set.folder().join("labels-0.seg")).unwrap();
    let absent = absent(&set);
    assert_eq!(absent.len() as u64, LABELS);
    fill(&place, set, &absent);
}

#[test]
fn a_damaged_record_counts_as_absent_and_is_reported_once() {
    let place = Place::new();
    let set = place.open(None);
    let value = serde_json::json!({ "web": 7.25, "code": 3.5 });
    set.keep_record("perplexities", &value).unwrap();
    let path = set.folder().join("records/perplexities.json");
    let written = fs::read(&path).unwrap();
    for position in 0..written.len() {
        let mut damaged = written.clone();
        damaged[position] ^= 1;
        fs::write(&path, damaged).unwrap();
        let found = set.record("perplexities").unwrap();
        assert!(found.is_none_or(|found| found == value), "byte {position}");
    }
    let reports = set.take_reports();
    assert_eq!(reports.len(), 1);
    let text = reports[0].to_string();
    assert!(
        text.contains("perplexities.json is damaged at byte 0"),
        "{text}"
    );
    set.keep_record("perplexities", &value).unwrap();
    assert_eq!(set.record("perplexities").unwrap(), Some(value));
}
