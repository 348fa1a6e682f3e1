//! Compares the throughput of `prepare` with the batch encoding of `tokenizers` on the same text, in alternation;
//! also the memory it takes.
//!
//! usage: cargo bench -p ddk-corpus --bench prepare -- TOKENIZER_FOLDER FILE.jsonl…

#![allow(clippy::print_stdout)]

use std::{error::Error, fs, path::PathBuf, time::Instant};

use ddk_corpus::{
    DomainSource, Limits, Packing, PrepareOptions, Template, TokenizerFolder, ValidationSplit,
    prepare,
};
use tokenizers::Tokenizer;

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let Some((folder, files)) = arguments.split_first() else {
        println!("no tokenizer's folder and files given: nothing to measure");
        return Ok(());
    };
    let folder = PathBuf::from(folder);
    let tokenizer = TokenizerFolder::open(&folder, None)?;
    let plain =
        Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| error.to_string())?;
    let mut texts = Vec::new();
    for file in files {
        for line in fs::read_to_string(file)?.lines() {
            let record: serde_json::Value = serde_json::from_str(line)?;
            texts.extend(record["text"].as_str().map(ToOwned::to_owned));
        }
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    let scratch = tempfile::tempdir()?;
    let options = PrepareOptions {
        folder: scratch.path().to_owned(),
        domains: vec![DomainSource {
            name: "all".to_owned(),
            files: files.to_vec(),
            validation_files: Vec::new(),
            format: None,
            text: Template::field("text"),
            prompt: None,
            chat: None,
            tokens: None,
            only: None,
            limits: Limits::default(),
        }],
        packing: Packing::Concat,
        sequence_length: 2048,
        seed: 0,
        validation_split: ValidationSplit::Count,
        validation_fraction: 0.0,
        validation_documents: 1,
        max_bad_fraction: 0.0,
        batch_bytes: 4 << 20,
        documents_in_memory: 1 << 20,
    };
    let (mut theirs, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        // Use batches of the same size, so that both hold equally little text at a time.
        let (mut batch, mut size, mut tokens) = (Vec::new(), 0, 0);
        for (index, text) in texts.iter().enumerate() {
            size += text.len();
            batch.push(text.as_str());
            if size >= 4 << 20 || index + 1 == texts.len() {
                let encodings = plain
                    .encode_batch_fast(std::mem::take(&mut batch), true)
                    .map_err(|error| error.to_string())?;
                tokens += encodings
                    .iter()
                    .map(tokenizers::Encoding::len)
                    .sum::<usize>();
                size = 0;
            }
        }
        let their_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let report = prepare(&options, &tokenizer, true, &mut |_| ())?.remove(0);
        let our_seconds = began.elapsed().as_secs_f64();
        if round > 0 {
            theirs.push(bytes as f64 / 1e6 / their_seconds);
            ours.push(bytes as f64 / 1e6 / our_seconds);
            ratios.push(their_seconds / our_seconds);
        } else {
            println!(
                "{} documents, {:.1} MB, {tokens} tokens; {} duplicates left out",
                texts.len(),
                bytes as f64 / 1e6,
                report.duplicates
            );
        }
    }
    for list in [&mut theirs, &mut ours, &mut ratios] {
        list.sort_by(f64::total_cmp);
    }
    println!(
        "tokenizers {:.2} MB/s, prepare {:.2} MB/s: ratio {:.3} ({:.3} to {:.3})",
        theirs[ROUNDS / 2],
        ours[ROUNDS / 2],
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
    Ok(())
}
