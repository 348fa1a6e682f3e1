//! How often a part may be built again.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// Restarts of a part within the window; one more is given up on.
const LIMIT: usize = 3;
const WINDOW: Duration = Duration::from_secs(600);

/// Counts restarts by part.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    by_part: HashMap<String, VecDeque<Instant>>,
}

impl Restarts {
    /// Whether the part may be built again now; counts it.
    pub(super) fn allow(&mut self, part: &str) -> bool {
        let now = Instant::now();
        let times = self.by_part.entry(part.to_owned()).or_default();
        while times
            .front()
            .is_some_and(|time| now.duration_since(*time) > WINDOW)
        {
            times.pop_front();
        }
        if times.len() >= LIMIT {
            return false;
        }
        times.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn restarts_are_limited_in_a_window_of_time() {
        let mut restarts = Restarts::default();
        for _ in 0..LIMIT {
            assert!(restarts.allow("teacher-0"));
        }
        assert!(!restarts.allow("teacher-0"));
        assert!(restarts.allow("teacher-1"));
        tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        assert!(restarts.allow("teacher-0"));
    }
}
