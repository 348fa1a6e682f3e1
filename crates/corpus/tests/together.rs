//! Checks that domains that are read together, and surveys that do not fit in memory, give the same files as domains
//! that are read alone and in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
};

use common::{Place, data_files, sentence};
use ddk_corpus::{
    DomainReport, DomainSource, Limits, PrepareOptions, PreparePhase, Progress, Template,
    ValidationSplit, prepare,
};

const KINDS: [&str; 4] = ["a", "b", "c", "d"];

/// Writes records of all kinds, with duplicates, short and unusable records, and damage at the end of a file.
fn write_mixed(place: &Place) {
    let mut lines = Vec::new();
    for line in 0..1200_u64 {
        // Every eleventh record is a duplicate.
        let number = if line % 11 == 5 && line > 200 {
            line - 111
        } else {
            line
        };
        let kind = KINDS[(number % 7 % 4) as usize];
        let text = if line % 50 == 3 {
            "x".to_owned()
        } else {
            sentence(number)
        };
        let title = format!("title {}", number % 90);
        let record = serde_json::json!({ "kind": kind, "text": text, "title": title });
        lines.extend(format!("{record}\n").into_bytes());
        match line {
            300 => lines.extend_from_slice(b"{\"kind\": \"b\", \"title\": \"no text\"}\n\n"),
            400 => lines.extend_from_slice(b"not JSON\n"),
            500 => lines.extend_from_slice(b"{\"kind\": \"c\", \"text\": \"\xff\"}\n"),
            600 => {
                let long = "long ".repeat(60_000);
                let record = serde_json::json!({ "kind": "d", "text": long });
                lines.extend(format!("{record}\n").into_bytes());
            }
            _ => {}
        }
    }
    let (first, rest) = lines.split_at(lines.len() / 3);
    let end = first.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    place.write("mixed/1.jsonl", &lines[..end]);
    let rest = [&first[end..], rest].concat();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&rest).unwrap();
    let packed = packed.finish().unwrap();
    place.write("mixed/2.jsonl.gz", &packed);
    place.write("mixed/3.jsonl.gz", &packed[..packed.len() / 2]);
}

/// The domains of `write_mixed`, each with limits of another kind.
fn domains(place: &Place) -> Vec<DomainSource> {
    let of = |kind: &str| {
        let mut domain = DomainSource {
            only: Some(("kind".to_owned(), kind.to_owned())),
            limits: Limits {
                shortest: 10,
                longest: 100_000,
                ..Limits::default()
            },
            ..place.source(kind, "mixed")
        };
        match kind {
            "a" => domain.limits.tokens = Some(2000),
            "b" => domain.prompt = Some(Template::field("title")),
            "c" => domain.limits.bytes = Some(9000),
            _ => domain.limits.documents = Some(60),
        }
        domain
    };
    KINDS.into_iter().map(of).collect()
}

type Prepared = (
    Vec<DomainReport>,
    BTreeMap<String, BTreeMap<String, Vec<u8>>>,
);

/// Prepares all domains in one call, or each one in a call of its own.
fn prepared(place: &Place, options: &PrepareOptions, together: bool) -> Prepared {
    let _ = fs::remove_dir_all(&options.folder);
    let size = if together { options.domains.len() } else { 1 };
    let mut reports = Vec::new();
    for domains in options.domains.chunks(size) {
        let options = PrepareOptions {
            domains: domains.to_vec(),
            ..options.clone()
        };
        reports.extend(place.prepare(&options).unwrap());
    }
    let names = options.domains.iter().map(|domain| domain.name.clone());
    let files = names.map(|name| {
        let folder = options.folder.join(&name);
        (name, data_files(&folder))
    });
    let files = files.collect();
    let left: Vec<_> = fs::read_dir(&options.folder).unwrap().collect();
    assert_eq!(left.len(), 1 + options.domains.len(), "{left:?}");
    (reports, files)
}

#[test]
fn domains_read_together_equal_domains_read_alone_with_any_memory() {
    let place = Place::new();
    write_mixed(&place);
    let aside: String = (0..40)
        .map(|number| {
            let kind = KINDS[number as usize % 4];
            format!(
                "{}\n",
                serde_json::json!({ "kind": kind, "text": sentence(number), "title": "aside" })
            )
        })
        .collect();
    place.write("aside.jsonl", aside.as_bytes());
    for (split, own_files) in [
        (ValidationSplit::Count, false),
        (ValidationSplit::Fraction, false),
        (ValidationSplit::Fraction, true),
    ] {
        let mut options = place.options(domains(&place));
        options.validation_split = split;
        options.max_bad_fraction = 1.0;
        options.batch_bytes = 10_000;
        if own_files {
            for domain in &mut options.domains {
                domain.validation_files = vec![place.path("aside.jsonl").display().to_string()];
            }
        }
        let alone = prepared(&place, &options, false);
        let of_domain = |number: usize| &alone.0[number];
        assert!(of_domain(0).tokens > 1900 && of_domain(2).text_bytes > 8900);
        for report in &alone.0 {
            assert!(report.duplicates > 0 && report.short > 0, "{report:?}");
        }
        assert!(alone.0.iter().all(|report| report.quarantined > 4));
        for (documents, together) in [(1, true), (50, true), (50, false), (1 << 20, true)] {
            options.documents_in_memory = documents;
            let same = prepared(&place, &options, together) == alone;
            assert!(same, "{documents} documents in memory");
        }
    }
}

/// Returns the progress of a preparation, and its outcome in words.
fn progress_of(
    place: &Place,
    options: &PrepareOptions,
    mut also: impl FnMut(&Progress),
) -> (Vec<Progress>, String) {
    let mut all = Vec::new();
    let result = prepare(options, &place.tokenizer(), true, &mut |progress| {
        also(&progress);
        all.push(progress);
    });
    (
        all,
        result.map_or_else(|error| error.to_string(), |_| "prepared".to_owned()),
    )
}

#[test]
fn files_are_read_once_in_each_phase_and_the_bytes_are_counted() {
    let place = Place::new();
    write_mixed(&place);
    let bytes_of = |name: &str| fs::metadata(place.path(name)).unwrap().len();
    let files = ["mixed/1.jsonl", "mixed/2.jsonl.gz", "mixed/3.jsonl.gz"];
    let bytes: u64 = files.map(bytes_of).iter().sum();
    let mut domains = domains(&place);
    domains.push(place.source("records", "records.jsonl"));
    let mut options = place.options(domains);
    options.max_bad_fraction = 1.0;
    let (progress, outcome) = progress_of(&place, &options, |_| ());
    assert_eq!(outcome, "prepared");
    let phases: Vec<(String, PreparePhase)> = progress
        .iter()
        .map(|progress| (progress.domain.clone(), progress.phase))
        .collect();
    let mut distinct = phases.clone();
    distinct.dedup();
    let (all, one) = ("a, b, c, d", "records");
    let expected = [
        (all, PreparePhase::Surveying),
        (all, PreparePhase::Tokenizing),
        (one, PreparePhase::Surveying),
        (one, PreparePhase::Tokenizing),
    ];
    let expected = expected.map(|(domain, phase)| (domain.to_owned(), phase));
    assert_eq!(distinct, expected);
    for ((domain, phase), total) in
        expected
            .iter()
            .zip([Some(bytes), None, Some(bytes_of("records.jsonl")), None])
    {
        let of_phase = progress
            .iter()
            .filter(|progress| progress.domain == *domain && progress.phase == *phase);
        let of_phase: Vec<(u64, u64)> = of_phase
            .map(|progress| (progress.bytes, progress.total_bytes))
            .collect();
        assert!(of_phase.is_sorted(), "{of_phase:?}");
        let (done, all) = *of_phase.last().unwrap();
        assert!(
            done == all && done > 0 && total.is_none_or(|total| total == all),
            "{of_phase:?}"
        );
    }
}

#[test]
fn a_file_that_changes_between_the_readings_is_noticed() {
    let place = Place::new();
    for longer in [true, false] {
        let records: String = (0..300)
            .map(|number| format!("{}\n", serde_json::json!({ "text": sentence(number) })))
            .collect();
        place.write("changing.jsonl", records.as_bytes());
        let mut options = place.options(vec![place.source("changing", "changing.jsonl")]);
        // The spilled and the other checks.
        options.documents_in_memory = 200;
        let path = place.path("changing.jsonl");
        let (_, outcome) = progress_of(&place, &options, |progress| {
            if progress.phase == PreparePhase::Surveying && progress.bytes == progress.total_bytes {
                if longer {
                    fs::write(&path, records.replace("123:", "124:")).unwrap();
                } else {
                    let file = File::options().write(true).open(&path).unwrap();
                    file.set_len(records.len() as u64 / 2).unwrap();
                }
            }
        });
        assert!(outcome.contains("changed while it was read"), "{outcome}");
    }
}

#[test]
fn a_domain_with_too_many_bad_records_stops_all_that_are_read_with_it() {
    let place = Place::new();
    let mut lines = String::new();
    for number in 0..2000_u64 {
        let key = if number % 2 == 0 { "text" } else { "body" };
        let kind = KINDS[number as usize % 2];
        lines.push_str(&format!(
            "{}\n",
            serde_json::json!({ "kind": kind, key: sentence(number) })
        ));
    }
    place.write("mixed/1.jsonl", lines.as_bytes());
    let mut domains = domains(&place);
    domains.truncate(2);
    domains[1].prompt = None;
    let said = place
        .prepare(&place.options(domains))
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("domain `b`") && said.contains("no field `text`"),
        "{said}"
    );
    assert!(!place.path("prepared/a").exists());
}
