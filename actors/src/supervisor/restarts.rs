//! How often a worker may be restarted, and after how long.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::worker::WorkerId;

/// Restarts of a worker within the window; one more is given up on.
const LIMIT: usize = 3;
const WINDOW: Duration = Duration::from_secs(600);
/// Before the first restart in a window; before each further one four times as long. What passes by itself (a
/// disk that is busy, a network folder that comes back) has time to.
const BACKOFF: Duration = Duration::from_millis(50);

/// Counts restarts by worker.
#[derive(Debug, Default)]
pub struct RestartBudget {
    by_worker: HashMap<WorkerId, Vec<Instant>>,
}

impl RestartBudget {
    /// After how long the worker may be restarted, if at all; counts it.
    pub fn allow(&mut self, worker: &WorkerId) -> Option<Duration> {
        let now = Instant::now();
        let times = self.by_worker.entry(worker.clone()).or_default();
        times.retain(|time| now.duration_since(*time) <= WINDOW);
        if times.len() >= LIMIT {
            return None;
        }
        let delay = BACKOFF * 4_u32.pow(times.len() as u32);
        times.push(now);
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn restarts_are_limited_in_a_window_of_time() {
        let mut restarts = RestartBudget::default();
        let mut allow = |lane| {
            let delay = restarts.allow(&WorkerId::Teacher(lane));
            delay.map(|delay| delay.as_millis())
        };
        let delays: Vec<_> = (0..=LIMIT).map(|_| allow(0)).collect();
        assert_eq!(delays, [Some(50), Some(200), Some(800), None]);
        assert_eq!(allow(1), Some(50));
        tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        assert_eq!(allow(0), Some(50));
    }
}
