//! Checks that work and memory do not grow with unused input: bad records, and text past a limit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod common;

use std::{fs, path::Path, process::Command, sync::Arc};

use common::{Place, data_files, sentence};
use ddk_corpus::{CorpusError, DomainReport, PreparePhase, Quarantined, ValidationSplit, prepare};
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Records with a question and an answer, but no field `text`.
fn unlike(count: u64) -> String {
    let line =
        |number| format!("{{\"question\": \"what is {number}?\", \"answer\": \"a number\"}}\n");
    (0..count).map(line).collect()
}

fn texts(numbers: std::ops::Range<u64>) -> String {
    numbers
        .map(|number| format!("{}\n", serde_json::json!({ "text": sentence(number) })))
        .collect()
}

/// Writes a column `text` whose first `empty` rows are unusable.
fn write_parquet(path: &Path, empty: u64, rows: u64) {
    let schema =
        Arc::new(parse_message_type("message m { required binary text (UTF8); }").unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts = (0..rows).map(|row| {
        if row < empty {
            " ".to_owned()
        } else {
            sentence(row)
        }
    });
    let values: Vec<ByteArray> = texts.map(|text| text.as_str().into()).collect();
    let mut column = group.next_column().unwrap().unwrap();
    let typed = column.typed::<ByteArrayType>();
    typed.write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

fn try_with(place: &Place, file: &str, share: f64) -> Result<DomainReport, CorpusError> {
    let mut options = place.options(vec![place.source("records", file)]);
    options.max_bad_fraction = share;
    options.validation_split = ValidationSplit::Count;
    options.batch_bytes = 1 << 20;
    Ok(place.prepare(&options)?.remove(0))
}

/// Returns the bad records, the records read, and whether these were all.
fn refused(error: CorpusError) -> (u64, u64, bool) {
    match error {
        CorpusError::TooManyBad {
            bad,
            records,
            whole,
            ..
        } => (bad, records, whole),
        other => panic!("{other}"),
    }
}

#[test]
fn reading_stops_when_the_share_of_bad_records_cannot_be_met_any_more() {
    let place = Place::new();
    // A plain file: at best, the remaining bytes are records of the shortest kind.
    place.write("records.jsonl", unlike(50_000).as_bytes());
    let error = try_with(&place, "records.jsonl", 0.01).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("no field `text`; its records have the fields `question`, `answer`"),
        "{said}"
    );
    let (bad, records, whole) = refused(error);
    assert!(bad == records && records < 5_000 && !whole, "{said}");
    // A compressed file: the number of remaining records is unknown.
    place.write("records.jsonl.gz", &gzip(unlike(50_000).as_bytes()));
    let error = try_with(&place, "records.jsonl.gz", 0.01).unwrap_err();
    assert_eq!(refused(error), (10_000, 10_000, false));
    // A Parquet file: its number of rows is known.
    write_parquet(&place.path("records.parquet"), 3_000, 5_000);
    let error = try_with(&place, "records.parquet", 0.5).unwrap_err();
    assert_eq!(refused(error), (3_000, 3_000, false));
    // Single-document files, then the same files followed by another one.
    for number in 0..1_500 {
        place.write(&format!("many/{number}.md"), b"  ");
    }
    let error = try_with(&place, "many", 0.01).unwrap_err();
    assert_eq!(refused(error), (1_000, 1_000, false));
    place.write("many/records.jsonl", texts(0..2_000).as_bytes());
    assert_eq!(try_with(&place, "many", 0.5).unwrap().quarantined, 1_500);
}

#[test]
fn reading_goes_on_while_the_share_of_bad_records_can_still_be_met() {
    let place = Place::new();
    let bad_first = unlike(3_000) + &texts(0..3_500);
    place.write("records.jsonl", bad_first.as_bytes());
    place.write("records.jsonl.gz", &gzip(bad_first.as_bytes()));
    write_parquet(&place.path("records.parquet"), 3_000, 6_500);
    for file in ["records.jsonl", "records.jsonl.gz", "records.parquet"] {
        let report = try_with(&place, file, 0.5).unwrap();
        assert_eq!(report.quarantined, 3_000, "{file}");
        assert_eq!(
            report.documents + report.validation_documents,
            3_500,
            "{file}"
        );
        let listed = fs::read_to_string(place.path("prepared/records/quarantine.jsonl")).unwrap();
        let lines: Vec<u64> = listed
            .lines()
            .map(|line| serde_json::from_str::<Quarantined>(line).unwrap().line)
            .collect();
        assert_eq!(lines, (1..=100).collect::<Vec<_>>(), "{file}");
    }
}

/// The test below runs this as a child. Its preparation fails, and it prints its peak memory in kilobytes.
#[test]
fn child_that_is_refused() {
    let Ok(folder) = std::env::var("DDK_TEST_REFUSED") else {
        return;
    };
    let file = std::env::var("DDK_TEST_FILE").unwrap();
    let place = Place::at(Path::new(&folder));
    let share = std::env::var("DDK_TEST_SHARE").unwrap().parse().unwrap();
    assert!(try_with(&place, &file, share).is_err());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    println!("peak {}", peak.split_whitespace().nth(1).unwrap());
}

#[test]
fn memory_does_not_grow_with_the_number_of_bad_records() {
    let scale: u64 = std::env::var("DDK_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let place = Place::new();
    place.write("ten.jsonl", unlike(10).as_bytes());
    let many = unlike(100_000 * scale);
    place.write("many.jsonl.gz", &gzip(many.as_bytes()));
    place.write("many.jsonl", many.as_bytes());
    let peak = |file: &str, share: &str| -> u64 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_refused", "--nocapture"])
            .env("DDK_TEST_REFUSED", place.path(""))
            .env("DDK_TEST_FILE", file)
            .env("DDK_TEST_SHARE", share)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let peak = said
            .split("peak ")
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next();
        peak.unwrap().parse().unwrap()
    };
    let few = peak("ten.jsonl", "0.01");
    // With a share of 1, every record is read and counted.
    for (file, share) in [
        ("many.jsonl", "0.01"),
        ("many.jsonl.gz", "0.01"),
        ("many.jsonl", "1"),
    ] {
        let more = peak(file, share).saturating_sub(few);
        // At scale 1, the records alone are 5 MB, and their quarantine entries were 20 MB.
        assert!(
            more < 10_000,
            "{file}, {share}: {more} kB more than {few} kB"
        );
    }
}

#[test]
fn a_limit_on_tokens_takes_the_first_documents_and_ends_the_tokenizing() {
    let place = Place::new();
    let twice = texts(0..3_000) + &texts(2_900..3_000);
    place.write("records.jsonl", twice.as_bytes());
    let mut options = place.options(vec![place.source("records", "records.jsonl")]);
    let mut batches = Vec::new();
    let mut make = |options: &ddk_corpus::PrepareOptions| {
        let mut count = 0;
        let reports = prepare(options, &place.tokenizer(), false, &mut |progress| {
            count += u64::from(progress.phase == PreparePhase::Tokenizing);
        });
        batches.push(count);
        (
            reports.unwrap().remove(0),
            data_files(&place.path("prepared/records")),
        )
    };
    let (all, whole) = make(&options);
    options.domains[0].limits.tokens = Some(all.tokens / 100);
    let (first, limited) = make(&options);
    // The same documents up to the limit; the same validation, duplicates and quarantine.
    assert!(first.tokens <= all.tokens / 100 && first.tokens > all.tokens / 100 - 100);
    for (name, bytes) in &limited {
        match name.as_str() {
            "tokens.bin" | "documents.bin" => assert!(whole[name].starts_with(bytes), "{name}"),
            "checksums.bin" | "rows-concat-16.bin" => {}
            _ => assert!(whole[name] == *bytes, "{name}"),
        }
    }
    assert_eq!(
        first.documents * 8 + 8,
        limited["documents.bin"].len() as u64
    );
    assert_eq!((first.duplicates, all.duplicates), (100, 100));
    assert_eq!(first.validation_documents, all.validation_documents);
    // DDK tokenizes batches of 1000 bytes until the limit, then only validation documents.
    assert!(batches[0] > 200 && batches[1] < 20, "{batches:?}");
}
