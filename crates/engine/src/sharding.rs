//! ZeRO-1 (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"): each process
//! keeps the moments of its part of every bucket, receives the gradients of that part from all processes, and sends
//! the updated weights back.
//!
//! A reduce-scatter of the library would add in an order that depends on the number of processes. Here, each process
//! receives all parts (`all_to_all`) and adds them itself, by the upper levels of the tree over slots.

use std::{sync::Arc, time::Instant};

use ddk_distributed::Group;
use tch::{Device, Kind, Tensor};

use crate::{EngineError, buckets::Bucket};

/// Numbers that a process sends at a time. It limits the memory of an exchange.
const WINDOW: i64 = 1 << 24;

/// Bytes of each of the two buffers of an exchange, in fp32.
pub(crate) const EXCHANGE_BYTES: u64 = 4 * WINDOW as u64;

/// Exchanges gradients, weights and moments with the other processes.
#[derive(Debug)]
pub(crate) struct Sharding {
    pub(crate) group: Arc<Group>,
    /// What is sent and what is received; allocated at the first use.
    buffers: Option<[Tensor; 2]>,
    window: i64,
    /// Seconds of exchanges since they were last taken.
    pub(crate) seconds: f64,
}

impl Sharding {
    pub(crate) fn new(group: Arc<Group>) -> Self {
        Self {
            group,
            buffers: None,
            window: WINDOW,
            seconds: 0.0,
        }
    }

    /// The parts of a process's range that are exchanged at a time: where each begins, and its numbers.
    fn windows(&self, bucket: &Bucket) -> impl Iterator<Item = (i64, i64)> + use<> {
        let own = bucket.own_numbers();
        let each = (self.window / self.group.size() as i64).clamp(1, own.max(1));
        let starts = (0..own).step_by(each as usize);
        starts.map(move |start| (start, each.min(own - start)))
    }

    /// Views of this many numbers of both buffers.
    fn buffers(&mut self, numbers: i64, like: &Tensor) -> Result<[Tensor; 2], EngineError> {
        let (kind, device) = (like.kind(), like.device());
        let fits = |buffers: &[Tensor; 2]| {
            let one = &buffers[0];
            one.numel() as i64 >= numbers && (one.kind(), one.device()) == (kind, device)
        };
        // Padding is sent along, so it must not be what happened to be in memory.
        let zeros = || Tensor::f_zeros([numbers], (kind, device));
        let buffers = match self.buffers.take().filter(fits) {
            Some(buffers) => buffers,
            None => [zeros()?, zeros()?],
        };
        let [send, receive] = self.buffers.insert(buffers);
        Ok([
            send.f_narrow(0, 0, numbers)?,
            receive.f_narrow(0, 0, numbers)?,
        ])
    }

    /// Adds this process's part of a bucket over all processes, by a binary tree in order of rank. `gradients` holds
    /// the sums over this process's slots, by parameter.
    pub(crate) fn sum(
        &mut self,
        bucket: &Bucket,
        gradients: &[Tensor],
    ) -> Result<Tensor, EngineError> {
        let size = self.group.size();
        let sum = bucket.moments[0].f_zeros_like()?;
        let contiguous = gradients.iter().map(Tensor::f_contiguous);
        let gradients: Vec<Tensor> = contiguous.collect::<Result<_, _>>()?;
        for (start, numbers) in self.windows(bucket) {
            let [send, mut receive] = self.buffers(size as i64 * numbers, &sum)?;
            for rank in 0..size {
                let range = bucket.range_of(rank, start, numbers);
                let to = send.f_narrow(0, rank as i64 * numbers, numbers)?;
                for part in bucket.parts(range.clone()) {
                    let gradient = part.of(&gradients[part.parameter])?;
                    to.f_narrow(0, part.at - range.start, part.numbers)?
                        .f_copy_(&gradient)?;
                }
            }
            let began = Instant::now();
            self.group.all_to_all(&mut receive, &send)?;
            self.seconds += began.elapsed().as_secs_f64();
            sum.f_narrow(0, start, numbers)?
                .f_copy_(&tree(receive.f_view([size as i64, numbers])?)?)?;
        }
        Ok(sum)
    }

    /// Sends this process's pieces of the parameters in a bucket to all others, and receives theirs.
    pub(crate) fn gather(
        &mut self,
        bucket: &Bucket,
        parameters: &[(String, Tensor)],
    ) -> Result<(), EngineError> {
        let of = |index: usize| &parameters[index].1;
        let (size, own) = (self.group.size(), self.group.rank());
        for (start, numbers) in self.windows(bucket) {
            let [send, mut receive] = self.buffers(size as i64 * numbers, &bucket.moments[0])?;
            let send = send.f_narrow(0, 0, numbers)?;
            let range = bucket.range_of(own, start, numbers);
            for part in bucket.parts(range.clone()) {
                send.f_narrow(0, part.at - range.start, part.numbers)?
                    .f_copy_(&part.of(of(part.parameter))?)?;
            }
            self.all_gather(&mut receive, &send)?;
            for rank in (0..size).filter(|rank| *rank != own) {
                let range = bucket.range_of(rank, start, numbers);
                let from = receive.f_narrow(0, rank as i64 * numbers, numbers)?;
                for part in bucket.parts(range.clone()) {
                    let received = from.f_narrow(0, part.at - range.start, part.numbers)?;
                    part.of(of(part.parameter))?.f_copy_(&received)?;
                }
            }
        }
        Ok(())
    }

    /// A moment of the whole bucket, on the CPU. Empty on all processes but the first.
    pub(crate) fn whole(
        &mut self,
        bucket: &Bucket,
        moment: &Tensor,
    ) -> Result<Tensor, EngineError> {
        let (size, own) = (self.group.size() as i64, bucket.own_numbers());
        let is_first = self.group.rank() == 0;
        let whole = if is_first { size * own } else { 0 };
        let whole = Tensor::f_empty([whole], (Kind::Float, Device::Cpu))?;
        for (start, numbers) in self.windows(bucket) {
            let [_, mut receive] = self.buffers(size * numbers, moment)?;
            self.all_gather(&mut receive, &moment.f_narrow(0, start, numbers)?)?;
            for rank in (0..size).take_while(|_| is_first) {
                let received = receive.f_narrow(0, rank * numbers, numbers)?;
                whole
                    .f_narrow(0, rank * own + start, numbers)?
                    .f_copy_(&received)?;
            }
        }
        Ok(whole)
    }

    /// Sends numbers to all processes, and returns those of all, by rank.
    pub(crate) fn exchange(&mut self, numbers: &[f64]) -> Result<Vec<Vec<f64>>, EngineError> {
        let began = Instant::now();
        let all = exchange(&self.group, numbers)?;
        self.seconds += began.elapsed().as_secs_f64();
        Ok(all)
    }

    fn all_gather(&mut self, receive: &mut Tensor, send: &Tensor) -> Result<(), EngineError> {
        let began = Instant::now();
        self.group.all_gather(receive, send)?;
        self.seconds += began.elapsed().as_secs_f64();
        Ok(())
    }
}

/// Sends numbers to all processes, and returns those of all, by rank. NaN keeps its bits.
pub(crate) fn exchange(group: &Group, numbers: &[f64]) -> Result<Vec<Vec<f64>>, EngineError> {
    let bytes: Vec<u8> = numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let numbers = |bytes: Vec<u8>| {
        let (numbers, _) = bytes.as_chunks();
        numbers
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes))
            .collect()
    };
    let all = group.exchange(&bytes)?;
    Ok(all.into_iter().map(numbers).collect())
}

/// Adds the rows of a matrix by a binary tree, in place. Returns the sum, a view of the first row. The number of rows
/// is a power of two.
fn tree(rows: Tensor) -> Result<Tensor, EngineError> {
    let count = rows.size()[0];
    let mut step = 1;
    while step < count {
        for left in (0..count).step_by(2 * step as usize) {
            let _ = rows.f_get(left)?.f_add_(&rows.f_get(left + step)?)?;
        }
        step *= 2;
    }
    Ok(rows.f_get(0)?)
}
