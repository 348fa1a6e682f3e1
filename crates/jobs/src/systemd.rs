//! systemd: readiness and watchdog, where the service asks for them (`docs/ddk.service`).

use std::{sync::Arc, time::Duration};

use ddk_telemetry::Board;
use sd_notify::NotifyState;

/// How often the board is looked at, where no watchdog asks for more.
const EVERY: Duration = Duration::from_secs(1);

/// Tells systemd when training begins, and that no worker computes past its limit. Does nothing outside of systemd.
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
            // A worker that waits is healthy; one that computes too long is not, and the watchdog is not fed.
            if watchdog.is_some() && board.unhealthy().is_empty() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    });
}

/// The run is saving and ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
