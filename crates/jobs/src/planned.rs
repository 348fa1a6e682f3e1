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
/// folder to write, whose name may say a number.
///
/// # Errors
/// If the folder's name says another number, or if no layer would be left out.
pub(crate) fn to_keep(asked: Option<u64>, student: &Path, all: usize) -> Result<usize> {
    let named = layers(student);
    let asked = asked.map(usize::try_from).transpose()?;
    let count = asked.or(named).unwrap_or_else(|| kept(all));
    let name = student.display().to_string();
    let renamed = |count: usize| {
        let prefix = named.and_then(|named| name.strip_suffix(&format!("{named}-layers")));
        prefix.map(|prefix| format!("{prefix}{count}-layers"))
    };
    if all < 2 {
        let what = "the teacher has only one layer, so `ddk shrink` cannot leave one out";
        return Err(anyhow!(what)).usage();
    }
    if count >= all {
        let hint = match renamed(kept(all)) {
            Some(better) => format!("name the student's folder {better}"),
            None => format!("pass --layers with a number from 1 to {}", all - 1),
        };
        return Err(anyhow!(
            "cannot keep {count} layers: the teacher has {all}, and `ddk shrink` leaves out at least one"
        ))
        .hint(hint)
        .usage();
    }
    if let (Some(named), Some(better)) = (named.filter(|named| *named != count), renamed(count)) {
        let what = format!("the student's folder is {name}, but --layers is {count}");
        return Err(anyhow!(what))
            .hint(format!(
                "name it {better}, or leave out --layers to keep {named}"
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
        let (planned, other) = (folder("qwen", 10), Path::new("x"));
        assert_eq!(to_keep(None, &planned, 28).unwrap(), 10);
        assert_eq!(to_keep(Some(10), &planned, 28).unwrap(), 10);
        assert_eq!(to_keep(Some(7), other, 28).unwrap(), 7);
        assert_eq!(to_keep(None, other, 29).unwrap(), 15);
        let of_other = "name it models/qwen-12-layers, or leave out --layers to keep 10";
        for (asked, student, all, hint) in [
            (Some(12), &*planned, 28, of_other),
            (None, &planned, 8, "folder models/qwen-4-layers"),
            (Some(28), other, 28, "a number from 1 to 27"),
            (None, other, 1, "the teacher has only one layer"),
        ] {
            let text = crate::hint::render(&to_keep(asked, student, all).unwrap_err());
            assert!(text.contains(hint), "{text}");
        }
    }
}
