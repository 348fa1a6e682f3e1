//! The evaluator: brings both models' perplexities together.
//!
//! The models' own lanes compute them (the teacher's once; the student's at an interval's end, where the
//! mixture or a setting asks for them). This actor knows what is still missing, and tells the weight
//! scheduler when an interval has ended with all that is known about it.

use ddk_mixture::{Perplexities, TrainingSums};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::weight_scheduler::{Ended, WeightSchedulerMessage};

/// What the evaluator is told.
#[derive(Debug)]
pub enum EvaluatorMessage {
    /// The teacher's perplexities, once a run.
    Teacher(Vec<f64>),
    /// The student has made an interval's last step.
    Student {
        /// That step; 0 before the first interval.
        step: u64,
        /// Its perplexities by domain, where they were measured.
        perplexities: Option<Vec<f64>>,
        /// Intervals that follow from this.
        intervals: u64,
        /// What the interval's updates were made from.
        training: TrainingSums,
    },
}

/// An interval's end as the student tells it.
type StudentEnded = (u64, Option<Vec<f64>>, u64, TrainingSums);

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
    pub student: Option<StudentEnded>,
}

impl EvaluatorState {
    fn add(&mut self, message: EvaluatorMessage) -> Option<Ended> {
        match message {
            EvaluatorMessage::Teacher(perplexities) => self.teacher = Some(perplexities),
            EvaluatorMessage::Student {
                step,
                perplexities,
                intervals,
                training,
            } => self.student = Some((step, perplexities, intervals, training)),
        }
        let teacher = self.teacher.clone()?;
        let (step, student, intervals, training) = self.student.take()?;
        Some(Ended {
            step,
            measured: student.map(|student| Perplexities { student, teacher }),
            intervals,
            training,
        })
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
        if let Some(ended) = state.add(message) {
            state
                .scheduler
                .cast(WeightSchedulerMessage::IntervalEnded(Box::new(ended)))?;
        }
        Ok(())
    }
}
