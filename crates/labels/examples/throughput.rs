//! Prints how fast one thread writes and reads labels of 2 MiB, with checksums.
//!
//! usage: cargo run --release -p ddk-labels --example throughput [FOLDER [LABELS]]

#![allow(clippy::print_stdout)]

use std::{error::Error, path::Path, time::Instant};

use ddk_labels::{LabelSet, Provenance};

const LABEL: usize = 2 << 20;

fn id(number: usize) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .unwrap_or_else(|| "throughput-labels".to_owned());
    let labels: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let folder = Path::new(&folder);
    let provenance = Provenance::new([("teacher", "none".to_owned())]);
    let mut label = vec![0; LABEL];
    blake3::Hasher::new().finalize_xof().fill(&mut label);
    let rate = |start: Instant| (labels * LABEL) as f64 / 1e6 / start.elapsed().as_secs_f64();

    let set = LabelSet::open(folder, "throughput", &provenance, None)?;
    let start = Instant::now();
    for number in 0..labels {
        set.put(&id(number), &label)?;
    }
    set.flush()?;
    println!("write, durable: {:.0} MB/s", rate(start));
    drop(set);

    let set = LabelSet::open(folder, "throughput", &provenance, None)?;
    for pass in ["first", "second"] {
        let start = Instant::now();
        for number in 0..labels {
            if set.get(&id(number))?.is_none_or(|read| read.len() != LABEL) {
                return Err("a label is missing".into());
            }
        }
        println!("read, {pass} pass: {:.0} MB/s", rate(start));
    }
    let start = Instant::now();
    for number in labels..labels + 10_000 {
        set.contains(&id(number));
    }
    println!("a miss: {:.1} µs", start.elapsed().as_secs_f64() * 100.0);
    drop(set);
    ddk_labels::remove(folder, &provenance.name("throughput"))?;
    Ok(())
}
