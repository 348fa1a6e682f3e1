//! DDK's half of benches/models.py: loads a folder, then answers each line on standard input with a line on
//! standard output.
//!
//! usage: time_model FOLDER THREADS f32|bf16; lines: `load`, or `forward BATCH TIME REPETITIONS`

use std::{
    error::Error,
    fs,
    io::{BufRead, Write, stdin, stdout},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use ddk_model::{Model, Placement};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, threads, dtype] = &arguments[..] else {
        return Err("usage: time_model FOLDER THREADS f32|bf16".into());
    };
    ddk_torch::keep_freed_memory();
    tch::set_num_threads(threads.parse()?);
    let kind = match dtype.as_str() {
        "bf16" => Kind::BFloat16,
        _ => Kind::Float,
    };
    let placement = Placement::on(Device::Cpu, kind);
    let mut model = None;
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["load"] => {
                drop(model.take());
                let (loaded, seconds, peak) = load(Path::new(folder), &placement)?;
                let bytes: usize = loaded
                    .parameters()
                    .iter()
                    .map(|(_, tensor)| tensor.numel() * kind.elt_size_in_bytes())
                    .sum();
                writeln!(stdout(), "{seconds} {bytes} {peak}")?;
                model = Some(loaded);
            }
            ["forward", batch, time, repetitions] => {
                let model = model.as_ref().ok_or("`load` comes first")?;
                let tokens = Tensor::arange(
                    batch.parse::<i64>()? * time.parse::<i64>()?,
                    (Kind::Int64, Device::Cpu),
                )
                .remainder(model.config().vocab_size())
                .reshape([batch.parse::<i64>()?, time.parse::<i64>()?]);
                let _no_grad = tch::no_grad_guard();
                let began = Instant::now();
                for _ in 0..repetitions.parse::<u32>()? {
                    let _hidden = model.hidden(&tokens, None)?;
                }
                writeln!(stdout(), "{}", began.elapsed().as_secs_f64())?;
            }
            _ => return Err(format!("not a command: {line}").into()),
        }
        stdout().flush()?;
    }
    Ok(())
}

/// Returns the model, the loading time in seconds, and the peak of resident anonymous memory above the level
/// before. Mapped pages of the file do not count, because the kernel can drop them.
fn load(folder: &Path, placement: &Placement) -> Result<(Model, f64, u64), Box<dyn Error>> {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = anonymous();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        let began = Instant::now();
        let model = Model::load(folder, placement);
        let seconds = began.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        Ok((
            model?,
            seconds,
            peak.load(Ordering::Relaxed).max(anonymous()) - before,
        ))
    })
}

fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}
