//! Students that `ddk init` plans and `ddk shrink` makes.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use ddk_settings::Settings;

use crate::{
    args,
    hint::{Hint, quoted},
};

/// Returns how many layers a student keeps of a teacher with this many, unless the user chooses a number.
pub fn kept(layers: usize) -> usize {
    layers.div_ceil(2)
}

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

/// Returns how many layers `ddk shrink` keeps of a teacher with `all` layers. `asked`: `--layers`. `student`: the
/// folder that the configuration names, if it is the one to write.
///
/// # Errors
/// If the folder's name says another number, or if no layer would be left out.
pub(crate) fn to_keep(asked: Option<u64>, student: Option<&Path>, all: usize) -> Result<usize> {
    let named = student.and_then(layers);
    let asked = asked.map(usize::try_from).transpose()?;
    let count = asked.or(named).unwrap_or_else(|| kept(all));
    if count >= all {
        return Err(anyhow!(
            "the teacher has {all} layers, so keeping {count} leaves none out"
        ))
        .hint(format!("pass --layers with a number from 1 to {}", all - 1))
        .usage();
    }
    if let (Some(folder), Some(named)) = (student, named.filter(|named| *named != count)) {
        let name = folder.display().to_string();
        let prefix = name.strip_suffix(&format!("{named}-layers"));
        let better = format!("{}{count}-layers", prefix.unwrap_or(&name));
        return Err(anyhow!("student.model is {name}, but --layers is {count}"))
            .hint(format!(
                "set student.model to {better}, or leave out --layers to keep {named}"
            ))
            .usage();
    }
    Ok(count)
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

    #[test]
    fn the_folder_says_how_many_layers_to_keep() {
        let planned = folder("qwen", 10);
        let planned = Some(planned.as_path());
        assert_eq!(to_keep(None, planned, 28).unwrap(), 10);
        assert_eq!(to_keep(Some(10), planned, 28).unwrap(), 10);
        assert_eq!(to_keep(Some(7), None, 28).unwrap(), 7);
        assert_eq!(to_keep(None, Some(Path::new("x")), 29).unwrap(), 15);
        let error = to_keep(Some(12), planned, 28).unwrap_err();
        let text = crate::hint::render(&error);
        let hint = "set student.model to models/qwen-12-layers, or leave out --layers to keep 10";
        assert!(text.contains(hint), "{text}");
        for (asked, all) in [(Some(28), 28), (None, 1)] {
            to_keep(asked, None, all).unwrap_err();
        }
    }
}
