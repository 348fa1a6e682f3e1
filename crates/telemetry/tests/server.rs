//! The server over a real socket, and the dashboards' names. One test function a process-wide recorder: one in all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use ddk_telemetry::{Board, Recorder, ServeError, metrics, serve};
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
    let recorder = Recorder::install(Arc::clone(&board)).unwrap();
    assert!(Recorder::install(Board::new(Duration::ZERO)).is_err());
    let server = serve("127.0.0.1:0".parse().unwrap(), recorder.clone()).unwrap();
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
        "ddk_steps_total 3\n",
        "ddk_tokens_total{domain=\"prose\"} 4096\n",
        "ddk_step_phase_seconds_bucket{phase=\"head\",le=\"0.25\"} 1\n",
        "ddk_worker_busy_seconds{worker=\"student\"} ",
        "ddk_build_info{version=",
    ] {
        assert!(page.contains(expected), "{expected} is not in\n{page}");
    }
    let resident = page
        .lines()
        .find(|line| line.starts_with("ddk_resident_memory_bytes "))
        .unwrap();
    assert!(resident.split_once(' ').unwrap().1.parse::<f64>().unwrap() > 1e6);

    let error = serve(address, recorder).unwrap_err();
    assert!(matches!(&error, ServeError::PortInUse(taken) if *taken == address));
    assert!(error.to_string().contains(&address.to_string()));
}

#[test]
fn dashboards_only_use_metrics_that_there_are() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards");
    let dashboard: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("ddk.json")).unwrap()).unwrap();
    let mut used = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(
            panel["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{}",
            panel["title"]
        );
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression
                .split(|character: char| !(character.is_alphanumeric() || character == '_'));
            used.extend(
                words
                    .filter(|word| word.starts_with("ddk_"))
                    .map(str::to_owned),
            );
        }
    }
    assert!(used.len() > 10);
    for name in used {
        let plain = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(&name);
        assert!(
            metrics::ALL.iter().any(|metric| metric.name == plain),
            "{name} is not in the registry"
        );
    }
}
