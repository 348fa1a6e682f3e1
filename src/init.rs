//! `ddk init`: writes a commented configuration for two models and text: folders, or names on the Hugging Face Hub.

mod domains;
mod entry;
mod found;
mod names;
mod patterns;
mod skipped;
mod student;

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{ChatTemplate, CorpusError, TokenizerFolder};
use ddk_jobs::{chat::TEMPLATE_ADVICE, hint::Hint, hub, progress::say, suited::Suited};
use ddk_model::ModelConfig;
use ddk_run::view::counted;
use ddk_torch::gpu_uuid;

use crate::cli;

use self::{
    domains::{Found, FoundDomain},
    names::domain_name,
    student::Student,
};

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
    let student = Student::of(args, &teacher, folder)?;
    let Found { domains, skipped } = domains::find(args)?;
    let mut text = render(args, &teacher, &student, &domains)?;
    skipped.iter().for_each(|table| text.push_str(table));
    fs::write(&args.out, text).with_context(|| format!("cannot write {}", args.out.display()))?;
    let out = args.out.display();
    let count = counted(domains.len() as u64, "domain");
    let made_by = domains
        .iter()
        .filter(|domain| domain.shape.needs_tokenizer());
    for domain in made_by {
        say(&format!(
            "set domains.{}.tokenizer in {out} to the folder of the tokenizer that made its ids",
            domain.name
        ));
    }
    if !skipped.is_empty() {
        say(&format!(
            "{out} ends with commented tables for skipped files whose text field is unknown"
        ));
    }
    let chats = domains.iter().find(|domain| domain.shape.is_chat());
    if let (Some(chats), Err(error)) = (chats, template(&student.tokenizer)) {
        say(&format!(
            "warning: {} contains conversations, which need a chat template: {error}; {TEMPLATE_ADVICE}",
            chats.name
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

/// Opens the chat template that conversations are rendered with, which is the student's.
fn template(student: &Path) -> Result<(), CorpusError> {
    ChatTemplate::open(&TokenizerFolder::open(student, None)?).map(drop)
}

/// Returns the name of the data, for the names of the run and of the prepared corpus: other data must not replace what
/// an earlier run of the same models uses.
fn data_name(data: &Path) -> String {
    let name = hub::short_name(data);
    let stem = name.split('.').next().filter(|stem| !stem.is_empty());
    match stem {
        Some(stem) if data.is_file() => stem.to_owned(),
        _ => name,
    }
}

/// The peaks and the ends of learning rates in docs/recipes.md, from those of the smallest students on. Each is about
/// a third of the one before.
const RATES: [[&str; 2]; 4] = [
    ["1e-4", "1e-5"],
    ["3e-5", "3e-6"],
    ["1e-5", "1e-6"],
    ["3e-6", "3e-7"],
];

/// Returns the learning rates for a student with this many parameters. Conversations use a third.
fn rates(parameters: i64, has_chats: bool) -> [&'static str; 2] {
    let column = match parameters {
        ..500_000_000 => 0,
        500_000_000..4_000_000_000 => 1,
        _ => 2,
    };
    RATES[column + usize::from(has_chats)]
}

/// Sizes of a run: of one to learn from, or of a first look on a CPU.
struct Sizes {
    /// A comment about them.
    note: &'static str,
    steps: u64,
    length: i64,
    batch: u64,
    micro_batch: u64,
    validation: u64,
    warmup: u64,
    /// Steps between updates of the mixture, and between checkpoints.
    interval: u64,
}

impl Sizes {
    fn here() -> Self {
        if gpu_uuid(0).is_some() {
            return Self {
                note: "",
                steps: 5000,
                length: 2048,
                batch: 16,
                micro_batch: 4,
                validation: 500,
                warmup: 100,
                interval: 500,
            };
        }
        Self {
            note: "# This machine has no GPU, so the sizes below are for a first look: docs/recipes.md\n\n",
            steps: 60,
            length: 256,
            batch: 8,
            micro_batch: 2,
            validation: 50,
            warmup: 6,
            interval: 20,
        }
    }
}

fn is_served(args: &cli::Init) -> bool {
    !args.teacher_server.is_empty()
}

fn render(
    args: &cli::Init,
    teacher: &ModelConfig,
    student: &Student,
    domains: &[FoundDomain],
) -> Result<String> {
    let name = |model: &Path| domain_name(&hub::short_name(model));
    let sizes = Sizes::here();
    let positions = teacher.max_positions().min(student.config.max_positions());
    let is_served = is_served(args);
    // A server needs a context that is one token longer than the sequences.
    let length = (positions - i64::from(is_served)).min(sizes.length);
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
    let pruned = if student.shrunk_to.is_some() {
        "# The gaps of a pruned student are very large at first. The policy ddk may then hold the mixture at its\n\
         # limits; policy = \"excess\" does not. Or train 500 steps with method = \"kd\" first: docs/recipes.md\n"
    } else {
        ""
    };
    let shrink = shrink.map(|command| {
        format!("# `{command}` makes it from the teacher. To use another model, set its folder or name.\n")
    });
    let has_chats = domains.iter().any(|domain| domain.shape.is_chat());
    let [peak, end] = rates(student.config.parameter_count().usage()?, has_chats);
    let reason = if has_chats {
        "for conversations and a student of this size"
    } else {
        "for a student of this size"
    };
    let run = format!(
        "{}-from-{}-on-{}",
        name(&student.model),
        name(&args.teacher),
        domain_name(&data_name(&args.data))
    );
    let mut text = format!(
        "# Written by `ddk init`. Next: ddk check {out}, then ddk train {out}\n\
         # Every key, its default and its meaning: docs/settings.md, or `ddk config schema`.\n\n\
         # method = \"ddk\"          # before the first table. kd: plain distillation; see docs/methods.md\n\n\
         {first}[run]\nname = \"{run}\"\n\
         max_steps = {steps}          # or max_tokens, or max_intervals\n\n\
         [corpus]\ndir = \"prepared/{run}\"   # the prepared corpus\n\
         sequence_length = {length}    # tokens per sequence\n\
         validation_fraction = 0.05   # share of documents held out, chosen by a hash of their content\n\
         validation_documents = {validation}\n\n\
         [teacher]\nmodel = {of_teacher}\n{devices}\
         # dtype = \"bf16\"\n\n\
         [student]\n{shrink}model = {of_student}\n\
         # device = \"cuda:1\"\n# dtype = \"bf16\"\n\n\
         [training]\nglobal_batch_size = {batch}    # sequences per optimizer step\n\
         micro_batch_size = {micro_batch}      # sequences at a time; fewer need less memory\n\n\
         [optimizer]\nlr = {peak}                 # the peak, {reason}: docs/recipes.md\n\n\
         [lr_scheduler]\nwarmup_steps = {warmup}\nmin_lr = {end}             # at the end of a cosine\n\n\
         [mixture]\n{pruned}alpha = 0.5               # 0: all domains equal; 1: no floor\n\
         interval = {interval}            # steps between updates of the mixture\n\n\
         [objective]\ngamma = 0.2               # loss = CE + gamma KL(teacher, student)\n{completions}\n\
         [checkpoint]\ninterval = {interval}            # steps\n\n\
         # What the student writes after these prompts, at each evaluation; the page and the report show it.\n\
         # [samples]\n# prompts = [\"Once upon a time\", \"def fibonacci(n):\"]\n# max_tokens = 64\n",
        out = args.out.display(),
        shrink = shrink.unwrap_or_default(),
        first = sizes.note,
        steps = sizes.steps,
        validation = sizes.validation,
        batch = sizes.batch,
        micro_batch = sizes.micro_batch,
        warmup = sizes.warmup,
        interval = sizes.interval,
    );
    let of_teacher = (!is_served).then_some(teacher);
    let suited = Suited::here(of_teacher, &student.config, length.unsigned_abs());
    text = suited.write_into(&text, is_served);
    for domain in domains {
        text.push_str(&domain.table(has_chats));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The row of a table in docs/recipes.md.
    fn row(key: &str) -> Vec<&'static str> {
        let text = include_str!("../docs/recipes.md");
        let start = format!("| `{key}` |");
        let line = text.lines().find(|line| line.starts_with(&start)).unwrap();
        line.split('|').map(str::trim).skip(2).collect()
    }

    #[test]
    fn learning_rates_are_those_of_the_recipes() {
        let sizes = [135_000_000, 1_500_000_000, 7_000_000_000];
        let peaks = row("optimizer.lr");
        for (size, peak) in sizes.into_iter().zip(&peaks) {
            let [written, end] = rates(size, false);
            // The recipes give a range for the smallest.
            assert_eq!(peak.split(" to ").next(), Some(written));
            let [written, end]: [f64; 2] = [written, end].map(|rate| rate.parse().unwrap());
            assert!((end / written - 0.1).abs() < 1e-9);
            let [chat, _] = rates(size, true);
            let chat: f64 = chat.parse().unwrap();
            assert!((0.25..0.4).contains(&(chat / written)), "{size}");
        }
        assert_eq!(row("lr_scheduler.min_lr")[1], rates(sizes[1], false)[1]);
        assert_eq!(row("lr_scheduler.min_lr")[2], rates(sizes[2], false)[1]);
    }
}
