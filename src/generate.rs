//! `ddk generate`: generates text with one model or two, from prompts or in a conversation.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use ddk_corpus::{ChatTemplate, TokenizerFolder};
use ddk_engine::{Generator, Sampling};
use ddk_jobs::{
    args::ConfigArgs,
    config::{self, required},
    hint::{Hint, must_hold_a_run},
    hub::{self, Wanted},
    progress::say,
};
use ddk_model::{Model, Placement};
use ddk_run::view::counted;
use ddk_torch::{ComputeContext, parse_device};
use tch::Kind;

use crate::cli;

/// Prints what the models write after each prompt, as they write it.
///
/// # Errors
/// If an option is out of range, if a model, its tokenizer or its chat template cannot be used, if there is no prompt,
/// or if `out` cannot be written.
pub fn run(args: &cli::Generate, out: &mut dyn Write) -> Result<()> {
    let sampling = sampling(args).usage()?;
    let folders = match (&args.config, &args.model) {
        (Some(config), _) => of_config(config)?,
        (None, model) => {
            let folders = model.iter().chain(&args.beside);
            let named = folders.map(|name| Ok((name.display().to_string(), hub::model(name)?)));
            named.collect::<Result<_>>()?
        }
    };
    let prompts = prompts(args)?;
    let _lane = ComputeContext::enter(std::thread::available_parallelism().map_or(1, usize::from));
    let open = |(name, folder): (String, PathBuf)| Speaker::open(name, &folder, args);
    let mut speakers: Vec<Speaker> = folders.into_iter().map(open).collect::<Result<_>>()?;
    if let Some(prompts) = prompts {
        let several = prompts.len() > 1;
        for prompt in &prompts {
            if args.chat && several {
                writeln!(out, "> {prompt}")?;
            }
            begin(&mut speakers, args);
            ask(&mut speakers, prompt, sampling, args, out)?;
            if several {
                writeln!(out)?;
            }
        }
        return Ok(());
    }
    say(&format!("one message per line; {COMMANDS}"));
    begin(&mut speakers, args);
    loop {
        write!(io::stderr(), "> ")?;
        let mut line = String::new();
        if io::stdin().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => {}
            "/new" => begin(&mut speakers, args),
            other if args.chat && is_command(other) => {
                say(&format!("there is no command {other}; {COMMANDS}"))
            }
            message => {
                if !args.chat {
                    begin(&mut speakers, args);
                }
                ask(&mut speakers, message, sampling, args, out)?;
            }
        }
    }
}

/// What a person may type besides messages.
const COMMANDS: &str = "/new begins another conversation, Ctrl-D ends";

/// Whether a line is meant as a command, such as `/help`, and not as a message.
fn is_command(line: &str) -> bool {
    let name = line.strip_prefix('/');
    name.is_some_and(|name| !name.is_empty() && name.chars().all(char::is_alphabetic))
}

/// Returns the student and the teacher of a configuration or a run, with their names.
fn of_config(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let (settings, run) = if path.is_dir() {
        must_hold_a_run(path)?;
        (config::of_run(path)?, Some(path.to_owned()))
    } else {
        let args = ConfigArgs {
            files: vec![path.to_owned()],
            set: Vec::new(),
        };
        let settings = config::load(&args)?.settings;
        let run = config::run_folder(&settings).ok();
        (settings, run)
    };
    let pinned = hub::pinned(&settings)?;
    let settings = hub::located(&settings, &[Wanted::Models], &pinned, None)?;
    let trained = run.map(|run| run.join("student"));
    let student = match trained.filter(|folder| folder.exists()) {
        Some(folder) => folder,
        None => {
            let initial = required(settings.student.model.clone(), "student.model")?;
            say("the run has no student yet: using the initial one, student.model");
            settings.local(&initial)
        }
    };
    let mut models = vec![("student".to_owned(), student)];
    if settings.teacher.is_served() {
        say(
            "the teacher runs on servers, which ddk generate does not ask: only the student answers",
        );
    } else {
        let teacher = required(settings.teacher.model.clone(), "teacher.model")?;
        models.insert(0, ("teacher".to_owned(), settings.local(&teacher)));
    }
    Ok(models)
}

/// Returns the prompts of the command line, the file or standard input; `None` if a person types them.
fn prompts(args: &cli::Generate) -> Result<Option<Vec<String>>> {
    let mut prompts = args.prompt.clone();
    let mut add = |text: &str| {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        prompts.extend(lines.map(str::to_owned));
    };
    if let Some(file) = &args.file {
        let text = fs::read_to_string(file);
        add(&text
            .with_context(|| format!("cannot read {}", file.display()))
            .usage()?);
    } else if args.prompt.is_empty() {
        if io::stdin().is_terminal() {
            return Ok(None);
        }
        add(&io::read_to_string(io::stdin()).context("cannot read standard input")?);
    }
    if prompts.is_empty() {
        return Err(anyhow!("there is no prompt"))
            .hint("pass --prompt TEXT, --file FILE, or one prompt per line on standard input")
            .usage();
    }
    Ok(Some(prompts))
}

/// Begins a conversation with each model.
fn begin(speakers: &mut [Speaker], args: &cli::Generate) {
    let system = args.system.iter();
    let system = system.map(|text| ("system".to_owned(), text.clone()));
    let history: Vec<(String, String)> = system.collect();
    for speaker in speakers {
        speaker.history.clone_from(&history);
    }
}

/// Passes a prompt to each model and prints what it writes.
fn ask(
    speakers: &mut [Speaker],
    prompt: &str,
    sampling: Sampling,
    args: &cli::Generate,
    out: &mut dyn Write,
) -> Result<()> {
    let several = speakers.len() > 1;
    for speaker in speakers {
        if several {
            writeln!(out, "[{}]", speaker.name)?;
        }
        speaker.write(prompt, sampling, args.max_new_tokens, out)?;
    }
    Ok(())
}

/// A model that writes.
struct Speaker {
    name: String,
    tokenizer: TokenizerFolder,
    model: Model,
    /// Columns of the logits that are tokens.
    vocabulary: i64,
    /// The template of its conversations; `None` if it only continues texts.
    template: Option<ChatTemplate>,
    /// The tokens that end what it writes.
    stops: BTreeSet<u32>,
    /// The conversation so far, as pairs of a role and a text.
    history: Vec<(String, String)>,
}

impl Speaker {
    fn open(name: String, folder: &Path, args: &cli::Generate) -> Result<Self> {
        let tokenizer = TokenizerFolder::open(folder, None).hint(
            "for a run, name its student, RUN/student; for another model, add its tokenizer.json",
        )?;
        let device = parse_device(&args.device).usage()?;
        let template = args.chat.then(|| {
            ChatTemplate::open(&tokenizer).hint(
                "copy chat_template.jinja from the model that this one comes from, or leave out --chat to continue \
                 a text",
            )
        });
        let template = template.transpose()?;
        let mut stops = BTreeSet::from([tokenizer.end_token()]);
        if let Some(template) = &template {
            stops = tokenizer.stop_tokens();
            stops.extend(template.end_of_turn().and_then(|token| tokenizer.id(token)));
        }
        let kind = match args.dtype.as_str() {
            "bf16" => Kind::BFloat16,
            _ => Kind::Float,
        };
        let model = Model::load(folder, &Placement::on(device, kind))?;
        Ok(Self {
            vocabulary: (tokenizer.vocabulary() as i64).min(model.config().vocab_size()),
            name,
            tokenizer,
            model,
            template,
            stops,
            history: Vec::new(),
        })
    }

    /// Prints the prompt and its continuation, or in a conversation the answer to the prompt.
    fn write(
        &mut self,
        prompt: &str,
        sampling: Sampling,
        max_new_tokens: usize,
        out: &mut dyn Write,
    ) -> Result<()> {
        let tokenizer = &self.tokenizer;
        let (prompt, mut tokens) = match &self.template {
            Some(template) => {
                self.history.push(("user".to_owned(), prompt.to_owned()));
                let rendered = template.prompt(&self.history)?;
                (tokenizer.encode_rendered(&rendered)?, Vec::new())
            }
            None => {
                write!(out, "{prompt}")?;
                let mut tokens = tokenizer.encode(prompt)?;
                if tokens.is_empty() {
                    // A document begins after the end of another.
                    tokens.push(tokenizer.end_token());
                }
                // Decode together with the prompt: some decoders drop the space before a text's first word.
                (tokens.clone(), tokens)
            }
        };
        let mut printed = whole(tokenizer.decode(&tokens)?);
        let mut generator = Generator::new(&self.model, &prompt, self.vocabulary, sampling)?;
        let began = Instant::now();
        let mut count = 0;
        while count < max_new_tokens {
            let Some(token) = generator.next_token()? else {
                say("\nstopped: the sequence fills all positions of the model");
                break;
            };
            if self.stops.contains(&token) {
                break;
            }
            tokens.push(token);
            count += 1;
            let text = whole(tokenizer.decode(&tokens)?);
            if let Some(more) = text.strip_prefix(printed.as_str()) {
                write!(out, "{more}")?;
                out.flush()?;
                printed = text;
            }
        }
        writeln!(out)?;
        if self.template.is_some() {
            self.history.push(("assistant".to_owned(), printed));
        }
        let rate = f64::from(count as u32) / began.elapsed().as_secs_f64();
        say(&format!(
            "{} after a prompt of {}, {rate:.1} tokens/s",
            counted(count as u64, "token"),
            prompt.len()
        ));
        Ok(())
    }
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
        "--top-p is {top_p}, expected greater than 0 and at most 1"
    );
    Ok(Sampling {
        temperature,
        top_p,
        seed: args.seed,
    })
}
