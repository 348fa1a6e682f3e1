//! Names of the folders within the folder of checkpoints.

/// `step-00001000`: a checkpoint.
pub(super) fn of_step(step: u64) -> String {
    format!("step-{step:08}")
}

/// Parses the step from a checkpoint's name.
pub(super) fn step(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (of_step(step) == name).then_some(step)
}

/// `.step-00001000.old`: a checkpoint that a new one of the same step is replacing.
pub(super) fn of_replaced(step: u64) -> String {
    format!(".{}.old", of_step(step))
}

/// Parses the step from a replaced checkpoint's name.
pub(super) fn replaced_step(name: &str) -> Option<u64> {
    step(name.strip_prefix('.')?.strip_suffix(".old")?)
}

/// `aside-step-00001000`, `aside-step-00001000-2`, …: the n-th set-aside checkpoint of the step, from 1.
pub(super) fn of_set_aside(step: u64, number: u64) -> String {
    match number {
        0 | 1 => format!("aside-{}", of_step(step)),
        _ => format!("aside-{}-{number}", of_step(step)),
    }
}

/// Parses the step and number from a set-aside checkpoint's name.
pub(super) fn set_aside(name: &str) -> Option<(u64, u64)> {
    let rest = name.strip_prefix("aside-")?;
    if let Some(step) = step(rest) {
        return Some((step, 1));
    }
    let (name, number) = rest.rsplit_once('-')?;
    Some((step(name)?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_others_are_none() {
        assert_eq!(step("step-00001000"), Some(1000));
        assert_eq!(step("step-123456789"), Some(123_456_789));
        for other in [
            "step-1000",
            "step-",
            "aside-step-00001000",
            ".step-00001000.old",
        ] {
            assert_eq!(step(other), None, "{other}");
        }
        assert_eq!(replaced_step(".step-00000007.old"), Some(7));
        assert_eq!(replaced_step(".step-00000007.tmp"), None);
        assert_eq!(set_aside("aside-step-00000007"), Some((7, 1)));
        assert_eq!(set_aside("aside-step-00000007-3"), Some((7, 3)));
        assert_eq!(set_aside("step-00000007"), None);
        assert_eq!(set_aside(&of_set_aside(12, 2)), Some((12, 2)));
    }
}
