//! Arguments of the jobs, as the command line takes them.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use ddk_settings::Method;

/// Which settings: files in order, then the environment, then --set.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Configuration files (TOML); later ones override earlier ones
    #[arg(value_name = "CONFIG", required = true)]
    pub files: Vec<PathBuf>,
    /// Single settings.
    #[command(flatten)]
    pub set: SetArgs,
}

/// Settings given one by one.
#[derive(Debug, Clone, Default, Args)]
pub struct SetArgs {
    /// Override one setting, for example --set run.seed=1 (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of [`crate::demo`].
#[derive(Debug, Args)]
pub struct Demo {
    /// The demo's configuration
    #[arg(long, value_name = "FILE", default_value = "config/demo.toml")]
    pub config: PathBuf,
    /// Single settings.
    #[command(flatten)]
    pub set: SetArgs,
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
    /// Load both models too and run each on one text: this reveals a broken checkpoint
    #[arg(long)]
    pub forward: bool,
}

/// Arguments of [`crate::bench`].
#[derive(Debug, Args)]
pub struct Bench {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Seconds of each of the three measurements
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub seconds: f64,
    /// Print what was measured as JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of [`crate::prepare`].
#[derive(Debug, Args)]
pub struct Prepare {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Prepare again even where the prepared folder is current
    #[arg(long)]
    pub force: bool,
    /// Compare every prepared file with its manifest instead
    #[arg(long, conflicts_with = "force")]
    pub verify: bool,
}

/// Arguments of [`crate::pretrain`].
#[derive(Debug, Args)]
pub struct Pretrain {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Which [pretrain.NAME] section to follow
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// Train from the first step, even if the model is there or an interrupted run could resume
    #[arg(long)]
    pub force: bool,
}

/// Arguments of [`crate::train`].
#[derive(Debug, Clone, Default, Args)]
pub struct Train {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Insist on a new run: refuse a run folder that exists
    #[arg(long)]
    pub no_resume: bool,
    /// Start over at step 0: what the run has made is set aside within its folder, not deleted
    #[arg(long, conflicts_with_all = ["no_resume", "fork", "resume_from"])]
    pub restart: bool,
    /// Start a new run of this name from a checkpoint of the configuration's run, whose domains may differ
    #[arg(long, value_name = "NAME", conflicts_with = "no_resume")]
    pub fork: Option<String>,
    /// Resume from the checkpoint of this step; later ones are set aside
    #[arg(long, value_name = "STEP", conflicts_with = "no_resume")]
    pub resume_from: Option<u64>,
    /// Once the run is done, also time this many steps one part after the other, for comparison
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub serial_baseline: u64,
    /// Also write the metrics to this file, for the node exporter (same as --set telemetry.metrics_file=FILE)
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
    /// Print the run's summary as JSON on standard output instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of [`crate::compare`].
#[derive(Debug, Args)]
pub struct Compare {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Methods, by the names of the paper's rows, separated by commas
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "cpt,cpt-doremi,kd,ted,minillm,ddk,ddk-no-smoothing,ddk-equal",
        value_parser = PossibleValuesParser::new(Method::names()).try_map(|name| name.parse::<Method>())
    )]
    pub methods: Vec<Method>,
    /// Seeds, from run.seed on
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Do it for each of these values of a setting, for example objective.gamma=0,0.1,0.2
    #[arg(long, value_name = "KEY=LIST")]
    pub sweep: Option<String>,
    /// A quarter of the steps; runs in a folder of their own
    #[arg(long)]
    pub quick: bool,
    /// Add the scores in a file of lm-evaluation-harness as columns (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub import_scores: Vec<PathBuf>,
    /// Where compare.md, compare.json, compare.html and figures/ go; the folder of the runs where absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of [`crate::report`].
#[derive(Debug, Args)]
pub struct Report {
    /// The run's folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// report.html, report.md, figures/*.svg (the Markdown shows these); separated by commas
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "html"
    )]
    pub format: Vec<ReportFormat>,
    /// Where to write them; the run's folder where absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// What a report can be written as.
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
    /// The model's folder, in the Hugging Face format
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// A second model, printed beside the first with the ratio of the two
    #[arg(long, value_name = "DIR")]
    pub baseline: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Also write the validation documents' token ids to this JSON file, to check against another program
    #[arg(long, value_name = "FILE")]
    pub dump_token_ids: Option<PathBuf>,
}

/// Arguments of [`crate::export`].
#[derive(Debug, Args)]
pub struct Export {
    /// The run's folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The folder to write; replaced as a whole where it exists
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The checkpoint's step, or `best` for the one nearest to the teacher; the newest that verifies where absent
    #[arg(long, value_name = "N|best")]
    pub step: Option<ExportStep>,
    /// Dtype of the tensors in the files: fp32, bf16 or fp16
    #[arg(long, value_name = "DTYPE", default_value = "fp32", value_parser = ["fp32", "bf16", "fp16"])]
    pub dtype: String,
}

/// Which checkpoint is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportStep {
    /// The one nearest to the teacher.
    Best,
    /// That of a step.
    Number(u64),
}

impl std::str::FromStr for ExportStep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "best" => Ok(Self::Best),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| "expected a step, or `best`".to_owned()),
        }
    }
}
