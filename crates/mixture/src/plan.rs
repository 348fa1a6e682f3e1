//! Plans the sequences of an interval: how many each domain may contribute, and their order.

/// Applies the epoch limits to the weights: no domain gets more sequences than it has left. The freed share goes to
/// the other domains in proportion to their weights, or equally if those are all 0. `rows_left` is `None` for a
/// domain without a limit.
///
/// If all domains together have fewer than `rows` sequences left, no mixture can keep the limits. The weights are
/// then returned unchanged, and the caller ends the run when the data is used up.
pub fn limit(weights: &[f64], rows_left: &[Option<u64>], rows: u64) -> Vec<f64> {
    let all_left = rows_left
        .iter()
        .try_fold(0_u64, |sum, left| Some(sum.saturating_add((*left)?)));
    if rows == 0 || all_left.is_some_and(|all_left| all_left < rows) {
        return weights.to_vec();
    }
    let cap = |domain: usize| rows_left[domain].map(|left| left as f64 / rows as f64);
    let mut target = weights.to_vec();
    let mut capped = vec![false; weights.len()];
    // Each round caps at least one more domain, or is the last.
    loop {
        let past: Vec<usize> = (0..weights.len())
            .filter(|&domain| {
                !capped[domain] && cap(domain).is_some_and(|cap| target[domain] > cap)
            })
            .collect();
        if past.is_empty() {
            return target;
        }
        for domain in past {
            capped[domain] = true;
        }
        let fixed: f64 = (0..weights.len())
            .filter(|&domain| capped[domain])
            .filter_map(cap)
            .sum();
        let free: Vec<usize> = (0..weights.len())
            .filter(|&domain| !capped[domain])
            .collect();
        let mass: f64 = free.iter().map(|&domain| weights[domain]).sum();
        // When the data is used up exactly, every domain may be at its limit. Then only a rounding error is left to
        // distribute.
        let freed = (1.0 - fixed).max(0.0);
        for domain in 0..weights.len() {
            target[domain] = match cap(domain) {
                Some(cap) if capped[domain] => cap,
                _ if mass > 0.0 => weights[domain] * freed / mass,
                _ => freed / free.len() as f64,
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
    ddk_order::shuffle(
        &mut order,
        &mut ddk_order::stream(seed, "interval order", &[interval]),
    );
    order
}
