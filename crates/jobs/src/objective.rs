//! Builds the student's loss from `[objective]`.

use ddk_objective::Objective;

/// Returns the loss for these settings.
pub fn of_settings(objective: &ddk_settings::Objective) -> Objective {
    Objective {
        divergence: objective.divergence(),
        gamma: objective.gamma,
        temperature: objective.temperature,
        scale_by_temperature_squared: objective.scale_by_temperature_squared,
        layer_weight: if objective.has_layers() {
            objective.ted_weight
        } else {
            0.0
        },
    }
}
