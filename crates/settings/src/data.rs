//! Settings of the data: corpus, domains, batch sizes, mixture.

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
    /// The tokenizer: a folder, or the name of a model on the Hugging Face Hub. Default: student.model.
    pub tokenizer: Option<PathBuf>,
    /// Token that ends a document. Default: the end-of-text token that the tokenizer folder names.
    #[schemars(example = "<|endoftext|>")]
    pub eos_token: Option<String>,
    /// Seed that chooses the documents if `max_bytes` or `max_documents` leaves some out. Default: run.seed.
    pub seed: Option<u64>,
    /// Tokens per sequence. A sequence has one fewer prediction than tokens.
    #[default = 2048]
    #[schemars(range(min = 2, max = LARGE))]
    pub sequence_length: usize,
    /// How to pack documents into sequences: `concat` joins and cuts them; `concat_masked` does the same, but attention
    /// does not cross documents; `best_fit` combines whole documents with little padding.
    #[default(Packing::Concat)]
    pub packing: Packing,
    /// What to do if the sources, the tokenizer or the settings have changed since the corpus was prepared: `prepare`
    /// it again, stop with an `error`, or `use` it unchanged.
    #[default(OnStale::Prepare)]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub on_stale: OnStale,
    /// How many validation documents to choose by a hash of their content: a `fraction` of all documents, or a `count`
    /// (validation_documents).
    #[default(ValidationSplit::Fraction)]
    pub validation_split: ValidationSplit,
    /// Fraction of the documents to hold out for validation.
    #[default = 0.05]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub validation_fraction: f64,
    /// Maximum number of validation documents per domain, each cut at sequence_length. With a fraction, DDK drops
    /// documents beyond this number.
    #[default = 500]
    #[schemars(range(min = 1))]
    pub validation_documents: usize,
    /// Maximum fraction of unusable records, and of bytes in files that DDK cannot read to the end.
    #[default = 0.01]
    #[schemars(range(min = 0, max = 1))]
    pub max_bad_fraction: f64,
}

/// What to do with an outdated prepared corpus.
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

/// The text of a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Domain {
    /// Files, folders or globs; also data sets on the Hugging Face Hub, `hf://datasets/ORG/NAME`, and their files,
    /// `hf://datasets/ORG/NAME/FILE_OR_GLOB` (docs/hub.md). Required. Files of JSON (`.json`, `.jsonl`, `.ndjson`),
    /// Parquet (`.parquet`), Arrow (`.arrow`, `.feather`), CSV and TSV hold records. A file with a text or source code
    /// extension is one document. All formats but Parquet may be compressed (`.gz` or `.zst`). DDK refuses other files.
    /// A local file, folder or glob that starts with `!` is left out.
    #[schemars(length(min = 1), extend("examples" = [["data/math/*.jsonl"], ["data/math", "!data/math/old-*.jsonl"]]))]
    #[schemars(extend("x-expected" = "at least one file, folder or glob"))]
    pub files: Vec<String>,
    /// Files of validation documents. Default: hold out documents of `files` as `[corpus]` specifies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validation_files: Vec<String>,
    /// Format of all files of the domain, whatever their extensions. With `text`, each file is one document;
    /// `megatron` reads token ids from pairs of `.idx` and `.bin` files. Default: each file's extension decides.
    pub format: Option<FileFormat>,
    /// Field of a record that contains its text, instead of `text`; `a.b` is the field `b` of the object `a`. Shorthand
    /// for a `text_template` with only this field.
    #[schemars(example = &"content")]
    pub text_field: Option<String>,
    /// Template of the text, with fields of the record in braces. `{?a} … {/}` is left out if the field `a` is empty or
    /// missing.
    #[default = "{text}"]
    #[schemars(example = "{question}\n{answer}")]
    pub text_template: String,
    /// Template of a prompt before the text. objective.completion_only_loss excludes it from the loss.
    #[schemars(example = "{question}\n")]
    pub prompt_template: Option<String>,
    /// Field of a record that contains its messages, in the layout of OpenAI (`role`, `content`) or ShareGPT (`from`,
    /// `value`); `a.b` is the field `b` of the object `a`. The tokenizer's chat template renders them.
    /// objective.completion_only_loss excludes all but the assistant's turns from the loss. Excludes text_field,
    /// text_template and prompt_template.
    #[schemars(example = &"messages")]
    pub messages_field: Option<String>,
    /// Field of a record that contains the messages which continue those of messages_field. With
    /// objective.completion_only_loss, only the assistant's turns in this field are learned.
    #[schemars(example = &"completion")]
    pub completion_field: Option<String>,
    /// Field of a record that contains the descriptions of its tools, as a list or as JSON in a string. Applies to
    /// records with messages; those without tools need not have it. Default: `tools`.
    #[schemars(example = &"functions")]
    pub tools_field: Option<String>,
    /// Field of a record that contains token ids instead of a text. DDK masks the tokens that `labels` beside it mark
    /// with -100, and leaves out the padding that `attention_mask` beside it marks.
    #[schemars(example = &"input_ids")]
    pub tokens_field: Option<String>,
    /// Folder of the tokenizer that made the ids of `tokens_field` or of `format = "megatron"`. DDK refuses a
    /// `tokenizer.json` other than the corpus's.
    pub tokenizer: Option<PathBuf>,
    /// Use only records in which this field equals filter_value; `a.b` is the field `b` of the object `a`.
    #[schemars(example = "meta.redpajama_set_name")]
    pub filter_field: Option<String>,
    /// Value that filter_field must have. Default: the domain's name.
    pub filter_value: Option<String>,
    /// Maximum number of bytes of text to train on. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_bytes: Option<u64>,
    /// Maximum number of documents to train on. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_documents: Option<u64>,
    /// Maximum number of tokens to train on, taken in the order of the files. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u64>,
    /// Minimum document size in bytes. DDK leaves out shorter ones.
    #[default = 1]
    #[schemars(range(min = 1))]
    pub min_document_bytes: u64,
    /// Maximum document size in bytes. DDK quarantines longer ones.
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
    /// Sequences per micro-batch, the unit that the teacher and the student process. Must divide global_batch_size.
    #[default = 8]
    #[schemars(range(min = 1, max = LARGE))]
    pub micro_batch_size: u64,
}

/// How the mixture of domains changes during a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Mixture {
    /// Mixture policy: `ddk`, `ddk-no-smoothing`, `excess`, `sheared` and `odm` adapt the mixture to the models;
    /// `equal`, `natural` and `static` keep it fixed; `doremi` finds a fixed mixture in two preliminary runs;
    /// `doremi-proxy` is only the second of these runs.
    #[default(MixturePolicy::Ddk)]
    pub policy: MixturePolicy,
    /// `ddk`: weight of the discrepancy relative to the uniform floor (alpha in Eq. 2).
    #[default = 0.5]
    #[schemars(range(min = 0, max = 1))]
    pub alpha: f64,
    /// `ddk`: divides the perplexity ratios before the exponential of Eq. 1 and 2; the paper's is 1. If one domain
    /// always has the largest weight, raise it to about the size of the ratios.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub temperature: f64,
    /// Steps between mixture updates (K), and the unit of run.max_intervals. `odm` and `doremi-proxy` always update
    /// after every step.
    #[default = 1000]
    #[schemars(range(min = 1, max = LARGE), extend("x-quick" = 4))]
    pub interval: u64,
    /// Number of intervals between an evaluation and the mixture that uses it. With 0, as in the paper, the pipeline
    /// waits for the evaluation at the end of each interval. With 1, replica 0 of the teacher evaluates a copy of the
    /// student on the student's device while training continues.
    #[schemars(range(max = 1), extend("x-expected" = "0 or 1"))]
    pub lag: u64,
    /// Mixture of the first interval if the policy adapts it: `natural` (the proportions of the corpus), `equal`
    /// weights, or the `discrepancy` of Eq. 1. `odm` always starts with equal weights, as its formula requires.
    #[default(InitialMixture::Natural)]
    pub initial: InitialMixture,
    /// Maximum number of epochs over a domain. After that, the other domains share its weight. Default: 8 for `excess`,
    /// otherwise no limit.
    #[schemars(range(min = 1, max = LARGE))]
    pub max_epochs: Option<f64>,
    /// `excess`: weight of the excess relative to equal weights, before the learning rate decays.
    #[default = 0.8]
    #[schemars(range(min = 0, max = 1))]
    pub excess_alpha: f64,
    /// `excess`: exponent of what a domain gained per share of the mixture. With 0, only the gaps count.
    #[default = 1.0]
    #[schemars(range(min = 0))]
    pub excess_gain: f64,
    /// `odm`: fraction of a domain's estimated reward that an update keeps.
    #[default = 0.9]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub odm_smoothing: f64,
    /// `doremi`: folder of the model from which the reference and the proxy start. Default: student.model.
    pub doremi_model: Option<PathBuf>,
    /// `doremi`: steps of the reference and of the proxy. Default: as many as the run has.
    #[schemars(range(min = 1, max = MANY), extend("x-quick" = 4))]
    pub doremi_steps: Option<u64>,
    /// `doremi` and `doremi-proxy`: step size of the mixture update.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub doremi_eta: f64,
    /// `doremi` and `doremi-proxy`: fraction of the mixture that is uniform after each update (c).
    #[default = 1e-3]
    #[schemars(range(min = 0, max = 1))]
    pub doremi_smoothing: f64,
    /// `static`: weight of each domain. Omitted domains get 0. The weights need not sum to 1.
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    pub weights: Option<BTreeMap<String, f64>>,
    /// `sheared`: reference loss of each domain, in nats, to compare the student's loss with. Default: the teacher's
    /// loss.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    pub reference_loss: BTreeMap<String, f64>,
}

impl Mixture {
    /// Maximum number of epochs over a domain; `None` if there is no limit.
    pub fn most_epochs(&self) -> Option<f64> {
        let default = (self.policy == MixturePolicy::Excess).then_some(EXCESS_EPOCHS);
        self.max_epochs.or(default)
    }
}

/// Steering could otherwise repeat a small domain with a large gap without end.
const EXCESS_EPOCHS: f64 = 8.0;
