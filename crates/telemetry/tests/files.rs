//! A run's files and its report over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::symlink,
};

use ddk_telemetry::{Server, Site, serve};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A served folder with the run `small`, which has a link instead of `events.jsonl`, and a secret beside it.
fn world() -> (TempDir, Server) {
    let world = tempfile::tempdir().unwrap();
    let run = world.path().join("runs/small");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("config.toml"), "[run]\nmax_steps = 12\n").unwrap();
    fs::write(run.join("run.jsonl"), "").unwrap();
    fs::write(run.join("lock"), "12345").unwrap();
    fs::write(world.path().join("secret"), "secret").unwrap();
    symlink(world.path().join("secret"), run.join("events.jsonl")).unwrap();
    let site = Site::of_runs(&world.path().join("runs"));
    let server = serve("127.0.0.1:0".parse().unwrap(), site).unwrap();
    (world, server)
}

/// Requests a path; returns the status, the head and the body.
fn get(server: &Server, path: &str) -> (u16, String, String) {
    let address = server.address();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

#[test]
fn a_runs_files_are_listed_and_sent_and_no_others() {
    let (_world, server) = world();
    let (status, _, list) = get(&server, "/api/files?name=small");
    assert_eq!(status, 200);
    let expected = json!([
        {"name": "config.toml", "bytes": 21}, {"name": "run.jsonl", "bytes": 0},
    ]);
    assert_eq!(serde_json::from_str::<Value>(&list).unwrap(), expected);
    let (status, head, config) = get(&server, "/api/file/config.toml?name=small");
    assert_eq!((status, config.as_str()), (200, "[run]\nmax_steps = 12\n"));
    assert!(head.contains("content-type: text/plain"), "{head}");
    let (_, _, rest) = get(&server, "/api/file/config.toml?name=small&from=6");
    assert_eq!(rest, "max_steps = 12\n");
    for path in [
        "/api/file/lock?name=small",
        "/api/file/summary.json?name=small",
        "/api/file/events.jsonl?name=small",
        "/api/file/..%2F..%2Fsecret?name=small",
        "/api/file/config.toml?name=absent",
        "/api/file/config.toml",
        "/report?name=absent",
    ] {
        let (status, _, body) = get(&server, path);
        assert_eq!(status, 404, "{path}: {body}");
        assert!(!body.contains("secret"), "{path}");
    }
}

#[test]
fn a_file_that_is_too_long_is_sent_in_parts() {
    let (world, server) = world();
    let file = fs::File::options()
        .append(true)
        .open(world.path().join("runs/small/run.jsonl"))
        .unwrap();
    file.set_len((8 << 20) + 5).unwrap();
    let (status, _, body) = get(&server, "/api/file/run.jsonl?name=small");
    assert_eq!(status, 413);
    assert!(
        body.contains("8388613 bytes") && body.contains("from=N"),
        "{body}"
    );
    let (status, _, body) = get(&server, "/api/file/run.jsonl?name=small&from=8388608");
    assert_eq!((status, body.len()), (200, 5));
    let (status, _, body) = get(&server, "/api/file/run.jsonl?name=small&from=0");
    assert_eq!((status, body.len()), (200, 8 << 20));
}

#[test]
fn a_report_cannot_act_as_a_page_of_the_server() {
    let (world, server) = world();
    let (status, head, body) = get(&server, "/report?name=small");
    assert_eq!(status, 200);
    assert!(
        body.contains("This run was stopped before its end"),
        "{body}"
    );
    let policy = head
        .lines()
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .unwrap();
    assert!(policy.starts_with("sandbox allow-scripts;"), "{policy}");
    assert!(!policy.contains("allow-same-origin"), "{policy}");
    // A report that lies there without a summary is an earlier process's.
    fs::write(world.path().join("runs/small/report.html"), "an old one").unwrap();
    assert!(
        get(&server, "/report?name=small")
            .2
            .contains("was stopped before its end")
    );
}
