//! Tells paths from names on the Hugging Face Hub.

use std::path::Path;

/// Usual names of folders with models, which are no organizations.
const FOLDERS: [&str; 6] = [
    "checkpoints",
    "model",
    "models",
    "output",
    "outputs",
    "runs",
];

/// Returns whether a missing folder is more likely a misspelled path than a name on the Hub: it is beside other
/// folders, or in a folder with a usual name for models.
pub(crate) fn is_local(path: &Path) -> bool {
    let parent = path.components().next();
    parent.is_some_and(|parent| {
        let is_usual = FOLDERS
            .iter()
            .any(|folder| Path::new(folder) == Path::new(&parent));
        is_usual || Path::new(&parent).exists()
    })
}

/// Says that a path is taken for a name on the Hub.
pub(crate) fn not_here(path: &Path) -> String {
    format!(
        "there is no folder {} here: looking for this name on the Hugging Face Hub",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_for_models_and_a_folder_that_is_here_hold_paths() {
        assert!(is_local(Path::new("models/qwen")));
        assert!(is_local(Path::new("src/qwen")));
        assert!(!is_local(Path::new("Qwen/Qwen2.5-0.5B")));
    }
}
