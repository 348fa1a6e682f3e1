//! Tests the server over a real socket. The recorder is global to the process, so there is only one test function.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{path::Path, sync::Arc, time::Duration};

use ddk_telemetry::{Board, RankStatus, Recorder, ServeError, Site, metrics, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split_whitespace().nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn what_is_recorded_is_served_and_a_taken_port_is_named() {
    let board = Board::new(Duration::from_secs(3600));
    let install = |run| Recorder::install(Arc::clone(&board), run, Path::new("/"), Vec::new());
    let before = install("before").unwrap();
    metrics::STEPS.with(&[]).increment(7);
    // A run's recorder has no values of earlier runs.
    let recorder = install("small").unwrap();
    assert!(
        before
            .render()
            .contains("ddk_steps_total{run=\"before\"} 7\n")
    );
    let site = || Site::of_run(recorder.clone(), Path::new("/"));
    let server = serve("127.0.0.1:0".parse().unwrap(), site()).unwrap();
    let address = server.address();

    assert_eq!(get(address, "/readyz").await.0, 503);
    board.set_ready(true);
    assert_eq!(get(address, "/readyz").await.0, 200);
    assert_eq!(get(address, "/livez").await, (200, "live\n".to_owned()));
    assert_eq!(get(address, "/else").await.0, 404);

    metrics::STEPS.with(&[]).increment(3);
    metrics::TOKENS.with(&["prose"]).increment(4096);
    metrics::STEP_SECONDS.with(&["head"]).record(0.2);
    board.worker("student").computing();
    let (status, page) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    for expected in [
        "# HELP ddk_steps_total ",
        "# TYPE ddk_steps_total counter",
        "ddk_steps_total{run=\"small\"} 3\n",
        "ddk_tokens_total{run=\"small\",domain=\"prose\"} 4096\n",
        "ddk_step_phase_seconds_bucket{run=\"small\",phase=\"head\",le=\"0.25\"} 1\n",
        "ddk_worker_busy_seconds_total{run=\"small\",worker=\"student\"} ",
        "ddk_skipped_updates_total{run=\"small\",reason=\"spike\"} 0\n",
        "ddk_cpu_seconds_total{run=\"small\"} ",
        "ddk_disk_free_bytes{run=\"small\"} ",
        "ddk_build_info{run=\"small\",version=",
    ] {
        assert!(page.contains(expected), "{expected} is not in\n{page}");
    }
    let resident = page
        .lines()
        .find(|line| line.starts_with("ddk_resident_memory_bytes{"))
        .unwrap();
    assert!(resident.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() > 1e6);

    // Only a run on several processes has ranks.
    let (_, status) = get(address, "/api/status").await;
    assert!(!status.contains("\"ranks\""), "{status}");
    board.set_ranks(vec![RankStatus {
        rank: 1,
        busy: 0.5,
        waiting: 0.25,
        exchange: 0.125,
    }]);
    let (_, status) = get(address, "/api/status").await;
    let expected = r#""ranks":[{"rank":1,"busy":0.5,"waiting":0.25,"exchange":0.125}]"#;
    assert!(status.contains(expected), "{status}");

    let error = serve(address, site()).unwrap_err();
    assert!(matches!(&error, ServeError::PortInUse(taken) if *taken == address));
    assert!(error.to_string().contains(&address.to_string()));
}
