//! Notifies systemd of readiness and feeds its watchdog, if the service asks for it (`docs/ddk.service`).

use std::{sync::Arc, time::Duration};

use ddk_telemetry::Board;
use sd_notify::NotifyState;

/// How often to check the board, unless the watchdog needs shorter intervals.
const EVERY: Duration = Duration::from_secs(1);

/// Tells systemd when training begins, and feeds the watchdog while every worker is healthy. Does nothing outside
/// systemd.
pub fn watch(board: Arc<Board>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(EVERY, |limit| EVERY.min(limit / 3));
    tokio::spawn(async move {
        let mut ready = false;
        let mut ticks = tokio::time::interval(every);
        loop {
            ticks.tick().await;
            if !ready && board.is_ready() {
                ready = true;
                tell(&[NotifyState::Ready]);
            }
            // A waiting worker is healthy. A worker that computes past its limit is not, so the watchdog gets no
            // signal.
            if watchdog.is_some() && board.unhealthy().is_empty() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    });
}

/// Tells systemd that the run is saving and will end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
