//! Measures how long the exchanges of a group take: the median time in milliseconds, and the megabytes per second that
//! each rank sends to others. Arguments: sizes in megabytes. `--device cuda:LOCAL_RANK` measures GPUs.
//!
//! ```text
//! torchrun --no-python --nproc-per-node 2 target/release/examples/exchange_time 1 10 100
//! ```
//!
//! Without torchrun, set `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` for each process.

#![allow(clippy::print_stdout)]

use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use ddk_distributed::{DistributedError, Group, Store, World};
use tch::{Device, Kind, Tensor};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Repetitions of each operation.
const REPEATS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let world = World::from_env()?.ok_or("start this with torchrun, or set RANK, WORLD_SIZE, …")?;
    let mut sizes = Vec::new();
    let mut device = Device::Cpu;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--device" {
            let name = arguments.next().ok_or("--device needs a device")?;
            let name = name.replace("LOCAL_RANK", &world.local_rank.to_string());
            device = ddk_torch::parse_device(&name)?;
        } else {
            sizes.push(argument.parse::<f64>()?);
        }
    }
    if sizes.is_empty() {
        sizes = vec![1.0, 10.0, 100.0];
    }
    let start = Instant::now();
    let store = Store::connect(&world, TIMEOUT)?;
    let group = Group::connect(&store, &world, "time", device, TIMEOUT)?;
    group.exchange(&[])?;
    if world.rank == 0 {
        println!(
            "{} ranks on {device:?}, connected in {:.0} ms",
            group.size(),
            start.elapsed().as_secs_f64() * 1e3
        );
        println!(
            "{:<12}{:>10}{:>14}{:>18}",
            "operation", "MB", "median ms", "MB/s per rank"
        );
    }
    for megabytes in sizes {
        let per_rank = (megabytes * 1e6 / 4.0) as i64 / group.size() as i64;
        let whole = Tensor::f_ones([per_rank * group.size() as i64], (Kind::Float, device))?;
        let part = Tensor::f_ones([per_rank], (Kind::Float, device))?;
        let mut out = whole.f_zeros_like()?;
        // Each operation moves this between ranks; the rest stays where it is.
        let sent = megabytes * (group.size() - 1) as f64 / group.size() as f64;
        measure(&group, "all_to_all", megabytes, sent, |group| {
            group.all_to_all(&mut out, &whole)
        })?;
        measure(&group, "all_gather", megabytes, sent, |group| {
            group.all_gather(&mut out, &part)
        })?;
    }
    // Rank 0 may serve the store, and ends last.
    group.exchange(&[])?;
    Ok(())
}

fn measure(
    group: &Group,
    name: &str,
    megabytes: f64,
    sent: f64,
    mut operation: impl FnMut(&Group) -> Result<(), DistributedError>,
) -> Result<(), DistributedError> {
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        // All ranks start together.
        group.exchange(&[])?;
        let start = Instant::now();
        operation(group)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times[REPEATS / 2];
    if group.rank() == 0 {
        let rate = sent / median;
        println!(
            "{name:<12}{megabytes:>10}{:>14.2}{rate:>18.0}",
            median * 1e3
        );
    }
    Ok(())
}
