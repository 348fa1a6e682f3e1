//! `ddk init`: writes a commented configuration for two models and text: folders, or names on the Hugging Face Hub.

mod domains;
mod student;

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow};
use ddk_jobs::{hint::Hint, hub, progress::say, suited::Suited};
use ddk_model::ModelConfig;

use crate::cli;

use self::{domains::FoundDomain, student::Student};

/// Writes a commented configuration for two model folders and a folder of text.
///
/// # Errors
/// If the file exists already or cannot be written, or if a model or the text cannot be used.
pub fn run(args: &cli::Init) -> Result<()> {
    if args.out.exists() {
        return Err(anyhow!("{} already exists", args.out.display()))
            .hint("choose another file with --out")
            .usage();
    }
    let folder = hub::model_without_weights(&args.teacher)?;
    let teacher = if is_served(args) {
        ModelConfig::read_served(&folder)
    } else {
        ModelConfig::read(&folder)
    };
    let teacher = teacher.usage()?;
    let student = Student::of(args, &teacher)?;
    let domains = domains::find(args)?;
    let text = render(args, &teacher, &student, &domains)?;
    fs::write(&args.out, text).with_context(|| format!("cannot write {}", args.out.display()))?;
    let out = args.out.display();
    let count = match domains.len() {
        1 => "1 domain".to_owned(),
        count => format!("{count} domains"),
    };
    let made_by = domains
        .iter()
        .filter(|domain| domain.shape.needs_tokenizer());
    for domain in made_by {
        say(&format!(
            "set domains.{}.tokenizer in {out} to the folder of the tokenizer that made its ids",
            domain.name
        ));
    }
    let next = match student.command(args) {
        None => format!("ddk check {out}"),
        Some(shrink) => {
            say("no --student is given, so the student gets half of the teacher's layers");
            format!("{shrink}, then ddk check {out}")
        }
    };
    say(&format!("{count} in {out}; next: {next}"));
    Ok(())
}

fn is_served(args: &cli::Init) -> bool {
    !args.teacher_server.is_empty()
}

/// Converts `text` to a name that works as a folder and as a bare key.
fn domain_name(text: &str) -> String {
    let is_allowed = |letter: char| letter.is_alphanumeric() || letter == '-';
    text.replace(|letter| !is_allowed(letter), "_")
}

fn render(
    args: &cli::Init,
    teacher: &ModelConfig,
    student: &Student,
    domains: &[FoundDomain],
) -> Result<String> {
    let name = |model: &Path| domain_name(&hub::short_name(model));
    let positions = teacher.max_positions().min(student.config.max_positions());
    let is_served = is_served(args);
    // A server needs a context that is one token longer than the sequences.
    let length = (positions - i64::from(is_served)).min(2048);
    let devices = if is_served {
        let servers = toml::Value::from(args.teacher_server.clone());
        format!("servers = {servers}    # one entry per replica; see docs/teachers.md\n")
    } else {
        "# devices = [\"cuda:0\"]    # one entry per replica; \"cuda:0+cuda:1\" spreads one over two GPUs\n".to_owned()
    };
    let of_path = |path: &Path| toml::Value::from(path.display().to_string());
    let (of_teacher, of_student) = (of_path(&args.teacher), of_path(&student.model));
    let completions = if domains.iter().any(|domain| domain.shape.has_prompts()) {
        "completion_only_loss = true    # learn the answers only; false: the prompts too\n"
    } else {
        ""
    };
    let shrink = student.command(args);
    let shrink = shrink.map(|command| {
        format!("# `{command}` makes it from the teacher. To use another model, set its folder or name.\n")
    });
    let mut text = format!(
        "# Written by `ddk init`. Next: ddk check {out}, then ddk train {out}\n\
         # Every key, its default and its meaning: docs/settings.md, or `ddk config schema`.\n\n\
         [run]\nname = \"{student}-from-{teacher}\"\n\
         max_steps = 5000          # or max_tokens, or max_intervals\n\n\
         [corpus]\ndir = \"prepared/{student}-from-{teacher}\"   # the prepared corpus\n\
         sequence_length = {length}    # tokens per sequence\n\
         validation_fraction = 0.05   # share of documents held out, chosen by a hash of their content\n\
         validation_documents = 500\n\n\
         [teacher]\nmodel = {of_teacher}\n{devices}\
         # dtype = \"bf16\"\n\n\
         [student]\n{shrink}model = {of_student}\n\
         # device = \"cuda:1\"\n# dtype = \"bf16\"\n\n\
         [training]\nglobal_batch_size = 16    # sequences per optimizer step\n\
         micro_batch_size = 4      # sequences at a time; fewer need less memory\n\n\
         [optimizer]\nlr = 3e-5                 # the peak, after the warmup\n\n\
         [lr_scheduler]\nwarmup_steps = 100\nmin_lr = 3e-6             # at the end of a cosine\n\n\
         [mixture]\nalpha = 0.5               # 0: all domains equal; 1: no floor\n\
         interval = 500            # steps between updates of the mixture\n\n\
         [objective]\ngamma = 0.2               # loss = CE + gamma KL(teacher, student)\n{completions}\n\
         [checkpoint]\ninterval = 500            # steps\n",
        out = args.out.display(),
        teacher = name(&args.teacher),
        student = name(&student.model),
        shrink = shrink.unwrap_or_default(),
    );
    let of_teacher = (!is_served).then_some(teacher);
    let suited = Suited::here(of_teacher, &student.config, length.unsigned_abs());
    text = suited.write_into(&text, is_served);
    for domain in domains {
        text.push_str(&domain.table());
    }
    Ok(text)
}
