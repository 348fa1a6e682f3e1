//! What being watched costs: a scrape over HTTP, and the records of a step, with ten domains and four teachers.
//!
//! `make bench-telemetry`. It fails where a scrape takes 5 ms or more, or where both together take a thousandth of a run's time or more:
//! one scrape every ten seconds, and steps of a tenth of a second.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ddk_telemetry::{Board, Queues, Recorder, metrics, serve};

const DOMAINS: usize = 10;
const TEACHERS: usize = 4;
const MICRO_BATCHES: usize = 4;
const ROWS: usize = 16;
const SCRAPES: usize = 500;
const STEPS: usize = 20_000;
const SECONDS_BETWEEN_SCRAPES: f64 = 10.0;
const STEP_SECONDS: f64 = 0.1;

fn main() {
    let board = Board::new(Duration::from_secs(900));
    for lane in 0..TEACHERS {
        board.worker(&format!("teacher-{lane}")).computing();
    }
    let domains: Vec<String> = (0..DOMAINS)
        .map(|domain| format!("domain-{domain}"))
        .collect();
    for domain in &domains {
        board
            .worker(&format!("loader-{domain}"))
            .waiting_for_output();
        for gauge in [
            &metrics::RATIO,
            &metrics::WEIGHT,
            &metrics::TARGET,
            &metrics::PASSES,
            &metrics::QUARANTINED,
        ] {
            gauge.with(&[domain]).set(0.1);
        }
        for model in ["student", "teacher"] {
            metrics::PERPLEXITY.with(&[model, domain]).set(7.5);
        }
    }
    for worker in ["student", "batcher", "checkpointer"] {
        board.worker(worker).computing();
    }
    let recorder = Recorder::install(Arc::clone(&board), "bench", Path::new("/")).unwrap();
    let queues = Queues::empty();

    let began = Instant::now();
    for step in 0..STEPS {
        record_step(step, &domains, &queues);
        if step % 100 == 0 {
            recorder.upkeep();
        }
    }
    let of_step = began.elapsed().as_secs_f64() / STEPS as f64;

    let address = "127.0.0.1:0".parse().unwrap();
    let server = serve(address, recorder).unwrap();
    let mut times: Vec<f64> = Vec::new();
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let began = Instant::now();
        bytes = scrape(server.address());
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (half, most) = (times[SCRAPES / 2], times[SCRAPES * 99 / 100]);
    let share = half / SECONDS_BETWEEN_SCRAPES + of_step / STEP_SECONDS;
    println!(
        "a scrape of {bytes} bytes: half of them under {:.2} ms, 99 of 100 under {:.2} ms",
        half * 1e3,
        most * 1e3
    );
    println!("the records of a step: {:.1} us", of_step * 1e6);
    println!(
        "share of a run's time, a scrape every {SECONDS_BETWEEN_SCRAPES} s and steps of {STEP_SECONDS} s: {:.4} %",
        100.0 * share
    );
    assert!(half < 5e-3, "a scrape takes 5 ms or more");
    assert!(
        share < 1e-3,
        "being watched takes a thousandth of the time or more"
    );
}

/// What the workers record for a step, all of it on one thread here.
fn record_step(step: usize, domains: &[String], queues: &Queues) {
    for _ in 0..ROWS {
        queues.rows.sent();
        queues.rows.received();
    }
    for _ in 0..MICRO_BATCHES {
        for queue in [&queues.batches, &queues.labelled] {
            queue.sent();
            queue.received();
        }
    }
    metrics::STEPS.with(&[]).increment(1);
    metrics::STEP.with(&[]).set(step as f64);
    for domain in domains {
        metrics::TOKENS.with(&[domain]).increment(4096);
        metrics::REALISED.with(&[domain]).set(0.1);
    }
    for term in ["total", "ce", "kl"] {
        metrics::LOSS.with(&[term]).set(2.5);
    }
    for gauge in [
        &metrics::TOKENS_PER_SECOND,
        &metrics::GRADIENT_NORM,
        &metrics::LEARNING_RATE,
        &metrics::CHECKPOINT_EVERY,
    ] {
        gauge.with(&[]).set(1.0);
    }
    for model in ["student", "teacher"] {
        metrics::MODEL_TOKENS.with(&[model]).increment(40_960);
        metrics::MODEL_UTILISATION.with(&[model]).set(0.9);
    }
    metrics::WHOLE_STEP_SECONDS.with(&[]).record(STEP_SECONDS);
    for phase in [
        "data",
        "teacher_wait",
        "teacher",
        "forward",
        "head",
        "backward",
        "optimizer",
    ] {
        metrics::STEP_SECONDS.with(&[phase]).record(0.01);
    }
}

/// Bytes of the page.
fn scrape(address: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).unwrap();
    assert!(page.starts_with(b"HTTP/1.1 200"));
    page.len()
}
