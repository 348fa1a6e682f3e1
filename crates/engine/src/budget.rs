//! Estimates the memory of a run from sizes alone.
//!
//! The formulas count what libtorch keeps: the tensors that autograd saves for each layer, and the buffers for a
//! chunk of logits. docs/performance.md compares them with measurements.

use ddk_model::{ModelConfig, ModelError};

use crate::sharding::EXCHANGE_BYTES;

/// One use of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What the memory is for.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
    /// The setting that reduces it, if there is one.
    pub setting: Option<&'static str>,
}

/// What determines the sizes of a step's tensors, besides the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Sequences per micro-batch.
    pub micro_rows: u64,
    /// Tokens per sequence.
    pub sequence_length: u64,
    /// Maximum number of positions whose logits exist at the same time.
    pub chunk: u64,
    /// Logit columns that are used.
    pub vocabulary: u64,
    /// Whether the student uses activation checkpointing.
    pub recompute: bool,
    /// Bytes per number in the student's matmuls.
    pub student_bytes: u64,
    /// Bytes per number in the teacher's weights and matmuls.
    pub teacher_bytes: u64,
    /// Layer pairs that TED compares.
    pub pairs: u64,
    /// Whether the student is on the CPU.
    pub on_cpu: bool,
    /// Whether the CPU kernel computes the losses, in the memory of the logits. Otherwise the losses need the same
    /// amount of memory again.
    pub kernel: bool,
    /// Whether each batch needs the teacher's output. If not, the run uses only its perplexities, measured before
    /// the first step.
    pub needs_teacher_output: bool,
    /// Whether the student's worker shares the teacher's LM head, because both are on the same device.
    pub shared_head: bool,
    /// Slots of a step.
    pub slots: u64,
    /// Processes that share a step; divides `slots`.
    pub ranks: u64,
}

impl StepShape {
    fn positions(&self) -> u64 {
        self.micro_rows * self.sequence_length
    }
}

/// Name of the part that exists only during a step.
const STEP: &str = "activations and logits of a step";

/// What a process uses on the CPU besides its tensors: libtorch's libraries, a tokenizer, threads, and memory that
/// the allocator cannot reuse. Measured (docs/performance.md).
const PROGRAM: u64 = 175_000_000;

/// On the CPU, activations take twice their size: the C library leaves gaps between aligned allocations of
/// ever-changing sizes. Measured.
const HOLES_ON_CPU: u64 = 2;

/// Sizes of a model as unsigned numbers.
struct Sizes {
    parameters: u64,
    /// Parameters of the embedding.
    table: u64,
    /// Parameters of the LM head; 0 if it is the embedding.
    head: u64,
    width: u64,
    layers: u64,
    heads: u64,
    query: u64,
    key_value: u64,
    mlp: u64,
}

impl Sizes {
    fn of(config: &ModelConfig) -> Result<Self, ModelError> {
        let (heads, num_key_value_heads, head_dim) = config.heads();
        let size = |number: i64| number.unsigned_abs();
        let table = size(config.vocab_size() * config.hidden_size());
        Ok(Self {
            parameters: size(config.parameter_count()?),
            table,
            head: if config.tied() { 0 } else { table },
            width: size(config.hidden_size()),
            layers: size(config.layers()),
            heads: size(heads),
            query: size(heads * head_dim),
            key_value: size(num_key_value_heads * head_dim),
            mlp: size(config.intermediate_size()),
        })
    }

    /// Numbers that autograd keeps for one layer and one position: the layer's input, the inputs and outputs of
    /// both norms, queries, keys, values, the attention output with its log-sum-exps, and four tensors of the MLP's
    /// width.
    fn kept_by_layer(&self) -> u64 {
        4 * self.width + 2 * self.query + 2 * self.key_value + self.heads + 4 * self.mlp
    }
}

/// Bytes that a process sends to all others in each step, and receives from them: its gradients, then its part of the
/// weights. `ranks` processes share the step.
///
/// # Errors
/// If libtorch cannot create the placeholder tensors that give the parameters' shapes.
pub fn exchanged_bytes(student: &ModelConfig, ranks: u64) -> Result<u64, ModelError> {
    let others = ranks.saturating_sub(1) as f64 / ranks.max(1) as f64;
    Ok((2.0 * 4.0 * Sizes::of(student)?.parameters as f64 * others) as u64)
}

/// Estimates the memory on the student's device: what is always allocated, and the maximum that a micro-batch or an
/// update adds.
///
/// # Errors
/// If libtorch cannot create the placeholder tensors that give the parameters' shapes.
pub fn student_memory(
    student: &ModelConfig,
    teacher: &ModelConfig,
    shape: &StepShape,
) -> Result<Vec<Part>, ModelError> {
    let (sizes, teacher) = (Sizes::of(student)?, Sizes::of(teacher)?);
    let filters = shape.pairs * sizes.width * teacher.width;
    let positions = shape.positions();
    let layer = sizes.kept_by_layer() * positions * shape.student_bytes;
    let between = sizes.width * positions * shape.student_bytes;
    let activations = if shape.recompute {
        sizes.layers * between + layer
    } else {
        sizes.layers * layer
    };
    // Input and output of the final norm, and the gradient of the hidden states.
    let activations = activations + 3 * between;
    // For each layer pair, its gradient. For one pair at a time, the difference and its square.
    let of_layers = match shape.pairs {
        0 => 0,
        pairs => pairs * between + 2 * 4 * teacher.width * positions,
    };
    let holes = if shape.on_cpu { HOLES_ON_CPU } else { 1 };
    let activations = holes * (activations + of_layers);
    // The kernel turns the logits of both models into the gradient in place. Without it, log-probabilities and
    // probabilities need the same amount again.
    let matrices =
        if shape.needs_teacher_output { 2 } else { 1 } * if shape.kernel { 1 } else { 2 };
    let chunk = shape.chunk.min(positions) * shape.vocabulary;
    // In a dtype other than fp32: the matmul's result that becomes logits, and the gradient for the matmuls of the
    // backward pass.
    let chunk_for_products = match shape.student_bytes {
        4 => 0,
        bytes => 2 * bytes * chunk,
    };
    let chunk = 4 * matrices * chunk + chunk_for_products;
    // A chunk's gradient of the LM head. The CPU computes and casts it before adding it; GPUs add it while
    // computing.
    let of_matrix = match (shape.on_cpu, shape.student_bytes) {
        (true, bytes @ 1..4) => (4 + bytes) * sizes.table,
        _ => 0,
    };
    let of_step = activations + chunk + of_matrix;
    let step_setting =
        "training.micro_batch_size, student.activation_checkpointing or objective.chunk_size";
    let trained = sizes.parameters + filters;
    let gradients = 4 * (trained - sizes.head) + 4 * sizes.table;
    let has_head = shape.needs_teacher_output && !shape.shared_head;
    let teacher_head = u64::from(has_head) * shape.teacher_bytes * teacher.table;
    // A process keeps the sums of complete subtrees of its slots, and the sum over all processes for its own part.
    let subtrees = (shape.slots / shape.ranks).ilog2();
    let own = if shape.ranks > 1 {
        4 * trained / shape.ranks
    } else {
        0
    };
    let sums = u64::from(subtrees) * 4 * trained + own;
    let buffers = match shape.ranks {
        1 => 0,
        _ => 2 * (4 * trained).min(EXCHANGE_BYTES),
    };
    Ok(vec![
        part("weights, fp32", 4 * trained, Some("student.model")),
        part(
            "moments of AdamW, fp32",
            8 * trained / shape.ranks,
            Some("student.model"),
        ),
        part("gradients, fp32", gradients, Some("student.model")),
        part(
            "gradients of other slots and ranks",
            sums,
            Some("parallel.slots"),
        ),
        part("buffers of the exchange", buffers, None),
        part("the teacher's LM head", teacher_head, Some("teacher.dtype")),
        weight_copies(&sizes, shape.student_bytes),
        part(STEP, of_step, Some(step_setting)),
    ])
}

/// The student's weights in the dtype of its matmuls, kept until the next update.
fn weight_copies(sizes: &Sizes, student_bytes: u64) -> Part {
    let bytes = match student_bytes {
        4 => 0,
        // All weights except an untied embedding: its rows are cast as they are looked up.
        bytes => bytes * (sizes.parameters - sizes.head),
    };
    part("weights for products", bytes, Some("student.dtype"))
}

/// What a process uses on a GPU besides its tensors. Estimated, not measured.
pub fn gpu_memory(tensors: u64) -> Vec<Part> {
    /// CUDA's context and kernels, and the workspaces of cuBLAS and cuDNN.
    const CONTEXT: u64 = 1_000_000_000;
    /// Fragmentation in libtorch's allocator: 2 to 4 GB of 80.
    const HOLES_PERCENT: u64 = 4;
    let holes = tensors * HOLES_PERCENT / 100;
    vec![
        part("CUDA's context and workspaces (estimated)", CONTEXT, None),
        part("fragments of the allocator (estimated)", holes, None),
    ]
}

/// Memory of the program itself, on the CPU.
pub fn program_memory() -> Part {
    part("the program itself", PROGRAM, None)
}

/// Estimates the teacher's memory on all its devices together; its workers share the weights.
///
/// A teacher that does not label is freed before the student's first step. Then only the memory that it needs
/// beyond such a step counts. `student` is the result of [`student_memory`] for the same device.
///
/// # Errors
/// If libtorch cannot create the placeholder tensors that give the parameters' shapes.
pub fn teacher_memory(
    teacher: &ModelConfig,
    shape: &StepShape,
    replicas: u64,
    student: &[Part],
) -> Result<Vec<Part>, ModelError> {
    let sizes = Sizes::of(teacher)?;
    // Without gradients, only the tensors of the current layer exist.
    let working = (3 * sizes.width + 2 * sizes.query + 2 * sizes.key_value)
        .max(2 * sizes.width + 3 * sizes.mlp);
    // The teacher's filters for TED are square.
    let weights = sizes.parameters + shape.pairs * sizes.width * sizes.width;
    let weights_setting = Some("teacher.dtype or teacher.devices");
    if !shape.needs_teacher_output {
        let bytes = shape.teacher_bytes * (weights + working * shape.positions());
        let step = student.iter().filter(|part| part.name == STEP);
        let step: u64 = step.map(|part| part.bytes).sum();
        let name = "weights until it is measured, over a step of the student";
        let bytes = bytes.saturating_sub(step);
        return Ok(vec![part(name, bytes, weights_setting)]);
    }
    let bytes = shape.teacher_bytes * weights;
    let of_forward = replicas * working * shape.positions() * shape.teacher_bytes;
    let forward_setting = Some("training.micro_batch_size or the entries of teacher.devices");
    Ok(vec![
        part("weights", bytes, weights_setting),
        part("a forward pass", of_forward, forward_setting),
    ])
}

/// Estimates what `mixture.lag = 1` adds on the student's device: the model that replica 0 evaluates there, and the
/// weights on their way to it. `student_bytes` is the number of bytes per number in the student's matmuls.
///
/// # Errors
/// If libtorch cannot create the placeholder tensors that give the parameters' shapes.
pub fn evaluated_copy_memory(
    student: &ModelConfig,
    student_bytes: u64,
) -> Result<Part, ModelError> {
    let sizes = Sizes::of(student)?;
    let bytes = 2 * 4 * sizes.parameters + weight_copies(&sizes, student_bytes).bytes;
    Ok(part("a copy to evaluate", bytes, Some("mixture.lag")))
}

/// Estimates the memory for the hidden states of queued batches. They are on the host, or on the student's device
/// if that is a GPU.
pub fn queue_memory(teacher: &ModelConfig, shape: &StepShape, depth: u64, replicas: u64) -> Part {
    let width = teacher.hidden_size().unsigned_abs();
    // Each teacher replica holds one more batch, and the student holds one.
    let batches = u64::from(shape.needs_teacher_output) * (replicas * (depth + 1) + 1);
    let bytes = batches * shape.positions() * (1 + shape.pairs) * width * shape.teacher_bytes;
    let setting = Some("pipeline.queue_depth");
    part("hidden states in queues", bytes, setting)
}

/// Estimates the host memory of the weights and moments that are being saved.
///
/// # Errors
/// If libtorch cannot create the placeholder tensors that give the parameters' shapes.
pub fn snapshot_memory(student: &ModelConfig) -> Result<Part, ModelError> {
    let (bytes, setting) = (12 * Sizes::of(student)?.parameters, Some("student.model"));
    Ok(part("a snapshot that is being saved", bytes, setting))
}

fn part(name: &'static str, bytes: u64, setting: Option<&'static str>) -> Part {
    Part {
        name,
        bytes,
        setting,
    }
}
