//! Tests access over a real socket: tokens, hosts, methods, sizes, timeouts, places, paths.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use ddk_run::{
    Source,
    control::{Asked, Command, Control, Refusal, Reply},
};
use ddk_telemetry::{Limits, ServeError, Server, Site, serve};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOKEN: &str = "0123456789abcdef";

/// A folder `runs` with a run `small` and a run deeper down, and a secret beside the folder.
fn world() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for run in ["runs/small", "runs/compare/kd/seed-1"] {
        let run = folder.path().join(run);
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("config.toml"), "[run]\nmax_steps = 12\n").unwrap();
    }
    fs::create_dir(folder.path().join("secret")).unwrap();
    fs::write(folder.path().join("secret/config.toml"), "").unwrap();
    folder
}

fn site(world: &TempDir) -> Site {
    Site::of_runs(&world.path().join("runs"))
}

/// The same site, with the token.
fn with_token(mut site: Site) -> Site {
    site.token = Some(TOKEN.to_owned());
    site
}

fn with_limits(mut site: Site, limits: Limits) -> Site {
    site.limits = limits;
    site
}

fn start(site: Site) -> Server {
    serve("127.0.0.1:0".parse().unwrap(), site).unwrap()
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Sends bytes as they are and reads until the other end closes.
fn send(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    // A server that cuts a request short may reset the connection after its answer.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Answer {
        status: head
            .split_whitespace()
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

fn ask(server: &Server, method: &str, path: &str, headers: &str) -> Answer {
    let host = if headers.to_lowercase().contains("host:") {
        String::new()
    } else {
        format!("Host: {}\r\n", server.address())
    };
    let request = format!("{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n");
    send(server.address(), &request)
}

fn get(server: &Server, path: &str, headers: &str) -> Answer {
    ask(server, "GET", path, headers)
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    let world = world();
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let error = serve(everywhere, site(&world)).unwrap_err();
    assert!(matches!(error, ServeError::NeedsToken(_)), "{error}");
    serve(everywhere, with_token(site(&world))).unwrap();
}

/// Answers a command with a description of it.
#[derive(Debug)]
struct Echo;

impl Control for Echo {
    fn ask(self: Arc<Self>, command: Command, source: Source) -> Asked {
        let outcome = match command {
            Command::Pause => Ok(Reply::Pause { step: 7 }),
            other => Err(Refusal(format!("{source:?} asks for {other:?}"))),
        };
        Box::pin(async move { outcome })
    }
}

fn command(server: &Server, body: &str, headers: &str) -> Answer {
    let length = format!("Content-Length: {}\r\n{headers}", body.len());
    let host = format!("Host: {}\r\n", server.address());
    let head = format!("POST /api/control HTTP/1.1\r\n{host}{length}Connection: close\r\n\r\n");
    send(server.address(), &(head + body))
}

#[test]
fn a_command_takes_the_token_and_a_cookie_from_the_page_alone() {
    let world = world();
    let controlled = || {
        let mut site = site(&world);
        site.control = Some(Arc::new(Echo));
        site
    };
    let (open, server) = (start(controlled()), start(with_token(controlled())));
    let pause = r#"{"command":"pause"}"#;
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let answer = command(&server, pause, &bearer);
    assert_eq!(answer.status, 200);
    let said: Value = serde_json::from_str(&answer.body).unwrap();
    let expected =
        json!({"message": "paused after step 7", "reply": {"command": "pause", "step": 7}});
    assert_eq!(said, expected);
    let refused = command(&server, r#"{"command":"stop"}"#, &bearer);
    assert_eq!(refused.status, 409);
    assert!(
        refused.body.contains("Http asks for Stop"),
        "{}",
        refused.body
    );
    assert_eq!(command(&server, "pause", &bearer).status, 400);

    let port = server.address().port();
    let cookie = format!("Cookie: ddk_token_{port}={TOKEN}\r\n");
    let origin =
        |origin: &str| command(&server, pause, &format!("{cookie}Origin: {origin}\r\n")).status;
    assert_eq!(origin(&format!("http://{}", server.address())), 200);
    assert_eq!(origin("http://evil.example"), 403);
    assert_eq!(origin(&format!("http://evil.example:{port}")), 403);
    assert_eq!(origin("null"), 403);
    assert_eq!(command(&server, pause, &cookie).status, 403);
    assert_eq!(command(&server, pause, "").status, 401);
    assert_eq!(
        command(&server, pause, "Authorization: Bearer no\r\n").status,
        401
    );
    let long = format!("{pause}{}", " ".repeat(4096));
    assert_eq!(command(&server, &long, &bearer).status, 413);
    assert_eq!(ask(&server, "POST", "/api/control", &bearer).status, 413);
    assert_eq!(ask(&server, "POST", "/api/status", &bearer).status, 405);

    // Without a token, the server accepts no commands, even from this machine.
    assert_eq!(command(&open, pause, "").status, 403);
    assert_eq!(get(&open, "/api/control", "").body, "[]");
    assert!(
        get(&server, "/api/control", &bearer)
            .body
            .contains("\"pause\"")
    );
}

#[test]
fn with_a_token_nothing_but_health_is_told_without_it() {
    let world = world();
    let server = start(with_token(site(&world)));
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(&server, path, "").status, 200, "{path}");
    }
    for path in [
        "/",
        "/run",
        "/api/runs",
        "/api/status?name=small",
        "/api/chart/loss.svg?name=small",
        "/metrics",
        "/run.js",
        "/page.css",
        "/nothing",
        "//livez",
        "/livez/../api/runs",
    ] {
        let answer = get(&server, path, "");
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(!answer.body.contains("small"));
    }
    for wrong in [
        "Authorization: Bearer 0123456789abcdeX\r\n",
        "Authorization: Bearer 0123456789abcde\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Basic 0123456789abcdef\r\n",
        "Authorization: 0123456789abcdef\r\n",
        "Cookie: ddk_token=0123456789abcdef\r\n",
    ] {
        assert_eq!(get(&server, "/api/runs", wrong).status, 401, "{wrong}");
    }
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let answer = get(&server, "/api/runs", &bearer);
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("\"name\":\"small\""));
    // A client with the token may use any host name: a proxy's, a machine's.
    let named = format!("Host: trainer.example\r\n{bearer}");
    assert_eq!(get(&server, "/api/runs", &named).status, 200);
}

#[test]
fn a_browser_signs_in_once_and_its_cookie_is_out_of_reach() {
    let world = world();
    let server = start(with_token(site(&world)));
    assert_eq!(get(&server, "/?token=wrong", "").status, 401);
    assert_eq!(
        get(&server, &format!("/api/runs?token={TOKEN}"), "").status,
        401
    );
    let answer = get(&server, &format!("/?token={TOKEN}"), "");
    assert_eq!((answer.status, answer.header("location")), (303, Some("/")));
    let cookie = answer.header("set-cookie").unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let pair = cookie.split(';').next().unwrap();
    let headers = format!("Cookie: theme=dark; {pair}\r\n");
    assert_eq!(get(&server, "/", &headers).status, 200);
    assert_eq!(get(&server, "/api/runs", &headers).status, 200);
}

#[test]
fn without_a_token_only_names_of_this_machine_are_answered() {
    let world = world();
    let server = start(site(&world));
    for host in ["localhost", "127.0.0.1:1", "[::1]:9469"] {
        let answer = get(&server, "/api/runs", &format!("Host: {host}\r\n"));
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in ["rebound.example", "127.0.0.1.rebound.example"] {
        let answer = get(&server, "/api/runs", &format!("Host: {host}\r\n"));
        assert_eq!(answer.status, 421, "{host}");
        assert!(!answer.body.contains("small"));
    }
}

#[test]
fn only_get_and_head_are_taken_and_no_body() {
    let world = world();
    let server = start(site(&world));
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        for path in ["/", "/api/runs", "/nothing"] {
            let answer = ask(&server, method, path, "");
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
    }
    let head = ask(&server, "HEAD", "/api/runs", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for body in [
        "Content-Length: 1000000000\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        assert_eq!(get(&server, "/api/runs", body).status, 413, "{body}");
    }
}

#[test]
fn every_answer_carries_the_headers_that_keep_browsers_careful() {
    let world = world();
    let server = start(site(&world));
    for (path, status) in [
        ("/", 200),
        ("/run?name=small", 200),
        ("/api/runs", 200),
        ("/run.js", 200),
        ("/nothing", 404),
    ] {
        let answer = get(&server, path, "");
        assert_eq!(answer.status, status, "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe-"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let answer = get(&server, "/api/runs", "");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn no_path_leads_out_of_the_folder() {
    let world = world();
    std::os::unix::fs::symlink(world.path().join("secret"), world.path().join("runs/link"))
        .unwrap();
    let server = start(site(&world));
    for name in ["small", "compare/kd/seed-1", "compare%2Fkd%2Fseed-1"] {
        let answer = get(&server, &format!("/api/status?name={name}"), "");
        assert_eq!(answer.status, 200, "{name}");
        assert!(answer.body.contains("\"step_limit\":12"));
    }
    let absolute = world.path().join("secret");
    for name in [
        "../secret",
        "..%2Fsecret",
        "small/../../secret",
        "%2e%2e/secret",
        "..%5Csecret",
        "link",
        ".",
        "",
        "small/",
        "small%00",
        "%ff",
        "compare",
        absolute.to_str().unwrap(),
    ] {
        let answer = get(&server, &format!("/api/status?name={name}"), "");
        assert_eq!(answer.status, 404, "{name}");
    }
    for path in [
        "/../secret/config.toml",
        "/runs/small/config.toml",
        "/%2e%2e/secret/config.toml",
        "/page.css/../../x",
    ] {
        assert_eq!(get(&server, path, "").status, 404, "{path}");
    }
}

#[test]
fn requests_that_are_too_long_are_cut() {
    let world = world();
    let server = start(site(&world));
    let long = "x".repeat(100_000);
    let answer = get(&server, "/", &format!("X-Long: {long}\r\n"));
    assert_eq!(answer.status, 431);
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    assert_eq!(get(&server, "/", &many).status, 431);
    let answer = get(&server, &format!("/?{long}"), "");
    assert!(matches!(answer.status, 414 | 431), "{}", answer.status);
    // The server answers the next request.
    assert_eq!(get(&server, "/", "").status, 200);
}

/// Opens connections of strangers: some silent, some with half a request, some that send a byte now and then.
fn strangers(server: &Server, count: usize) -> Vec<TcpStream> {
    let stranger = |number| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // A server that needs the place may have closed the connection already.
        let _ = match number % 3 {
            0 => Ok(()),
            1 => stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc"),
            _ => stream.write_all(b"G"),
        };
        stream
    };
    (0..count).map(stranger).collect()
}

/// Timeouts longer than any test, so that no place becomes free through a timeout.
fn patient() -> Limits {
    Limits {
        header_timeout: Duration::from_secs(3600),
        answer_timeout: Duration::from_secs(3600),
        ..Limits::default()
    }
}

#[test]
fn strangers_never_keep_away_who_knows_the_token() {
    let world = world();
    let server = start(with_limits(with_token(site(&world)), patient()));
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let mut held = strangers(&server, 200);
    for _ in 0..100 {
        assert_eq!(get(&server, "/api/runs", &bearer).status, 200);
        // The slow ones continue, and new ones replace those that were closed. So those still open are the newest.
        for stream in &mut held {
            if stream.write_all(b"E").is_err() {
                *stream = strangers(&server, 1).remove(0);
            }
        }
    }
    // A client with access keeps its place, however many strangers come.
    let mut known = TcpStream::connect(server.address()).unwrap();
    let request = format!("GET /api/runs HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n");
    for _ in 0..3 {
        known.write_all(request.as_bytes()).unwrap();
        let mut bytes = [0; 12];
        known.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"HTTP/1.1 200");
        let mut rest = [0; 1 << 16];
        while !String::from_utf8_lossy(&rest).contains("}]") {
            assert!(known.read(&mut rest).unwrap() > 0);
        }
        held.extend(strangers(&server, 100));
    }
    // A refused client loses its connection.
    let answer = send(
        server.address(),
        "GET /api/runs HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert_eq!(
        (answer.status, answer.header("connection")),
        (401, Some("close"))
    );
}

#[test]
fn the_oldest_stranger_makes_room_and_the_silent_are_sent_away() {
    let world = world();
    let limits = Limits {
        strangers: 2,
        ..patient()
    };
    let server = start(with_limits(site(&world), limits));
    let held = strangers(&server, 3);
    // A connection whose last bytes were not read ends with a reset.
    let ends = |stream: &TcpStream| {
        let mut stream = stream;
        match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    };
    assert!(ends(&held[0]));
    assert_eq!(get(&server, "/livez", "").status, 200);
    assert!(ends(&held[1]));
    held[2].set_nonblocking(true).unwrap();
    assert!(!ends(&held[2]), "it was sent away for nobody");

    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = start(with_limits(site(&world), limits));
    for stream in &strangers(&server, 3) {
        assert!(ends(stream));
    }
}

#[test]
fn who_may_ask_waits_for_a_place_and_is_told_where_there_is_none() {
    let world = world();
    let limits = Limits {
        connections: 1,
        answer_timeout: Duration::from_millis(200),
        ..patient()
    };
    let server = start(with_limits(site(&world), limits));
    let mut first = TcpStream::connect(server.address()).unwrap();
    first
        .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    first.read_exact(&mut [0; 12]).unwrap();
    let answer = get(&server, "/livez", "");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("too many connections"));
    drop(first);
    // The place is free once the server has noticed that.
    let mut statuses = std::iter::repeat_with(|| get(&server, "/livez", "").status).take(50);
    assert!(statuses.any(|status| status == 200));
}

#[test]
fn revisions_say_which_parts_have_changed() {
    let world = world();
    let run = world.path().join("runs/small");
    let server = start(site(&world));
    let json = |path: &str| -> Value {
        let answer = get(&server, path, "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    };
    let status = || json("/api/status?name=small");
    let first = status();
    assert_eq!(
        (&first["state"], &first["step"]),
        (&json!("stopped"), &json!(0))
    );
    let line = concat!(
        r#"{"step":1,"loss":1.5,"ce_loss":1.25,"kd_loss":1.25,"gamma":0.2,"learning_rate":0.001,"grad_norm":1.0,"#,
        r#""tokens":64,"interval":0,"seconds":{"forward":0.5}}"#
    );
    append(&run.join("run.jsonl"), line);
    let event = r#"{"time":1.0,"step":1,"kind":"skipped","message":"now"}"#;
    append(&run.join("events.jsonl"), event);
    // The server does not read files again right away, so ask until it has.
    let read = || Some(status()).filter(|status| status["step"] == 1);
    let second = std::iter::repeat_with(read).flatten().next().unwrap();
    let rise = |part: &str| second["revisions"][part] != first["revisions"][part];
    assert!(rise("steps") && rise("events") && !rise("mixture"));
    assert_eq!(json("/api/steps?name=small")["loss"], json!([1.5]));
    let events = json("/api/events?name=small");
    assert_eq!(
        (&events[0]["kind"], &events[0]["is_incident"]),
        (&json!("skipped"), &json!(true))
    );
    assert_eq!(json("/api/mixture?name=small")["intervals"], json!([]));
    assert_eq!(json("/api/workers?name=small")["samples"], json!([]));
}

#[test]
fn charts_are_drawn_for_one_run_and_for_several() {
    let world = world();
    let server = start(site(&world));
    let several = "name=small&name=compare%2Fkd%2Fseed-1";
    for (path, status) in [
        ("/api/chart/loss.svg?name=small&width=480", 200),
        ("/api/chart/weights.svg?name=small&width=99999999", 200),
        (&format!("/api/chart/gap.svg?side_by_side&{several}"), 200),
        (
            &format!("/api/chart/weights.svg?side_by_side&{several}"),
            404,
        ),
        ("/api/chart/loss.svg?name=absent", 404),
        ("/api/chart/loss?name=small", 404),
        ("/api/chart/nothing.svg?name=small", 404),
    ] {
        let answer = get(&server, path, "");
        assert_eq!(answer.status, status, "{path}");
        if status == 200 {
            assert_eq!(answer.header("content-type"), Some("image/svg+xml"));
            assert!(answer.body.starts_with("<svg ") && answer.body.len() < 100_000);
        }
    }
    let narrow = get(&server, "/api/chart/loss.svg?name=small&width=480", "");
    assert!(narrow.body.contains("width=\"480\""), "{}", narrow.body);
}

fn append(path: &Path, line: &str) {
    let file = fs::File::options().create(true).append(true).open(path);
    writeln!(file.unwrap(), "{line}").unwrap();
}
