//! The phases of a command. A response to a signal names the phase, and injected faults can strike in it.

use serde::Deserialize;

/// A phase of a command that has nothing to save. Injected faults can name every phase that serde does not skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The command begins.
    #[serde(skip)]
    Start,
    /// `ddk demo` collects text and trains a tokenizer.
    Text,
    /// Both models are timed for `pipeline.threads = "auto"`.
    Threads,
    /// The corpus is tokenized.
    Prepare,
    /// Prepared files are compared with their checksums.
    Verify,
    /// Models and corpus are opened, checked and hashed.
    Hash,
    /// A checkpoint of another run is copied.
    #[serde(skip)]
    Fork,
    /// Models are loaded, and workers start.
    Load,
    /// No worker is running: the run is rewinding to its last checkpoint, or has made its last step.
    #[serde(skip)]
    Between,
    /// The student is exported.
    Export,
    /// `ddk export` writes a model.
    #[serde(skip)]
    ExportModel,
    /// The serial baseline is timed.
    Serial,
    /// The report is written.
    Report,
    /// The process is done with its run.
    #[serde(skip)]
    Leave,
    /// `ddk eval` evaluates.
    Evaluate,
    /// `ddk bench` measures.
    Bench,
    /// `ddk compare` reads runs, or writes their comparison.
    #[serde(skip)]
    Compare,
}

impl Phase {
    /// Says what the command is doing; follows "stopped while".
    pub fn what(self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Text => "collecting text and training the tokenizer",
            Self::Threads => "measuring how to share the cores (pipeline.threads = \"auto\")",
            Self::Prepare => "preparing the corpus",
            Self::Verify => "verifying the prepared corpus",
            Self::Hash => "checking and hashing models and corpus",
            Self::Fork => "forking the run",
            Self::Load => "loading the models",
            Self::Between => "no step was running",
            Self::Export => "exporting the student",
            Self::ExportModel => "exporting a checkpoint",
            Self::Serial => "measuring the serial baseline",
            Self::Report => "writing the report",
            Self::Leave => "closing",
            Self::Evaluate => "evaluating",
            Self::Bench => "measuring",
            Self::Compare => "comparing",
        }
    }

    /// Says what the same command will do next.
    pub fn next(self) -> &'static str {
        match self {
            Self::Prepare => "the same command resumes with what is left",
            Self::Load | Self::Between => {
                "the same command resumes from the last checkpoint, or starts at the first step if there is none"
            }
            Self::Export | Self::Serial => {
                "the last step is saved; the same command does what is left"
            }
            Self::Report => {
                "the run is done; the same command writes the report and prints the result"
            }
            Self::Leave => "nothing is lost",
            Self::Compare => "the same command resumes; finished runs stay",
            _ => "the same command starts this part over",
        }
    }
}
