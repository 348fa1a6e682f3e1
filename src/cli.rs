//! The command line. Each subcommand's work is in the file of its name.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ddk_jobs::args::{
    Bench, Check, Compare, ConfigArgs, Demo, Eval, Export, Prepare, Pretrain, Report, Train,
};

/// Distills a large language model (the teacher) into a small one (the student), and steers the training data, domain
/// by domain, toward where the student is furthest behind.
#[derive(Debug, Parser)]
#[command(
    name = "ddk",
    version,
    max_term_width = 100,
    after_help = "Start here:\n  \
                  ddk demo                       the whole job on real text, in about five minutes\n  \
                  ddk train config/demo.toml     distill with a configuration of your own\n\n\
                  Exit codes: 0 done, 1 error, 2 usage or configuration, 130 or 143 stopped by SIGINT or SIGTERM; \
                  the same command resumes."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole job on real text: corpus, tokenizer, teacher, student, distillation
    ///
    /// Writes five domains of text that `make demo-text` has fetched, the same on every machine. Then trains
    /// a tokenizer, a teacher and a student that lags behind it, and distills. Every part is kept under
    /// data/demo and reused; delete that folder to start over.
    Demo(Demo),
    /// Write a commented configuration for two model folders and a folder of text
    Init(Init),
    /// Say in seconds whether a configuration can run: models, tokenizers, memory, data, schedule
    Check(Check),
    /// Measure how fast this machine distills a configuration's models: where the time goes, and what to change
    ///
    /// Random tokens of the configuration's shape; no corpus is needed, and nothing is written.
    Bench(Bench),
    /// Tokenize the sources of a configuration into token files, once
    Prepare(Prepare),
    /// Look at prepared data, and at what a run was trained on
    #[command(subcommand)]
    Data(DataCommand),
    /// Train a model with cross-entropy alone, as a [pretrain.NAME] section says
    Pretrain(Pretrain),
    /// Distill the teacher into the student; in an existing run's folder, resume from its last checkpoint
    Train(Train),
    /// Train the paper's methods side by side, over seeds, and write what came out as tables and figures
    ///
    /// The same initial student, token budget, validation sets and evaluation for all; seeds vary the data's
    /// order alone. Skips finished runs and resumes interrupted ones.
    Compare(Compare),
    /// Watch a run in the terminal, here or on another machine, live or ended
    ///
    /// Where standard output is no terminal, says once how it stands. A server's token is taken from
    /// DDK__TELEMETRY__TOKEN.
    Watch(Watch),
    /// Tell a run that trains to save, evaluate, pause, resume, stop, or change a setting
    ///
    /// Commands take effect between two steps. The run answers over a socket in its folder, or over HTTP with the
    /// token in DDK__TELEMETRY__TOKEN.
    Ctl(Ctl),
    /// Serve the pages of all runs below a folder, several side by side
    ///
    /// Another address than a loopback one needs a token in DDK__TELEMETRY__TOKEN. Ctrl-C ends it.
    Serve(Serve),
    /// Print a model's perplexity on each domain's validation documents
    Eval(Eval),
    /// List a run's checkpoints: step, size, whether each verifies
    Checkpoints(Checkpoints),
    /// Write a run's report: one page that works without a network, Markdown, or its figures
    ///
    /// What came out, how it came about, incidents, where the time went, settings that differ from the
    /// defaults, how to have it again. `ddk train` writes the page when a run is done.
    Report(Report),
    /// Write a run's student as a Hugging Face folder, from any of its checkpoints
    Export(Export),
    /// Let a model write on after a prompt, to look at what it says
    Generate(Generate),
    /// Show the settings in use, or their schema
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print what the next mixture weights would be, and why
    ///
    /// Computes Eq. 1 of the DDK paper (the discrepancy, from perplexities alone) and, from it or from --previous,
    /// Eq. 2 (the smooth update).
    Mixture(Mixture),
}

/// What a new configuration is made from.
#[derive(Debug, Args)]
pub struct Init {
    /// The teacher's folder, in the Hugging Face format
    #[arg(long, value_name = "DIR")]
    pub teacher: PathBuf,
    /// The folder of the model that the student starts as
    #[arg(long, value_name = "DIR")]
    pub student: PathBuf,
    /// A folder of text: each subfolder and each file in it becomes a domain
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Make a domain of each value that this field has in the records, for example meta.source
    #[arg(long, value_name = "FIELD")]
    pub domain_field: Option<String>,
    /// The field of a record that holds its text
    #[arg(long, value_name = "FIELD", default_value = "text")]
    pub text_field: String,
    /// Where to write the configuration; an existing file is not overwritten
    #[arg(long, value_name = "FILE", default_value = "ddk.toml")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// The run's folder, or the address of its live page: runs/my, or http://127.0.0.1:9469
    #[arg(value_name = "RUN_OR_URL")]
    pub run: String,
}

#[derive(Debug, Args)]
pub struct Ctl {
    /// The run's folder, or the address of its live page: runs/my, or http://127.0.0.1:9469
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
    /// Say how the run stands
    Status,
    /// Save a checkpoint now
    Checkpoint,
    /// Measure the student's perplexities now; the mixture does not follow from them
    Evaluate,
    /// Make no further step until told to resume
    Pause,
    /// Train on
    Resume,
    /// Change live settings from the next step on, for example optimizer.lr=1e-5
    ///
    /// The change is written to overrides.jsonl, so a run that is killed repeats it at the same step.
    Set {
        /// Settings and their new values
        #[arg(value_name = "KEY=VALUE", required = true)]
        values: Vec<String>,
    },
    /// Finish the step, save, and end, as on SIGTERM
    Stop,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// The folder of runs
    #[arg(value_name = "RUNS_DIR", default_value = "runs")]
    pub runs: PathBuf,
    /// Address and port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9470")]
    pub address: std::net::SocketAddr,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Print each domain's counts, the lengths of its documents, and some of its rows as text
    Inspect {
        #[command(flatten)]
        config: ConfigArgs,
        /// Only this domain
        #[arg(long, value_name = "NAME")]
        domain: Option<String>,
        /// Rows to print
        #[arg(long, value_name = "N", default_value_t = 2)]
        rows: u64,
    },
    /// Print the sequences that a step of a run was trained on (needs log.samples = true)
    Samples {
        /// The run's folder
        #[arg(value_name = "RUN")]
        run: PathBuf,
        /// The step
        #[arg(long, value_name = "N")]
        step: u64,
    },
}

#[derive(Debug, Args)]
pub struct Checkpoints {
    /// The run's folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
}

/// A model and how it samples.
#[derive(Debug, Args)]
pub struct Generate {
    /// The model's folder, in the Hugging Face format
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The text to continue
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Maximum number of tokens to write
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_new_tokens: usize,
    /// 0: always the likeliest token; higher: bolder
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// The same seed writes the same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// `cpu`, or `cuda:0`, `cuda:1`, …
    #[arg(long, default_value = "cpu")]
    pub device: String,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the settings in use after all layers
    Show {
        #[command(flatten)]
        config: ConfigArgs,
        /// Say where each value comes from
        #[arg(long)]
        origin: bool,
    },
    /// Print the JSON schema of a configuration file
    Schema,
}

#[derive(Debug, Args)]
pub struct Mixture {
    /// The student's perplexity on each domain, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub student_ppl: Vec<f64>,
    /// The teacher's perplexity on each domain, in the same order
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub teacher_ppl: Vec<f64>,
    /// The previous weights; without them, the discrepancy of the same perplexities (as at the first update)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub previous: Option<Vec<f64>>,
    /// How it moves: ddk, ddk-no-smoothing or sheared, the policies that follow perplexities
    #[arg(long, value_name = "POLICY", default_value = "ddk", value_parser = ["ddk", "ddk-no-smoothing", "sheared"])]
    pub policy: String,
    /// Weight of the discrepancy against the uniform floor, 0 to 1 (ddk)
    #[arg(long, default_value_t = 0.5)]
    pub alpha: f64,
    /// Names of the domains, in the same order
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub domains: Option<Vec<String>>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}
