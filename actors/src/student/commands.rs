//! Carries out users' commands between two steps.

use std::time::Instant;

use ddk_run::{
    Assignments, Override, Source,
    control::{Command, Outcome, Refusal, Reply},
    records::EventKind,
    view::State,
};

use super::{StudentWorker, step_loop::StepLoop};
use crate::{Student, messages::Request, worker::Exit};

impl<S: Student> StudentWorker<S> {
    /// Carries out the requests in order. While the run is paused, waits for more.
    pub(super) fn obey(&self, step_loop: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        let told = &self.told;
        loop {
            told.hear_all();
            while let Some(request) = told.request() {
                self.carry_out(step_loop, request)?;
            }
            if told.paused.get().is_none() {
                return Ok(());
            }
            // A stop may have arrived while a request was carried out.
            if told.is_cut_off() {
                self.unpause(step_loop);
                return Ok(());
            }
            told.hear(told.commands.recv()?);
        }
    }

    fn carry_out(&self, step_loop: &mut StepLoop<'_, S>, request: Request) -> Result<(), Exit> {
        let reply = request.reply;
        let outcome = match request.command {
            // Until then, the state does not hold what the first mixture depends on.
            Command::Checkpoint
                if step_loop.state.baseline.teacher.is_empty() && step_loop.step() == 0 =>
            {
                Err(refusal("there is nothing to save before the first step"))
            }
            Command::Checkpoint => {
                self.settle(step_loop)?;
                return step_loop.save(Some(reply));
            }
            Command::Evaluate => self.evaluate(step_loop)?,
            Command::Pause => self.pause(step_loop.step()),
            Command::Resume => {
                let resumed = self.unpause(step_loop);
                resumed.ok_or_else(|| refusal("the run is not paused"))
            }
            Command::Set { values } => self.set(step_loop.step() + 1, request.source, values),
            Command::Status | Command::Stop => {
                Err(refusal("the student does not handle this command"))
            }
        };
        // The caller may be gone.
        let _ = reply.send(outcome);
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

    /// Changes settings from `step` on. The change is on disk before it applies, so a killed run repeats it.
    fn set(&self, step: u64, source: Source, values: Assignments) -> Outcome {
        let settings = self.context.plan.live.with(&values).map_err(Refusal)?;
        let line = Override {
            step,
            source,
            set: values.clone(),
            ..Override::default()
        };
        let written = self.context.overrides.append(line);
        written.map_err(|error| Refusal(format!("nothing changed: {error}")))?;
        self.context.plan.live.set(settings);
        let reply = Reply::Set { step, values };
        self.context.note(EventKind::Changed, &reply.to_string());
        Ok(reply)
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
