//! Measures what monitoring costs a run with ten domains and four teachers that makes a step every tenth of a second
//! and is scraped every ten seconds.
//!
//! The bench does everything that such a run does for monitoring. It records the steps and maintains the histograms
//! while a client scrapes over HTTP. The cost is the CPU time of the whole process relative to the time that the run
//! would have taken. Only the waiting in between is left out.
//!
//! Run it with `make bench-telemetry`. It fails if half of the scrapes take 5 ms or more, or if monitoring takes a
//! thousandth of the run's time or more.

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
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use ddk_telemetry::{Board, Queues, Recorder, Site, metrics, serve};

const DOMAINS: usize = 10;
const TEACHERS: usize = 4;
const MICRO_BATCHES: usize = 4;
const ROWS: usize = 16;
/// Number of scrapes.
const PERIODS: usize = 1000;
/// Steps between two scrapes: ten seconds.
const STEPS_OF_A_PERIOD: usize = 100;
/// Steps between two upkeeps: five seconds.
const STEPS_OF_AN_UPKEEP: usize = 50;
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
            &metrics::GAP,
            &metrics::WEIGHT,
            &metrics::TARGET,
            &metrics::EPOCHS,
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
    let recorder =
        Recorder::install(Arc::clone(&board), "bench", Path::new("/"), Vec::new()).unwrap();
    let queues = Queues::empty();
    let site = Site::of_run(recorder.clone(), Path::new("/"));
    let server = serve("127.0.0.1:0".parse().unwrap(), site).unwrap();
    let (mut times, mut bytes) = (Vec::new(), 0);
    let before = processor_seconds();
    for period in 0..PERIODS {
        let started = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                started.wait();
                for step in 0..STEPS_OF_A_PERIOD {
                    record_step(period * STEPS_OF_A_PERIOD + step, &domains, &queues);
                    if step % STEPS_OF_AN_UPKEEP == 0 {
                        recorder.upkeep();
                    }
                }
            });
            started.wait();
            let began = Instant::now();
            bytes = scrape(server.address());
            times.push(began.elapsed().as_secs_f64());
        });
    }
    let cost = (processor_seconds() - before) / PERIODS as f64;
    times.sort_by(f64::total_cmp);
    let (half, most) = (times[PERIODS / 2], times[PERIODS * 99 / 100]);
    let share = cost / (STEPS_OF_A_PERIOD as f64 * STEP_SECONDS);
    println!(
        "a scrape of {bytes} bytes beside a run that records: half of them under {:.2} ms, 99 of 100 under {:.2} ms",
        half * 1e3,
        most * 1e3
    );
    println!(
        "processor time for {STEPS_OF_A_PERIOD} steps and a scrape, the client's included: {:.2} ms",
        cost * 1e3
    );
    println!(
        "share of a run's time, with steps of {STEP_SECONDS} s: {:.4}%",
        100.0 * share
    );
    assert!(half < 5e-3, "a scrape takes 5 ms or more");
    assert!(
        share < 1e-3,
        "being watched takes a thousandth of the time or more"
    );
}

/// CPU time of all threads of this process so far, including those that have ended.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // After the name, which is in parentheses: user and system time, in hundredths of a second.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    ticks as f64 / 100.0
}

/// Records what the workers record for a step, but all on one thread.
fn record_step(step: usize, domains: &[String], queues: &Queues) {
    for _ in 0..ROWS {
        queues.rows.sent();
        queues.rows.received();
    }
    for _ in 0..MICRO_BATCHES {
        for queue in [&queues.batches, &queues.labeled] {
            queue.sent();
            queue.received();
        }
    }
    metrics::STEPS.with(&[]).increment(1);
    metrics::STEP.with(&[]).set(step as f64);
    for domain in domains {
        metrics::TOKENS.with(&[domain]).increment(4096);
        metrics::OBSERVED.with(&[domain]).set(0.1);
    }
    for term in ["total", "ce", "kd"] {
        metrics::LOSS.with(&[term]).set(2.5);
    }
    for gauge in [
        &metrics::TOKENS_PER_SECOND,
        &metrics::GRAD_NORM,
        &metrics::LEARNING_RATE,
        &metrics::CHECKPOINT_EVERY,
    ] {
        gauge.with(&[]).set(1.0);
    }
    for model in ["student", "teacher"] {
        metrics::MODEL_TOKENS.with(&[model]).increment(40_960);
        metrics::MODEL_UTILIZATION.with(&[model]).set(0.9);
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

/// Scrapes the page and returns its size in bytes.
fn scrape(address: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).unwrap();
    assert!(page.starts_with(b"HTTP/1.1 200"));
    page.len()
}
