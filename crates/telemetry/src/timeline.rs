//! What each worker did in the last five minutes, sampled from the totals on the board at no cost to the workers.

use std::{array, collections::VecDeque, mem, time::Duration};

use crate::{Worker, api::Lanes};

/// Length of a sample.
pub(crate) const SAMPLE: Duration = Duration::from_secs(1);
/// Number of samples to keep: five minutes.
const SAMPLES: usize = 300;

/// The last samples of every worker.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// The name of each worker, and its totals at the last sample.
    workers: Vec<(String, [f64; 3])>,
    first: u64,
    samples: VecDeque<Vec<[u8; 3]>>,
}

impl Timeline {
    /// Adds the shares of each worker's time since the last sample. Call this once per [`SAMPLE`]. Workers keep their
    /// positions, and new ones come last.
    pub(crate) fn sample(&mut self, workers: &[Worker]) {
        let mut sample = Vec::new();
        for (index, worker) in workers.iter().enumerate() {
            if index == self.workers.len() {
                self.workers.push((worker.name().to_owned(), [0.0; 3]));
            }
            let now = worker.totals();
            let before = mem::replace(&mut self.workers[index].1, now);
            sample.push(array::from_fn(|of| {
                let share = (now[of] - before[of]) / SAMPLE.as_secs_f64();
                (100.0 * share).round().clamp(0.0, 100.0) as u8
            }));
        }
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
            self.first += 1;
        }
        self.samples.push_back(sample);
    }

    /// Returns the samples from number `from` on.
    pub(crate) fn from(&self, from: u64) -> Lanes {
        let from = from.max(self.first);
        let skipped = (from - self.first) as usize;
        Lanes {
            from,
            seconds: SAMPLE.as_secs_f64(),
            workers: self.workers.iter().map(|(name, _)| name.clone()).collect(),
            samples: self.samples.iter().skip(skipped).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::board::tests::board;

    #[test]
    fn samples_are_shares_of_a_second_and_the_oldest_go() {
        let (board, seconds) = board();
        let mut timeline = Timeline::default();
        let tick = |timeline: &mut Timeline| {
            seconds.fetch_add(1, Ordering::Relaxed);
            timeline.sample(&board.workers());
        };
        board.worker("student").computing();
        tick(&mut timeline);
        board.worker("student").waiting_for_input();
        board.worker("teacher-0").computing();
        tick(&mut timeline);
        let lanes = timeline.from(0);
        assert_eq!(lanes.workers, ["student", "teacher-0"]);
        let expected = [vec![[100, 0, 0]], vec![[0, 100, 0], [100, 0, 0]]];
        assert_eq!(lanes.samples, expected);
        assert_eq!(timeline.from(1).samples, expected[1..]);
        for _ in 0..SAMPLES {
            tick(&mut timeline);
        }
        let lanes = timeline.from(0);
        assert_eq!((lanes.from, lanes.samples.len()), (2, SAMPLES));
        assert!(timeline.from(2 + SAMPLES as u64).samples.is_empty());
    }
}
