//! `ddk demo`: runs the whole pipeline on text that is the same on every machine, with the same steps that a user
//! takes.

use std::{fs, io::Write, path::Path, time::Instant};

use anyhow::{Context, Result, anyhow};
use ddk_run::view::counted;
use ddk_settings::Settings;
use ddk_torch::parse_device;

use crate::{
    args, config, demo_sources, gpus::devices, hint::Hint, phase::Phase, pretrain, progress::say,
    signals::Signals, train,
};

/// Vocabulary size of the demo's tokenizer.
const VOCABULARY: usize = 4096;
/// Maximum bytes of each domain's text to train the tokenizer on.
const TOKENIZER_BYTES: usize = 1_500_000;
/// Steps of the serial baseline.
const SERIAL_STEPS: u64 = 12;

/// Creates the text, tokenizer, teacher and student if they are missing, then distills.
///
/// # Errors
/// If the text is missing or was changed, or if a step fails.
pub fn run(args: &args::Demo, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let began = Instant::now();
    let loaded = ddk_settings::load(std::slice::from_ref(&args.config), &args.set, std::env::vars())
        .hint("run `ddk demo` in a clone of the repository, or pass the demo's configuration with --config")?;
    let settings = loaded.settings;
    // Look for GPUs before computing anything. libtorch's autograd asks for them only once, at its first backward
    // pass, and would miss those of a library that is loaded later.
    for device in devices(&settings) {
        parse_device(device)?;
    }
    let say_step = |number: u8, what: &str| {
        let seconds = began.elapsed().as_secs_f64();
        say(&format!("[{number}/5, {seconds:.0} s] {what}"));
    };
    signals.begin_job(&settings)?;
    signals.begin(Phase::Text)?;
    say_step(1, "text");
    collect(&settings)?;
    say_step(2, "tokenizer and corpus");
    tokenizer(&settings)?;
    let config = args.config.display();
    for (number, name) in [(3, "teacher"), (4, "student")] {
        let what = format!("{name}: ddk pretrain {config} --model {name}");
        say_step(number, &what);
        pretrain::model(&settings, name, false, false, signals)?;
    }
    say_step(5, &format!("distillation: ddk train {config}"));
    let train = args::Train {
        json: args.json,
        serial_baseline: SERIAL_STEPS,
        ..args::Train::default()
    };
    train::distill(&settings, &train, signals, out)?;
    let folder = config::run_folder(&settings)?;
    say(&format!(
        "everything about this run is in {}; open {} in a browser for the figures",
        folder.display(),
        folder.join("report.html").display()
    ));
    Ok(())
}

/// Returns whether the configuration uses the demo's text and tokenizer: `FOLDER/sources/NAME.jsonl` and
/// `FOLDER/tokenizer`.
pub fn is_demo(settings: &Settings) -> bool {
    let tokenizer = settings.corpus.tokenizer.as_deref();
    let tokenizer = tokenizer.filter(|folder| folder.ends_with("tokenizer"));
    let folder = tokenizer.and_then(Path::parent);
    settings.domains.iter().all(|(name, domain)| {
        let file = folder.map(|folder| folder.join("sources").join(format!("{name}.jsonl")));
        let files = domain.files.iter().map(Path::new);
        demo_sources::NAMES.contains(&name.as_str()) && files.eq(file.as_deref())
    })
}

/// Returns the file that the configuration expects for each domain's text.
fn places(settings: &Settings) -> Result<Vec<demo_sources::Place<'_>>> {
    let mut places = Vec::new();
    for (name, domain) in &settings.domains {
        let (own, mut files) = (format!("{name}.jsonl"), domain.files.iter().map(Path::new));
        let file = files
            .next()
            .filter(|file| file.ends_with(&own) && files.next().is_none());
        let Some(file) = file else {
            return Err(anyhow!(
                "domain `{name}`: the demo writes its own text, expected a single file FOLDER/{own}"
            ))
            .hint("for text of your own, use `ddk prepare`, `ddk pretrain` and `ddk train`");
        };
        let max_bytes = domain.max_bytes.unwrap_or(4_000_000);
        places.push(demo_sources::Place {
            domain: name,
            file,
            max_bytes,
            expected: demo_sources::expected_hash(name, max_bytes)?,
        });
    }
    Ok(places)
}

/// Checks that existing text is this version's.
///
/// The tokenizer, models and runs beside it were made from that text. Their figures would look like the published
/// ones but mean something else, so this is an error, not a warning.
///
/// # Errors
///
/// If a file cannot be read, or if a domain has the shipped limit but a different text.
pub fn verify_text(settings: &Settings) -> Result<()> {
    for place in places(settings)? {
        let file = place.file;
        let Some(expected) = place.expected.filter(|_| file.exists()) else {
            continue;
        };
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let found = demo_sources::hash(&text);
        if found != expected {
            let folder = file.parent().and_then(Path::parent);
            let folder = folder.unwrap_or(Path::new(".")).display();
            return Err(anyhow!(
                "{} is not this version's demo text (blake3 {found}, expected {expected})",
                file.display()
            ))
            .hint(format!(
                "an earlier version wrote it, or it was edited: move {folder} and the runs made from it away, then \
                 run this command again"
            ));
        }
    }
    Ok(())
}

/// Writes each domain's text where the configuration expects it, and verifies existing text.
pub(crate) fn collect(settings: &Settings) -> Result<()> {
    verify_text(settings)?;
    let mut missing = places(settings)?;
    missing.retain(|place| !place.file.exists());
    if missing.is_empty() {
        say("the text already exists");
    }
    let texts = demo_sources::collect(&missing)?;
    for (place, collected) in missing.iter().zip(texts) {
        ddk_files::create_folder(ddk_files::parent(place.file))?;
        ddk_files::write_atomically(place.file, &collected.jsonl)?;
        say(&format!(
            "{}: {}, {:.1} MB{}",
            place.domain,
            counted(collected.documents as u64, "document"),
            collected.bytes as f64 / 1e6,
            match place.expected {
                Some(_) => "",
                None =>
                    " (max_bytes differs from the default: results will differ from the published ones)",
            }
        ));
    }
    Ok(())
}

/// Trains the tokenizer on the collected text, unless it already exists.
pub(crate) fn tokenizer(settings: &Settings) -> Result<()> {
    let folder = settings.corpus.tokenizer.as_ref();
    let folder = folder
        .context("`corpus.tokenizer` is missing: the demo writes its tokenizer to that folder")
        .usage()?;
    if folder.join("tokenizer.json").exists() {
        return Ok(());
    }
    let mut texts = Vec::new();
    for file in settings.domains.values().flat_map(|domain| &domain.files) {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        let mut bytes = 0;
        for line in text.lines() {
            let record: serde_json::Value =
                serde_json::from_str(line).with_context(|| file.clone())?;
            let text = record["text"].as_str().unwrap_or_default();
            bytes += text.len();
            if bytes > TOKENIZER_BYTES {
                break;
            }
            texts.push(text.to_owned());
        }
    }
    ddk_corpus::train_tokenizer(texts.into_iter(), VOCABULARY, folder)?;
    say(&format!(
        "wrote a byte-level BPE tokenizer of {VOCABULARY} tokens to {}",
        folder.display()
    ));
    Ok(())
}
