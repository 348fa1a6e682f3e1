//! What a step leaves behind: its lines in the run's files, the state that a checkpoint of it holds, its
//! metrics, what is told to the observer.

use ddk_corpus::Sample;
use ddk_mixture::TrainingSums;
use ddk_run::{
    RunFileError,
    records::{Drawn, DrawnLine, EventKind, SampleLine, SampleSpan, StepLine},
};
use ddk_telemetry::metrics;

use super::{Core, StepAccumulator, unwritten};
use crate::{Interval, LoopState, MicroBatch, PortError, RunPlan, StepReport, Student};

impl<S: Student> Core<'_, S> {
    pub(super) fn sample(&self, batch: &MicroBatch, sample: &Sample) -> SampleLine {
        let spans = sample.sequence.spans.iter().map(|span| SampleSpan {
            document: span.document,
            offset: span.offset,
            tokens: span.tokens,
        });
        SampleLine {
            step: batch.step,
            row: sample.sequence.number,
            domain: self.plan.domains[usize::from(sample.domain)].clone(),
            mixture_version: batch.interval.index,
            pass: sample.epoch,
            spans: spans.collect(),
        }
    }

    pub(super) fn event(&self, step: u64, kind: EventKind, message: &str) -> Result<(), PortError> {
        let event = self.context.event(step, kind, message);
        event.map_err(unwritten)
    }

    /// Writes the step's lines, then takes down the state that a checkpoint of this step holds.
    pub(super) fn write(
        &mut self,
        line: &StepLine,
        accumulator: &StepAccumulator,
        interval: &Interval,
    ) -> Result<(), RunFileError> {
        if let Some(reason) = &line.skipped {
            let message = format!("the update of step {} was not made: {reason}", line.step);
            self.context
                .event(line.step, EventKind::Skipped, &message)?;
        }
        let journal = &self.context.journal;
        journal.step(line)?;
        journal.samples(&accumulator.samples)?;
        let state = &mut self.state;
        if line.step == interval.first_step {
            let domains = self.plan.domains.len();
            state.interval = interval.clone();
            state.interval_tokens = vec![0; domains];
            state.interval_losses = TrainingSums::new(domains);
        }
        for (sum, tokens) in state.interval_tokens.iter_mut().zip(&accumulator.drawn) {
            *sum += tokens;
        }
        // What was not learnt from moves no mixture.
        if line.skipped.is_none() {
            state.interval_losses.add(&accumulator.losses);
        }
        if line.step == interval.last_step() {
            journal.drawn(&drawn_line(self.plan, state))?;
        }
        state.step = line.step;
        let teacher = self.context.facts.teacher_perplexities.get();
        state.at_start.teacher = teacher.cloned().unwrap_or_default();
        state.ahead = self.ahead.known();
        state.totals.clone_from(&self.totals);
        state.lengths = journal.lengths();
        Ok(())
    }

    pub(super) fn publish(
        &self,
        line: &StepLine,
        tokens: &[u64],
        step_seconds: f64,
        interval: &Interval,
    ) {
        metrics::STEPS.with(&[]).increment(1);
        metrics::STEP.with(&[]).set(line.step as f64);
        for (domain, tokens) in self.plan.domains.iter().zip(tokens) {
            metrics::TOKENS.with(&[domain]).increment(*tokens);
        }
        metrics::TOKENS_PER_SECOND
            .with(&[])
            .set(line.tokens as f64 / step_seconds.max(1e-9));
        metrics::WHOLE_STEP_SECONDS.with(&[]).record(step_seconds);
        let drawn = &self.state.interval_tokens;
        let sum = drawn.iter().sum::<u64>().max(1) as f64;
        for (domain, tokens) in self.plan.domains.iter().zip(drawn) {
            metrics::REALISED.with(&[domain]).set(*tokens as f64 / sum);
        }
        metrics::CHECKPOINT_EVERY
            .with(&[])
            .set(self.plan.live.checkpoint_every() as f64);
        let terms = [
            ("total", Some(line.loss)),
            ("ce", Some(line.ce)),
            ("kl", Some(line.kl)),
            ("layer", line.layer),
        ];
        for (term, value) in terms {
            if let Some(value) = value {
                metrics::LOSS.with(&[term]).set(value);
            }
        }
        metrics::GRADIENT_NORM.with(&[]).set(line.grad_norm);
        metrics::LEARNING_RATE.with(&[]).set(line.learning_rate);
        for (phase, seconds) in &line.seconds {
            metrics::STEP_SECONDS
                .with(&[&phase.to_string()])
                .record(*seconds);
        }
        let names = self.plan.domains.iter().map(String::as_str);
        self.context.observer.on_step(&StepReport {
            line,
            limit: self.plan.max_steps,
            weights: names.zip(interval.weights.iter().copied()).collect(),
            totals: &self.totals,
        });
    }
}

/// What the interval has drawn from each domain.
fn drawn_line(plan: &RunPlan, state: &LoopState) -> DrawnLine {
    let interval = &state.interval;
    let ends = interval.cursors_at_end(&plan.domain_rows);
    let drawn = plan.domains.iter().enumerate().map(|(domain, name)| {
        let passes = ends[domain].passes(plan.domain_rows[domain]);
        metrics::PASSES.with(&[name]).set(passes);
        let drawn = Drawn {
            rows: interval.counts[domain],
            tokens: state.interval_tokens[domain],
            passes,
        };
        (name.clone(), drawn)
    });
    DrawnLine {
        interval: interval.index,
        drawn: drawn.collect(),
    }
}
