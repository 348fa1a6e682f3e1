//! The rows of an interval: how many may be drawn, and in which order.

/// The weights after the limit on passes: no domain is given more rows than it has left; the share that this frees goes to
/// the others in proportion to their weights. `rows_left` is `None` where a domain has no limit.
///
/// Where all domains together have too few rows, the weights are kept as they are for those that have any left: the caller
/// ends the run when the data is used up.
pub fn limit(weights: &[f64], rows_left: &[Option<u64>], rows: u64) -> Vec<f64> {
    let cap = |domain: usize| rows_left[domain].map(|left| left as f64 / rows.max(1) as f64);
    let mut target = weights.to_vec();
    let mut capped = vec![false; weights.len()];
    loop {
        let mut newly_capped = false;
        for domain in 0..weights.len() {
            if let Some(cap) = cap(domain)
                && !capped[domain]
                && target[domain] > cap
            {
                capped[domain] = true;
                newly_capped = true;
            }
        }
        if !newly_capped {
            return target;
        }
        let fixed: f64 = (0..weights.len())
            .filter(|&domain| capped[domain])
            .filter_map(cap)
            .sum();
        let free: f64 = (0..weights.len())
            .filter(|&domain| !capped[domain])
            .map(|domain| weights[domain])
            .sum();
        if free <= 0.0 || fixed > 1.0 {
            return weights.to_vec();
        }
        for domain in 0..weights.len() {
            target[domain] = match cap(domain) {
                Some(cap) if capped[domain] => cap,
                _ => weights[domain] * (1.0 - fixed) / free,
            };
        }
    }
}

/// The domain of each row of an interval: `counts[domain]` rows of each, shuffled by (seed, interval).
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
