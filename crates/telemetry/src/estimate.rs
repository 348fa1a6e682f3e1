//! The estimate of the time that a run still needs: its steps, its evaluations, its checkpoints, and its end.

use std::collections::VecDeque;

/// Number of recent steps whose mean is the pace.
const RECENT: usize = 50;

/// What a run has to do, as far as time is concerned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// The step at which it ends.
    pub steps: Option<u64>,
    /// The trained tokens at which it ends.
    pub tokens: Option<u64>,
    /// Steps of an interval.
    pub interval: u64,
    /// Steps between the evaluations that training waits for: evaluations take place at ends of intervals.
    pub evaluation_every: Option<u64>,
    /// Seconds of an evaluation, as long as this process has measured none.
    pub evaluation_seconds: Option<f64>,
    /// A guess of how many evaluations a step takes as long as, until a step is measured.
    pub evaluations_per_step: Option<f64>,
    /// Tokens of a step, if its sequences are full.
    pub tokens_per_step: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Seconds from the last evaluation to the end: the export and the report.
    pub ending_seconds: f64,
}

/// How long the parts of a run have taken in this process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pace {
    /// The last step, and the tokens trained on by then.
    step: u64,
    tokens: u64,
    /// Seconds and tokens of the last steps.
    recent: VecDeque<(f64, u64)>,
    /// Seconds of the last evaluation.
    pub(crate) evaluation: Option<f64>,
    /// Seconds that a checkpoint stalls training.
    save: f64,
}

/// The evaluation in progress.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Evaluating {
    /// Seconds since it began.
    pub(crate) seconds: f64,
    /// Estimated seconds until its end.
    pub(crate) left: f64,
}

impl Pace {
    /// Continues from this step.
    pub(crate) fn at(step: u64, tokens: u64) -> Self {
        Self {
            step,
            tokens,
            ..Self::default()
        }
    }

    /// The last step.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Trained tokens.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds a step that trained on `tokens` in `seconds`.
    pub(crate) fn add(&mut self, step: u64, tokens: u64, seconds: f64) {
        self.step = step;
        self.tokens += tokens;
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((seconds, tokens));
    }

    /// Sets the mean seconds that checkpoints have stalled training.
    pub(crate) fn saves(&mut self, seconds: f64) {
        self.save = seconds;
    }

    /// Seconds and tokens of a step.
    fn of_a_step(&self) -> Option<(f64, f64)> {
        let count = self.recent.len() as f64;
        let seconds: f64 = self.recent.iter().map(|(seconds, _)| seconds).sum();
        let tokens: u64 = self.recent.iter().map(|(_, tokens)| tokens).sum();
        (count > 0.0).then(|| (seconds / count, tokens as f64 / count))
    }
}

impl Course {
    /// Estimates the seconds until the run ends. Unknown if the run has no limit, and if nothing was measured.
    pub(crate) fn seconds_left(&self, pace: &Pace, evaluating: Option<Evaluating>) -> Option<f64> {
        let evaluation = pace.evaluation.or(self.evaluation_seconds);
        let of_current = |now: Evaluating| now.seconds + now.left;
        let evaluation = evaluation.or(evaluating.map(of_current));
        let guess = self.evaluations_per_step.zip(evaluation);
        let guess = guess.map(|(each, seconds)| (each * seconds, self.tokens_per_step as f64));
        let of_a_step = pace.of_a_step().or(guess);
        let evaluation = evaluation.unwrap_or(0.0);
        let left = evaluating.map_or(0.0, |now| now.left);
        let last = self.last_step(pace, of_a_step)?;
        if last <= pace.step {
            // Only the last evaluation and the end remain.
            let rest = evaluating.map_or(evaluation, |_| left);
            return Some(rest + self.ending_seconds);
        }
        let (step, _) = of_a_step?;
        let steps = (last - pace.step) as f64 * step;
        let evaluations = (self.evaluations(pace.step, last) + 1) as f64 * evaluation;
        let saves = multiples(self.save_every, pace.step, last) as f64 * pace.save;
        Some(left + steps + evaluations + saves + self.ending_seconds)
    }

    /// The step at which the run ends, by the nearest limit.
    fn last_step(&self, pace: &Pace, of_a_step: Option<(f64, f64)>) -> Option<u64> {
        let by_tokens = self.tokens.and_then(|limit| {
            let left = limit.saturating_sub(pace.tokens) as f64;
            let (_, tokens) = of_a_step?;
            (tokens > 0.0).then(|| pace.step + (left / tokens).ceil() as u64)
        });
        self.steps.into_iter().chain(by_tokens).min()
    }

    /// The number of evaluations at ends of intervals after step `from` and before step `to`. The evaluation after the
    /// last step is not one of them.
    fn evaluations(&self, from: u64, to: u64) -> u64 {
        let Some(every) = self.evaluation_every else {
            return 0;
        };
        let ends = multiples(self.interval, from, to - 1);
        ends.min(multiples(every, from, to - 1))
    }
}

/// The number of multiples of `of` that are greater than `from` and at most `to`.
fn multiples(of: u64, from: u64, to: u64) -> u64 {
    let up_to = |step: u64| step.checked_div(of).unwrap_or_default();
    up_to(to).saturating_sub(up_to(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course() -> Course {
        Course {
            steps: Some(30),
            interval: 10,
            evaluation_every: Some(1),
            save_every: 7,
            ending_seconds: 2.0,
            ..Course::default()
        }
    }

    fn pace(step: u64, seconds: f64) -> Pace {
        let mut pace = Pace::at(step - 1, 100 * (step - 1));
        pace.add(step, 100, seconds);
        pace
    }

    #[test]
    fn the_rest_includes_evaluations_saves_and_the_end() {
        let mut pace = pace(5, 4.0);
        pace.evaluation = Some(60.0);
        pace.saves(0.5);
        // 25 steps of 4 s; evaluations after steps 10 and 20, and the last one; saves after steps 7, 14, 21 and 28.
        let expected = 25.0 * 4.0 + 3.0 * 60.0 + 4.0 * 0.5 + 2.0;
        assert_eq!(course().seconds_left(&pace, None), Some(expected));
        // Without steering, only each 20th step asks for an evaluation.
        let rare = Course {
            evaluation_every: Some(20),
            ..course()
        };
        assert_eq!(rare.seconds_left(&pace, None), Some(expected - 60.0));
        let none = Course {
            evaluation_every: None,
            ..course()
        };
        assert_eq!(none.seconds_left(&pace, None), Some(expected - 120.0));
    }

    #[test]
    fn an_evaluation_in_progress_counts_what_is_left_of_it() {
        let mut pace = pace(10, 4.0);
        let evaluating = Evaluating {
            seconds: 15.0,
            left: 45.0,
        };
        // 20 steps, the rest of this evaluation, one after step 20, and the last one. This evaluation is the first that
        // is measured, so the others are expected to take as long.
        let expected = 20.0 * 4.0 + 45.0 + 2.0 * 60.0 + 2.0;
        assert_eq!(
            course().seconds_left(&pace, Some(evaluating)),
            Some(expected)
        );
        pace.evaluation = Some(30.0);
        let expected = 20.0 * 4.0 + 45.0 + 2.0 * 30.0 + 2.0;
        assert_eq!(
            course().seconds_left(&pace, Some(evaluating)),
            Some(expected)
        );
    }

    #[test]
    fn after_the_last_step_the_last_evaluation_and_the_end_remain() {
        let mut pace = pace(30, 4.0);
        pace.evaluation = Some(60.0);
        assert_eq!(course().seconds_left(&pace, None), Some(62.0));
        let evaluating = Evaluating {
            seconds: 50.0,
            left: 10.0,
        };
        assert_eq!(course().seconds_left(&pace, Some(evaluating)), Some(12.0));
    }

    #[test]
    fn before_the_first_step_there_is_a_guess_at_most_and_tokens_can_be_the_limit() {
        assert_eq!(course().seconds_left(&Pace::at(0, 0), None), None);
        // A step is expected to take half as long as an evaluation, which took 10 s.
        let guessed = Course {
            evaluations_per_step: Some(0.5),
            ..course()
        };
        let mut first = Pace::at(0, 0);
        assert_eq!(guessed.seconds_left(&first, None), None);
        first.evaluation = Some(10.0);
        let left = guessed.seconds_left(&first, None);
        assert_eq!(left, Some(30.0 * 5.0 + 3.0 * 10.0 + 2.0));
        let by_tokens = Course {
            steps: None,
            tokens: Some(1_250),
            evaluation_every: None,
            save_every: 0,
            ..course()
        };
        // 750 tokens at 100 each are 8 steps.
        let left = by_tokens.seconds_left(&pace(5, 4.0), None);
        assert_eq!(left, Some(8.0 * 4.0 + 2.0));
        let endless = Course {
            tokens: None,
            ..by_tokens
        };
        assert_eq!(endless.seconds_left(&pace(5, 4.0), None), None);
    }

    #[test]
    fn the_pace_is_that_of_the_last_steps() {
        let mut pace = Pace::at(0, 0);
        for step in 1..=RECENT as u64 {
            pace.add(step, 100, 9.0);
        }
        for step in 1..=RECENT as u64 {
            pace.add(RECENT as u64 + step, 50, 1.0);
        }
        assert_eq!(pace.of_a_step(), Some((1.0, 50.0)));
        assert_eq!((pace.step(), pace.tokens()), (100, 7_500));
    }
}
