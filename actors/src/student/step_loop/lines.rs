//! What a step leaves behind: its lines in the run's files, the state for its checkpoint, its metrics, and its report
//! to the observer.

use ddk_corpus::Sample;
use ddk_mixture::TrainingSums;
use ddk_run::{
    RunFileError,
    records::{Drawn, DrawnLine, EventKind, SampleLine, SampleSpan, StepRecord},
    texts::Writer,
};
use ddk_telemetry::metrics;

use super::{Ahead, StepLoop, took, work::StepAccumulator};
use crate::{Interval, LoopState, RunPlan, StepDraw, StepReport, Student};

impl<S: Student> StepLoop<'_, S> {
    pub(super) fn sample(&self, draw: &StepDraw, sample: &Sample) -> SampleLine {
        let spans = sample.sequence.spans.iter().map(|span| SampleSpan {
            document: span.document,
            offset: span.offset,
            tokens: span.tokens,
        });
        SampleLine {
            step: draw.step,
            sequence: sample.sequence.number,
            domain: self.plan.domains[usize::from(sample.domain)].clone(),
            interval: draw.interval.index,
            epoch: sample.epoch,
            spans: spans.collect(),
        }
    }

    /// Writes the step's lines, then updates the state that a checkpoint of this step holds.
    pub(super) fn write(
        &mut self,
        line: &StepRecord,
        accumulator: &StepAccumulator,
        interval: &Interval,
    ) -> Result<(), RunFileError> {
        if let Some(reason) = &line.skipped {
            let message = format!("skipped the update of step {}: {reason}", line.step);
            self.context
                .event(line.step, EventKind::Skipped, &message)?;
        }
        if line.step == interval.first_step {
            // The teacher wrote before it labeled its first micro-batch.
            self.record_texts(0, Writer::Teacher)?;
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
        // A skipped step does not move the mixture.
        if line.skipped.is_none() {
            state.interval_losses.add(&accumulator.losses);
        }
        if line.step == interval.last_step() {
            let drawn = drawn_line(self.plan, state);
            journal.drawn(&drawn)?;
            for advice in self.advisor.drawn(&drawn) {
                self.context.event(line.step, EventKind::Advice, &advice)?;
            }
        }
        state.step = line.step;
        let teacher = self.context.facts.teacher_perplexities.get();
        state.baseline.teacher = teacher.cloned().unwrap_or_default();
        state.lagged_evaluation = match &self.ahead {
            Ahead::Known(evaluation) => Some(evaluation.clone()),
            Ahead::None | Ahead::Awaited => None,
        };
        state.totals.clone_from(&self.totals);
        state.lengths = journal.lengths();
        Ok(())
    }

    pub(super) fn publish(&self, line: &StepRecord, tokens: &[u64], step_seconds: f64) {
        let (plan, state) = (self.plan, &self.state);
        metrics::STEPS.with(&[]).increment(1);
        metrics::STEP.with(&[]).set(line.step as f64);
        for (domain, tokens) in plan.domains.iter().zip(tokens) {
            metrics::TOKENS.with(&[domain]).increment(*tokens);
        }
        let per_second = line.tokens as f64 / step_seconds.max(1e-9);
        metrics::TOKENS_PER_SECOND.with(&[]).set(per_second);
        metrics::WHOLE_STEP_SECONDS.with(&[]).record(step_seconds);
        let sum = state.interval_tokens.iter().sum::<u64>().max(1) as f64;
        for (domain, tokens) in plan.domains.iter().zip(&state.interval_tokens) {
            metrics::OBSERVED.with(&[domain]).set(*tokens as f64 / sum);
        }
        let every = plan.live.get(|settings| settings.checkpoint.interval);
        metrics::CHECKPOINT_EVERY.with(&[]).set(every as f64);
        let terms = [
            ("total", line.loss),
            ("ce", line.ce_loss),
            ("kd", line.kd_loss),
        ];
        let layer = line.layer_loss.map(|loss| ("layer", loss));
        for (term, value) in terms.into_iter().chain(layer) {
            metrics::LOSS.with(&[term]).set(value);
        }
        metrics::GRAD_NORM.with(&[]).set(line.grad_norm);
        metrics::LEARNING_RATE.with(&[]).set(line.learning_rate);
        for (phase, seconds) in &line.seconds {
            took(&phase.to_string(), *seconds);
        }
        let names = plan.domains.iter().map(String::as_str);
        self.context.observer.on_step(&StepReport {
            line,
            limit: plan.max_steps,
            weights: names.zip(state.interval.weights.iter().copied()).collect(),
            totals: &self.totals,
        });
    }
}

/// What the interval drew from each domain.
fn drawn_line(plan: &RunPlan, state: &LoopState) -> DrawnLine {
    let interval = &state.interval;
    let ends = interval.cursors_after(&interval.counts, &plan.domain_sequences);
    let drawn = plan.domains.iter().enumerate().map(|(domain, name)| {
        let epochs = ends[domain].passes(plan.domain_sequences[domain]);
        metrics::EPOCHS.with(&[name]).set(epochs);
        let drawn = Drawn {
            sequences: interval.counts[domain],
            tokens: state.interval_tokens[domain],
            epochs,
        };
        (name.clone(), drawn)
    });
    DrawnLine {
        interval: interval.index,
        drawn: drawn.collect(),
    }
}
