//! Checks that DDK reads a file only in the format that its name or the configuration gives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::{Place, data_files, sentence};
use ddk_corpus::{
    CorpusError, FileFormat, Quarantined, Shape, TEXT_EXTENSIONS, TEXT_NAMES, detect, prepare,
    sample, stale,
};

fn quarantine(place: &Place, domain: &str) -> Vec<Quarantined> {
    fs::read_to_string(place.path("prepared").join(domain).join("quarantine.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn files_of_unknown_formats_are_refused_before_any_is_read() {
    let place = Place::new();
    let lines = fs::read(place.path("records.jsonl")).unwrap();
    place.write("mixed/good.jsonl", &lines);
    place.write("mixed/more.log", &lines);
    for name in [
        "array.xml",
        "tokens.bin",
        "book.docx",
        "paper.pdf",
        "shard-1",
    ] {
        place.write(&format!("mixed/deep/{name}"), b"[{\"text\": \"a\"}]");
    }
    let mut options = place.options(vec![place.source("mixed", "mixed")]);
    let tokenizer = place.tokenizer();
    let errors = [
        prepare(&options, &tokenizer, false, &mut |_| ()).unwrap_err(),
        stale(&options, &tokenizer).unwrap_err(),
        sample(&options.domains[0]).unwrap_err(),
    ];
    for error in errors {
        let CorpusError::UnknownFormat { count, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*count, 6);
        let said = error.to_string();
        for name in [
            "array.xml: ",
            "book.docx: ",
            "paper.pdf: ",
            "shard-1: ",
            "tokens.bin: ",
        ] {
            assert!(said.contains(name), "no {name} in {said}");
        }
        assert!(said.ends_with("and 1 more"), "{said}");
    }
    assert!(!place.path("prepared").exists());

    // DDK does not refuse files that a glob leaves out. A configured format overrides the extension.
    options.domains[0].files = vec![place.path("mixed/**/*.jsonl").display().to_string()];
    place.prepare(&options).unwrap();
    let expected = data_files(&place.path("prepared/mixed"));
    options.domains[0].files = vec![place.path("mixed/more.log").display().to_string()];
    options.domains[0].format = Some(FileFormat::Jsonl);
    assert_eq!(
        stale(&options, &tokenizer).unwrap()[0].reason,
        "the setting format has changed"
    );
    place.prepare(&options).unwrap();
    assert!(data_files(&place.path("prepared/mixed")) == expected);
}

#[test]
fn hidden_files_are_skipped_in_folders_and_globs() {
    let place = Place::new();
    for name in ["files/.DS_Store", "files/1/.cache/index.bin"] {
        place.write(name, b"\0\0\0\x01");
    }
    for pattern in ["files", "files/**/*"] {
        let options = place.options(vec![place.source("files", pattern)]);
        let report = place.prepare(&options).unwrap().remove(0);
        assert_eq!(
            report.documents + report.validation_documents,
            60,
            "{pattern}"
        );
        assert_eq!(report.quarantined, 0);
    }
}

#[test]
fn byte_order_marks_are_no_part_of_a_text() {
    let (plain, marked) = (Place::new(), Place::new());
    let with_mark = |bytes: &[u8]| [b"\xef\xbb\xbf", bytes].concat();
    let lines = fs::read(plain.path("records.jsonl")).unwrap();
    marked.write("records.jsonl", &with_mark(&lines));
    for number in 200..260 {
        let name = format!("files/{}/{number}.md", number % 3);
        marked.write(&name, &with_mark(sentence(number).as_bytes()));
    }
    for place in [&plain, &marked] {
        place.prepare(&place.both()).unwrap();
    }
    for domain in ["files", "records"] {
        let files = |place: &Place| data_files(&place.path("prepared").join(domain));
        assert!(files(&plain) == files(&marked), "{domain}");
    }
}

#[test]
fn binary_files_and_other_encodings_are_quarantined_by_name() {
    let place = Place::new();
    let utf16: Vec<u8> = "\u{feff}wide"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    place.write("files/binary.txt", b"text, then \0 a zero");
    place.write("files/latin.txt", b"caf\xe9");
    place.write("files/wide.md", &utf16);
    place.write("files/wide.jsonl", &utf16);
    let mut options = place.options(vec![place.source("files", "files")]);
    options.max_bad_fraction = 0.2;
    let report = place.prepare(&options).unwrap().remove(0);
    assert_eq!(report.documents + report.validation_documents, 60);
    let found: Vec<(String, String)> = quarantine(&place, "files")
        .into_iter()
        .map(|entry| {
            let name = entry
                .file
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned();
            (name, entry.reason)
        })
        .collect();
    let expected = [
        ("binary.txt", "a binary file, not text: byte 11 is zero"),
        ("latin.txt", "not UTF-8 at byte 3"),
        ("wide.jsonl", "UTF-16 by its byte-order mark"),
        ("wide.md", "UTF-16 by its byte-order mark"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((name, reason), (expected, start)) in found.iter().zip(expected) {
        assert!(
            name == expected && reason.starts_with(start),
            "{name}: {reason}"
        );
    }
}

/// A zstd frame of one raw block, whose header asks for a window of `1 << log` bytes (RFC 8878, section 3.1.1).
fn zstd_frame(text: &[u8], log: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
    let block = (text.len() as u32) << 3 | 1;
    frame.extend_from_slice(&block.to_le_bytes()[..3]);
    frame.extend_from_slice(text);
    frame
}

#[test]
fn a_zstd_window_over_the_limit_is_refused_and_says_what_to_do() {
    let place = Place::new();
    place.write(
        "files/large.md.zst",
        &zstd_frame(b"a window of 128 MiB", 27),
    );
    let mut options = place.options(vec![place.source("files", "files")]);
    options.max_bad_fraction = 0.9;
    assert_eq!(place.prepare(&options).unwrap()[0].quarantined, 0);
    place.write(
        "files/larger.md.zst",
        &zstd_frame(b"a window of 256 MiB", 28),
    );
    assert_eq!(place.prepare(&options).unwrap()[0].quarantined, 1);
    let found = quarantine(&place, "files");
    assert!(
        found[0].file.ends_with("larger.md.zst")
            && found[0]
                .reason
                .contains("window is over 128 MiB: compress it again"),
        "{found:?}"
    );
}

#[test]
fn the_documented_extensions_are_those_that_are_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/corpora.md");
    let text = fs::read_to_string(path).unwrap();
    let listed = |title: &str| -> Vec<String> {
        let paragraph = text
            .split("\n\n")
            .find(|paragraph| paragraph.starts_with(title));
        let list = paragraph
            .unwrap()
            .split(", in any letter case")
            .next()
            .unwrap();
        let parts = list.split('`').skip(1).step_by(2);
        parts.map(ToOwned::to_owned).collect()
    };
    let mut documented: Vec<String> = ["Prose and markup:", "Source code:", "Configuration:"]
        .into_iter()
        .flat_map(listed)
        .collect();
    documented.sort();
    let mut known = TEXT_EXTENSIONS.to_vec();
    known.sort_unstable();
    assert_eq!(documented, known);
    assert_eq!(listed("Names without an extension:"), TEXT_NAMES);
}

#[test]
fn what_is_no_json_lines_file_is_named() {
    let place = Place::new();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n";
    for name in ["a.jsonl", "a.parquet", "a.txt"] {
        place.write(name, pointer);
        let reason = detect(&place.path(name)).unwrap().shape.unwrap_err();
        assert!(reason.contains("run `git lfs pull`"), "{name}: {reason}");
    }
    let problem = sample(&place.source("lfs", "a.jsonl")).unwrap();
    let problem = problem.problem("lfs").unwrap();
    assert!(problem.contains("run `git lfs pull`"), "{problem}");
    place.write(
        "array.jsonl",
        b"[\n {\"text\": \"a\"},\n {\"text\": \"b\"}\n]\n",
    );
    let found = detect(&place.path("array.jsonl")).unwrap();
    let reason = found.shape.unwrap_err();
    assert!(
        reason.starts_with("a JSON array, not JSON Lines"),
        "{reason}"
    );
}

#[test]
fn a_look_at_a_file_counts_the_unusable_records_that_preparation_finds() {
    let place = Place::new();
    let line = |number: u64| format!("{{\"text\": \"a {number}\"}}\n");
    let mut lines: String = (0..10).map(line).collect();
    lines.push_str("{\"text\": \" \"}\n{\"text\": null}\n{\"other\": \"a\"}\nno json\n");
    place.write("some.jsonl", lines.as_bytes());
    let found = detect(&place.path("some.jsonl")).unwrap();
    assert_eq!(found.shape, Ok(Shape::Field("text".to_owned())));
    assert_eq!((found.records, found.bad), (14, 4));
    let source = place.source("some", "some.jsonl");
    let read = sample(&source).unwrap();
    assert_eq!((read.records, read.bad), (14, 4));
    assert!(read.whole && read.too_few(&source).is_none());
    for (records, said) in [
        (1, "has only one document"),
        (10, "has the same text in all"),
    ] {
        place.write("one.jsonl", line(0).repeat(records).as_bytes());
        let source = place.source("one", "one.jsonl");
        let error = sample(&source).unwrap().too_few(&source).unwrap();
        let prepared = place.prepare(&place.options(vec![source])).unwrap_err();
        for error in [error, prepared] {
            assert!(matches!(error, CorpusError::TooLittle { .. }), "{error}");
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}

#[test]
fn answers_that_are_not_learned_are_named() {
    let place = Place::new();
    let turn = |role: &str| serde_json::json!([{ "role": role, "content": "a" }]);
    let record = serde_json::json!({
        "prompt": turn("user"), "chosen": turn("assistant"), "rejected": turn("assistant"),
    });
    place.write("pairs.jsonl", format!("{record}\n").as_bytes());
    let found = detect(&place.path("pairs.jsonl")).unwrap();
    let shape = Shape::Completion {
        messages: "prompt".to_owned(),
        completion: "chosen".to_owned(),
    };
    assert_eq!(found.shape, Ok(shape));
    assert_eq!((found.ignored(), found.bad), (Some("rejected"), 0));
}
