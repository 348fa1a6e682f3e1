//! Command-line arguments of the jobs.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use ddk_run::RunFolder;
use ddk_settings::Method;

/// Sources of the settings: files in order, then the environment, then --set.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Configuration files (TOML); later ones override earlier ones
    #[arg(value_name = "CONFIG", required = true)]
    pub files: Vec<PathBuf>,
    /// Override one setting, for example --set run.seed=1 (may be repeated)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// These arguments with the configuration of a run in place of its folder.
    #[must_use]
    pub fn of_runs(&self) -> Self {
        let mut args = self.clone();
        for file in &mut args.files {
            if RunFolder::holds_a_run(file) {
                file.push("config.toml");
            }
        }
        args
    }

    /// These arguments as a shell reads them, each after a space.
    pub fn repeated(&self) -> String {
        let files = self.files.iter().map(|file| file.display().to_string());
        let sets = self
            .set
            .iter()
            .flat_map(|set| ["--set".to_owned(), set.clone()]);
        files
            .chain(sets)
            .map(|word| format!(" {}", quoted(&word)))
            .collect()
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_./=,:+@%".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Arguments of [`crate::demo`].
#[derive(Debug, Args)]
pub struct Demo {
    /// Configuration of the demo
    #[arg(long, value_name = "FILE", default_value = "config/demo.toml")]
    pub config: PathBuf,
    /// Override one setting, for example --set run.seed=1 (may be repeated)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the run's summary as JSON on standard output instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of [`crate::check`].
#[derive(Debug, Args)]
pub struct Check {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Also load both models and run each on one text, which reveals a broken checkpoint
    #[arg(long)]
    pub forward: bool,
    /// Number of processes that will share the run: report what each needs, and what their exchange costs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub ranks: u64,
    /// Gigabytes per second that each process can send to the others while it receives as much
    #[arg(long, value_name = "GB/S", default_value_t = 1.0, value_parser = positive)]
    pub bandwidth: f64,
}

/// Arguments of [`crate::bench`].
#[derive(Debug, Args)]
pub struct Bench {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Seconds for each of the three measurements
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub seconds: f64,
    /// Print the measurements as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of [`crate::prepare`].
#[derive(Debug, Args)]
pub struct Prepare {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Prepare again, even if the prepared folder is up to date
    #[arg(long)]
    pub force: bool,
    /// Verify every prepared file against its manifest, and prepare nothing
    #[arg(long, conflicts_with = "force")]
    pub verify: bool,
}

/// Arguments of [`crate::shrink`].
#[derive(Debug, Args)]
pub struct Shrink {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Folder of the model to shrink; default: teacher.model
    #[arg(long, value_name = "DIR")]
    pub teacher: Option<PathBuf>,
    /// Number of layers to keep; default: the number in the name of the student's folder, or half of the teacher's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub layers: Option<u64>,
    /// Folder to write; replaces a student that ddk wrote there before; default: student.model
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the measurements as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of [`crate::pretrain`].
#[derive(Debug, Args)]
pub struct Pretrain {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Name of the [pretrain.NAME] section to use
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// Train from the first step, even if the model exists or an interrupted run could resume
    #[arg(long)]
    pub force: bool,
}

/// Arguments of [`crate::label`].
#[derive(Debug, Args)]
pub struct Label {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Epochs of each domain to label, in the order of run.seed; 1 covers every sequence, and larger values add nothing
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = positive)]
    pub epochs: f64,
}

fn positive(text: &str) -> Result<f64, &'static str> {
    let number = text
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or("expected a positive number")
}

/// Arguments of [`crate::train`].
#[derive(Debug, Clone, Default, Args)]
pub struct Train {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Start a new run; fail if the run exists
    #[arg(long)]
    pub no_resume: bool,
    /// Start over at step 0; set the run's files aside in its folder, and delete nothing
    #[arg(long, conflicts_with_all = ["no_resume", "fork", "resume_from"])]
    pub restart: bool,
    /// Start a new run with this name from a checkpoint of the configuration's run; the domains may differ
    #[arg(long, value_name = "NAME", conflicts_with = "no_resume")]
    pub fork: Option<String>,
    /// Resume from the checkpoint at this step, and set later ones aside
    #[arg(long, value_name = "STEP", conflicts_with = "no_resume")]
    pub resume_from: Option<u64>,
    /// After the run, also time this many steps without overlapping teacher and student, for comparison
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub serial_baseline: u64,
    /// Also write the metrics to this file, for the node exporter (same as --set telemetry.metrics_file=FILE)
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
    /// Print the run's summary as JSON on standard output instead of the table
    #[arg(long)]
    pub json: bool,
    /// Not an argument: whether SIGHUP reloads the settings.
    #[arg(skip)]
    pub reloads: bool,
    /// Not an argument: the folder of the run to fork, with `--fork`.
    #[arg(skip)]
    pub fork_of: Option<PathBuf>,
}

/// Arguments of [`crate::compare`].
#[derive(Debug, Args)]
pub struct Compare {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Methods, named as in the paper's tables, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(default_value = "cpt,cpt-doremi,kd,ted,minillm,ddk,ddk-no-smoothing,ddk-equal")]
    #[arg(value_parser = PossibleValuesParser::new(Method::names()).try_map(|name| name.parse::<Method>()))]
    pub methods: Vec<Method>,
    /// Number of seeds, starting at run.seed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// What seeds vary
    #[arg(long, value_name = "WHAT", default_value = "data")]
    pub vary: Varied,
    /// Compare the methods at each of these values of a setting, for example objective.gamma=0,0.1,0.2
    #[arg(long, value_name = "KEY=LIST")]
    pub sweep: Option<String>,
    /// Train for a quarter of the steps, in a separate folder
    #[arg(long)]
    pub quick: bool,
    /// Compute the teacher's outputs in every run instead of sharing them in a cache
    #[arg(long)]
    pub no_cache: bool,
    /// Add the scores in a file from lm-evaluation-harness as columns (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub import_scores: Vec<PathBuf>,
    /// Copy the records of each finished run to DIR/METHOD/seed-N, and count the runs in it as finished
    #[arg(long, value_name = "DIR")]
    pub archive: Option<PathBuf>,
    /// Folder for compare.md, compare.json, compare.html and figures/; default: the folder of the runs
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// What the seeds of a comparison vary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Varied {
    /// The order of the data
    Data,
    /// The order of the data and the initial student, which [pretrain.NAME] trains for each seed
    Student,
}

/// Arguments of [`crate::report`].
#[derive(Debug, Args)]
pub struct Report {
    /// Folder of the run
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Formats, separated by commas: report.html, report.md, or figures/*.svg (which report.md shows)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(default_value = "html")]
    pub format: Vec<ReportFormat>,
    /// Folder to write to; default: the run's folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// `report.html`.
    Html,
    /// `report.md`.
    Md,
    /// `figures/*.svg`.
    Svg,
}

/// Arguments of [`crate::eval`].
#[derive(Debug, Args)]
pub struct Eval {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Model: a folder in Hugging Face format, or a name on the Hub
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// Second model; prints its perplexities next to the first model's, and their ratio
    #[arg(long, value_name = "MODEL")]
    pub baseline: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Also write the token ids of the validation documents to this JSON file, to compare with another program
    #[arg(long, value_name = "FILE")]
    pub dump_token_ids: Option<PathBuf>,
}

/// Arguments of [`crate::export`].
#[derive(Debug, Args)]
pub struct Export {
    /// Folder of the run
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Folder to write to; replaces an existing export as a whole
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Step of the checkpoint, or `best` for the one with the smallest mean gap; default: the newest that passes
    /// verification
    #[arg(long, value_name = "N|best", value_parser = export_step)]
    pub step: Option<ExportStep>,
    /// Dtype of the exported tensors: fp32, bf16 or fp16
    #[arg(long, value_name = "DTYPE", default_value = "fp32", value_parser = dtype(&DTYPES))]
    pub dtype: String,
}

/// Dtypes with PyTorch's names for them.
pub const DTYPES: [(&str, &str); 3] = [
    ("fp32", "float32"),
    ("bf16", "bfloat16"),
    ("fp16", "float16"),
];

/// Accepts these dtypes by both names, and returns the first.
pub fn dtype(
    dtypes: &'static [(&'static str, &'static str)],
) -> impl TypedValueParser<Value = String> {
    let value =
        |(name, other): &(&'static str, &'static str)| PossibleValue::new(name).alias(other);
    PossibleValuesParser::new(dtypes.iter().map(value)).map(|given| {
        let known = dtypes.iter().find(|(_, other)| *other == given);
        known.map_or(given, |(name, _)| (*name).to_owned())
    })
}

/// Which checkpoint to export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportStep {
    /// The checkpoint with the smallest mean gap.
    Best,
    /// The checkpoint of a step.
    Number(u64),
}

fn export_step(text: &str) -> Result<ExportStep, &'static str> {
    if text == "best" {
        return Ok(ExportStep::Best);
    }
    let step = text.parse().map_err(|_| "expected a step, or `best`")?;
    Ok(ExportStep::Number(step))
}
