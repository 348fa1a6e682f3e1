//! The pages in a real browser, `ddk serve`, and `ddk watch`.

mod many;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::world::{Started, World, stderr};

/// Where the browser tests save their screenshots.
const PICTURES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/pages");

/// A run with a live page that trains until it is stopped.
const FOR_EVER: [&str; 14] = [
    "train",
    "config.toml",
    "--set",
    "run.max_steps=1000000",
    "--set",
    "run.name=long",
    "--set",
    "log.samples=false",
    "--set",
    "telemetry.enabled=true",
    "--set",
    "telemetry.listen=127.0.0.1:0",
    "--set=mixture.interval=20",
    "--set=checkpoint.interval=100",
];

/// Starts a `ddk` that serves a page; returns it and the address that it prints.
fn serving(world: &World, arguments: &[&str]) -> (Started, String) {
    let mut address = None;
    let started = world.start_until(arguments, |line| {
        address = line
            .split_once("http://")
            .map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_owned());
        address.is_some()
    });
    (started, address.unwrap())
}

#[test]
fn a_browser_sees_a_run_live_and_ended_runs_side_by_side_needs_browser() {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    many::write(&world.path().join("runs/many"));
    let prompts = [
        "--set=samples.prompts=[\"The old\"]",
        "--set=samples.max_tokens=8",
    ];
    let (run, live) = serving(&world, &[&FOR_EVER[..], &prompts].concat());
    let (server, runs) = serving(&world, &["serve", "runs", "--address", "127.0.0.1:0"]);
    let output = browse(
        "live_page.py",
        &[
            &format!("http://{live}/"),
            &format!("http://{runs}/"),
            PICTURES,
        ],
    );
    run.signal("INT");
    server.signal("INT");
    let (status, said) = run.wait();
    assert_eq!(status.code(), Some(130), "{said}");
    assert_eq!(server.wait().0.code(), Some(0));
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        stderr(&output)
    );
    for picture in [
        "live-light",
        "live-dark",
        "live-narrow",
        "runs-light",
        "many-light",
        "report",
    ] {
        let length = fs::metadata(format!("{PICTURES}/{picture}.png"))
            .unwrap()
            .len();
        assert!(length > 20_000, "{picture} is empty: {length} bytes");
    }
}

/// One way in which a watched run ends.
struct Ended {
    /// The signal to send. `None` if the run ends on its own.
    signal: Option<&'static str>,
    /// The exit code. `None` if a signal kills the process.
    code: Option<i32>,
    /// The run's settings.
    sets: &'static [&'static str],
    /// The last state that a watcher sees.
    last: &'static str,
}

const ENDS: [Ended; 5] = [
    Ended {
        signal: Some("TERM"),
        code: Some(143),
        sets: &["run.name=told"],
        last: "stopped",
    },
    Ended {
        signal: None,
        code: Some(0),
        sets: &["run.name=short", "run.max_steps=600"],
        last: "finished",
    },
    Ended {
        signal: None,
        code: Some(1),
        sets: &[
            "run.name=broken",
            "fault_injection.plan=[\"panic save 500\"]",
        ],
        last: "failed",
    },
    // The signal arrives in a phase that stops at once.
    Ended {
        signal: Some("INT"),
        code: Some(130),
        sets: &[
            "run.name=held",
            "run.max_steps=600",
            "fault_injection.plan=[\"hang export 1\"]",
        ],
        last: "stopped",
    },
    // A killed run cannot report its end.
    Ended {
        signal: Some("KILL"),
        code: None,
        sets: &["run.name=killed"],
        last: "running",
    },
];

/// Starts a run with a page and with faults allowed; returns it and its address.
fn watched(world: &World, sets: &[&str]) -> (Started, String) {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let arguments: Vec<&str> = FOR_EVER.into_iter().chain(sets).collect();
    let mut command = world.command(&arguments);
    command.env("DDK_ALLOW_FAULTS", "1");
    let mut address = None;
    let started = Started::of(command, |line| {
        address = line
            .split_once("http://")
            .map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_owned());
        address.is_some()
    });
    (started, address.unwrap())
}

/// Polls a run's server for its status.
struct Watcher {
    name: &'static str,
    address: String,
}

impl Iterator for Watcher {
    type Item = String;

    /// The next state, or `None` once the server is gone or cuts off a response.
    fn next(&mut self) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let path = format!("/api/status?watcher={}", self.name);
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let status: Value = serde_json::from_str(body).unwrap();
        Some(status["state"].as_str().unwrap().to_owned())
    }
}

#[test]
fn whoever_watches_a_run_hears_how_it_ended() {
    for ended in ENDS {
        let (world, expected) = (World::new(), ended.last);
        let (run, address) = watched(&world, ended.sets);
        let watcher = |name| Watcher {
            name,
            address: address.clone(),
        };
        let (mut page, other) = (watcher("page"), watcher("other"));
        let (seen, saw) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let other = other.inspect(|state| {
                let _ = (state == "running").then(|| seen.send(()));
            });
            other.last().unwrap()
        });
        assert!(page.any(|state| state == "running"), "{expected}");
        saw.recv().unwrap();
        if ended.sets.iter().any(|set| set.contains("hang export")) {
            assert!(page.any(|state| state == "ending"), "{expected}");
        }
        if let Some(signal) = ended.signal {
            run.signal(signal);
        }
        let last = page.last().unwrap_or_else(|| "running".to_owned());
        let (status, said) = run.wait();
        assert_eq!(status.code(), ended.code, "{said}");
        assert_eq!(last, expected, "{said}");
        assert_eq!(other.join().unwrap(), expected, "{said}");
        // `ddk watch` reports the same from the folder alone, but a killed run as stopped.
        let name = ended.sets[0].strip_prefix("run.name=").unwrap();
        let output = world.succeed(&["watch", &format!("runs/{name}")]);
        let seen = match expected {
            "running" => "stopped",
            known => known,
        };
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(&format!("{name}: {seen}, ")), "{text}");
    }
}

/// Runs a script of `tests/browser`.
pub fn browse(script: &str, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/browser")
        .join(script);
    Command::new("python3")
        .arg(script)
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap()
}

#[test]
fn a_browser_sees_how_a_run_ended_and_keeps_that() {
    for ended in ENDS {
        let world = World::new();
        let (run, address) = watched(&world, ended.sets);
        let expected = match ended.last {
            "running" => "no connection",
            known => known,
        };
        let output = browse(
            "ended_page.py",
            &[
                &format!("http://{address}/"),
                &run.id().to_string(),
                ended.signal.unwrap_or("-"),
                expected,
            ],
        );
        let (status, said) = run.wait();
        assert_eq!(status.code(), ended.code, "{said}");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            stderr(&output)
        );
    }
}

#[test]
fn a_browser_pauses_evaluates_saves_and_resumes_a_run_needs_browser() {
    let world = World::new();
    let token = "a-token-for-this-test";
    let mut command = world.command(&FOR_EVER);
    command.env("DDK__TELEMETRY__TOKEN", token);
    let mut address = None;
    let run = Started::of(command, |line| {
        address = line
            .split_once("http://")
            .map(|(_, rest)| rest.split('/').next().unwrap_or_default().to_owned());
        address.is_some()
    });
    let page = format!("http://{}/?token={token}", address.unwrap());
    let output = browse("control_page.py", &[&page, PICTURES]);
    run.signal("TERM");
    assert_eq!(run.wait().0.code(), Some(143));
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        stderr(&output)
    );
}

#[test]
fn watch_tells_of_a_folder_and_of_a_server() {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    let output = world.succeed(&["watch", "runs/small"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "small: finished, step 12 of 12",
        "stopped by max_steps",
        "coins",
        "mean gap",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }

    let token = "a-token-for-this-test";
    let arguments = ["serve", "runs", "--address", "127.0.0.1:0"];
    let mut command = world.command(&arguments);
    command.env("DDK__TELEMETRY__TOKEN", token);
    let (server, address) = {
        let mut address = None;
        let started = Started::of(command, |line| {
            address = line
                .split_once("http://")
                .map(|(_, rest)| rest.trim_end_matches('/').to_owned());
            address.is_some()
        });
        (started, address.unwrap())
    };
    let url = format!("http://{address}/run?name=small");
    let said = world.fail(1, &["watch", &url]);
    assert!(
        said.contains("requires its token") && said.contains("DDK__TELEMETRY__TOKEN"),
        "{said}"
    );
    let output = world
        .command(&["watch", &url])
        .env("DDK__TELEMETRY__TOKEN", token)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    server.signal("TERM");
    assert_eq!(server.wait().0.code(), Some(0));

    let said = world.fail(2, &["watch", "runs/absent"]);
    assert!(said.contains("there is no run in runs/absent"), "{said}");
    let said = world.fail(2, &["watch", "https://example"]);
    assert!(said.contains("does not start with http://"), "{said}");
}

#[test]
fn a_run_that_others_reach_needs_a_token_and_its_folder_does_not_hold_it() {
    let world = World::new();
    let reached = [
        "train",
        "config.toml",
        "--set",
        "telemetry.enabled=true",
        "--set",
        "telemetry.listen=0.0.0.0:0",
    ];
    let said = world.fail(2, &reached);
    assert!(
        said.contains("`telemetry.listen`") && said.contains("`telemetry.token`"),
        "{said}"
    );

    let secret = "0123456789-secret-of-this-test";
    let output = world
        .command(&reached)
        .env("DDK__TELEMETRY__TOKEN", secret)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains(secret));
    for entry in walk(&world.run_folder()) {
        let bytes = fs::read(&entry).unwrap();
        let found = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!found, "the token is in {}", entry.display());
    }
    // Without the token, the configuration in the run folder is not enough to start again.
    fs::remove_file(world.run_folder().join("summary.json")).unwrap();
    let said = world.fail(2, &["train", "runs/small/config.toml"]);
    assert!(said.contains("DDK__TELEMETRY__TOKEN"), "{said}");
    let said = world.fail(2, &["serve", "runs", "--address", "0.0.0.0:0"]);
    assert!(
        said.contains("no token is set") && said.contains("hint:"),
        "{said}"
    );
    let summary: Value =
        serde_json::from_slice(&world.succeed(&["train", "config.toml", "--json"]).stdout).unwrap();
    assert_eq!(summary["steps"], 12);
}

/// Every file below a folder.
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(walk(&entry.path()))
        } else {
            files.push(entry.path())
        }
    }
    files
}
