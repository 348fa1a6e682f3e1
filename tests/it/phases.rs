//! A run always says what it is doing: on a terminal, in the API, on the page and in `ddk watch`.
//!
//! An injected fault holds the process in a phase until a signal arrives, so no test depends on how long a phase takes.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    os::fd::{FromRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use serde_json::Value;

use crate::{
    pages::browse,
    world::{World, stderr},
};

/// Far longer than the bar needs for a second.
const PATIENCE: Duration = Duration::from_secs(120);
/// Columns of the terminal.
const COLUMNS: usize = 110;

/// A `ddk` whose standard error is a terminal.
struct OnTerminal {
    child: Child,
    said: String,
    news: Receiver<String>,
}

impl OnTerminal {
    fn start(mut command: Command) -> Self {
        let (near, far) = terminal();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(far)
            .env("TERM", "xterm")
            .spawn()
            .unwrap();
        // The command holds the far end, whose last copy must go with the child.
        drop(command);
        let (sender, news) = channel();
        std::thread::spawn(move || {
            let (mut near, mut buffer) = (File::from(near), [0; 4096]);
            // Reading fails once the child has closed the far end.
            while let Ok(length @ 1..) = near.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            said: String::new(),
            news,
        }
    }

    /// Reads until `seen` returns something for all text so far.
    fn until<T>(&mut self, what: &str, seen: impl Fn(&str) -> Option<T>) -> T {
        loop {
            if let Some(found) = seen(&self.said) {
                return found;
            }
            let more = self.news.recv_timeout(PATIENCE);
            let more = more.unwrap_or_else(|error| panic!("{what} ({error}): {}", self.said));
            self.said.push_str(&more);
        }
    }

    /// Sends a signal and waits for the end. Returns the exit code and everything said.
    fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([&format!("-{signal}"), &id])
                .status()
                .unwrap()
                .success()
        );
        let code = self.child.wait().unwrap().code();
        while let Ok(more) = self.news.recv_timeout(PATIENCE) {
            self.said.push_str(&more);
        }
        (code, std::mem::take(&mut self.said))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a pseudo-terminal; returns the end of the one who watches and that of the program.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut near, mut far) = (0, 0);
    let size = libc::winsize {
        ws_row: 30,
        ws_col: COLUMNS as u16,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call writes two descriptors and reads `size`; a null pointer stands for each default.
    let opened = unsafe {
        libc::openpty(
            &mut near,
            &mut far,
            std::ptr::null_mut(),
            std::ptr::null(),
            &size,
        )
    };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the call has just opened both, and nothing else owns them.
    unsafe {
        // The child must not inherit the near end, or it would never see that the watcher is gone.
        libc::fcntl(near, libc::F_SETFD, libc::FD_CLOEXEC);
        (OwnedFd::from_raw_fd(near), OwnedFd::from_raw_fd(far))
    }
}

/// Starts a training run with a page that a fault holds; returns it and the page's address.
fn held(world: &World, fault: &str) -> (OnTerminal, String) {
    let plan = format!("fault_injection.plan=[\"{fault}\"]");
    let mut command = world.command(&[
        "train",
        "config.toml",
        "--set",
        "telemetry.enabled=true",
        "--set",
        "telemetry.listen=127.0.0.1:0",
        "--set",
        &plan,
    ]);
    command.env("DDK_ALLOW_FAULTS", "1");
    let mut run = OnTerminal::start(command);
    let address = run.until("the address of the page", |said| {
        let (_, rest) = said.split_once("live page: http://")?;
        rest.split_once('/').map(|(address, _)| address.to_owned())
    });
    (run, address)
}

/// What the bar has shown of a phase: every distinct text, without the bar itself.
fn shown(said: &str, phase: &str) -> BTreeSet<String> {
    let drawn = said.split(['\r', '\n', '\u{1b}']);
    let texts = drawn.filter_map(|text| Some(text[text.find(phase)?..].trim_end().to_owned()));
    texts.filter(|text| text.contains(" elapsed")).collect()
}

fn status(address: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET /api/status HTTP/1.0\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The fault, the phase that it holds, and whether the time that is left is known.
const HELD: [(&str, &str, bool); 5] = [
    (
        "hang hash 1",
        "checking and hashing models and corpus",
        false,
    ),
    ("hang load 1", "loading the models", true),
    (
        "hang evaluation 1",
        "first evaluation of the student: 0 of ",
        true,
    ),
    (
        "hang evaluation 2",
        "evaluation of the student after step 4: 0 of ",
        true,
    ),
    ("hang export 1", "exporting the student", true),
];

#[test]
fn terminal_api_and_watch_show_the_phase_and_its_passing_time() {
    for (fault, phase, has_rest) in HELD {
        let world = World::new();
        let (mut run, address) = held(&world, fault);
        let name = phase.split(':').next().unwrap();
        let texts = run.until(fault, |said| {
            let texts = shown(said, phase);
            (texts.len() >= 3).then_some(texts)
        });
        for text in &texts {
            assert!(text.chars().count() < COLUMNS, "{text}");
            assert!(!text.contains("about 0"), "{text}");
        }
        // A phase whose rest is known shows it from its first second on.
        let with_rest = texts.iter().filter(|text| text.contains(" left"));
        assert_eq!(with_rest.count() == texts.len(), has_rest, "{texts:?}");
        let first = status(&address);
        assert_eq!(first["activity"]["phase"], name, "{first}");
        let seconds = |status: &Value| status["activity"]["seconds"].as_f64().unwrap();
        // The bar has moved on by at least a second when its text changes.
        let before = shown(&run.said, phase).len();
        run.until(fault, |said| {
            (shown(said, phase).len() >= before + 2).then_some(())
        });
        let second = status(&address);
        assert!(
            seconds(&second) >= seconds(&first) + 0.9,
            "{first} {second}"
        );
        let rest = &second["activity"]["seconds_left"];
        let run_rest = &second["seconds_left"];
        assert_eq!(rest.is_f64() || run_rest.is_f64(), has_rest, "{second}");
        let has_folder = fault != "hang hash 1";
        if has_folder {
            let output = world.succeed(&["watch", "runs/small"]);
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains(&format!("\nnow: {name}")), "{text}");
        }
        assert_eq!(world.run_folder().exists(), has_folder, "{fault}");
        let (code, said) = run.end("INT");
        assert_eq!(code, Some(130), "{said}");
        let is_before_the_first_step = fault == "hang evaluation 1";
        assert_eq!(
            said.contains(
                "stopped before its first step, nothing to save; the same command starts"
            ),
            is_before_the_first_step,
            "{said}"
        );
    }
}

#[test]
fn a_run_on_a_terminal_ends_with_its_table_and_what_to_do_next() {
    let world = World::new();
    let run = OnTerminal::start(world.command(&["train", "config.toml"]));
    let (code, said) = run.end("CONT");
    assert_eq!(code, Some(0), "{said}");
    for expected in [
        "evaluation before the first step: mean gap ",
        "evaluation after step 4: mean gap ",
        "evaluation after step 8: mean gap ",
        "; weights ",
        "report: runs/small/report.html",
        "next: ddk generate --model runs/small/student --prompt ",
        "ddk eval runs/small/config.toml --model runs/small/student",
        "ddk export runs/small --out FOLDER",
        "ddk serve runs",
    ] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
    // The command to evaluate works as printed, with the settings of the command line.
    let mut lines = said.lines().map(str::trim);
    let eval = lines.find_map(|line| line.strip_prefix("ddk eval "));
    let arguments: Vec<&str> = eval.unwrap().split_whitespace().collect();
    let output = world.succeed(&[&["eval"], &arguments[..]].concat());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("storms") && table.contains("perplexity"),
        "{table}"
    );
    let lines = said.lines().filter(|line| line.starts_with("evaluation "));
    for line in lines {
        assert!(line.trim_end().chars().count() <= 120, "{line}");
    }
}

#[test]
fn a_browser_sees_the_phase_before_the_first_step_needs_browser() {
    let world = World::new();
    let (run, address) = held(&world, "hang evaluation 1");
    let output = browse(
        "phase_page.py",
        &[
            &format!("http://{address}/"),
            &run.child.id().to_string(),
            "first evaluation of the student: 0 of ",
        ],
    );
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        stderr(&output)
    );
}
