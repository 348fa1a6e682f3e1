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
/// Maximum time between two lines about a long phase, and minimum time if there is no news of it.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
const SHORTEST_SILENCE: Duration = Duration::from_secs(2);
/// Number of phases to remember. At most this many run at a time.
const PHASES: usize = 8;
/// Width of the bar, and the terminal width below which DDK draws no bar.
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
static LINE_SECONDS: AtomicU64 = AtomicU64::new(f64::to_bits(5.0));
/// When the last line was printed.
static LAST_SAID: Mutex<Option<Duration>> = Mutex::new(None);
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::system);
static PACE: LazyLock<Pace> = LazyLock::new(|| Pace::new(CLOCK.clone()));

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
        let activity = Activity::of_process();
        activity.listen(|progress| report(progress, true));
        // Without this thread, the work continues unseen.
        let thread = thread::Builder::new().name("display".to_owned());
        let _ = thread.spawn(move || draw(&activity));
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

fn draw(activity: &Activity) {
    loop {
        thread::sleep(TICK);
        if IS_SILENT.load(Ordering::Relaxed) {
            return;
        }
        let progress = activity.progress();
        let is_shown = IS_SHOWN.lock();
        match &progress {
            Some(progress) if *is_shown => {
                if LINE.is_finished() && progress.seconds >= SHORT {
                    LINE.reset();
                }
                if !LINE.is_finished() && !LINE.is_hidden() {
                    let line = fitted(progress, activity.seconds_left(), columns());
                    LINE.set_message(line);
                }
            }
            _ if !LINE.is_finished() => LINE.finish_and_clear(),
            _ => {}
        }
        let progress = progress.filter(|_| *is_shown);
        drop(is_shown);
        if let Some(progress) = progress {
            report(&progress, false);
        }
    }
}

/// Writes a line about a long phase to the log, and without a terminal to standard error, if it is time for one.
/// `is_news`: whether a worker reports it.
fn report(progress: &Progress, is_news: bool) {
    let line_seconds = f64::from_bits(LINE_SECONDS.load(Ordering::Relaxed));
    if IS_SILENT.load(Ordering::Relaxed) || !PACE.is_due(progress, line_seconds, is_news) {
        return;
    }
    let line = progress.line(Activity::of_process().seconds_left());
    tracing::info!("{line}");
    if LINE.is_hidden() {
        say(&line);
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
    /// seconds, and without news only every 2 seconds. Steps have lines of their own, so training is reported only if
    /// there has been no line for long.
    fn is_due(&self, progress: &Progress, line_seconds: f64, is_news: bool) -> bool {
        let now = self.clock.now();
        if progress.phase == TRAINING {
            let silence = LONGEST_SILENCE.max(Duration::from_secs_f64(line_seconds)) * 2;
            let last = LAST_SAID.lock().unwrap_or_default();
            let began = now.saturating_sub(Duration::from_secs_f64(progress.seconds));
            return now.saturating_sub(last.max(began)) >= silence;
        }
        let mut every = LONGEST_SILENCE.min(Duration::from_secs_f64(line_seconds));
        if !is_news {
            every = every.max(SHORTEST_SILENCE);
        }
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
        let told = |line_seconds: f64, is_news: bool| -> Vec<u64> {
            let pace = Pace::new(clock.clone());
            let mut told = Vec::new();
            for batch in 0..20 {
                seconds.store(100 + batch, Ordering::Relaxed);
                let student = progress("evaluation of the student", batch);
                if pace.is_due(&student, line_seconds, is_news) {
                    told.push(batch);
                }
                // The other phase is short and does not suppress this one's lines.
                let other = progress("evaluation of the teacher", batch);
                let is_due = || pace.is_due(&other, line_seconds, is_news);
                assert!(line_seconds == 0.0 || batch >= 2 || !is_due());
            }
            told
        };
        assert_eq!(told(15.0, true), [5, 10, 15]);
        assert_eq!(told(2.0, true), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(told(0.0, true).len(), 20);
        // Without news, time alone is no reason for a line every second.
        assert_eq!(told(15.0, false), [5, 10, 15]);
        assert_eq!(told(0.0, false), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
        // After many phases, only the last ones are remembered.
        let pace = Pace::new(clock.clone());
        for step in 0..100 {
            let phase = format!("evaluation of the student after step {step}");
            let _ = pace.is_due(&progress(&phase, 0), 15.0, true);
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
        assert!(line(120).starts_with("first evaluation of the student: 5 of 20 documents, 25%,"));
        assert!(line(80).starts_with("first evaluation of th…, 5 s"));
        assert!(line(10).chars().count() < 10);
    }
}
