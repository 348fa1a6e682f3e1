//! Builds the mixture policy from `[mixture]`.

use anyhow::{Context, Result};
use ddk_mixture::{
    Ddk, DdkNoSmoothing, DoremiProxy, Excess, Fixed, MixturePolicy, Needs, Odm, Policy, Sheared,
};
use ddk_objective::Detail;

use super::prepared::Prepared;

/// Returns the policy that a new run begins with.
pub(super) fn of_run(run: &Prepared) -> Result<Policy> {
    let (mixture, domains) = (&run.models.settings.mixture, &run.plan.domains);
    let (interval, first) = (mixture.interval, mixture.initial);
    let fixed = |shares: &[f64]| Policy::Fixed(Fixed::new(mixture.policy, shares, interval));
    Ok(match mixture.policy {
        MixturePolicy::Ddk => {
            let policy = Ddk::new(mixture.alpha, interval, first);
            Policy::Ddk(policy.with_temperature(mixture.temperature))
        }
        MixturePolicy::DdkNoSmoothing => {
            Policy::DdkNoSmoothing(DdkNoSmoothing::new(interval, first))
        }
        MixturePolicy::Excess => Policy::Excess(Excess::new(
            mixture.excess_alpha,
            mixture.excess_gain,
            interval,
            mixture.lag,
        )),
        MixturePolicy::Equal => fixed(&vec![1.0; domains.len()]),
        MixturePolicy::Natural => fixed(&run.plan.natural),
        MixturePolicy::Static => {
            let share = |name: &String| mixture.weights.as_ref()?.get(name).copied();
            let shares = domains.iter().map(|name| share(name).unwrap_or(0.0));
            fixed(&shares.collect::<Vec<_>>())
        }
        MixturePolicy::Sheared => {
            let reference = domains.iter();
            let reference = reference.map(|name| mixture.reference_loss.get(name).copied());
            Policy::Sheared(Sheared::new(interval, first, reference.collect()))
        }
        MixturePolicy::Odm => Policy::Odm(Odm::new(mixture.odm_smoothing)),
        MixturePolicy::Doremi => {
            let shares = run.doremi.as_deref();
            fixed(shares.context("the phases of DoReMi have not run yet")?)
        }
        MixturePolicy::DoremiProxy => Policy::DoremiProxy(DoremiProxy::new(
            mixture.doremi_eta,
            mixture.doremi_smoothing,
            (run.models.options.vocabulary as f64).ln(),
            first,
        )),
    })
}

/// Returns the per-sequence losses that a policy needs.
pub(super) fn row_losses(needs: Needs) -> Detail {
    match needs {
        Needs::Nothing | Needs::Perplexities => Detail::Sums,
        Needs::Losses => Detail::Positions,
        Needs::Excess => Detail::PositionsAndTeacher,
    }
}
