//! What a step leaves behind: its lines in the run's files, the state that a checkpoint of it holds, its
//! metrics, what is told to the observer.

use ddk_corpus::Sample;
use ddk_mixture::{Perplexities, TrainingSums};
use ddk_run::{
    RunFileError,
    records::{Drawn, DrawnLine, EventKind, SampleLine, SampleSpan, StepLine},
};
use ddk_telemetry::metrics;

use super::{Core, StepAccumulator, unwritten};
use crate::{Interval, LoopState, MicroBatch, PortError, StepReport, Student};

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
            domain: self.plan().domains[usize::from(sample.domain)].clone(),
            mixture_version: batch.interval.index,
            pass: sample.epoch,
            spans: spans.collect(),
        }
    }

    pub(super) fn event(&self, step: u64, kind: EventKind, message: &str) -> Result<(), PortError> {
        let event = self.lane.context.event(step, kind, message);
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
            let context = &self.lane.context;
            context.event(line.step, EventKind::Skipped, &message)?;
        }
        self.lane.context.journal.step(line)?;
        self.lane.context.journal.samples(&accumulator.samples)?;
        let domains = self.plan().domains.len();
        let same_interval = self
            .state
            .as_ref()
            .filter(|state| state.interval.index == interval.index);
        let (mut interval_tokens, mut interval_losses) = match same_interval {
            Some(state) => (state.interval_tokens.clone(), state.interval_losses.clone()),
            None => (vec![0; domains], TrainingSums::new(domains)),
        };
        for (sum, tokens) in interval_tokens.iter_mut().zip(&accumulator.drawn) {
            *sum += tokens;
        }
        // What was not learnt from moves no mixture.
        if line.skipped.is_none() {
            interval_losses.add(&accumulator.losses);
        }
        if line.step == interval.last_step() {
            self.lane
                .context
                .journal
                .drawn(&self.drawn(interval, &interval_tokens))?;
        }
        let student = self.student_at_start.clone();
        let teacher = self
            .lane
            .context
            .facts
            .teacher_perplexities
            .get()
            .cloned()
            .unwrap_or_default();
        self.state = Some(LoopState {
            step: line.step,
            interval: interval.clone(),
            at_start: Perplexities { student, teacher },
            ahead: self.ahead.known(),
            interval_tokens,
            interval_losses,
            measured: self.measured.clone(),
            totals: self.totals.clone(),
            lengths: self.lane.context.journal.lengths(),
            losses: self.losses.clone(),
            skipped_steps: self.skipped_steps.clone(),
        });
        Ok(())
    }

    fn drawn(&self, interval: &Interval, tokens: &[u64]) -> DrawnLine {
        let ends = interval.cursors_at_end(&self.plan().domain_rows);
        let drawn = self
            .plan()
            .domains
            .iter()
            .enumerate()
            .map(|(domain, name)| {
                let passes = ends[domain].passes(self.plan().domain_rows[domain]);
                metrics::PASSES.with(&[name]).set(passes);
                let drawn = Drawn {
                    rows: interval.counts[domain],
                    tokens: tokens[domain],
                    passes,
                };
                (name.clone(), drawn)
            });
        DrawnLine {
            interval: interval.index,
            drawn: drawn.collect(),
        }
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
        for (domain, tokens) in self.plan().domains.iter().zip(tokens) {
            metrics::TOKENS.with(&[domain]).increment(*tokens);
        }
        metrics::TOKENS_PER_SECOND
            .with(&[])
            .set(line.tokens as f64 / step_seconds.max(1e-9));
        metrics::WHOLE_STEP_SECONDS.with(&[]).record(step_seconds);
        if let Some(state) = &self.state {
            let sum = state.interval_tokens.iter().sum::<u64>().max(1) as f64;
            for (domain, tokens) in self.plan().domains.iter().zip(&state.interval_tokens) {
                metrics::REALISED.with(&[domain]).set(*tokens as f64 / sum);
            }
        }
        metrics::CHECKPOINT_EVERY
            .with(&[])
            .set(self.plan().live.checkpoint_every() as f64);
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
        let names = self.plan().domains.iter().map(String::as_str);
        self.lane.context.observer.on_step(&StepReport {
            line,
            limit: self.plan().max_steps,
            weights: names.zip(interval.weights.iter().copied()).collect(),
            totals: &self.totals,
        });
    }
}
