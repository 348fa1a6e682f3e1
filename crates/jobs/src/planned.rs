//! Students that `ddk init` plans and `ddk shrink` makes.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use ddk_settings::Settings;

use crate::{
    args,
    hint::{Hint, quoted},
};

/// Returns the folder of a student that `ddk shrink` makes from a teacher of this name.
pub fn folder(teacher: &str, layers: usize) -> PathBuf {
    format!("models/{teacher}-{layers}-layers").into()
}

/// Returns the number of layers of a student that [`folder`] names; `None` for any other path.
fn layers(student: &Path) -> Option<usize> {
    let name = student.strip_prefix("models").ok()?.to_str()?;
    let (_, layers) = name.strip_suffix("-layers")?.rsplit_once('-')?;
    layers.parse().ok()
}

/// Checks that the student exists, if `ddk init` planned it.
///
/// # Errors
/// If `ddk shrink` has not made it yet.
pub(crate) fn is_made(settings: &Settings, config: &args::ConfigArgs) -> Result<()> {
    let Some(student) = settings.student.model.as_deref() else {
        return Ok(());
    };
    let Some(layers) = layers(student).filter(|_| !student.exists()) else {
        return Ok(());
    };
    let file = config.files.first();
    let file = file.map_or_else(|| "FILE".to_owned(), |file| quoted(file));
    Err(anyhow!(
        "the student {} does not exist yet",
        student.display()
    ))
    .hint(format!(
        "run `ddk shrink {file} --layers {layers}`, which makes it from the teacher"
    ))
    .usage()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_planned_names_say_their_layers() {
        assert_eq!(layers(&folder("Qwen2_5-1_5B", 14)), Some(14));
        for other in [
            "models/student",
            "models/qwen-x-layers",
            "runs/qwen-14-layers",
            "org/qwen-14-layers",
        ] {
            assert_eq!(layers(Path::new(other)), None, "{other}");
        }
    }
}
