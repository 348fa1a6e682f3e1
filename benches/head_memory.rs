//! The head's memory and speed.
//!
//! `cargo bench -p ddk-objective --bench head_memory`: bytes above inputs and gradients for
//! 1,000, 8,000 and 32,000 positions; fails where they differ by more than 10%. With `-- --speed`: positions
//! a second by size of the chunk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

use std::{fs, process::Command, time::Instant};

use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, Objective, Positions, chunked_head,
    default_chunk,
};
use tch::{Device, Kind, Tensor};

const VOCABULARY: i64 = 8192;
const STUDENT: i64 = 256;
const TEACHER: i64 = 512;

struct Inputs {
    student: [Tensor; 2],
    teacher: [Tensor; 2],
    labels: Tensor,
    weight_gradient: Tensor,
}

impl Inputs {
    fn new(positions: i64, vocabulary: i64, student: i64, teacher: i64) -> Self {
        let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        Self {
            student: [
                random([positions, student]),
                random([vocabulary, student]) * 0.02,
            ],
            teacher: [
                random([positions, teacher]),
                random([vocabulary, teacher]) * 0.02,
            ],
            labels: Tensor::randint(vocabulary, [positions], (Kind::Int64, Device::Cpu)),
            weight_gradient: Tensor::zeros([vocabulary, student], (Kind::Float, Device::Cpu)),
        }
    }

    fn run(&mut self, positions: i64, vocabulary: i64, chunk: i64) -> Tensor {
        let narrow = |tensor: &Tensor| tensor.narrow(0, 0, positions);
        let (student, teacher) = (narrow(&self.student[0]), narrow(&self.teacher[0]));
        let labels = narrow(&self.labels);
        chunked_head(
            &HeadInput::new(&student, &self.student[1]),
            Some(&HeadInput::new(&teacher, &self.teacher[1])),
            &Positions {
                labels: &labels,
                weights: None,
                denominator: positions as f64,
            },
            &HeadOptions {
                objective: Objective::default(),
                vocabulary,
                chunk,
                detail: Detail::Sums,
            },
            &mut HeadGradients {
                weight: Some(&mut self.weight_gradient),
                bias: None,
                buffers: None,
            },
        )
        .expect("the head runs")
        .hidden_gradient
    }
}

/// A line of /proc/self/status in bytes.
fn status(key: &str) -> i64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status can be read");
    let line = status
        .lines()
        .find(|line| line.starts_with(key))
        .expect("the kernel names it");
    1024 * line
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse::<i64>().ok())
        .expect("a number")
}

/// Runs in a process of its own, so that no memory is kept from another case.
fn measure(positions: i64) {
    tch::set_num_threads(1);
    let mut inputs = Inputs::new(positions, VOCABULARY, STUDENT, TEACHER);
    let chunk = default_chunk(VOCABULARY, Device::Cpu);
    // Libraries and thread buffers come up with a first chunk, which is dropped again.
    drop(inputs.run(chunk, VOCABULARY, chunk));
    fs::write("/proc/self/clear_refs", "5").expect("the peak can be reset");
    let before = status("VmRSS");
    let gradient = inputs.run(positions, VOCABULARY, chunk);
    let result = 4 * gradient.numel() as i64;
    println!("{}", status("VmHWM") - before - result);
}

fn memory() {
    let program = std::env::current_exe().expect("the path of this program");
    println!(
        "vocabulary {VOCABULARY}, student {STUDENT}, teacher {TEACHER}, fp32, chunk {}",
        default_chunk(VOCABULARY, Device::Cpu)
    );
    let mut all = Vec::new();
    for positions in [1_000, 8_000, 32_000] {
        // Buffers that are dropped go back to the system at once, so that none is taken for what was there before.
        let output = Command::new(&program)
            .arg(format!("--positions={positions}"))
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .output()
            .expect("a child runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let bytes: f64 = text.trim().parse().expect("bytes");
        println!(
            "{positions:>7} positions: {:6.1} MB above inputs and gradients",
            bytes / 1e6
        );
        all.push(bytes);
    }
    let (least, most) = all
        .iter()
        .fold((f64::MAX, 0.0_f64), |(least, most), bytes| {
            (least.min(*bytes), most.max(*bytes))
        });
    println!("largest over smallest: {:.3}", most / least);
    assert!(
        most <= 1.1 * least,
        "the head's memory grows with the positions"
    );
}

fn speed() {
    tch::set_num_threads(1);
    for (vocabulary, student, teacher) in [(4096, 128, 256), (8192, 256, 512), (32_768, 256, 512)] {
        println!("vocabulary {vocabulary}, student {student}, teacher {teacher}, one thread");
        let positions = 2048;
        let mut inputs = Inputs::new(positions, vocabulary, student, teacher);
        for chunk in [16, 32, 64, 128, 256, 512, 1024] {
            drop(inputs.run(positions, vocabulary, chunk));
            let mut seconds: Vec<f64> = (0..5)
                .map(|_| {
                    let started = Instant::now();
                    drop(inputs.run(positions, vocabulary, chunk));
                    started.elapsed().as_secs_f64()
                })
                .collect();
            seconds.sort_by(f64::total_cmp);
            println!(
                "  chunk {chunk:>5}: {:>7.0} positions/s",
                positions as f64 / seconds[2]
            );
        }
    }
}

fn main() {
    let argument = |name: &str| std::env::args().find(|argument| argument.starts_with(name));
    if let Some(positions) = argument("--positions=") {
        measure(positions["--positions=".len()..].parse().expect("a number"));
    } else if argument("--speed").is_some() {
        speed();
    } else {
        memory();
    }
}
