//! Carries out users' commands between two steps.

use std::time::Instant;

use ddk_run::{
    Assignments, Override, Source,
    control::{Command, Outcome, Refusal, Reply},
    records::EventKind,
    view::State,
};

use super::{Due, StudentWorker, step_loop::StepLoop};
use crate::{
    Student,
    agreement::{Facts, Point},
    worker::Exit,
};

impl<S: Student> StudentWorker<S> {
    /// Carries out the requests in order. While the run is paused, waits for more.
    pub(super) fn obey(&self, step_loop: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        let told = &self.told;
        loop {
            told.hear_all();
            while let Some(due) = told.next_due() {
                self.carry_out(step_loop, due)?;
            }
            if told.paused.get().is_none() {
                return Ok(());
            }
            // A stop may have arrived while a request was carried out.
            if told.is_to_end() {
                self.unpause(step_loop);
                return Ok(());
            }
            match self.context.peers {
                None => told.hear(told.commands.recv()?),
                Some(_) => self.pause_together(step_loop.step())?,
            }
        }
    }

    fn carry_out(&self, step_loop: &mut StepLoop<'_, S>, due: Due) -> Result<(), Exit> {
        let reply = due.reply;
        let outcome = match due.command {
            // Until then, the state does not hold what the first mixture depends on.
            Command::Checkpoint
                if step_loop.state.baseline.teacher.is_empty() && step_loop.step() == 0 =>
            {
                Err(refusal("there is nothing to save before the first step"))
            }
            Command::Checkpoint => {
                self.settle(step_loop)?;
                return step_loop.save(reply);
            }
            Command::Evaluate => self.evaluate(step_loop)?,
            Command::Pause => self.pause(step_loop.step()),
            Command::Resume => {
                let resumed = self.unpause(step_loop);
                resumed.ok_or_else(|| refusal("the run is not paused"))
            }
            Command::Set { values } => self.set(step_loop.step() + 1, due.source, values)?,
            Command::Status | Command::Stop => {
                Err(refusal("the student does not handle this command"))
            }
        };
        // Only the rank that received the request answers it. The caller may be gone.
        let _ = reply.map(|reply| reply.send(outcome));
        Ok(())
    }

    /// Evaluates the student as it is. This affects neither the mixture nor the best checkpoint.
    fn evaluate(&self, step_loop: &mut StepLoop<'_, S>) -> Result<Outcome, Exit> {
        let began = Instant::now();
        let Some(perplexities) = step_loop.evaluate_on_request()? else {
            return Ok(Err(refusal("the run is ending")));
        };
        let plan = &self.context.plan;
        let teacher = self.context.facts.teacher_perplexities.get();
        let reply = Reply::Evaluate {
            step: step_loop.step(),
            seconds: began.elapsed().as_secs_f64(),
            student_perplexity: plan.finite_by_name(&perplexities),
            teacher_perplexity: plan.finite_by_name(teacher.map_or(&[], Vec::as_slice)),
        };
        self.context.note(EventKind::Evaluated, &reply.to_string());
        Ok(Ok(reply))
    }

    fn pause(&self, step: u64) -> Outcome {
        if self.told.paused.get().is_some() {
            return Err(refusal("the run is already paused"));
        }
        self.told.paused.set(Some(Instant::now()));
        self.context.board.set_state(State::Paused);
        let reply = Reply::Pause { step };
        self.context.note(EventKind::Paused, &reply.to_string());
        Ok(reply)
    }

    /// Ends a pause, if there is one.
    fn unpause(&self, step_loop: &mut StepLoop<'_, S>) -> Option<Reply> {
        let seconds = step_loop.paused(self.told.paused.take()?);
        self.context.board.set_state(State::Running);
        let step = step_loop.step();
        let reply = Reply::Resume { step, seconds };
        self.context.note(EventKind::Unpaused, &reply.to_string());
        Some(reply)
    }

    /// Changes settings from `step` on. The change is on disk before it applies, so a killed run repeats it. If there
    /// are several ranks, rank 0 writes the change, and the others follow if it could.
    fn set(&self, step: u64, source: Source, values: Assignments) -> Result<Outcome, Exit> {
        let line = Override {
            step,
            source,
            set: values.clone(),
            ..Override::default()
        };
        let mine = match self.context.rank() {
            0 => self.write_change(&line).err(),
            _ => None,
        };
        let refusals = self.exchange((step, Point::Change), Facts::new(), mine)?;
        if let Some(refusal) = refusals.into_iter().next().flatten() {
            return Ok(Err(Refusal(refusal)));
        }
        if self.context.rank() > 0 {
            self.context.overrides.learn(line);
        }
        let live = &self.context.plan.live;
        let settings = live.with(&values).map_err(crate::PortError::Other)?;
        live.set(settings);
        let reply = Reply::Set { step, values };
        self.context.note(EventKind::Changed, &reply.to_string());
        Ok(Ok(reply))
    }

    /// Writes a change of settings. If it is refused, returns the reason.
    fn write_change(&self, line: &Override) -> Result<(), String> {
        self.context.plan.live.with(&line.set)?;
        let written = self.context.overrides.append(line.clone());
        written.map_err(|error| format!("nothing changed: {error}"))
    }

    /// Repeats a change made at `step` before the run was killed.
    pub(super) fn repeat_changes(&self, step: u64) -> Result<(), Exit> {
        let Some(values) = self.context.overrides.at(step) else {
            return Ok(());
        };
        let live = &self.context.plan.live;
        let settings = live.with(&values).map_err(crate::PortError::Other)?;
        live.set(settings);
        Ok(())
    }
}

fn refusal(reason: &str) -> Refusal {
    Refusal(reason.to_owned())
}
