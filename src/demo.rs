//! `ddk demo`: the whole job on text that is on this machine, by the same steps that a user takes.

use std::{collections::BTreeMap, fs, io::Write, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context, Result, anyhow};
use ddk_settings::Settings;
use ddk_torch::parse_device;

use crate::{
    cli, demo_sources,
    faults::Faults,
    hint::Hint,
    phase::Phase,
    pretrain,
    progress::say,
    signals::Signals,
    train::{self, Flags},
};

/// Tokens of the demo's tokenizer.
const VOCABULARY: usize = 4096;
/// Bytes of each domain that the tokenizer learns from.
const TOKENIZER_BYTES: usize = 1_500_000;
/// Steps of the serial comparison.
const SERIAL_STEPS: u64 = 12;

pub fn run(args: &cli::Demo, signals: &Signals, out: &mut dyn Write) -> Result<ExitCode> {
    let began = Instant::now();
    let loaded = ddk_settings::load(std::slice::from_ref(&args.config), &args.set.set, std::env::vars())
        .hint("run `ddk demo` in a clone of the repository, or name the demo's configuration with --config")?;
    let settings = loaded.settings;
    // GPUs are looked for before anything is computed: libtorch's autograd asks for them once, at its first backward, and would not
    // see those of a library that is loaded later.
    for device in settings
        .teacher
        .devices
        .iter()
        .chain([&settings.student.device])
    {
        parse_device(device)?;
    }
    let say_step = |number: u8, what: &str| {
        say(&format!(
            "[{number}/5, {:.0} s] {what}",
            began.elapsed().as_secs_f64()
        ));
    };
    let faults = Faults::parse(&settings.faults.plan)?;
    signals.begin(Phase::Text, &faults)?;
    say_step(1, "text from this machine");
    collect(&settings)?;
    say_step(2, "tokenizer and corpus");
    tokenizer(&settings)?;
    for (number, name) in [(3, "teacher"), (4, "student")] {
        say_step(
            number,
            &format!(
                "{name}: ddk pretrain {} --model {name}",
                args.config.display()
            ),
        );
        pretrain::model(&settings, name, false, signals, &faults)?;
    }
    say_step(
        5,
        &format!("distillation: ddk train {}", args.config.display()),
    );
    let flags = Flags {
        new: false,
        restart: false,
        reload: None,
        fork_of: None,
        from: None,
        json: args.json,
        serial_steps: SERIAL_STEPS,
    };
    let code = train::distil(&settings, &flags, signals, out)?;
    if let Some(name) = &settings.run.name {
        let folder = settings.run.folder.join(name);
        say(&format!(
            "everything about this run is in {}; open {} in a browser for the figures",
            folder.display(),
            folder.join("report.html").display()
        ));
    }
    Ok(code)
}

/// Whether a configuration's text and tokenizer are the demo's: `FOLDER/sources/NAME.jsonl` and `FOLDER/tokenizer`.
pub fn is_demo(settings: &Settings) -> bool {
    let folder = settings
        .corpus
        .tokenizer
        .as_deref()
        .filter(|tokenizer| tokenizer.ends_with("tokenizer"))
        .and_then(Path::parent);
    settings.domains.iter().all(|(name, domain)| {
        let file = folder.map(|folder| folder.join("sources").join(format!("{name}.jsonl")));
        let files = domain.files.iter().map(Path::new);
        demo_sources::NAMES.contains(&name.as_str()) && files.eq(file.as_deref())
    })
}

/// What the demo's models are trained on, where it is missing.
pub fn text_and_tokenizer(settings: &Settings) -> Result<()> {
    collect(settings)?;
    tokenizer(settings)
}

/// Writes each domain's JSONL file where the configuration expects it, once.
fn collect(settings: &Settings) -> Result<()> {
    let mut limits = BTreeMap::new();
    let mut folder = None;
    for (name, domain) in &settings.domains {
        let file = domain.files.first().map(Path::new);
        let parent = file.and_then(Path::parent);
        let is_ours = domain.files.len() == 1
            && file
                .and_then(Path::file_name)
                .is_some_and(|file| *file == *format!("{name}.jsonl"));
        let (true, Some(parent)) = (is_ours, parent) else {
            return Err(anyhow!(
                "domain `{name}`: the demo writes its own text to one file FOLDER/{name}.jsonl"
            ))
            .hint("for text of your own, use `ddk prepare`, `ddk pretrain` and `ddk train`");
        };
        folder = Some(parent);
        if file.is_some_and(Path::exists) {
            continue;
        }
        limits.insert(name.clone(), domain.max_bytes.unwrap_or(4_000_000));
    }
    let (Some(folder), false) = (folder, limits.is_empty()) else {
        say("the text is there already");
        return Ok(());
    };
    for (domain, collected) in demo_sources::collect(folder, &limits, settings.run.seed)? {
        say(&format!(
            "{domain}: {} documents, {:.1} MB",
            collected.documents,
            collected.bytes as f64 / 1e6
        ));
    }
    Ok(())
}

/// Learns the tokenizer from the collected text, unless it is there.
fn tokenizer(settings: &Settings) -> Result<()> {
    let folder = settings
        .corpus
        .tokenizer
        .as_ref()
        .ok_or_else(|| anyhow!("`corpus.tokenizer` is missing: the demo makes its tokenizer there"))
        .usage()?;
    if folder.join("tokenizer.json").exists() {
        return Ok(());
    }
    let mut texts = Vec::new();
    for domain in settings.domains.values() {
        for file in &domain.files {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            let mut bytes = 0;
            for line in text.lines() {
                let record: serde_json::Value =
                    serde_json::from_str(line).with_context(|| file.clone())?;
                let text = record
                    .get("text")
                    .and_then(serde_json::Value::as_str)
                    .unwrap_or_default();
                bytes += text.len();
                if bytes > TOKENIZER_BYTES {
                    break;
                }
                texts.push(text.to_owned());
            }
        }
    }
    ddk_corpus::train_tokenizer(texts.into_iter(), VOCABULARY, folder)?;
    say(&format!(
        "a byte-level BPE of {VOCABULARY} tokens is in {}",
        folder.display()
    ));
    Ok(())
}
