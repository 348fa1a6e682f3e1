//! Who gets what over a real socket: tokens, hosts, methods, sizes, patience, places, paths.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use ddk_telemetry::{Limits, ServeError, Server, Site, serve};
use tempfile::TempDir;

const TOKEN: &str = "0123456789abcdef";

/// A folder `runs` with a run `small` and one deeper, and a secret beside it.
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
    // A server that cuts a request short may reset the connection behind its answer.
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
    let host = match headers.to_lowercase().contains("host:") {
        true => String::new(),
        false => format!("Host: {}\r\n", server.address()),
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
    serve(everywhere, site(&world).with_token(Some(TOKEN))).unwrap();
}

#[test]
fn with_a_token_nothing_but_health_is_told_without_it() {
    let world = world();
    let server = start(site(&world).with_token(Some(TOKEN)));
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(&server, path, "").status, 200, "{path}");
    }
    for path in [
        "/",
        "/run",
        "/api/runs",
        "/api/run?name=small",
        "/api/stream?name=small",
        "/metrics",
        "/plotly.js",
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
    // Who knows the token may come by any name: a proxy's, a machine's.
    let named = format!("Host: trainer.example\r\n{bearer}");
    assert_eq!(get(&server, "/api/runs", &named).status, 200);
}

#[test]
fn a_browser_signs_in_once_and_its_cookie_is_out_of_reach() {
    let world = world();
    let server = start(site(&world).with_token(Some(TOKEN)));
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
        ("/plotly.js", 200),
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
        assert!(!policy.contains("unsafe-eval"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    // The one large file is kept by the browser; answers about runs never are.
    let plotly = get(&server, "/plotly.js", "");
    assert!(plotly.body.len() > 4_000_000);
    assert!(plotly.header("cache-control").unwrap().contains("max-age"));
    let known = format!("If-None-Match: {}\r\n", plotly.header("etag").unwrap());
    assert_eq!(get(&server, "/plotly.js", &known).status, 304);
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
        let answer = get(&server, &format!("/api/run?name={name}"), "");
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
        let answer = get(&server, &format!("/api/run?name={name}"), "");
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
    // And the next one is answered.
    assert_eq!(get(&server, "/", "").status, 200);
}

#[test]
fn who_says_nothing_loses_the_connection_and_the_next_gets_the_place() {
    let world = world();
    let limits = Limits {
        connections: 2,
        header_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = start(site(&world).with_limits(limits));
    let mut silent: Vec<TcpStream> = (0..2)
        .map(|_| TcpStream::connect(server.address()).unwrap())
        .collect();
    silent[0].write_all(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
    // Both places are taken until the two have been silent for too long.
    assert_eq!(get(&server, "/livez", "").status, 200);
    for stream in &mut silent {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok(), "{ended:?}");
    }
}

#[test]
fn the_stream_tells_everything_and_then_what_is_new() {
    let world = world();
    let run = world.path().join("runs/small");
    let server = start(site(&world));
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(
        stream,
        "GET /api/stream?name=small HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
    let mut said = String::new();
    let mut until = |words: &str| {
        let mut bytes = [0; 4096];
        while !said.contains(words) {
            let read = stream.read(&mut bytes).unwrap();
            assert!(read > 0, "the stream ended: {said}");
            said.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        said.split_off(0)
    };
    let first = until("event: events");
    assert!(first.contains("content-type: text/event-stream"));
    assert!(first.contains("\"state\":\"stopped\"") && first.contains("event: mixture"));
    let line = r#"{"step":1,"loss":1.5,"ce":1.25,"kl":1.25,"gamma":0.2,"learning_rate":0.001,"grad_norm":1.0,"tokens":64,"mixture_version":0,"seconds":{"forward":0.5}}"#;
    append(&run.join("run.jsonl"), line);
    let second = until("event: steps");
    assert!(second.contains("\"step\":1,"), "{second}");
    append(
        &run.join("events.jsonl"),
        r#"{"time":1.0,"step":1,"kind":"saved","message":"now"}"#,
    );
    let third = until("event: events");
    // Steps that were told are not told again.
    assert!(!third.contains("event: steps"), "{third}");
}

fn append(path: &Path, line: &str) {
    let file = fs::File::options().create(true).append(true).open(path);
    writeln!(file.unwrap(), "{line}").unwrap();
}
