//! Plans the sequences of an interval: how many each domain may contribute, and their order.

/// Applies the epoch limits to the weights: no domain gets more sequences than it has left. The freed share goes to
/// the other domains in proportion to their weights, or equally if those are all 0. `rows_left` is `None` for a
/// domain without a limit.
///
/// If all domains together have fewer than `rows` sequences left, no mixture can keep the limits. The weights are
/// then returned unchanged, and the caller ends the run when the data is used up.
pub fn limit(weights: &[f64], rows_left: &[Option<u64>], rows: u64) -> Vec<f64> {
    let add = |sum: u64, left: &Option<u64>| Some(sum.saturating_add((*left)?));
    let all_left = rows_left.iter().try_fold(0, add);
    if rows == 0 || all_left.is_some_and(|all_left| all_left < rows) {
        return weights.to_vec();
    }
    let cap = |left: &Option<u64>| left.map_or(f64::INFINITY, |left| left as f64 / rows as f64);
    let caps: Vec<f64> = rows_left.iter().map(cap).collect();
    let mut target = weights.to_vec();
    let mut free: Vec<usize> = (0..weights.len()).collect();
    // Each round caps at least one more domain, or is the last.
    loop {
        let is_past = |&domain: &usize| target[domain] > caps[domain];
        let (past, within): (Vec<usize>, _) = free.into_iter().partition(is_past);
        if past.is_empty() {
            return target;
        }
        free = within;
        for domain in past {
            target[domain] = caps[domain];
        }
        let capped = (0..weights.len()).filter(|domain| !free.contains(domain));
        let fixed: f64 = capped.map(|domain| caps[domain]).sum();
        let mass: f64 = free.iter().map(|&domain| weights[domain]).sum();
        // When the data is used up exactly, every domain may be at its limit. Then only a rounding error is left to
        // distribute.
        let freed = (1.0 - fixed).max(0.0);
        for &domain in &free {
            target[domain] = if mass > 0.0 {
                weights[domain] * freed / mass
            } else {
                freed / free.len() as f64
            };
        }
    }
}

/// Returns the domain of each sequence in an interval: `counts[domain]` of each, shuffled by (seed, interval).
pub fn interval_order(counts: &[u64], seed: u64, interval: u64) -> Vec<u16> {
    let mut order = Vec::with_capacity(counts.iter().sum::<u64>() as usize);
    for (domain, &count) in counts.iter().enumerate() {
        order.extend(std::iter::repeat_n(domain as u16, count as usize));
    }
    let mut stream = ddk_order::stream(seed, "interval order", &[interval]);
    ddk_order::shuffle(&mut order, &mut stream);
    order
}
