//! Tests that a server tells watchers how its run ended. The recorder is global to the process, so there is only one
//! test function.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ddk_run::view::State;
use ddk_telemetry::{Board, Recorder, Server, Site, serve};
use serde_json::Value;

/// Far longer than any step of this test takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn start(board: &Arc<Board>, folder: &Path) -> Server {
    let recorder = Recorder::install(Arc::clone(board), "small", folder, Vec::new()).unwrap();
    let site = Site::of_run(recorder, folder);
    serve("127.0.0.1:0".parse().unwrap(), site).unwrap()
}

/// The state that the server reports to this watcher. HTTP/1.0 has no chunked encoding.
fn polled(address: SocketAddr, watcher: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let path = format!("/api/status?watcher={watcher}");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let status: Value = serde_json::from_str(body).unwrap();
    status["state"].as_str().unwrap().to_owned()
}

#[test]
fn who_watches_hears_how_the_run_ended_and_nobody_else_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), "[run]\nmax_steps = 12\n").unwrap();
    for (stage, expected) in [
        (State::Stopped, "stopped"),
        (State::Failed, "failed"),
        (State::Finished, "finished"),
    ] {
        // Without watchers, the server waits for no client, not even one that has sent nothing yet.
        let board = Board::new(PATIENCE);
        let server = start(&board, folder.path());
        let silent = TcpStream::connect(server.address()).unwrap();
        board.set_state(stage);
        let began = Instant::now();
        server.finish(PATIENCE);
        assert!(began.elapsed() < PATIENCE / 2);
        drop(silent);

        let board = Board::new(PATIENCE);
        let server = start(&board, folder.path());
        let address = server.address();
        board.set_ready(true);
        // Each watcher asks once more. After that, the server accepts no connections.
        for watcher in ["page", "terminal"] {
            assert_eq!(polled(address, watcher), "running");
        }
        board.set_state(stage);
        std::thread::scope(|scope| {
            let finishing = scope.spawn(|| server.finish(PATIENCE));
            assert_eq!(polled(address, "page"), expected);
            assert!(!finishing.is_finished());
            assert_eq!(polled(address, "terminal"), expected);
            finishing.join().unwrap();
        });
        assert!(TcpStream::connect(address).is_err());
        // A second call does nothing.
        server.finish(PATIENCE);
    }
}
