//! The evaluator: brings both models' perplexities together.
//!
//! The models' own lanes compute them (the teacher's once, the student's at every interval's end). This actor knows what is
//! still missing, and hands complete pairs to the weight scheduler.

use ddk_mixture::Perplexities;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::weight_scheduler::WeightSchedulerMessage;

/// What the evaluator is told.
#[derive(Debug)]
pub enum EvaluatorMessage {
    /// The teacher's perplexities, once a run.
    Teacher(Vec<f64>),
    /// The student's, after `step` steps.
    Student {
        /// The step after which they were measured.
        step: u64,
        /// By domain.
        perplexities: Vec<f64>,
    },
}

/// The actor.
pub struct Evaluator;

/// What it works with, and what it waits with.
#[derive(Debug)]
pub struct EvaluatorState {
    /// Who decides.
    pub scheduler: ActorRef<WeightSchedulerMessage>,
    /// The teacher's, once known.
    pub teacher: Option<Vec<f64>>,
    /// The student's, where the teacher's are still missing.
    pub student: Option<(u64, Vec<f64>)>,
}

impl EvaluatorState {
    fn add(&mut self, message: EvaluatorMessage) -> Option<(u64, Perplexities)> {
        match message {
            EvaluatorMessage::Teacher(perplexities) => self.teacher = Some(perplexities),
            EvaluatorMessage::Student { step, perplexities } => {
                self.student = Some((step, perplexities));
            }
        }
        let teacher = self.teacher.clone()?;
        let (step, student) = self.student.take()?;
        Some((step, Perplexities { student, teacher }))
    }
}

impl Actor for Evaluator {
    type Msg = EvaluatorMessage;
    type State = EvaluatorState;
    type Arguments = EvaluatorState;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((step, perplexities)) = state.add(message) {
            state
                .scheduler
                .cast(WeightSchedulerMessage::Evaluated { step, perplexities })?;
        }
        Ok(())
    }
}
