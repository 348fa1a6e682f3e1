//! Checks that DDK never trains on prepared files that changed on disk, and that only one process at a time writes
//! shared files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, thread};

use common::{Place, rows_of, sentence};
use ddk_corpus::{CorpusError, PreparedDomain, Sequence, ValidationSplit, as_prepared, verify};

const BLOCK: u64 = 1 << 20;

/// Enough text for three blocks of tokens.
fn large() -> (Place, PreparedDomain) {
    let place = Place::new();
    let records: String = (0..50_000)
        .map(|number| format!("{}\n", serde_json::json!({ "text": sentence(number) })))
        .collect();
    place.write("records.jsonl", records.as_bytes());
    let mut options = place.options(vec![place.source("records", "records.jsonl")]);
    options.batch_bytes = 1 << 20;
    options.validation_split = ValidationSplit::Count;
    place.prepare(&options).unwrap();
    let domain = open(&place);
    assert!(
        domain.tokens() * 2 > 2 * BLOCK,
        "{} tokens",
        domain.tokens()
    );
    (place, domain)
}

fn open(place: &Place) -> PreparedDomain {
    PreparedDomain::open(&place.path("prepared"), "records", rows_of(16)).unwrap()
}

fn flip(path: &Path, place: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[place as usize] ^= 4;
    fs::write(path, bytes).unwrap();
}

/// Returns the offset of the damaged block in the file `name`.
fn corrupt(error: CorpusError, name: &str) -> u64 {
    let said = error.to_string();
    match error {
        CorpusError::Corrupt { path, offset, .. } if path.ends_with(name) => {
            assert!(said.contains(&format!("{name} is damaged")), "{said}");
            assert!(said.contains(&format!("at byte {offset} ")), "{said}");
            offset
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_block_that_changed_is_refused_and_the_others_are_read() {
    let (place, whole) = large();
    let path = place.path("prepared/records/tokens.bin");
    flip(&path, BLOCK + 1000);
    let damaged = open(&place);
    // Each sequence has 16 tokens of two bytes.
    let row_at = |byte: u64| byte / 32;
    for row in [0, row_at(BLOCK) - 1, row_at(2 * BLOCK) + 1] {
        assert_eq!(damaged.sequence(row).unwrap(), whole.sequence(row).unwrap());
    }
    // Every read of any byte in the damaged block fails.
    for row in [
        row_at(BLOCK) + 1,
        row_at(BLOCK + 1000),
        row_at(2 * BLOCK) - 1,
    ] {
        for _ in 0..2 {
            assert_eq!(
                corrupt(damaged.sequence(row).unwrap_err(), "records/tokens.bin"),
                BLOCK
            );
        }
    }
    flip(&path, BLOCK + 1000);
    assert_eq!(
        damaged.sequence(row_at(BLOCK) + 1).unwrap().tokens.len(),
        16
    );
}

#[test]
fn all_files_that_training_reads_are_compared() {
    let (place, whole) = large();
    // Each read of a damaged block verifies it again, so read only some sequences of each block.
    let numbers: Vec<u64> = (0..whole.rows()).step_by(251).collect();
    let read = |domain: &PreparedDomain| -> Vec<Result<Sequence, CorpusError>> {
        numbers.iter().map(|row| domain.sequence(*row)).collect()
    };
    let all: Vec<Sequence> = read(&whole).into_iter().map(Result::unwrap).collect();
    for name in ["tokens.bin", "documents.bin", "rows-concat-16.bin"] {
        let path = place.path("prepared/records").join(name);
        let middle = fs::metadata(&path).unwrap().len() / 2;
        flip(&path, middle);
        let damaged = open(&place);
        let (mut good, mut bad) = (0, 0);
        for (row, expected) in read(&damaged).into_iter().zip(&all) {
            match row {
                Ok(row) => {
                    assert_eq!(row, *expected, "{name}");
                    good += 1;
                }
                Err(error) => {
                    corrupt(error, name);
                    bad += 1;
                }
            }
        }
        assert!(bad > 0, "{name}: {good} rows");
        flip(&path, middle);
    }
    flip(&place.path("prepared/records/validation-tokens.bin"), 3);
    let error = open(&place).validation().unwrap_err();
    assert_eq!(corrupt(error, "validation-tokens.bin"), 0);
    flip(&place.path("prepared/records/validation-tokens.bin"), 3);

    // Damage the checksums themselves, in both places.
    flip(&place.path("prepared/records/checksums.bin"), 40);
    let opened = PreparedDomain::open(&place.path("prepared"), "records", rows_of(16));
    assert!(opened.unwrap_err().to_string().contains("checksums.bin"));
    flip(&place.path("prepared/records/checksums.bin"), 40);
    let index = place.path("prepared/records/rows-concat-16.bin");
    let length = fs::metadata(&index).unwrap().len();
    flip(&index, length - 40);
    let opened = PreparedDomain::open(&place.path("prepared"), "records", rows_of(16));
    assert!(
        opened
            .unwrap_err()
            .to_string()
            .contains("rows-concat-16.bin")
    );
}

#[test]
fn threads_that_read_the_same_blocks_read_the_same() {
    let (place, whole) = large();
    let fresh = Arc::new(open(&place));
    let rows: Vec<u64> = (0..whole.rows()).step_by(97).collect();
    thread::scope(|scope| {
        for thread in 0..4 {
            let (fresh, rows, whole) = (Arc::clone(&fresh), &rows, &whole);
            scope.spawn(move || {
                for index in 0..rows.len() {
                    let row = rows[(index + thread * rows.len() / 4) % rows.len()];
                    assert_eq!(fresh.sequence(row).unwrap(), whole.sequence(row).unwrap());
                }
            });
        }
    });
}

#[test]
fn verification_covers_the_checksums() {
    let place = Place::new();
    let options = place.options(vec![place.source("records", "records.jsonl")]);
    place.prepare(&options).unwrap();
    verify(&options).unwrap();
    flip(&place.path("prepared/records/checksums.bin"), 5);
    let said = verify(&options).unwrap_err().to_string();
    assert!(said.contains("checksums.bin"), "{said}");
}

/// The first process writes a missing row index; others wait, even if they use the corpus as it is.
#[test]
fn a_row_index_is_written_by_one_process_at_a_time() {
    let place = Place::new();
    let mut options = place.both();
    place.prepare(&options).unwrap();
    options.sequence_length = 24;
    let index = place.path("prepared/records/rows-concat-24.bin");
    let other = fs::File::open(place.path("prepared/.lock")).unwrap();
    other.lock().unwrap();
    let mut waited = 0;
    as_prepared(&options, &mut |progress| {
        assert!(progress.waiting && !index.exists());
        waited += 1;
        other.unlock().unwrap();
    })
    .unwrap();
    assert_eq!(waited, 1);
    assert!(index.exists());
    // Nothing is missing now, so there is nothing to wait for.
    other.lock().unwrap();
    as_prepared(&options, &mut |_| panic!("it waits")).unwrap();
}

/// With `Fraction`, a text is on the same side of the split in all domains.
#[test]
fn no_domain_trains_on_what_another_is_measured_by() {
    let place = Place::new();
    // Domains that overlap, with different sizes and limits.
    let ranges = [0..300_u64, 150..700, 250..1000];
    let mut sources = Vec::new();
    for (number, range) in ranges.into_iter().enumerate() {
        let records: String = range
            .map(|number| format!("{}\n", serde_json::json!({ "text": sentence(number) })))
            .collect();
        let name = format!("d{number}");
        place.write(&format!("{name}.jsonl"), records.as_bytes());
        sources.push(place.source(&name, &format!("{name}.jsonl")));
    }
    sources[1].limits.documents = Some(300);
    sources[2].limits.tokens = Some(9000);
    let mut options = place.options(sources);
    options.sequence_length = 512;
    options.validation_fraction = 0.3;
    options.validation_documents = 40;
    place.prepare(&options).unwrap();
    let end = place.tokenizer().end_token();
    let (mut trained, mut measured) = (BTreeSet::new(), BTreeSet::new());
    for name in ["d0", "d1", "d2"] {
        let domain = PreparedDomain::open(&place.path("prepared"), name, rows_of(512)).unwrap();
        let stream: Vec<u32> = (0..domain.rows())
            .flat_map(|row| domain.sequence(row).unwrap().tokens)
            .collect();
        let documents = stream.split_inclusive(|token| *token == end);
        trained.extend(documents.map(<[u32]>::to_vec));
        let validation = domain.validation().unwrap();
        assert_eq!(validation.len(), 40, "{name}");
        measured.extend(validation.into_iter().map(|document| document.tokens));
    }
    assert!(trained.len() > 300 && measured.len() > 60);
    assert_eq!(trained.intersection(&measured).count(), 0);
}
