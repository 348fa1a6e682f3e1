//! Declares the command line. Each subcommand is implemented in the file of its name.

use std::{path::PathBuf, sync::LazyLock};

use clap::{ArgGroup, Args, Parser, Subcommand};
use ddk_jobs::args::{
    Bench, Check, Compare, ConfigArgs, DTYPES, Demo, Eval, Export, Label, Prepare, Pretrain,
    Report, Shrink, Train, dtype,
};

/// What `ddk --version` prints. `make wheel` sets the commit.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("DDK_COMMIT").filter(|commit| !commit.is_empty());
    let commit = commit.map_or_else(String::new, |commit| format!(" ({commit})"));
    format!(
        "{}{commit}\nlibtorch {}",
        env!("CARGO_PKG_VERSION"),
        ddk_torch::VERSION
    )
});

/// Distills a large language model (the teacher) into a small one (the student), and shifts the training data toward
/// the domains where the student lags furthest behind.
#[derive(Debug, Parser)]
#[command(
    name = "ddk",
    version,
    long_version = LONG_VERSION.as_str(),
    max_term_width = 100,
    after_help = "Start here:\n  \
                  ddk demo                       run the whole workflow on real text, in 5 to 13 minutes\n  \
                  ddk train my.toml              distill with a configuration of your own\n\n\
                  Exit codes: 0 done, 1 error, 2 usage or configuration error, 130 or 143 stopped by SIGINT or \
                  SIGTERM. After a stop, the same command resumes."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole workflow on real text: corpus, tokenizer, teacher, student, distillation
    ///
    /// Writes five domains of text that `make demo-text` fetched. The text is the same on every machine. Then trains a
    /// tokenizer, a teacher, and a student that lags behind the teacher. Finally, distills the teacher into the
    /// student. Keeps each result under data/demo and reuses it. To start over, delete that folder.
    Demo(Demo),
    /// Write a commented configuration for two models and text: folders, or names on the Hugging Face Hub
    Init(Init),
    /// Check in seconds whether a configuration can run: models, tokenizers, memory, data, schedule
    Check(Check),
    /// Measure distillation speed on this machine, show where the time goes, and suggest changes
    ///
    /// Uses random tokens, with the models and batch shapes of the configuration. Needs no corpus and writes nothing.
    Bench(Bench),
    /// Tokenize a configuration's text once and write token files
    Prepare(Prepare),
    /// Inspect prepared data, or the data that a run trained on
    #[command(subcommand)]
    Data(DataCommand),
    /// Train a model with cross-entropy only, as specified in a [pretrain.NAME] section
    Pretrain(Pretrain),
    /// Make a student from the teacher by leaving out the layers with the least influence
    ///
    /// Measures on the validation documents of the configuration how much each layer changes its input, and keeps the
    /// layers that change it most (ShortGPT, arXiv 2403.03853). Prints the perplexity of each domain before and after.
    Shrink(Shrink),
    /// Compute the teacher's outputs ahead of time and store them in teacher.cache.dir
    ///
    /// Computes what the cache lacks, and measures the teacher's perplexities. Runs that use the cache then need only
    /// the teacher's config.json, tokenizer and LM head.
    Label(Label),
    /// Distill the teacher into the student, or resume an existing run from its last checkpoint
    Train(Train),
    /// Train the paper's methods with several seeds, and write the results as tables and figures
    ///
    /// All runs share the same initial student, token budget, validation sets and evaluation. Seeds vary only the data
    /// order. Skips finished runs and resumes interrupted ones.
    Compare(Compare),
    /// Watch a live or past run in the terminal, on this or another machine
    ///
    /// If standard output is not a terminal, prints the status once. Reads the server's token from
    /// DDK__TELEMETRY__TOKEN.
    Watch {
        /// Folder of the run, or URL of its live page: runs/my, or http://127.0.0.1:9469
        #[arg(value_name = "RUN_OR_URL")]
        run: String,
    },
    /// Control a live run: checkpoint, evaluate, pause, resume, stop, or change a setting
    ///
    /// Commands take effect between steps. The run answers over a socket in its folder, or over HTTP with the
    /// token in DDK__TELEMETRY__TOKEN.
    Ctl(Ctl),
    /// Serve web pages for all runs under a folder, and compare selected runs side by side
    ///
    /// An address other than loopback requires a token in DDK__TELEMETRY__TOKEN. Ctrl-C stops the server.
    Serve(Serve),
    /// Print a model's perplexity on each domain's validation documents
    Eval(Eval),
    /// List a run's checkpoints: step, date, size, mean gap, and whether each one passes verification
    Checkpoints {
        /// Folder of the run
        #[arg(value_name = "RUN")]
        run: PathBuf,
    },
    /// Write a run's report as a self-contained web page, as Markdown, or as figures
    ///
    /// The report contains results, charts by step, incidents, and a time breakdown. It also lists the settings that
    /// differ from the defaults, and how to reproduce the run. `ddk train` writes the page when a run finishes.
    Report(Report),
    /// Export a run's student from any checkpoint, as a Hugging Face folder
    Export(Export),
    /// Generate text from prompts, to see what a model writes, or chat with it
    ///
    /// With --chat, prints only the answers. In a terminal and without a prompt, this is a conversation of several
    /// turns; with two models, each sees its own answers.
    Generate(Generate),
    /// Show the settings in use, or their schema
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Rename outdated keys in a configuration file
    ///
    /// Prints the changes as a diff. Comments, order and all other values stay. Converts the values whose meaning
    /// changed with their key.
    Migrate(Migrate),
    /// Compute the next mixture weights, and show why
    ///
    /// With the policy ddk, computes Eq. 1 of the DDK paper (the discrepancy, from perplexities alone), then Eq. 2 (the
    /// smooth update) from it or from --previous. ddk-no-smoothing uses Eq. 1 alone. sheared multiplies the previous
    /// weights by the ratio of the perplexities.
    Mixture(Mixture),
    /// Print a script that completes commands and options in a shell
    ///
    /// For bash: ddk completions bash > ~/.local/share/bash-completion/completions/ddk
    Completions {
        /// Shell of the script
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Write a man page per command into a folder
    Man {
        /// Folder of the pages, for example ~/.local/share/man/man1
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Inputs of a new configuration.
#[derive(Debug, Args)]
pub struct Init {
    /// Teacher: a folder in Hugging Face format, or a name on the Hub such as Qwen/Qwen2.5-1.5B; with --teacher-server,
    /// its config.json, tokenizer and LM head are enough
    #[arg(long, value_name = "MODEL")]
    pub teacher: PathBuf,
    /// vLLM server that runs the teacher (may be repeated), for example http://10.0.0.5:8000
    #[arg(long, value_name = "URL")]
    pub teacher_server: Vec<String>,
    /// Initial student: a folder, or a name on the Hub [default: the teacher with half of its layers, made by
    /// `ddk shrink`]
    #[arg(long, value_name = "MODEL")]
    pub student: Option<PathBuf>,
    /// Data: a folder, in which each subfolder and each file becomes a domain, a file, or a data set on the Hub, such
    /// as hf://datasets/ORG/NAME
    #[arg(long, value_name = "DATA")]
    pub data: PathBuf,
    /// Make one domain per value of this record field, for example meta.source
    #[arg(long, value_name = "FIELD")]
    pub domain_field: Option<String>,
    /// Field of a record that contains its text [default: recognized in each file]
    #[arg(long, value_name = "FIELD")]
    pub text_field: Option<String>,
    /// File to write the configuration to; must not exist yet
    #[arg(long, value_name = "FILE", default_value = "ddk.toml")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct Ctl {
    /// Folder of the run, or URL of its live page: runs/my, or http://127.0.0.1:9469
    #[arg(value_name = "RUN_OR_URL")]
    pub run: String,
    #[command(subcommand)]
    pub command: CtlCommand,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Print the status of the run
    Status,
    /// Save a checkpoint now
    #[command(alias = "save")]
    Checkpoint,
    /// Measure the student's perplexities now, with no effect on the mixture
    #[command(aliases = ["eval", "evaluation"])]
    Evaluate,
    /// Pause training until `ddk ctl resume`
    Pause,
    /// Resume a paused run
    Resume,
    /// Change live settings from the next step on, for example optimizer.lr=1e-5
    ///
    /// DDK writes the change to overrides.jsonl, so a killed run repeats it at the same step.
    Set {
        /// Settings and their new values
        #[arg(value_name = "KEY=VALUE", required = true)]
        values: Vec<String>,
    },
    /// Finish the step, save a checkpoint, and end the run, as on SIGTERM
    Stop,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Folder that contains the runs
    #[arg(value_name = "RUNS_DIR", default_value = "runs")]
    pub runs: PathBuf,
    /// Address and port of the server
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9470")]
    pub address: std::net::SocketAddr,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Print each domain's counts, document lengths, and some sequences as text
    Inspect {
        #[command(flatten)]
        config: ConfigArgs,
        /// Inspect only this domain
        #[arg(long, value_name = "NAME")]
        domain: Option<String>,
        /// Number of sequences to print per domain
        #[arg(long, value_name = "N", default_value_t = 2)]
        rows: u64,
        /// Print whole sequences instead of their first 200 tokens
        #[arg(long)]
        full: bool,
    },
    /// Print the sequences that a run trained on in one step (requires log.samples = true)
    Samples {
        /// Folder of the run
        #[arg(value_name = "RUN")]
        run: PathBuf,
        /// Step to print
        #[arg(long, value_name = "N")]
        step: u64,
    },
}

/// A model and its sampling parameters.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("models").args(["model", "config"]).required(true))]
pub struct Generate {
    /// Model: a folder in Hugging Face format, or a name on the Hub
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// A second model, which gets the same prompts
    #[arg(long, value_name = "MODEL", conflicts_with = "config")]
    pub beside: Option<PathBuf>,
    /// Configuration or folder of a run: use its teacher and its student
    #[arg(long, value_name = "CONFIG_OR_RUN")]
    pub config: Option<PathBuf>,
    /// Text to continue, or with --chat a message to answer (may be repeated). Default: each line of standard input
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// File with one prompt per line
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Answer each prompt as a user message, through the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// System prompt of each conversation
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 always picks the likeliest token, and higher values give more random text
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Nucleus sampling: sample only from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Sampling seed; the same seed generates the same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Device of the model: `cpu`, or `cuda:0`, `cuda:1`, …
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Number format of weights and matrix products: `fp32`, or `bf16` with half the memory
    #[arg(long, default_value = "fp32", value_parser = dtype(&DTYPES[..2]))]
    pub dtype: String,
}

/// A configuration with earlier names.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Configuration file (TOML)
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// Replace the file, and keep the old text in CONFIG.old
    #[arg(long)]
    pub write: bool,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the settings in use after all layers
    Show {
        #[command(flatten)]
        config: ConfigArgs,
        /// Also print where each value comes from
        #[arg(long)]
        origin: bool,
        /// Print only the settings that differ from the defaults
        #[arg(long)]
        changed: bool,
    },
    /// Print the JSON schema of a configuration file
    Schema,
}

#[derive(Debug, Args)]
pub struct Mixture {
    /// Student's perplexity on each domain, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true, value_parser = number)]
    pub student_ppl: Vec<f64>,
    /// Teacher's perplexity on each domain, in the same order
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true, value_parser = number)]
    pub teacher_ppl: Vec<f64>,
    /// Previous weights; default: the discrepancy of these perplexities, as in the first update
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = number)]
    pub previous: Option<Vec<f64>>,
    /// Policy that adapts the mixture to perplexities: ddk, ddk-no-smoothing or sheared
    #[arg(long, value_name = "POLICY", default_value = "ddk", value_parser = ["ddk", "ddk-no-smoothing", "sheared"])]
    pub policy: String,
    /// Weight of the discrepancy relative to the uniform floor, from 0 to 1 (ddk only)
    #[arg(long, default_value_t = 0.5)]
    pub alpha: f64,
    /// Names of the domains, in the same order
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub domains: Option<Vec<String>>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Parses a number of a list, which may have spaces around it.
fn number(text: &str) -> Result<f64, String> {
    let number = text.trim().parse();
    number.map_err(|_| format!("`{text}` is not a number, expected a list such as 9,6,12.5"))
}
