//! The serial baseline for the overlapped run: first the teacher, then the student, on all threads.

use std::{sync::Arc, time::Instant};

use anyhow::Result;
use ddk_corpus::{Cursor, PreparedDomain, Sequence, SequenceReader};
use ddk_mixture::{Quota, interval_order};
use ddk_run::records::Serial;
use ddk_torch::ComputeContext;

use super::steps::{Batch, Models, WARM_UP, alone, student_step};

/// Times `steps` steps on throwaway copies of both models, with as many threads as all workers have together. Draws
/// sequences from the domains in these shares.
pub(crate) fn serial(
    models: &Models<'_>,
    domains: &[Arc<PreparedDomain>],
    shares: &[f64],
    steps: u64,
) -> Result<Serial> {
    let settings = models.settings;
    let threads =
        settings.teacher.threads * settings.teacher.devices.len() + settings.student.threads;
    let work = || -> Result<f64> {
        let compute = ComputeContext::enter(threads);
        let teacher = models.asked_teacher()?;
        let mut student = models.student()?;
        let (seed, rows) = (settings.run.seed, settings.training.global_batch_size);
        let all_rows = rows * (WARM_UP as u64 + steps);
        let counts = Quota::new(domains.len()).draw(shares, all_rows);
        let mut readers: Vec<SequenceReader> = domains
            .iter()
            .zip(0..)
            .map(|(domain, number)| {
                SequenceReader::new(Arc::clone(domain), number, seed, Cursor::default())
            })
            .collect();
        let order = interval_order(&counts, seed, 0);
        let (mut began, mut tokens) = (Instant::now(), 0.0);
        for (number, domains) in (1..).zip(order.chunks(rows as usize)) {
            if number == WARM_UP as u64 + 1 {
                (began, tokens) = (Instant::now(), 0.0);
            }
            let rows = domains
                .iter()
                .map(|&domain| readers[usize::from(domain)].read());
            let rows = rows.map(|row| Ok(row?.sequence)).collect::<Result<_>>()?;
            let micro_rows = settings.training.micro_batch_size as usize;
            let batch = Batch { rows, micro_rows };
            let label = |_, micro: &[&Sequence]| {
                let signal = teacher.as_ref().map(|teacher| teacher.label(micro));
                Ok(signal.transpose()?)
            };
            student_step((&compute, &mut student), number, &batch, label)?;
            tokens += batch.tokens();
        }
        Ok(tokens / began.elapsed().as_secs_f64())
    };
    Ok(Serial {
        threads: threads as u64,
        steps,
        tokens_per_second: alone("serial", work)?,
    })
}
