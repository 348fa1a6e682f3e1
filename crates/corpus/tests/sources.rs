//! Checks that every format gives the same tokens, that damage is quarantined where it occurs, that limits hold, and
//! that sequences contain each token once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod common;

use std::{collections::BTreeMap, fs, io::Write, path::Path, sync::Arc};

use common::{Place, data_files, sentence};
use ddk_corpus::{
    DomainSource, Packing, PreparedDomain, Quarantined, SequenceOptions, Template, ValidationSplit,
    verify,
};
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn write_parquet(path: &Path, texts: &[String]) {
    let schema = "message m { required binary text (UTF8); optional group meta { required binary source (UTF8); } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    for part in texts.chunks(70) {
        let mut group = writer.next_row_group().unwrap();
        let values: Vec<ByteArray> = part.iter().map(|text| text.as_str().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        column.close().unwrap();
        let sources: Vec<ByteArray> = part.iter().map(|_| "wiki".into()).collect();
        let present = vec![1; part.len()];
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&sources, Some(&present), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn quarantine(place: &Place, domain: &str) -> Vec<Quarantined> {
    fs::read_to_string(place.path("prepared").join(domain).join("quarantine.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_format_prepares_to_the_same_tokens() {
    let place = Place::new();
    let lines = fs::read(place.path("records.jsonl")).unwrap();
    place.write("g/records.jsonl.gz", &gzip(&lines));
    place.write(
        "z/records.jsonl.zst",
        &zstd::encode_all(&lines[..], 3).unwrap(),
    );
    let texts: Vec<String> = (0..200).map(sentence).collect();
    fs::create_dir_all(place.path("p")).unwrap();
    write_parquet(&place.path("p/records.parquet"), &texts);
    let mut split = String::new();
    for text in &texts {
        let (first, rest) = text.split_once(' ').unwrap();
        split.push_str(&format!(
            "{}\n",
            serde_json::json!({ "q": first, "more": { "a": rest } })
        ));
    }
    place.write("t/records.jsonl", split.as_bytes());
    for (index, text) in texts.iter().enumerate() {
        // The paths sort in the order of the record lines. Each file is a document, compressed or not.
        let name = format!("w/{index:03}.md");
        match index % 3 {
            0 => place.write(&name, text.as_bytes()),
            1 => place.write(&format!("{name}.gz"), &gzip(text.as_bytes())),
            _ => place.write(
                &format!("{name}.zst"),
                &zstd::encode_all(text.as_bytes(), 3).unwrap(),
            ),
        }
    }
    let mut templated = place.source("t", "t");
    templated.text = Template::parse("{q} {more.a}").unwrap();
    let options = place.options(vec![
        place.source("records", "records.jsonl"),
        place.source("g", "g"),
        place.source("z", "z"),
        place.source("p", "p"),
        templated,
        place.source("w", "w"),
    ]);
    place.prepare(&options).unwrap();
    let files = |name: &str| data_files(&place.path("prepared").join(name));
    for name in ["g", "z", "p", "t", "w"] {
        assert!(files(name) == files("records"), "{name}");
    }
}

#[test]
fn domains_are_told_apart_by_a_field() {
    let place = Place::new();
    let mut mixed = String::new();
    for number in 0..120 {
        let name = ["RedPajamaC4", "RedPajamaBook", "RedPajamaGithub"][number as usize % 3];
        let record =
            serde_json::json!({ "text": sentence(number), "meta": { "redpajama_set_name": name } });
        mixed.push_str(&format!("{record}\n"));
    }
    place.write("mixed.jsonl", mixed.as_bytes());
    let of = |name: &str| DomainSource {
        only: Some(("meta.redpajama_set_name".to_owned(), name.to_owned())),
        ..place.source(name, "mixed.jsonl")
    };
    let reports = place
        .prepare(&place.options(vec![
            of("RedPajamaBook"),
            of("RedPajamaC4"),
            of("RedPajamaGithub"),
        ]))
        .unwrap();
    for report in &reports {
        assert_eq!(
            report.documents + report.validation_documents,
            40,
            "{report:?}"
        );
        assert_eq!(report.quarantined, 0);
    }
}

#[test]
fn cut_and_damaged_files_are_reported_and_the_rest_is_used() {
    let place = Place::new();
    let lines = fs::read(place.path("records.jsonl")).unwrap();
    let (gz, zst) = (gzip(&lines), zstd::encode_all(&lines[..], 3).unwrap());
    place.write("d/a.jsonl.gz", &gz[..gz.len() - 30]);
    place.write("d/b.jsonl.zst", &zst[..zst.len() - 30]);
    write_parquet(
        &place.path("d/c.parquet"),
        &(300..330).map(sentence).collect::<Vec<_>>(),
    );
    let whole = fs::read(place.path("d/c.parquet")).unwrap();
    place.write("d/c.parquet", &whole[..whole.len() - 9]);
    for number in 400..450 {
        place.write(&format!("d/{number}.md"), sentence(number).as_bytes());
    }
    let mut options = place.options(vec![place.source("d", "d")]);
    // Three of sixty records, but most of the bytes. The number of records lost with them is unknown.
    options.max_bad_fraction = 0.4;
    let said = place.prepare(&options).unwrap_err().to_string();
    assert!(
        said.contains("cannot be read to their end") && said.contains("a.jsonl.gz"),
        "{said}"
    );
    options.max_bad_fraction = 1.0;
    let report = &place.prepare(&options).unwrap()[0];
    let found = quarantine(&place, "d");
    assert_eq!(found.len(), 3, "{found:?}");
    for (entry, name) in found.iter().zip(["a.jsonl.gz", "b.jsonl.zst", "c.parquet"]) {
        assert!(
            entry.file.ends_with(name) && entry.reason.contains("cut or damaged"),
            "{entry:?}"
        );
    }
    assert!(
        report.documents + report.validation_documents >= 50,
        "{report:?}"
    );
}

#[test]
fn limits_on_documents_tokens_and_lengths_are_kept() {
    let place = Place::new();
    let mut long = fs::read(place.path("records.jsonl")).unwrap();
    let giant = "x".repeat(300_000);
    for text in [giant.as_str(), "tiny"] {
        long.extend(format!("{}\n", serde_json::json!({ "text": text })).into_bytes());
    }
    place.write("records.jsonl", &long);
    let mut source = place.source("records", "records.jsonl");
    source.limits.longest = 1000;
    source.limits.shortest = 10;
    source.limits.documents = Some(50);
    let mut options = place.options(vec![source]);
    let report = place.prepare(&options).unwrap().remove(0);
    assert_eq!(
        (report.documents, report.short, report.quarantined),
        (50, 1, 1)
    );
    let found = &quarantine(&place, "records")[0];
    assert_eq!(found.line, 201);
    assert!(found.reason.contains("limit of 1000 bytes"), "{found:?}");
    options.domains[0].limits.tokens = Some(700);
    let report = place.prepare(&options).unwrap().remove(0);
    assert!(report.tokens <= 700 && report.tokens > 600, "{report:?}");
}

#[test]
fn validation_comes_by_count_or_from_files_of_its_own() {
    let place = Place::new();
    let mut options = place.options(vec![place.source("records", "records.jsonl")]);
    options.validation_split = ValidationSplit::Count;
    options.validation_documents = 7;
    let report = place.prepare(&options).unwrap().remove(0);
    assert_eq!((report.validation_documents, report.documents), (7, 193));
    assert_eq!(report.spare, 0);
    // By fraction, DDK does not train on what is set aside beyond that number.
    options.validation_split = ValidationSplit::Fraction;
    options.validation_fraction = 0.5;
    let report = place.prepare(&options).unwrap().remove(0);
    assert_eq!(report.validation_documents, 7);
    assert_eq!(report.documents + 7 + report.spare, 200);
    assert!((60..125).contains(&report.spare), "{report:?}");

    // Texts 190 to 204 are set aside. DDK does not train on those that are also in the records.
    let aside: String = (190..205)
        .map(|number| format!("{}\n", serde_json::json!({ "text": sentence(number) })))
        .collect();
    place.write("aside.jsonl", aside.as_bytes());
    options.validation_documents = 100;
    options.domains[0].validation_files = vec![place.path("aside.jsonl").display().to_string()];
    let report = place.prepare(&options).unwrap().remove(0);
    assert_eq!(
        (
            report.validation_documents,
            report.documents,
            report.duplicates
        ),
        (15, 190, 10)
    );
}

fn open(
    place: &Place,
    packing: Packing,
    length: usize,
    completion_only_loss: bool,
) -> PreparedDomain {
    let options = SequenceOptions {
        packing,
        sequence_length: length,
        completion_only_loss,
    };
    PreparedDomain::open(&place.path("prepared"), "records", options).unwrap()
}

#[test]
fn prompts_are_not_predicted_where_they_are_masked() {
    let place = Place::new();
    let records: String = (0..100)
        .map(|number| {
            let record =
                serde_json::json!({ "q": format!("question {number}"), "a": sentence(number) });
            format!("{record}\n")
        })
        .collect();
    place.write("records.jsonl", records.as_bytes());
    let mut source = place.source("records", "records.jsonl");
    source.prompt = Some(Template::parse("{q}: ").unwrap());
    source.text = Template::parse("{a}").unwrap();
    let mut options = place.options(vec![source]);
    options.packing = Packing::BestFit;
    options.sequence_length = 64;
    place.prepare(&options).unwrap();
    let (masked, plain) = (
        open(&place, Packing::BestFit, 64, true),
        open(&place, Packing::BestFit, 64, false),
    );
    let tokenizer = place.tokenizer();
    let mut seen = 0;
    for number in 0..masked.rows() {
        let (row, all) = (
            masked.sequence(number).unwrap(),
            plain.sequence(number).unwrap(),
        );
        assert_eq!(row.tokens, all.tokens);
        assert!(all.masked.is_empty());
        let masked_places = row.masked.iter().cloned().flatten();
        let masked_tokens: Vec<u32> = masked_places
            .map(|place| row.tokens[place as usize])
            .collect();
        let text = tokenizer.decode(&masked_tokens).unwrap();
        let questions = text.matches("question").count();
        seen += questions;
        assert_eq!(questions, row.spans.len(), "{text}");
        // The first token of a part belongs to a prompt and is never predicted anyway.
        let masked_predictions = masked_tokens.len() - row.spans.len();
        assert_eq!(
            row.num_targets() + masked_predictions as u64,
            all.num_targets()
        );
    }
    assert_eq!(seen as u64, masked.document_lengths().unwrap().len() as u64);
    assert!(
        masked
            .validation()
            .unwrap()
            .iter()
            .all(|document| !document.masked.is_empty())
    );
    // DDK prepares a domain again if this version cannot read its format.
    let manifest = place.path("prepared/records/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let old = text.replace("\"format\": 6", "\"format\": 3");
    assert_ne!(old, text);
    fs::write(&manifest, old).unwrap();
    let stale = ddk_corpus::stale(&options, &tokenizer).unwrap();
    assert!(stale[0].reason.contains("another version"), "{stale:?}");
    assert!(place.prepare(&options).unwrap()[0].prepared);
    assert_eq!(fs::read_to_string(&manifest).unwrap(), text);
}

/// A single-document file between records with prompts has no prompt, and takes none from a record.
#[test]
fn a_prompt_stays_with_its_text() {
    let place = Place::new();
    let records: String = (0..60)
        .map(|number| {
            let record = serde_json::json!({ "q": format!("question {number}"), "a": format!("answer {number}") });
            format!("{record}\n")
        })
        .collect();
    place.write("mixed/b.jsonl", records.as_bytes());
    for (number, name) in ["a.md", "c.md"].iter().enumerate() {
        place.write(&format!("mixed/{name}"), sentence(number as u64).as_bytes());
    }
    let mut source = place.source("records", "mixed");
    source.prompt = Some(Template::parse("{q}: ").unwrap());
    source.text = Template::parse("{a}").unwrap();
    let mut options = place.options(vec![source]);
    (options.packing, options.sequence_length) = (Packing::BestFit, 64);
    place.prepare(&options).unwrap();
    let (domain, tokenizer) = (open(&place, Packing::BestFit, 64, true), place.tokenizer());
    let mut pairs = 0;
    for number in 0..domain.rows() {
        let row = domain.sequence(number).unwrap();
        let parts = row.tokens.split(|token| *token == tokenizer.end_token());
        for part in parts.map(|part| tokenizer.decode(part).unwrap()) {
            if let Some((question, answer)) = part.split_once(": answer ") {
                assert_eq!(question, format!("question {answer}"), "{part}");
                pairs += 1;
            } else {
                assert!(!part.contains("question"), "{part}");
            }
        }
    }
    assert!(pairs >= 40, "{pairs} pairs");
}

#[test]
fn a_flipped_byte_is_found() {
    let place = Place::new();
    let options = place.options(vec![place.source("records", "records.jsonl")]);
    place.prepare(&options).unwrap();
    assert_eq!(verify(&options).unwrap()[0].0, "records");
    for file in [
        "tokens.bin",
        "validation-documents.bin",
        "rows-concat-16.bin",
    ] {
        let path = place.path("prepared/records").join(file);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = verify(&options).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        fs::write(&path, whole).unwrap();
    }
    verify(&options).unwrap();
}

fn cases() -> ProptestConfig {
    let scale: u32 = std::env::var("DDK_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    ProptestConfig::with_cases(8 * scale)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_token_is_in_a_pass_once_however_it_is_packed(
        lengths in prop::collection::vec(1_u64..60, 30..80), row_length in 2_usize..50
    ) {
        let place = Place::new();
        let records: String = lengths
            .iter()
            .enumerate()
            .map(|(index, words)| {
                let text: Vec<String> = (0..*words).map(|word| sentence(word + index as u64)).collect();
                format!("{}\n", serde_json::json!({ "text": format!("{index} {}", text.join(" ")) }))
            })
            .collect();
        place.write("records.jsonl", records.as_bytes());
        let mut options = place.options(vec![place.source("records", "records.jsonl")]);
        options.sequence_length = row_length;
        options.validation_split = ValidationSplit::Count;
        options.validation_documents = 3;
        for packing in [Packing::Concat, Packing::ConcatMasked, Packing::BestFit] {
            options.packing = packing;
            let report = place.prepare(&options).unwrap().remove(0);
            let domain = open(&place, packing, row_length, false);
            let mut seen: BTreeMap<(u64, u64), u32> = BTreeMap::new();
            for row in 0..domain.rows() {
                let row = domain.sequence(row).unwrap();
                prop_assert!(row.tokens.len() <= row_length && row.tokens.len() > 1);
                let tokens: u64 = row.spans.iter().map(|span| span.tokens).sum();
                prop_assert_eq!(tokens, row.tokens.len() as u64);
                let expected = match packing {
                    Packing::Concat => tokens - 1,
                    _ => tokens - row.spans.len() as u64,
                };
                prop_assert_eq!(row.num_targets(), expected);
                let mut place = 0;
                for span in &row.spans {
                    for offset in span.offset..span.offset + span.tokens {
                        prop_assert!(seen.insert((span.document, offset), row.tokens[place]).is_none());
                        place += 1;
                    }
                }
            }
            // Only a token that would be a sequence of its own is left out.
            let left_out = report.tokens - seen.len() as u64;
            let most = match packing {
                Packing::BestFit => lengths.len() as u64,
                _ => 1,
            };
            prop_assert!(left_out <= most);
        }
    }
}
