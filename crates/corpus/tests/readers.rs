//! Checks that records have the same text in every format, that damage is found where it is, and that ids which others
//! made are taken as they are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{fs, io::Write, path::Path, sync::Arc};

use arrow_array::{
    Int64Array, LargeStringArray, ListArray, RecordBatch, StringArray, types::Int64Type,
};
use arrow_ipc::{
    CompressionType,
    writer::{FileWriter, IpcWriteOptions, StreamWriter},
};
use common::{Place, data_files, rows_of, sentence};
use ddk_corpus::{
    CorpusError, DomainSource, FileFormat, PreparedDomain, Quarantined, SequenceOptions,
    TokenSource, TokenizerFolder, stale, train_tokenizer,
};
use serde_json::json;

const RECORDS: u64 = 200;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Texts with everything that a format must escape.
fn text(number: u64) -> String {
    let sentence = sentence(number);
    match number % 4 {
        0 => format!("{sentence}, \"quoted\"\nsecond\tline"),
        1 => format!("{sentence} [{{\\\"}}] é 数"),
        _ => sentence,
    }
}

fn texts() -> Vec<String> {
    (0..RECORDS).map(text).collect()
}

fn batch(texts: &[String]) -> RecordBatch {
    let numbers = Int64Array::from_iter_values(0..texts.len() as i64);
    RecordBatch::try_from_iter([
        ("id", Arc::new(numbers) as _),
        ("text", Arc::new(StringArray::from_iter_values(texts)) as _),
    ])
    .unwrap()
}

fn arrow_stream(texts: &[String]) -> Vec<u8> {
    let schema = batch(&texts[..1]).schema();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    for part in texts.chunks(70) {
        writer.write(&batch(part)).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn arrow_file(texts: &[String], compression: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default();
    let options = options.try_with_compression(compression).unwrap();
    let schema = batch(&texts[..1]).schema();
    let mut writer = FileWriter::try_new_with_options(Vec::new(), &schema, options).unwrap();
    for part in texts.chunks(70) {
        writer.write(&batch(part)).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn table(texts: &[String], delimiter: char) -> String {
    let row = |(number, text): (usize, &String)| {
        format!("{number}{delimiter}\"{}\"\r\n", text.replace('"', "\"\""))
    };
    format!("id{delimiter}text\r\n") + &texts.iter().enumerate().map(row).collect::<String>()
}

#[test]
fn every_format_of_records_prepares_to_the_same_tokens() {
    let place = Place::new();
    let texts = texts();
    let records: Vec<_> = texts.iter().map(|text| json!({ "text": text })).collect();
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    let array = json!(records);
    let pretty: String = records
        .iter()
        .map(|record| serde_json::to_string_pretty(record).unwrap() + "\n")
        .collect();
    let within = json!({ "version": "1.0", "notes": ["]", {}], "data": records, "n": 200 });
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let formats: Vec<(&str, Vec<u8>)> = vec![
        ("lines.jsonl", lines.clone().into_bytes()),
        ("upper.NDJSON.GZ", gzip(lines.as_bytes())),
        ("lines.json", marked(&lines)),
        ("array.json", marked(&array.to_string())),
        (
            "pretty-array.JSON.ZST",
            zstd(serde_json::to_string_pretty(&array).unwrap().as_bytes()),
        ),
        ("objects.json", pretty.into_bytes()),
        ("within.json.gz", gzip(within.to_string().as_bytes())),
        ("stream.arrow", arrow_stream(&texts)),
        ("stream.ipc.gz", gzip(&arrow_stream(&texts))),
        ("file.arrow", arrow_file(&texts, None)),
        (
            "lz4.feather",
            arrow_file(&texts, Some(CompressionType::LZ4_FRAME)),
        ),
        (
            "zstd.feather",
            arrow_file(&texts, Some(CompressionType::ZSTD)),
        ),
        ("table.csv", marked(&table(&texts, ','))),
        // As spreadsheets write it where a comma is the decimal mark.
        ("table.csv.gz", gzip(table(&texts, ';').as_bytes())),
        ("table.TSV.gz", gzip(table(&texts, '\t').as_bytes())),
    ];
    let mut domains = Vec::new();
    for (number, (name, bytes)) in formats.iter().enumerate() {
        place.write(&format!("in/{name}"), bytes);
        domains.push(place.source(&format!("d{number}"), &format!("in/{name}")));
    }
    let mut options = place.options(domains);
    options.validation_documents = RECORDS as usize;
    let reports = place.prepare(&options).unwrap();
    let expected = data_files(&place.path("prepared/d0"));
    for (number, report) in reports.iter().enumerate() {
        let name = formats[number].0;
        assert_eq!(
            report.documents + report.validation_documents,
            RECORDS,
            "{name}"
        );
        let found = data_files(&place.path(&format!("prepared/d{number}")));
        assert!(found == expected, "{name}");
    }
}

/// Prepares a file alone and returns the number of documents and the quarantined lines.
fn read(place: &Place, name: &str, bytes: &[u8]) -> (u64, Vec<(u64, String)>) {
    place.write(&format!("bad/{name}"), bytes);
    let mut options = place.options(vec![place.source("bad", &format!("bad/{name}"))]);
    options.max_bad_fraction = 1.0;
    options.validation_documents = 100;
    let report = place.prepare(&options).unwrap().remove(0);
    let lines = fs::read_to_string(place.path("prepared/bad/quarantine.jsonl")).unwrap();
    let entries = lines.lines().map(|line| {
        let entry: Quarantined = serde_json::from_str(line).unwrap();
        (entry.line, entry.reason)
    });
    (
        report.documents + report.validation_documents,
        entries.collect(),
    )
}

#[test]
fn damage_is_found_where_it_is() {
    let place = Place::new();
    let texts: Vec<String> = (0..60).map(sentence).collect();
    let object = |number: usize| json!({ "text": texts[number] }).to_string();
    let objects = |from: usize, to: usize| (from..to).map(object).collect::<Vec<_>>().join(",\n");
    let file = arrow_file(&texts, None);
    let stream = arrow_stream(&texts);
    let rows = table(&texts, ',');
    for (name, bytes, documents, bad) in [
        (
            "element.json",
            format!(
                "[{}, {{\"text\": nope}}, 7, {}]",
                objects(0, 20),
                objects(20, 60)
            )
            .into_bytes(),
            60,
            &[(21, "not JSON"), (22, "no field `text`")][..],
        ),
        (
            "cut.json",
            format!("[{}, {{\"text\": \"and", objects(0, 20)).into_bytes(),
            20,
            &[(21, "a record does not end")],
        ),
        (
            "open.json",
            format!("[{}", objects(0, 20)).into_bytes(),
            20,
            &[(21, "its array does not end")],
        ),
        (
            "more.json",
            format!("[{}]\n[]", objects(0, 20)).into_bytes(),
            20,
            &[(21, "text follows the end of the array")],
        ),
        (
            "ragged.csv",
            format!("{rows}1\r\n2,a,b\r\n3,é\r\n4,fine\r\n").into_bytes(),
            62,
            &[
                (62, "the number of fields is 1, expected 2"),
                (63, "the number of fields is 3, expected 2"),
            ],
        ),
        (
            "latin.csv",
            [rows.as_bytes(), b"9,caf\xe9\n"].concat(),
            60,
            &[(62, "not UTF-8 in the field `text`")],
        ),
        (
            "cut.arrow",
            file[..file.len() - 3].to_vec(),
            60,
            &[(61, "no footer")],
        ),
        (
            "cut.ipc",
            stream[..stream.len() - 100].to_vec(),
            0,
            &[(1, "cut or damaged")],
        ),
    ] {
        if documents == 0 {
            // Nothing is left to train on.
            place.write("bad/none.ipc", &bytes);
            let found = ddk_corpus::detect(&place.path("bad/none.ipc")).unwrap();
            assert!(found.shape.unwrap_err().contains(bad[0].1), "{name}");
            continue;
        }
        let (found, entries) = read(&place, name, &bytes);
        assert_eq!(found, documents, "{name}: {entries:?}");
        assert_eq!(entries.len(), bad.len(), "{name}: {entries:?}");
        for ((line, reason), (expected, said)) in entries.iter().zip(bad) {
            assert!(
                line == expected && reason.contains(said),
                "{name}: {line}: {reason}"
            );
        }
    }
}

#[test]
fn files_that_cannot_be_tables_or_records_say_why() {
    let place = Place::new();
    for (name, bytes, said) in [
        (
            "twice.csv",
            "a,b,a\n1,2,3\n",
            "the column name `a` appears twice",
        ),
        (
            "pipes.csv",
            "a|b\n1|2\n",
            "'|' seems to separate its columns: expected commas",
        ),
        (
            "commas.tsv",
            "a,b\n1,2\n",
            "',' seems to separate its columns: expected tabs",
        ),
        (
            "two.json",
            "{\"a\": [{}], \"b\": [{}]}",
            "several arrays of objects (`a`, `b`)",
        ),
        ("empty.json", "[]", "it has no record"),
        ("words.json", "hello", "not JSON"),
        ("header.csv", "text\n", "it has no record"),
        (
            "notes.arrow",
            "not arrow at all, only text",
            "cut or damaged",
        ),
    ] {
        place.write(name, bytes.as_bytes());
        let found = ddk_corpus::detect(&place.path(name)).unwrap();
        let reason = found.shape.unwrap_err();
        assert!(reason.contains(said), "{name}: {reason}");
    }
    // A quote that is not closed must not take all memory.
    let row = format!("text\n\"{}", "word ".repeat(1000));
    place.write("quote.csv", row.as_bytes());
    let mut source = place.source("quote", "quote.csv");
    source.limits.longest = 100;
    place.write(
        "quote.csv",
        format!("{row}{}", "more ".repeat(40_000)).as_bytes(),
    );
    let problem = ddk_corpus::sample(&source)
        .unwrap()
        .problem("quote")
        .unwrap();
    assert!(
        problem.contains("is a quote before it not closed?"),
        "{problem}"
    );
}

/// An index and data of Megatron, written by hand from the published layout.
fn megatron(documents: &[Vec<u32>], code: u8) -> (Vec<u8>, Vec<u8>) {
    let encode = |id: &u32| match code {
        1 | 2 => vec![*id as u8],
        3 | 8 => (*id as u16).to_le_bytes().to_vec(),
        4 => id.to_le_bytes().to_vec(),
        _ => u64::from(*id).to_le_bytes().to_vec(),
    };
    // Every third document has two sequences.
    let mut sequences: Vec<&[u32]> = Vec::new();
    let mut boundaries = vec![0_i64];
    for (number, document) in documents.iter().enumerate() {
        let cut = if number % 3 == 0 {
            document.len() / 2
        } else {
            0
        };
        let parts = [&document[..cut], &document[cut..]];
        sequences.extend(parts.into_iter().skip(usize::from(cut == 0)));
        boundaries.push(sequences.len() as i64);
    }
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1_u64.to_le_bytes());
    index.push(code);
    index.extend((sequences.len() as u64).to_le_bytes());
    index.extend((boundaries.len() as u64).to_le_bytes());
    let (mut data, mut offsets) = (Vec::new(), Vec::new());
    for sequence in &sequences {
        index.extend((sequence.len() as i32).to_le_bytes());
        offsets.push(data.len() as i64);
        data.extend(sequence.iter().flat_map(encode));
    }
    index.extend(
        offsets
            .iter()
            .chain(&boundaries)
            .flat_map(|number| number.to_le_bytes()),
    );
    (index, data)
}

fn made_elsewhere(place: &Place, name: &str, file: &str, field: Option<&str>) -> DomainSource {
    DomainSource {
        format: field.is_none().then_some(FileFormat::Megatron),
        tokens: Some(TokenSource {
            field: field.map(ToOwned::to_owned),
            tokenizer: place.path("tokenizer"),
            vocabulary: place.tokenizer().vocabulary(),
        }),
        ..place.source(name, file)
    }
}

fn token_files(place: &Place, domain: &str) -> Vec<Vec<u8>> {
    [
        "tokens",
        "documents",
        "validation-tokens",
        "validation-documents",
    ]
    .map(|file| fs::read(place.path(&format!("prepared/{domain}/{file}.bin"))).unwrap())
    .into()
}

#[test]
fn ids_of_others_are_taken_as_they_are_and_end_in_the_end_token() {
    let place = Place::new();
    let tokenizer: TokenizerFolder = place.tokenizer();
    let end = tokenizer.end_token();
    // With and without their end token.
    let mut documents: Vec<Vec<u32>> = Vec::new();
    for number in 0..100 {
        documents.push(tokenizer.encode(&sentence(number)).unwrap());
        if number % 2 == 0 {
            documents.last_mut().unwrap().push(end);
        }
    }
    let lines: String = documents
        .iter()
        .map(|ids| format!("{}\n", json!({ "input_ids": ids })))
        .collect();
    place.write("ids.jsonl", lines.as_bytes());
    let ids = documents
        .iter()
        .map(|ids| Some(ids.iter().map(|id| Some(i64::from(*id)))));
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>(ids);
    let names = LargeStringArray::from_iter_values(documents.iter().map(|_| "a name"));
    let batch = RecordBatch::try_from_iter([
        ("name", Arc::new(names) as _),
        ("input_ids", Arc::new(list) as _),
    ])
    .unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    place.write("ids.arrow", &writer.into_inner().unwrap());
    let mut domains = vec![
        made_elsewhere(&place, "lines", "ids.jsonl", Some("input_ids")),
        made_elsewhere(&place, "arrow", "ids.arrow", Some("input_ids")),
    ];
    for (code, file) in [
        (3, "short.idx"),
        (4, "int.bin"),
        (5, "long.idx"),
        (8, "ushort.idx"),
    ] {
        let (index, data) = megatron(&documents, code);
        let stem = file.split('.').next().unwrap();
        place.write(&format!("{stem}.idx"), &index);
        place.write(&format!("{stem}.bin"), &data);
        domains.push(made_elsewhere(&place, stem, file, None));
    }
    let mut options = place.options(domains);
    options.validation_documents = 100;
    place.prepare(&options).unwrap();
    // Every token, in order, against the ids that went in.
    let opened = PreparedDomain::open(&place.path("prepared"), "lines", rows_of(16)).unwrap();
    let prepared: Vec<u32> = (0..opened.rows())
        .flat_map(|row| opened.sequence(row).unwrap().tokens)
        .chain(
            opened
                .validation()
                .unwrap()
                .into_iter()
                .flat_map(|sequence| sequence.tokens),
        )
        .collect();
    assert!(prepared.iter().filter(|id| **id == end).count() >= 90);
    let total: usize = documents
        .iter()
        .map(|ids| ids.len() + usize::from(ids.last() != Some(&end)))
        .sum();
    let lengths: u64 = opened.document_lengths().unwrap().iter().sum();
    let validation = fs::read(place.path("prepared/lines/validation-tokens.bin")).unwrap();
    assert_eq!(lengths as usize + validation.len() / 2, total);
    for domain in ["arrow", "short", "int", "long", "ushort"] {
        assert!(
            token_files(&place, domain) == token_files(&place, "lines"),
            "{domain}"
        );
    }
    // A change of the data file alone makes the corpus stale.
    let mut data = fs::read(place.path("long.bin")).unwrap();
    data.push(0);
    place.write("long.bin", &data);
    let stale = stale(&options, &tokenizer).unwrap();
    assert_eq!(stale.len(), 1);
    assert!(
        stale[0].reason.contains("long.bin has changed"),
        "{stale:?}"
    );
}

#[test]
fn labels_mask_and_unknown_ids_are_quarantined() {
    let place = Place::new();
    let mut lines = String::new();
    for number in 0..40_u32 {
        let ids = [5, 6, 7, 8, 9 + number];
        let labels = [-100, -100, 7, -100, 9 + number as i64];
        lines.push_str(&format!(
            "{}\n",
            json!({ "input_ids": ids, "labels": labels })
        ));
    }
    lines.push_str("{\"input_ids\": [1, 99999]}\n{\"input_ids\": []}\n{\"text\": \"a\"}\n");
    place.write("ids.jsonl", lines.as_bytes());
    let source = made_elsewhere(&place, "ids", "ids.jsonl", Some("input_ids"));
    let mut options = place.options(vec![source]);
    options.max_bad_fraction = 0.2;
    options.validation_documents = 100;
    let report = place.prepare(&options).unwrap().remove(0);
    assert_eq!(
        (
            report.documents + report.validation_documents,
            report.quarantined
        ),
        (40, 3)
    );
    let open = |completion_only_loss| {
        let options = SequenceOptions {
            completion_only_loss,
            ..rows_of(16)
        };
        let domain = PreparedDomain::open(&place.path("prepared"), "ids", options).unwrap();
        domain.sequence(0).unwrap()
    };
    assert_eq!(open(true).masked[..3], [0..2, 3..4, 6..8]);
    assert!(open(false).masked.is_empty());
    let text = fs::read_to_string(place.path("prepared/ids/quarantine.jsonl")).unwrap();
    for said in [
        "the id 99999 at position 1",
        "empty",
        "no field `input_ids`",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn ids_of_another_tokenizer_are_refused_with_both() {
    let place = Place::new();
    train_tokenizer((0..50).map(sentence), 300, &place.path("other")).unwrap();
    place.write("ids.jsonl", b"{\"input_ids\": [1, 2]}\n");
    let mut source = made_elsewhere(&place, "ids", "ids.jsonl", Some("input_ids"));
    source.tokens.as_mut().unwrap().tokenizer = place.path("other");
    let error = place.prepare(&place.options(vec![source])).unwrap_err();
    assert!(
        matches!(error, CorpusError::OtherTokenizer { .. }),
        "{error}"
    );
    let said = error.to_string();
    for folder in ["other", "tokenizer"] {
        let bytes = fs::read(place.path(folder).join("tokenizer.json")).unwrap();
        let hash = blake3::hash(&bytes).to_hex();
        assert!(
            said.contains(&format!("{folder} (tokenizer.json {}", &hash[..16])),
            "{said}"
        );
    }
    assert!(!Path::new(&place.path("prepared/ids")).exists());
}

#[test]
fn a_broken_index_of_megatron_is_quarantined_by_document() {
    let place = Place::new();
    let documents: Vec<Vec<u32>> = (0..60).map(|number| vec![1, 2, 3, number]).collect();
    let (index, data) = megatron(&documents, 8);
    place.write("m/a.idx", &index);
    // The last two documents are cut off.
    place.write("m/a.bin", &data[..data.len() - 10]);
    let mut options = place.options(vec![made_elsewhere(&place, "m", "m", None)]);
    options.max_bad_fraction = 0.1;
    options.validation_documents = 100;
    let report = place.prepare(&options).unwrap().remove(0);
    assert_eq!(
        (
            report.documents + report.validation_documents,
            report.quarantined
        ),
        (58, 2)
    );
    for (change, said) in [
        (9, "the index has the version"),
        (17, "the index has the dtype"),
        (20, "the index is cut"),
        (2, "not an index of Megatron"),
    ] {
        let mut changed = index.clone();
        changed[change] = 77;
        place.write("m/a.idx", &changed);
        let problem = ddk_corpus::sample(&options.domains[0])
            .unwrap()
            .problem("m")
            .unwrap();
        assert!(problem.contains(said), "{problem}");
    }
}
