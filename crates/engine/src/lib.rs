//! What a worker does with models: run the teacher on a batch ([`Teacher`]), train a step ([`Student`], or TED's
//! [`FilterStage`]), measure perplexity and the influence of layers ([`Evaluation`]), generate text ([`Generator`]),
//! copy the state for a checkpoint ([`Trainable::snapshot`]), and count floating-point operations ([`FlopCounter`]).
//!
//! Everything here runs synchronously on the calling thread and returns numbers. `ddk-actors` decides when to call
//! it and on which thread. Build a model on the thread that uses it, because libtorch keeps grad mode and thread
//! counts per thread.
//!
//! ```
//! use ddk_engine::{Schedule, Shape};
//! // Linear warmup, then a cosine decay.
//! let shape = Shape::Cosine;
//! let schedule = Schedule { shape, peak: 3e-5, end: 3e-6, warmup_steps: 100, total_steps: 1000 };
//! assert_eq!(schedule.learning_rate(50), 1.5e-5);
//! assert_eq!(schedule.learning_rate(1000), 3e-6);
//! ```

mod adamw;
mod batch;
mod buckets;
mod budget;
mod error;
mod filter_stage;
mod filters;
mod flops;
mod generate;
mod influence;
mod labels;
mod options;
mod parallel;
mod perplexity;
mod schedule;
mod sharding;
mod snapshot;
mod student;
mod teacher;
mod trainable;
mod update;

pub use batch::{BatchTensors, NOT_SCORED, batch_tensors};
pub use budget::{
    Part, StepShape, evaluated_copy_memory, exchanged_bytes, gpu_memory, program_memory,
    queue_memory, snapshot_memory, student_memory, teacher_memory,
};
pub use ddk_torch::AdamWOptions;
pub use error::EngineError;
pub use filter_stage::FilterStage;
pub use filters::{Filters, LayerPair};
pub use flops::FlopCounter;
pub use generate::{Generator, Sampling};
pub use labels::LabelFormat;
pub use options::StudentOptions;
pub use parallel::Parallel;
pub use perplexity::Evaluation;
pub use schedule::{DecayForm, DecaySteps, Schedule, Shape};
pub use snapshot::{MOMENTS_FILE, WEIGHTS_FILE};
pub use student::Student;
pub use teacher::{Teacher, TeacherOutput};
pub use trainable::Trainable;
