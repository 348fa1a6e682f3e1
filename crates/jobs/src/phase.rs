//! The phases of a command. A response to a signal names the phase, and injected faults can strike in it.

use strum::EnumString;

/// A phase of a command that has nothing to save. Injected faults can name every phase that is not disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Phase {
    /// The command begins.
    #[strum(disabled)]
    Start,
    /// Models and data are downloaded from the Hugging Face Hub.
    #[strum(disabled)]
    Download,
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
    #[strum(disabled)]
    Fork,
    /// Models are loaded, and workers start.
    Load,
    /// No worker is running: the run is rewinding to its last checkpoint, or has made its last step.
    #[strum(disabled)]
    Between,
    /// The student is exported.
    Export,
    /// `ddk export` writes a model.
    #[strum(disabled)]
    ExportModel,
    /// The serial baseline is timed.
    Serial,
    /// The report is written.
    Report,
    /// The process is done with its run.
    #[strum(disabled)]
    Leave,
    /// `ddk eval` evaluates.
    Evaluate,
    /// `ddk label` labels.
    Label,
    /// `ddk bench` measures.
    Bench,
    /// `ddk compare` reads runs, or writes their comparison.
    #[strum(disabled)]
    Compare,
}

/// What the same command does next, if more than one phase ends like this.
const AGAIN: &str = "the same command starts this part over";
const FROM_CHECKPOINT: &str = "the same command resumes from the last checkpoint; without one, it starts at the first \
                               step";
const SAVED: &str = "the last step is saved; the same command completes the rest";

impl Phase {
    /// Says what the command is doing, which follows "stopped while", and what the same command will do next.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Start => ("starting", AGAIN),
            Self::Download => (
                "downloading from the Hugging Face Hub",
                "the same command resumes the download",
            ),
            Self::Text => ("collecting text and training the tokenizer", AGAIN),
            Self::Threads => (
                "measuring how to share the cores (pipeline.threads = \"auto\")",
                AGAIN,
            ),
            Self::Prepare => (
                "preparing the corpus",
                "the same command prepares the remaining domains",
            ),
            Self::Verify => ("verifying the prepared corpus", AGAIN),
            Self::Hash => ("checking and hashing models and corpus", AGAIN),
            Self::Fork => ("forking the run", AGAIN),
            Self::Load => ("loading the models", FROM_CHECKPOINT),
            Self::Between => ("no step was running", FROM_CHECKPOINT),
            Self::Export => ("exporting the student", SAVED),
            Self::ExportModel => ("exporting a checkpoint", AGAIN),
            Self::Serial => ("measuring the serial baseline", SAVED),
            Self::Report => (
                "writing the report",
                "the run is done; the same command writes the report and prints the result",
            ),
            Self::Leave => ("closing", "nothing is lost"),
            Self::Evaluate => ("evaluating", AGAIN),
            Self::Label => ("labeling", "the same command labels the rest"),
            Self::Bench => ("measuring", AGAIN),
            Self::Compare => ("comparing", "the same command resumes; finished runs stay"),
        }
    }
}
