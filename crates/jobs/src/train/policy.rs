//! Builds the mixture policy from `[mixture]`.

use anyhow::{Result, anyhow};
use ddk_engine::SequenceLosses;
use ddk_mixture::{
    Ddk, DdkNoSmoothing, DoremiProxy, Fixed, MixturePolicy, Needs, Odm, Policy, Sheared,
};
use ddk_settings::Mixture;

/// What a policy needs besides its settings.
pub(super) struct Ground<'a> {
    /// Names of the domains, sorted.
    pub(super) domains: &'a [String],
    /// Each domain's share of the corpus's tokens.
    pub(super) natural: &'a [f64],
    /// Number of logit columns in use.
    pub(super) vocabulary: i64,
    /// The mean weights of DoReMi's proxy, once it has run.
    pub(super) doremi: Option<&'a [f64]>,
}

/// Returns the policy of a new run.
pub(super) fn of_settings(mixture: &Mixture, ground: &Ground<'_>) -> Result<Box<dyn Policy>> {
    let interval = mixture.interval;
    let first = mixture.initial;
    let fixed = |shares: &[f64]| Box::new(Fixed::new(mixture.policy, shares, interval));
    Ok(match mixture.policy {
        MixturePolicy::Ddk => Box::new(Ddk::new(mixture.alpha, interval, first)),
        MixturePolicy::DdkNoSmoothing => Box::new(DdkNoSmoothing::new(interval, first)),
        MixturePolicy::Equal => fixed(&vec![1.0; ground.domains.len()]),
        MixturePolicy::Natural => fixed(ground.natural),
        MixturePolicy::Static => {
            let shares = mixture.weights.as_ref();
            let of = |name: &String| shares.and_then(|shares| shares.get(name).copied());
            let given: Vec<f64> = ground
                .domains
                .iter()
                .map(|name| of(name).unwrap_or(0.0))
                .collect();
            fixed(&given)
        }
        MixturePolicy::Sheared => {
            let reference = ground.domains.iter();
            let reference = reference.map(|name| mixture.reference_loss.get(name).copied());
            Box::new(Sheared::new(interval, first, reference.collect()))
        }
        MixturePolicy::Odm => Box::new(Odm::new(mixture.odm_smoothing)),
        MixturePolicy::Doremi => {
            let shares = ground
                .doremi
                .ok_or_else(|| anyhow!("the phases of DoReMi have not run yet"))?;
            fixed(shares)
        }
        MixturePolicy::DoremiProxy => Box::new(DoremiProxy::new(
            mixture.doremi_eta,
            mixture.doremi_smoothing,
            (ground.vocabulary as f64).ln(),
            first,
        )),
    })
}

/// Returns the per-sequence losses that a policy needs.
pub(super) fn row_losses(needs: Needs) -> SequenceLosses {
    match needs {
        Needs::Nothing | Needs::Perplexities => SequenceLosses::None,
        Needs::Losses => SequenceLosses::CrossEntropy,
        Needs::Excess => SequenceLosses::Excess,
    }
}
