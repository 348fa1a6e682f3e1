//! The data: corpus, domains, batches, the mixture.

use std::{collections::BTreeMap, path::PathBuf};

use ddk_corpus::{FileFormat, Packing, ValidationSplit};
use ddk_mixture::{InitialMixture, MixturePolicy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

use crate::limits::{LARGE, MANY};

/// How text becomes sequences of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Corpus {
    /// Folder of the prepared corpus.
    #[default = "data/prepared"]
    pub dir: PathBuf,
    /// Folder of the tokenizer; the student's model folder where absent.
    pub tokenizer: Option<PathBuf>,
    /// The token that ends a document; where absent, the end-of-text token that the tokenizer's folder names.
    #[schemars(example = "<|endoftext|>")]
    pub eos_token: Option<String>,
    /// Chooses the documents where `max_bytes` or `max_documents` leaves some out; run.seed where absent.
    pub seed: Option<u64>,
    /// Tokens per sequence; it has one prediction fewer.
    #[default = 2048]
    #[schemars(range(min = 2, max = LARGE))]
    pub sequence_length: usize,
    /// How documents become sequences: `concat` joins and cuts them; `concat_masked` does the same, but attention
    /// does not cross documents; `best_fit` puts whole documents together with little padding.
    #[default(Packing::Concat)]
    pub packing: Packing,
    /// What to do if sources, tokenizer or settings have changed since the corpus was prepared: `prepare` it again,
    /// stop with an `error`, or `use` it unchanged.
    #[default(OnStale::Prepare)]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub on_stale: OnStale,
    /// How to set documents aside for validation, by a hash of their content: a `fraction` of them, or a `count`.
    #[default(ValidationSplit::Fraction)]
    pub validation_split: ValidationSplit,
    /// Fraction of the documents to set aside for validation.
    #[default = 0.05]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub validation_fraction: f64,
    /// Maximum validation documents per domain, each cut at sequence_length. DDK drops those that a fraction has
    /// beyond it.
    #[default = 500]
    #[schemars(range(min = 1))]
    pub validation_documents: usize,
    /// Maximum fraction of unusable records, and of bytes in files that cannot be read to their end.
    #[default = 0.01]
    #[schemars(range(min = 0, max = 1))]
    pub max_bad_fraction: f64,
}

/// What to do with a prepared corpus that is out of date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnStale {
    /// Prepare what changed.
    Prepare,
    /// Stop with an error.
    Error,
    /// Use it unchanged.
    Use,
}

/// A domain's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Domain {
    /// Files, folders or globs. Each line of a `.jsonl` file and each row of a `.parquet` file is a record; a
    /// file with an extension of text or source code is one document. All but Parquet may end in `.gz` or
    /// `.zst`. Other files are refused. Needed.
    #[schemars(length(min = 1), extend("examples" = [["data/math/*.jsonl"]]))]
    #[schemars(extend("x-expected" = "at least one file, folder or glob"))]
    pub files: Vec<String>,
    /// Files of validation documents; where there are none, documents are set aside as `[corpus]` says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validation_files: Vec<String>,
    /// The format of all files of the domain, whatever their extensions are: `jsonl`, `parquet`, or `text`
    /// (each file is one document). Default: each file's extension decides.
    pub format: Option<FileFormat>,
    /// The field of a record that holds its text, instead of `text`; `a.b` goes into an object. Once loaded, it is
    /// part of `text_template`.
    #[schemars(example = &"content")]
    pub text_field: Option<String>,
    /// The text, made of fields of a record.
    #[default = "{text}"]
    #[schemars(example = "{question}\n{answer}")]
    pub text_template: String,
    /// What comes before the text. With objective.completion_only_loss, it is not learned.
    #[schemars(example = "{question}\n")]
    pub prompt_template: Option<String>,
    /// Use only the records in which this field has filter_value; `a.b` goes into an object.
    #[schemars(example = "meta.redpajama_set_name")]
    pub filter_field: Option<String>,
    /// The value of filter_field. Default: the domain's name.
    pub filter_value: Option<String>,
    /// Maximum bytes of text to train on.
    #[schemars(range(min = 1))]
    pub max_bytes: Option<u64>,
    /// Maximum number of documents to train on.
    #[schemars(range(min = 1))]
    pub max_documents: Option<u64>,
    /// Maximum number of tokens to train on, the first ones in the order of the files.
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u64>,
    /// Shorter documents, in bytes, are left out.
    #[default = 1]
    #[schemars(range(min = 1))]
    pub min_document_bytes: u64,
    /// Longer documents, in bytes, are quarantined.
    #[default(64 << 20)]
    #[schemars(range(min = 1))]
    pub max_document_bytes: u64,
}

/// Batch sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Sequences per optimizer step.
    #[default = 16]
    #[schemars(range(min = 1, max = LARGE))]
    pub global_batch_size: u64,
    /// Sequences per micro-batch: what teacher and student process at a time. Divides global_batch_size.
    #[default = 8]
    #[schemars(range(min = 1, max = LARGE))]
    pub micro_batch_size: u64,
}

/// How the mixture of domains moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Mixture {
    /// How it moves: `ddk`, `ddk-no-smoothing`, `sheared` and `odm` follow the models; `equal`, `natural` and
    /// `static` stay as they are; `doremi` finds a fixed mixture in two runs before this one; `doremi-proxy`
    /// is the second of these alone.
    #[default(MixturePolicy::Ddk)]
    pub policy: MixturePolicy,
    /// ddk: weight of the discrepancy against the uniform floor (alpha of Eq. 2).
    #[default = 0.5]
    #[schemars(range(min = 0, max = 1))]
    pub alpha: f64,
    /// Steps between two updates (K), and the unit of run.max_intervals; odm and doremi-proxy move after
    /// every step whatever this is.
    #[default = 1000]
    #[schemars(range(min = 1, max = LARGE), extend("x-quick" = 4))]
    pub interval: u64,
    /// Intervals between an evaluation and the mixture that follows from it. 0 (the paper): the
    /// pipeline waits at each interval's end for the evaluation. 1: teacher lane 0 evaluates a copy of the
    /// student on the student's device while training continues.
    #[schemars(range(max = 1), extend("x-expected" = "0 or 1"))]
    pub lag: u64,
    /// What the first interval of a mixture that moves draws by: the corpus' own proportions, equal weights,
    /// or the discrepancy of Eq. 1. (odm begins with equal weights, as its formula says.)
    #[default(InitialMixture::Natural)]
    pub initial: InitialMixture,
    /// Maximum epochs of a domain; the other domains then share its weight.
    #[schemars(range(min = 1, max = LARGE))]
    pub max_epochs: Option<f64>,
    /// odm: how much of a domain's estimated reward stays at an update.
    #[default = 0.9]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub odm_smoothing: f64,
    /// doremi: folder of the model that reference and proxy start as; the student's where absent.
    pub doremi_model: Option<PathBuf>,
    /// doremi: steps of the reference and of the proxy; as many as the run has where absent.
    #[schemars(range(min = 1, max = MANY), extend("x-quick" = 4))]
    pub doremi_steps: Option<u64>,
    /// doremi and doremi-proxy: step size of the weights' update.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub doremi_eta: f64,
    /// doremi and doremi-proxy: how much of the weights is uniform after each update (c).
    #[default = 1e-3]
    #[schemars(range(min = 0, max = 1))]
    pub doremi_smoothing: f64,
    /// static: the weight of each domain; those left out get 0. They need not sum to 1.
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    pub weights: Option<BTreeMap<String, f64>>,
    /// sheared: the loss of each domain, in nats, that the student's is held against; the teacher's for those left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    pub reference_loss: BTreeMap<String, f64>,
}
