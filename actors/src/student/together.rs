//! The student's side of an exchange between ranks: what it tells the others, and what it does while rank 0 works on
//! something alone.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, at, bounded, never};
use serde::{Serialize, de::DeserializeOwned};

use super::{StudentWorker, step_loop::StepLoop};
use crate::{
    PortError, Student,
    agreement::{self, Agreed, CopyResult, Facts, Point, fact, hash, of_bits, to_bits},
    channel::Received,
    interval::Evaluation,
    messages::StudentCommand,
    mixture::{IntervalEnd, MixtureMessage},
    teacher::EvaluatedCopy,
    worker::Exit,
};

/// While rank 0 works on something alone, and while the run is paused, the ranks exchange messages at least this often,
/// so that no rank waits in an exchange until its time limit.
const TICK: Duration = Duration::from_secs(1);

impl<S: Student> StudentWorker<S> {
    /// Exchanges a message with the other ranks, if there are any. What the ranks have heard counts from then on.
    ///
    /// # Errors
    /// [`Exit::Done`] if another worker of this process has failed, or [`Exit::Failed`] if the ranks disagree or one
    /// is lost.
    pub(super) fn exchange<Content: Serialize + DeserializeOwned>(
        &self,
        place: (u64, Point),
        facts: Facts,
        content: Content,
    ) -> Result<Vec<Content>, Exit> {
        let Some(peers) = &self.context.peers else {
            return Ok(vec![content]);
        };
        let told = &self.told;
        told.hear_all();
        if told.abandon.get() {
            return Err(Exit::Done);
        }
        self.line.waiting_for_input();
        let agreed = agreement::exchange(peers, place, facts, told.to_tell(), content);
        self.line.computing();
        let Agreed { heard, contents } = agreed?;
        told.agree(heard);
        Ok(contents)
    }

    /// Waits until rank 0 knows something, and returns it on all ranks. `known` waits at most as long as it is told.
    /// `None` if the run is told to stop meanwhile and `stops` is set.
    pub(super) fn await_first<Known: Serialize + DeserializeOwned>(
        &self,
        place: (u64, Point),
        stops: bool,
        mut known: impl FnMut(Instant) -> Result<Option<Known>, Exit>,
    ) -> Result<Option<Known>, Exit> {
        loop {
            let mine = match self.context.rank() {
                0 => known(Instant::now() + TICK)?,
                _ => None,
            };
            let known = self.exchange(place, Facts::new(), mine)?;
            if let Some(Some(known)) = known.into_iter().next() {
                return Ok(Some(known));
            }
            if stops && self.told.stop.get().is_some() {
                return Ok(None);
            }
        }
    }

    /// Compares what makes the ranks' runs alike before the first step, and takes the teacher's perplexities from rank
    /// 0 if it knows them.
    pub(super) fn meet(&self, step_loop: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        if self.context.peers.is_none() {
            return Ok(());
        }
        let (plan, facts) = (&self.context.plan, &self.context.facts);
        let alike = vec![
            fact("the last step", step_loop.step()),
            fact("the seed", plan.seed),
            fact("sequences per step", plan.sequences_per_step),
            fact("slots", plan.slots),
            fact("sequences per micro-batch", plan.micro_rows),
            fact("mixture.lag", plan.lag),
            fact(
                "sequences by domain",
                format!("{:?}", plan.domain_sequences),
            ),
            fact("the skipped steps", format!("{:?}", plan.skip)),
            fact("the last step of the run", format!("{:?}", plan.max_steps)),
        ];
        let known = facts.teacher_perplexities.get();
        let known = known.map(|perplexities| to_bits(perplexities));
        let place = (step_loop.step() + 1, Point::Start);
        let of_first = self.exchange(place, alike, known)?.into_iter().next();
        match of_first.flatten() {
            Some(perplexities) => self.teacher_is(&of_bits(&perplexities)),
            None => {
                step_loop.awaits_teacher = true;
                // Within an interval, nothing else waits for them.
                if !step_loop.state.at_interval_end() {
                    self.await_teacher(step_loop)?;
                }
                Ok(())
            }
        }
    }

    /// Waits for the teacher's perplexities, which only rank 0 measures, because a served teacher's may differ in their
    /// last bits. Returns false if the run is told to stop first.
    pub(super) fn await_teacher(&self, step_loop: &mut StepLoop<'_, S>) -> Result<bool, Exit> {
        if !step_loop.awaits_teacher {
            return Ok(true);
        }
        let facts = &self.context.facts;
        let measured = self.await_first((step_loop.step(), Point::Teacher), true, |until| {
            while facts.teacher_perplexities.get().is_none() {
                if !self.hear_until(&at(until))? || self.told.is_cut_off() {
                    return Ok(None);
                }
            }
            Ok(facts.teacher_perplexities.get().map(|known| to_bits(known)))
        })?;
        let Some(measured) = measured else {
            return Ok(false);
        };
        step_loop.awaits_teacher = false;
        self.teacher_is(&of_bits(&measured))?;
        Ok(true)
    }

    /// Sets the teacher's perplexities to those of rank 0.
    fn teacher_is(&self, perplexities: &[f64]) -> Result<(), Exit> {
        let own = &self.context.facts.teacher_perplexities;
        let own = own.get_or_init(|| perplexities.to_vec());
        let hashes =
            [own, perplexities].map(|values| hash(values.iter().map(|value| value.to_bits())));
        if hashes[0] == hashes[1] {
            let _ = self.scheduler.cast(MixtureMessage::TeacherEvaluated);
            return Ok(());
        }
        let text = format!(
            "ranks disagree about the teacher's perplexities: {own:?} on rank {}, {perplexities:?} on rank 0",
            self.context.rank()
        );
        Err(PortError::Other(text).into())
    }

    /// Waits for a command and records it. Returns false once `deadline` has a message.
    fn hear_until(&self, deadline: &Receiver<Instant>) -> Result<bool, Exit> {
        let commands = &self.told.commands;
        let heard = commands.recv_or_until(&never::<StudentCommand>(), deadline)?;
        let Some(Received::Item(command) | Received::Word(command)) = heard else {
            return Ok(false);
        };
        self.told.hear(command);
        Ok(true)
    }

    /// Waits for a command during a pause, together with the other ranks.
    pub(super) fn pause_together(&self, step: u64) -> Result<(), Exit> {
        if self.context.rank() == 0 {
            let deadline = at(Instant::now() + TICK);
            while !self.told.has_news() && !self.told.abandon.get() && self.hear_until(&deadline)? {
            }
        }
        self.exchange((step, Point::Pause), Facts::new(), ())?;
        Ok(())
    }

    /// Waits for the result of a copy's evaluation together with the other ranks. Only rank 0 evaluates copies.
    pub(super) fn await_copy(&self, step_loop: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        let place = (step_loop.step(), Point::Copy);
        let copy = self.await_first(place, false, |until| {
            let deadline = at(until);
            loop {
                let commands = &self.told.commands;
                match commands.recv_or_until(&self.evaluated, &deadline)? {
                    Some(Received::Word(copy)) => return Ok(Some(CopyResult::from(copy))),
                    Some(Received::Item(command)) => self.told.hear(command),
                    None => return Ok(None),
                }
                if self.told.abandon.get() {
                    return Ok(None);
                }
            }
        })?;
        copy.map_or(Ok(()), |copy| self.copy_evaluated(step_loop, copy.into()))
    }

    /// Records the result of a copy's evaluation at the same point on all ranks, and decides the mixture that follows
    /// from it.
    pub(super) fn copy_evaluated(
        &self,
        step_loop: &mut StepLoop<'_, S>,
        copy: EvaluatedCopy,
    ) -> Result<(), Exit> {
        let ended = IntervalEnd::lagged(&copy.evaluation, self.context.plan.domains.len());
        step_loop.evaluated(copy)?;
        self.decide(ended)
    }

    /// Sends the weight scheduler an interval's end. If there are several ranks, waits until it has decided, so that
    /// all of them hear of the run's end at the same point.
    pub(super) fn decide(&self, ended: IntervalEnd) -> Result<(), Exit> {
        let (decided, decision) = bounded(1);
        let together = self.context.peers.is_some();
        let message = MixtureMessage::IntervalEnded(ended, together.then_some(decided));
        let has_ended =
            |error: String| PortError::Other(format!("the weight scheduler has ended: {error}"));
        let sent = self.scheduler.cast(message);
        sent.map_err(|error| has_ended(error.to_string()))?;
        if together {
            decision
                .recv()
                .map_err(|error| has_ended(error.to_string()))?;
            self.told.hear_all();
        }
        Ok(())
    }
}

impl From<EvaluatedCopy> for CopyResult {
    fn from(copy: EvaluatedCopy) -> Self {
        Self {
            step: copy.evaluation.step,
            student: to_bits(&copy.evaluation.student),
            busy_seconds: copy.busy_seconds,
        }
    }
}

impl From<CopyResult> for EvaluatedCopy {
    fn from(copy: CopyResult) -> Self {
        Self {
            evaluation: Evaluation {
                step: copy.step,
                student: of_bits(&copy.student),
            },
            busy_seconds: copy.busy_seconds,
        }
    }
}
