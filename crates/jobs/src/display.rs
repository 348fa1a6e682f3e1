//! What the user sees of the process's activity on standard error: a bar on a terminal; elsewhere, and in the log, a
//! line from time to time.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{
        LazyLock, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use ddk_run::view::Progress;
use ddk_telemetry::{Activity, Clock, TRAINING};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(250);
/// A shorter phase is not worth a bar.
const SHORT: f64 = 0.4;
/// Maximum time between two lines about a long phase.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
/// Number of phases to remember. At most this many run at a time.
const PHASES: usize = 8;
/// Width of the bar itself, and the width below which there is none.
const BAR: usize = 24;
const SHORTEST_BAR: usize = 8;

/// Whether this process is one of several and not the first, so that another one speaks to the user.
static IS_SILENT: AtomicBool = AtomicBool::new(false);
/// Whether the activity is shown. Locked while it is drawn.
static IS_SHOWN: Mutex<bool> = Mutex::new(false);
/// The bar. It is hidden if standard error is not a terminal.
static LINE: LazyLock<ProgressBar> = LazyLock::new(|| {
    let style = ProgressStyle::with_template("{msg}");
    let bar =
        ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.finish_and_clear();
    bar
});
/// `log.interval_seconds`, as bits.
static LINE_SECONDS: AtomicU64 = AtomicU64::new(0);
/// When the last line was printed.
static LAST_SAID: Mutex<Option<Duration>> = Mutex::new(None);
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::system);

/// From now on, [`say`] writes to the log, because rank 0 says the same.
pub(crate) fn be_silent() {
    IS_SILENT.store(true, Ordering::Relaxed);
}

/// Prints a line to standard error, above the bar. Work continues if that fails (a closed terminal or pipe, a full
/// disk).
pub fn say(text: &str) {
    if IS_SILENT.load(Ordering::Relaxed) {
        tracing::info!("{text}");
        return;
    }
    *LAST_SAID.lock() = Some(CLOCK.now());
    LINE.suspend(|| {
        let _ = writeln!(io::stderr(), "{text}");
    });
}

/// Sets the seconds between lines (`log.interval_seconds`).
pub(crate) fn set_line_seconds(seconds: f64) {
    LINE_SECONDS.store(seconds.to_bits(), Ordering::Relaxed);
}

/// Shows the activity of this process from now on.
pub fn show() {
    static START: Once = Once::new();
    *IS_SHOWN.lock() = true;
    START.call_once(|| {
        // Without this thread, the work continues unseen.
        let _ = thread::Builder::new()
            .name("display".to_owned())
            .spawn(draw);
    });
}

/// Removes the bar and shows nothing more.
pub fn clear() {
    let mut is_shown = IS_SHOWN.lock();
    *is_shown = false;
    if !LINE.is_finished() {
        LINE.finish_and_clear();
    }
}

fn draw() {
    let (activity, pace) = (Activity::of_process(), Pace::new(CLOCK.clone()));
    loop {
        thread::sleep(TICK);
        let is_shown = IS_SHOWN.lock();
        if !*is_shown || IS_SILENT.load(Ordering::Relaxed) {
            continue;
        }
        let Some(progress) = activity.progress() else {
            if !LINE.is_finished() {
                LINE.finish_and_clear();
            }
            continue;
        };
        let run = activity.seconds_left();
        let is_due = pace.is_due(
            &progress,
            f64::from_bits(LINE_SECONDS.load(Ordering::Relaxed)),
        );
        if is_due {
            tracing::info!("{}", progress.line(run));
        }
        if !LINE.is_hidden() {
            if LINE.is_finished() && progress.seconds >= SHORT {
                LINE.reset();
            }
            if !LINE.is_finished() {
                LINE.set_message(fitted(&progress, run, columns()));
            }
        } else if is_due {
            drop(is_shown);
            say(&progress.line(run));
        }
    }
}

/// The columns of the terminal.
fn columns() -> usize {
    // SAFETY: all-zero bytes are a valid `winsize`.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes only to `size`, which lives as long as it.
    let asked = unsafe { libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, &mut size) };
    if asked == 0 && size.ws_col > 0 {
        usize::from(size.ws_col)
    } else {
        80
    }
}

/// The bar and its text, in fewer than `columns` characters.
fn fitted(progress: &Progress, run: Option<f64>, columns: usize) -> String {
    let room = columns.saturating_sub(1);
    let (count, times) = (progress.count(), progress.times(run));
    let length = count.chars().count() + times.chars().count();
    let bar = room.saturating_sub(length + 1).min(BAR);
    if bar >= SHORTEST_BAR {
        let full = progress.share().unwrap_or(0.0) * bar as f64;
        let full = (full as usize).min(bar);
        return format!(
            "{}{} {count}{times}",
            "█".repeat(full),
            "░".repeat(bar - full)
        );
    }
    progress.within(run, room)
}

/// Decides when to report a long phase again. Each phase has its own timer, so the first report comes after a
/// while.
struct Pace {
    clock: Clock,
    /// When each phase was last reported, or began.
    told: Mutex<VecDeque<(String, Duration)>>,
}

impl Pace {
    fn new(clock: Clock) -> Self {
        Self {
            clock,
            told: Mutex::default(),
        }
    }

    /// Returns whether to report the phase now: as often as steps (`log.interval_seconds`), but at least every 5
    /// seconds. Steps have lines of their own, so training is reported only if there has been no line for long.
    fn is_due(&self, progress: &Progress, line_seconds: f64) -> bool {
        let now = self.clock.now();
        if progress.phase == TRAINING {
            let silence = LONGEST_SILENCE.max(Duration::from_secs_f64(line_seconds)) * 2;
            let last = LAST_SAID.lock().unwrap_or_default();
            let began = now.saturating_sub(Duration::from_secs_f64(progress.seconds));
            return now.saturating_sub(last.max(began)) >= silence;
        }
        let every = LONGEST_SILENCE.min(Duration::from_secs_f64(line_seconds));
        let mut told = self.told.lock();
        let at = told.iter().position(|(phase, _)| *phase == progress.phase);
        let last = at
            .and_then(|at| told.remove(at))
            .map_or(now, |(_, last)| last);
        let is_due = now.saturating_sub(last) >= every;
        let last = if is_due { now } else { last };
        told.push_back((progress.phase.clone(), last));
        if told.len() > PHASES {
            told.pop_front();
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn progress(phase: &str, done: u64) -> Progress {
        Progress {
            phase: phase.to_owned(),
            unit: "documents".to_owned(),
            done,
            total: 20,
            seconds: done as f64,
            seconds_left: Some(30.0),
        }
    }

    #[test]
    fn a_long_phase_is_told_of_every_five_seconds_and_a_short_one_never() {
        let seconds = Arc::new(AtomicU64::new(0));
        let read = Arc::clone(&seconds);
        let clock = Clock::new(move || Duration::from_secs(read.load(Ordering::Relaxed)));
        let told = |line_seconds: f64| -> Vec<u64> {
            let pace = Pace::new(clock.clone());
            let mut told = Vec::new();
            for batch in 0..20 {
                seconds.store(100 + batch, Ordering::Relaxed);
                if pace.is_due(&progress("evaluation of the student", batch), line_seconds) {
                    told.push(batch);
                }
                // The other phase is short and does not suppress this one's lines.
                let other = progress("evaluation of the teacher", batch);
                assert!(line_seconds == 0.0 || batch >= 2 || !pace.is_due(&other, line_seconds));
            }
            told
        };
        assert_eq!(told(15.0), [5, 10, 15]);
        assert_eq!(told(2.0), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(told(0.0).len(), 20);
        // After many phases, only the last ones are remembered.
        let pace = Pace::new(clock.clone());
        for step in 0..100 {
            let phase = format!("evaluation of the student after step {step}");
            let _ = pace.is_due(&progress(&phase, 0), 15.0);
        }
        assert_eq!(pace.told.lock().len(), PHASES);
    }

    #[test]
    fn a_bar_fits_the_terminal_and_never_loses_its_times() {
        let progress = progress("first evaluation of the student", 5);
        let line = |columns| fitted(&progress, Some(300.0), columns);
        let times = ", 5 s elapsed, about 30 s left; the run: about 5 min 0 s";
        for columns in [70, 80, 100, 120, 200] {
            let line = line(columns);
            assert!(
                line.chars().count() < columns && line.ends_with(times),
                "{line}"
            );
        }
        assert!(line(200).starts_with(&format!("{}{} first", "█".repeat(6), "░".repeat(18))));
        assert!(line(120).starts_with("first evaluation of the student: 5 of 20 documents, 25 %,"));
        assert!(line(80).starts_with("first evaluation of t…, 5 s"));
        assert!(line(10).chars().count() < 10);
    }
}
