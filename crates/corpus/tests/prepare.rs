//! Prepares corpora from files on disk, reads their sequences, and checks the errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{collections::BTreeSet, fs, sync::Arc};

use common::{Place, all_rows, data_files, rows_of, sentence};
use ddk_corpus::{
    Cursor, PreparedDomain, SequenceReader, TokenizerFolder, compatible, stale, train_tokenizer,
};

#[test]
fn rows_are_the_documents_joined_by_the_end_token() {
    let place = Place::new();
    let mut options = place.both();
    options.validation_fraction = 0.02;
    let reports = place.prepare(&options).unwrap();
    let domain = place.open("records");
    let rows = all_rows(&domain);
    assert!(rows[..rows.len() - 1].iter().all(|row| row.len() == 16));
    // Split at the end token, the stream is the tokenized records in order, without the validation ones.
    let joined: Vec<u32> = rows.concat();
    assert_eq!(joined.len() as u64, domain.tokens());
    let tokenizer = place.tokenizer();
    let documents: Vec<&[u32]> = joined
        .split_inclusive(|token| *token == tokenizer.end_token())
        .collect();
    let mut expected = (0..200).map(|number| tokenizer.encode_document(&sentence(number)).unwrap());
    for document in &documents {
        assert!(expected.any(|tokens| tokens == *document));
    }
    let report = reports
        .iter()
        .find(|report| report.domain == "records")
        .unwrap();
    assert_eq!(
        (report.documents, report.rows),
        (documents.len() as u64, rows.len() as u64)
    );
    assert_eq!(report.documents + report.validation_documents, 200);
    // Spans tell where each token comes from.
    let row = domain.sequence(5).unwrap();
    assert_eq!(row.spans.iter().map(|span| span.tokens).sum::<u64>(), 16);
    let span = row.spans[0];
    assert_eq!(
        documents[span.document as usize][span.offset as usize],
        row.tokens[0]
    );
}

#[test]
fn a_pass_has_every_row_once_and_the_next_another_order() {
    let place = Place::new();
    place.prepare(&place.both()).unwrap();
    let domain = Arc::new(place.open("records"));
    let rows = domain.rows();
    let mut reader = SequenceReader::new(domain.clone(), 0, 3, Cursor::default());
    let mut pass = |expected: u64| -> Vec<u64> {
        (0..rows)
            .map(|index| {
                let sample = reader.read().unwrap();
                assert_eq!((sample.epoch, sample.index), (expected, index));
                sample.sequence.number
            })
            .collect()
    };
    let (first, second) = (pass(0), pass(1));
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len() as u64, rows);
    assert_eq!(second.iter().collect::<BTreeSet<_>>().len() as u64, rows);
    assert_ne!(first, second);
    // A reader that starts at a cursor returns what the first one returned from there.
    let cursor = Cursor::default().advance(rows, rows - 2);
    let mut late = SequenceReader::new(domain, 0, 3, cursor);
    let four: Vec<u64> = (0..4)
        .map(|_| late.read().unwrap().sequence.number)
        .collect();
    assert_eq!(
        four,
        [
            first[first.len() - 2],
            first[first.len() - 1],
            second[0],
            second[1]
        ]
    );
}

#[test]
fn training_and_validation_share_no_text_and_duplicates_are_left_out() {
    let place = Place::new();
    let twice = fs::read(place.path("records.jsonl")).unwrap().repeat(2);
    place.write("twice.jsonl", &twice);
    let reports = place
        .prepare(&place.options(vec![
            place.source("records", "records.jsonl"),
            place.source("twice", "twice.jsonl"),
        ]))
        .unwrap();
    assert_eq!((reports[0].duplicates, reports[1].duplicates), (0, 200));
    let (once, twice) = (place.open("records"), place.open("twice"));
    assert_eq!(all_rows(&once), all_rows(&twice));
    let validation = once.validation().unwrap();
    assert_eq!(validation, twice.validation().unwrap());
    assert!(!validation.is_empty() && validation.len() <= 10);
    let stream = all_rows(&once).concat();
    let tokenizer = place.tokenizer();
    let documents: BTreeSet<Vec<u32>> = stream
        .split_inclusive(|token| *token == tokenizer.end_token())
        .map(|document| document[..document.len().min(16)].to_vec())
        .collect();
    for document in validation {
        let document = document.tokens;
        assert!(document.len() <= 16 && !documents.contains(&document));
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_a_limit_is_kept() {
    let (one, two, other) = (Place::new(), Place::new(), Place::new());
    for (place, seed) in [(&one, 3), (&two, 3), (&other, 4)] {
        let mut options = place.both();
        options.seed = seed;
        options.domains[1].limits.bytes = Some(4000);
        let reports = place.prepare(&options).unwrap();
        assert!(
            reports[1].text_bytes <= 4000 && reports[1].text_bytes > 3500,
            "{reports:?}"
        );
    }
    for domain in ["files", "records"] {
        let folder = |place: &Place| data_files(&place.path("prepared").join(domain));
        assert_eq!(folder(&one), folder(&two));
    }
    let folder = |place: &Place| data_files(&place.path("prepared/records"));
    assert_ne!(folder(&one), folder(&other));
}

#[test]
fn what_is_prepared_is_kept_until_something_changes() {
    let place = Place::new();
    let options = place.both();
    let tokenizer = place.tokenizer();
    let reasons = || -> Vec<String> {
        stale(&options, &tokenizer)
            .unwrap()
            .into_iter()
            .map(|stale| format!("{}: {}", stale.domain, stale.reason))
            .collect()
    };
    assert_eq!(
        reasons(),
        [
            "files: no prepared data yet",
            "records: no prepared data yet"
        ]
    );
    assert!(
        place
            .prepare(&options)
            .unwrap()
            .iter()
            .all(|report| report.prepared)
    );
    assert_eq!(reasons(), [""; 0]);
    assert!(
        place
            .prepare(&options)
            .unwrap()
            .iter()
            .all(|report| !report.prepared)
    );

    place.write("files/1/999.md", b"one more document, which is new");
    assert!(reasons()[0].ends_with("999.md is new"), "{:?}", reasons());
    let again: Vec<bool> = place
        .prepare(&options)
        .unwrap()
        .iter()
        .map(|report| report.prepared)
        .collect();
    assert_eq!(again, [true, false]);

    let mut longer = options.clone();
    longer.sequence_length = 24;
    assert_eq!(
        stale(&longer, &tokenizer).unwrap()[0].reason,
        "it has no sequences of 24 tokens yet"
    );
    assert!(
        place
            .prepare(&longer)
            .unwrap()
            .iter()
            .all(|report| !report.prepared),
        "rows alone are cut anew"
    );
    // The seed chooses documents if a limit leaves some out. It affects nothing else.
    let mut seeded = options.clone();
    seeded.seed = 9;
    assert_eq!(stale(&seeded, &tokenizer).unwrap(), []);
    let mut limited = options.clone();
    limited.domains[0].limits.documents = Some(20);
    place.prepare(&limited).unwrap();
    limited.seed = 9;
    let found = stale(&limited, &tokenizer).unwrap();
    assert!(found[0].reason.contains("corpus.seed"), "{found:?}");
    assert!(found[0].replaces.is_some());
    place.prepare(&options).unwrap();
    train_tokenizer((0..260).map(sentence), 300, &place.path("tokenizer")).unwrap();
    assert_eq!(
        stale(&options, &place.tokenizer()).unwrap()[0].reason,
        "the tokenizer has changed"
    );
}

#[test]
fn bad_records_are_listed_and_too_many_are_an_error() {
    let place = Place::new();
    let mut records = fs::read(place.path("records.jsonl")).unwrap();
    records.extend_from_slice(b"{\"text\": \"torn\n\xff\xfe\n{\"title\": \"no text\"}\n\n");
    records.extend_from_slice(b"{\"text\": 7}\n{\"text\": \"  \"}\n");
    place.write("records.jsonl", &records);
    let mut options = place.options(vec![place.source("records", "records.jsonl")]);
    let error = place.prepare(&options).unwrap_err().to_string();
    assert!(
        error.contains("5 of 205 records")
            && error.contains("records.jsonl, the first at line 201: not JSON"),
        "{error}"
    );
    assert!(!place.path("prepared/records").exists());

    options.max_bad_fraction = 0.05;
    assert_eq!(place.prepare(&options).unwrap()[0].quarantined, 5);
    let listed: Vec<(u64, String)> =
        fs::read_to_string(place.path("prepared/records/quarantine.jsonl"))
            .unwrap()
            .lines()
            .map(|line| {
                let entry: ddk_corpus::Quarantined = serde_json::from_str(line).unwrap();
                (entry.line, entry.reason)
            })
            .collect();
    let starts = [
        (201, "not JSON"),
        (202, "not UTF-8 at byte 0"),
        (203, "no field `text`"),
        (205, "the field `text` is not a string"),
        (206, "empty"),
    ];
    assert_eq!(listed.len(), starts.len());
    for ((line, reason), (expected_line, start)) in listed.iter().zip(starts) {
        assert!(
            *line == expected_line && reason.starts_with(start),
            "{line}: {reason}"
        );
    }
}

#[test]
fn empty_and_missing_domains_are_named() {
    let place = Place::new();
    place.write("nothing.jsonl", b"");
    for (file, said) in [
        ("absent/*.md", "`absent` matches"),
        ("nothing.jsonl", "is empty"),
    ] {
        let mut source = place.source("lost", file);
        if file.starts_with("absent") {
            source.files = vec!["absent".to_owned()];
        }
        let error = place
            .prepare(&place.options(vec![source]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("domain `lost`") && error.contains(said),
            "{error}"
        );
    }
    place.write(
        "short.jsonl",
        format!("{}\n", serde_json::json!({ "text": "one document" })).as_bytes(),
    );
    let error = place
        .prepare(&place.options(vec![place.source("short", "short.jsonl")]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("domain `short` has only one document") && error.contains(".jsonl"),
        "{error}"
    );
}

#[test]
fn damage_is_found_at_opening() {
    let place = Place::new();
    place.prepare(&place.both()).unwrap();
    let error = PreparedDomain::open(&place.path("prepared"), "records", rows_of(99))
        .unwrap_err()
        .to_string();
    assert!(error.contains("not prepared"), "{error}");
    let tokens = place.path("prepared/records/tokens.bin");
    let bytes = fs::read(&tokens).unwrap();
    fs::write(&tokens, &bytes[..bytes.len() - 2]).unwrap();
    let error = PreparedDomain::open(&place.path("prepared"), "records", rows_of(16))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tokens.bin") && error.contains("prepare the corpus again"),
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_read_any_more_is_named_with_the_place() {
    let place = Place::new();
    place.prepare(&place.both()).unwrap();
    let domain = PreparedDomain::open(&place.path("prepared"), "records", rows_of(16)).unwrap();
    let row = domain.sequence(1).unwrap();
    let tokens = place.path("prepared/records/tokens.bin");
    let whole = fs::read(&tokens).unwrap();
    // Cut the file while the domain has it open.
    let file = fs::File::options().write(true).open(&tokens).unwrap();
    file.set_len(20).unwrap();
    let error = domain.sequence(1).unwrap_err().to_string();
    assert!(error.contains("records/tokens.bin at byte 32"), "{error}");
    fs::write(&tokens, whole).unwrap();
    assert_eq!(domain.sequence(1).unwrap(), row);
}

#[test]
fn tokenizers_are_compared_id_by_id() {
    let place = Place::new();
    let student = place.tokenizer();
    compatible(&student, &place.tokenizer()).unwrap();
    assert_eq!(student.vocabulary(), 320);

    // Swap the ids of two tokens.
    let text = fs::read_to_string(place.path("tokenizer/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    let name = |id: u64| {
        vocabulary
            .iter()
            .find(|(_, value)| **value == id)
            .unwrap()
            .0
            .clone()
    };
    let (a, b) = (name(70), name(90));
    vocabulary.insert(a.clone(), 90.into());
    vocabulary.insert(b, 70.into());
    place.write("teacher/tokenizer.json", json.to_string().as_bytes());
    fs::copy(
        place.path("tokenizer/tokenizer_config.json"),
        place.path("teacher/tokenizer_config.json"),
    )
    .unwrap();
    let teacher = TokenizerFolder::open(&place.path("teacher"), None).unwrap();
    let error = compatible(&teacher, &student).unwrap_err().to_string();
    assert!(
        error.contains("id 70 is")
            && error.contains("teacher")
            && error.contains(&format!("{a:?}")),
        "{error}"
    );

    let error = TokenizerFolder::open(&place.path("files"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no tokenizer.json"), "{error}");
    let error = TokenizerFolder::open(&place.path("tokenizer"), Some("</s>"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("`</s>`"), "{error}");
}

#[test]
fn a_tokenizer_is_the_same_each_time_it_is_learned() {
    let place = Place::new();
    let first = fs::read(place.path("tokenizer/tokenizer.json")).unwrap();
    for _ in 0..3 {
        train_tokenizer((0..260).map(sentence), 320, &place.path("again")).unwrap();
        assert!(fs::read(place.path("again/tokenizer.json")).unwrap() == first);
    }
    assert_eq!(place.tokenizer().end_token(), 0);
}

/// transformers saves the last truncation and padding settings with a tokenizer.
#[test]
fn documents_are_whole_whatever_a_tokenizer_was_saved_with() {
    let (plain, saved) = (Place::new(), Place::new());
    let path = saved.path("tokenizer/tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    tokenizer["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    });
    tokenizer["padding"] = serde_json::json!({
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"
    });
    fs::write(&path, tokenizer.to_string()).unwrap();
    for place in [&plain, &saved] {
        place.prepare(&place.both()).unwrap();
    }
    for domain in ["files", "records"] {
        let files = |place: &Place| data_files(&place.path("prepared").join(domain));
        assert_eq!(files(&plain), files(&saved), "{domain}");
    }
}

#[test]
fn an_end_token_that_no_text_can_have_is_refused() {
    let place = Place::new();
    let folder = place.path("tokenizer");
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let _ = fs::remove_file(folder.join(name));
    }
    place.write("tokenizer/config.json", b"{\"eos_token_id\": 4100}");
    let said = TokenizerFolder::open(&folder, None)
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("id 4100") && said.contains("corpus.eos_token"),
        "{said}"
    );
}
