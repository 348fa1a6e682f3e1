//! What a command does, step by step: what a signal's answer names, and where faults on purpose strike.

/// A phase of a command in which nothing has to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The command begins.
    Start,
    /// `ddk demo` collects text and learns a tokenizer.
    Text,
    /// `run.threads = "auto"`.
    Threads,
    /// The corpus is tokenized.
    Prepare,
    /// Prepared files are compared with their checksums.
    Verify,
    /// Models and corpus are opened, checked and hashed.
    Hash,
    /// A checkpoint of another run is copied.
    Fork,
    /// Models are loaded, workers start.
    Load,
    /// No worker is at work: the run goes back to its last checkpoint, or its last step is made.
    Between,
    /// The student is exported.
    Export,
    /// `ddk export` writes a model.
    ExportModel,
    /// The same work without overlap is timed.
    Serial,
    /// The report is written.
    Report,
    /// The process is done with its run.
    Leave,
    /// `ddk eval` evaluates.
    Evaluate,
    /// `ddk bench` measures.
    Bench,
    /// `ddk compare` reads runs, or writes their comparison.
    Compare,
}

/// Those that faults on purpose may name.
pub const NAMES: [(&str, Phase); 11] = [
    ("text", Phase::Text),
    ("threads", Phase::Threads),
    ("prepare", Phase::Prepare),
    ("verify", Phase::Verify),
    ("hash", Phase::Hash),
    ("load", Phase::Load),
    ("export", Phase::Export),
    ("serial", Phase::Serial),
    ("report", Phase::Report),
    ("evaluate", Phase::Evaluate),
    ("bench", Phase::Bench),
];

impl Phase {
    /// What is going on, after "stopped while".
    pub fn what(self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Text => "collecting text and training the tokenizer",
            Self::Threads => "measuring how to share the cores (run.threads = \"auto\")",
            Self::Prepare => "preparing the corpus",
            Self::Verify => "verifying the prepared corpus",
            Self::Hash => "checking and hashing models and corpus",
            Self::Fork => "forking the run",
            Self::Load => "loading the models",
            Self::Between => "no step was being made",
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

    /// What the same command does next.
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
            Self::Start
            | Self::Text
            | Self::Threads
            | Self::Verify
            | Self::Hash
            | Self::Fork
            | Self::ExportModel
            | Self::Evaluate
            | Self::Bench => "the same command starts this part over",
        }
    }
}
