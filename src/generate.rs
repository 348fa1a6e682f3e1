//! `ddk generate`: generates text with a model.

use std::{io::Write, time::Instant};

use anyhow::{Result, ensure};
use ddk_corpus::TokenizerFolder;
use ddk_engine::{Generator, Sampling};
use ddk_jobs::{hint::Hint, hub, progress::say};
use ddk_model::{Model, Placement};
use ddk_torch::{ComputeContext, parse_device};
use tch::Kind;

use crate::cli;

/// Prints the prompt and its continuation as the model generates it.
///
/// # Errors
/// If an option is out of range, if the model or its tokenizer cannot be used, or if `out` cannot be written.
pub fn run(args: &cli::Generate, out: &mut dyn Write) -> Result<()> {
    let sampling = sampling(args).usage()?;
    let folder = hub::model(&args.model)?;
    let tokenizer = TokenizerFolder::open(&folder, None)
        .hint("copy the model's tokenizer.json to its folder")?;
    let device = parse_device(&args.device).usage()?;
    let _lane = ComputeContext::enter(std::thread::available_parallelism().map_or(1, usize::from));
    let model = Model::load(&folder, &Placement::on(device, Kind::Float))?;
    let vocabulary = (tokenizer.vocabulary() as i64).min(model.config().vocab_size());
    let mut prompt = tokenizer.encode(&args.prompt)?;
    if prompt.is_empty() {
        // A document begins after the end of another.
        prompt.push(tokenizer.end_token());
    }
    // Decode together with the prompt: some decoders drop the space before a text's first word.
    let mut tokens = prompt.clone();
    let mut printed = whole(tokenizer.decode(&tokens)?);
    let mut generator = Generator::new(&model, &prompt, vocabulary, sampling)?;
    write!(out, "{}", args.prompt)?;
    let began = Instant::now();
    while tokens.len() - prompt.len() < args.max_new_tokens {
        let Some(token) = generator.next_token()? else {
            say("\nstopped: the sequence fills all positions of the model");
            break;
        };
        if token == tokenizer.end_token() {
            break;
        }
        tokens.push(token);
        let text = whole(tokenizer.decode(&tokens)?);
        if let Some(more) = text.strip_prefix(printed.as_str()) {
            write!(out, "{more}")?;
            out.flush()?;
            printed = text;
        }
    }
    writeln!(out)?;
    let count = tokens.len() - prompt.len();
    let rate = count as f64 / began.elapsed().as_secs_f64();
    say(&format!(
        "{count} tokens after a prompt of {}, {rate:.1} tokens/s",
        prompt.len()
    ));
    Ok(())
}

/// Returns only the complete characters: the next token decides what the last bytes become.
fn whole(text: String) -> String {
    text.trim_end_matches(char::REPLACEMENT_CHARACTER)
        .to_owned()
}

fn sampling(args: &cli::Generate) -> Result<Sampling> {
    let (temperature, top_p) = (args.temperature, args.top_p);
    ensure!(
        temperature.is_finite() && temperature >= 0.0,
        "--temperature is {temperature}, expected 0 or more"
    );
    ensure!(
        top_p > 0.0 && top_p <= 1.0,
        "--top-p is {top_p}, expected over 0 and at most 1"
    );
    Ok(Sampling {
        temperature,
        top_p,
        seed: args.seed,
    })
}
