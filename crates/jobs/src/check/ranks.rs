//! Reports what several processes exchange in each step.

use anyhow::{Result, anyhow};
use ddk_engine::exchanged_bytes;
use ddk_run::view::counted;
use ddk_settings::Settings;

use super::{Models, memory::size};
use crate::{args, findings::Findings};

/// Reports the exchange of a step, if several processes share it.
pub(super) fn check(
    settings: &Settings,
    models: &Models,
    args: &args::Check,
    found: &mut Findings<'_>,
) -> Result<()> {
    let (ranks, slots) = (args.ranks, settings.parallel.slots);
    if ranks == 1 {
        return Ok(());
    }
    found.title(&format!("{ranks} ranks"));
    if !ranks.is_power_of_two() {
        found.problem(anyhow!("--ranks is {ranks}, expected a power of two"));
        return Ok(());
    }
    if slots < ranks {
        found.problem(anyhow!(
            "{ranks} ranks cannot share {slots} slots: a new run needs parallel.slots = {ranks} or more"
        ));
        return Ok(());
    }
    let bytes = exchanged_bytes(&models.student, ranks)?;
    let seconds = bytes as f64 / 1e9 / args.bandwidth;
    let sequences = settings.training.global_batch_size / ranks;
    found.line(&format!(
        "each rank trains on {} of a step, in {} of {slots} slots",
        counted(sequences, "sequence"),
        slots / ranks
    ));
    found.line(&format!(
        "each rank sends and receives {} per step (gradients and weights): {seconds:.3} s at {} GB/s",
        size(bytes),
        args.bandwidth
    ));
    Ok(())
}
