//! What the student minimises, as `[objective]` says.

use ddk_objective::{Divergence, Objective};
use ddk_settings::ObjectiveName;

/// The loss of a run with these settings.
pub fn of_settings(objective: &ddk_settings::Objective) -> Objective {
    let skew = objective.skew;
    let divergence = match objective.name {
        ObjectiveName::Ce | ObjectiveName::TedFilters => None,
        ObjectiveName::ForwardKl | ObjectiveName::Ted => Some(Divergence::ForwardKl),
        ObjectiveName::ReverseKl => Some(Divergence::ReverseKl),
        ObjectiveName::Jsd => Some(Divergence::Jsd {
            beta: objective.beta,
        }),
        ObjectiveName::SkewKl => Some(Divergence::SkewKl { skew }),
        ObjectiveName::SkewReverseKl => Some(Divergence::SkewReverseKl { skew }),
        ObjectiveName::Tvd => Some(Divergence::TotalVariation),
    };
    Objective {
        divergence,
        gamma: objective.gamma,
        temperature: objective.temperature,
        temperature_squared: objective.temperature_squared,
        layer_weight: match objective.name {
            ObjectiveName::Ted | ObjectiveName::TedFilters => objective.ted_weight,
            _ => 0.0,
        },
    }
}
