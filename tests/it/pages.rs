//! The pages in a real browser, `ddk serve`, and `ddk watch`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::world::{Started, World, stderr};

/// Where the browser test leaves its pictures.
const PICTURES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/pages");

/// A run that goes on until it is stopped, with its page.
const FOR_EVER: [&str; 14] = [
    "train",
    "config.toml",
    "--set",
    "run.max_steps=1000000",
    "--set",
    "run.name=long",
    "--set",
    "run.trace=false",
    "--set",
    "telemetry.enabled=true",
    "--set",
    "telemetry.address=127.0.0.1:0",
    "--set=mixture.interval=20",
    "--set=checkpoint.every=100",
];

/// Starts a `ddk` that serves; with the address it says.
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
fn a_browser_sees_a_run_live_and_ended_runs_side_by_side() {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    let (run, live) = serving(&world, &FOR_EVER);
    let (server, runs) = serving(&world, &["serve", "runs", "--address", "127.0.0.1:0"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/live_page.py");
    let output = Command::new("python3")
        .arg(script)
        .args([
            &format!("http://{live}/"),
            &format!("http://{runs}/"),
            PICTURES,
        ])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
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
    for picture in ["live-light", "live-dark", "live-narrow", "runs-light"] {
        let length = fs::metadata(format!("{PICTURES}/{picture}.png"))
            .unwrap()
            .len();
        assert!(length > 20_000, "{picture} is empty: {length} bytes");
    }
}

#[test]
fn watch_tells_of_a_folder_and_of_a_server() {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    let output = world.succeed(&["watch", "runs/small"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "small: finished, step 12 of 12",
        "done by max_steps",
        "coins",
        "mean ratio",
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
        said.contains("asks for its token") && said.contains("DDK__TELEMETRY__TOKEN"),
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
    assert!(said.contains("does not begin with http://"), "{said}");
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
        "telemetry.address=0.0.0.0:0",
    ];
    let said = world.fail(2, &reached);
    assert!(
        said.contains("`telemetry.address`") && said.contains("`telemetry.token`"),
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
    // Without it, what the folder says is not enough to start again.
    fs::remove_file(world.run_folder().join("summary.json")).unwrap();
    let said = world.fail(2, &["train", "runs/small/config.toml"]);
    assert!(said.contains("DDK__TELEMETRY__TOKEN"), "{said}");
    let said = world.fail(2, &["serve", "runs", "--address", "0.0.0.0:0"]);
    assert!(
        said.contains("there is no token") && said.contains("hint:"),
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
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(walk(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}
