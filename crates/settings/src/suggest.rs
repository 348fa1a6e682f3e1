//! Finds the keys that someone means who knows another trainer, or who leaves out the table.

use crate::keys::keys;

/// Names of other trainers, and the keys that set the same.
const ALIASES: &[(&str, &str)] = &[
    ("accumulation_steps", "training.global_batch_size"),
    ("adam_beta1", "optimizer.beta1"),
    ("adam_beta2", "optimizer.beta2"),
    ("adam_epsilon", "optimizer.eps"),
    ("assistant_only_loss", "objective.completion_only_loss"),
    ("bf16", "student.dtype"),
    ("early_stopping_patience", "run.patience"),
    ("epochs", "mixture.max_epochs"),
    ("eval_steps", "evaluation.interval"),
    ("gradient_accumulation_steps", "training.global_batch_size"),
    ("gradient_checkpointing", "student.activation_checkpointing"),
    ("learning_rate", "optimizer.lr"),
    ("lr_scheduler_type", "lr_scheduler.type"),
    ("max_length", "corpus.sequence_length"),
    ("max_seq_length", "corpus.sequence_length"),
    ("num_train_epochs", "mixture.max_epochs"),
    ("per_device_train_batch_size", "training.micro_batch_size"),
    ("save_steps", "checkpoint.interval"),
    ("save_total_limit", "checkpoint.keep_latest"),
    ("seq_length", "corpus.sequence_length"),
];

/// Most keys that a suggestion names.
const MOST: usize = 4;

/// Whether a key's name ends in several words that a user takes for the whole: `batch_size` of `global_batch_size`. One
/// word says too little: `lr` means `optimizer.lr`, not `lr_scheduler.min_lr`.
pub(crate) fn is_end(key: &str, name: &str) -> bool {
    let start = key.strip_suffix(name);
    name.contains('_') && start.is_some_and(|start| start.ends_with('_'))
}

/// Returns the keys with this name in any table, or with names that end so, or that set what other trainers call so.
/// Empty if there are none, or too many to help.
pub fn suggested(name: &str) -> Vec<&'static str> {
    let name = name.replace('-', "_");
    let alias = ALIASES.iter().find(|(other, _)| *other == name);
    if let Some((_, key)) = alias {
        return vec![key];
    }
    let is_named = |path: &str| path.rsplit_once('.').is_some_and(|(_, last)| last == name);
    let ends = |path: &str| {
        path.rsplit_once('.')
            .is_some_and(|(_, last)| is_end(last, &name))
    };
    // A table that the user names is not what a key alone means.
    let found = keys().map(|key| key.path.as_str());
    let found = found.filter(|path| (is_named(path) || ends(path)) && !path.contains('*'));
    let found: Vec<&str> = found.collect();
    if found.len() > MOST {
        return Vec::new();
    }
    found
}

/// Suggests the number format that a word of PyTorch means, if these are number formats.
pub(crate) fn dtype(word: &str, choices: &[&str]) -> Option<String> {
    let meant = match word.trim_start_matches("torch.") {
        "bfloat16" => "bf16",
        "float32" | "float" => "fp32",
        "float16" | "half" | "fp16" => "fp16",
        _ => return None,
    };
    if choices.contains(&meant) {
        return Some(format!(" (did you mean `{meant}`?)"));
    }
    let is_dtype = ["fp32", "bf16"].iter().all(|dtype| choices.contains(dtype));
    is_dtype.then(|| format!(" ({meant} is not supported: use `bf16` or `fp32`)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_alias_is_the_name_of_no_key_and_stands_for_one() {
        for (name, path) in ALIASES {
            assert!(keys().any(|key| key.path == *path), "{path}");
            let last = |key: &str| key.rsplit('.').next() == Some(name);
            assert!(!keys().any(|key| last(&key.path)), "{name}");
        }
    }

    #[test]
    fn words_of_pytorch_for_number_formats_are_understood() {
        let choices = ["fp32", "bf16"];
        for (word, expected) in [
            ("bfloat16", Some(" (did you mean `bf16`?)")),
            ("torch.float32", Some(" (did you mean `fp32`?)")),
            (
                "float16",
                Some(" (fp16 is not supported: use `bf16` or `fp32`)"),
            ),
            ("int8", None),
        ] {
            assert_eq!(dtype(word, &choices).as_deref(), expected);
        }
        assert_eq!(dtype("float16", &["ddk", "excess"]), None);
    }

    #[test]
    fn a_name_without_its_table_is_found() {
        assert_eq!(suggested("lr"), ["optimizer.lr"]);
        assert_eq!(suggested("learning-rate"), ["optimizer.lr"]);
        let threads = ["teacher.threads", "student.threads", "pipeline.threads"];
        let mut found = suggested("threads");
        found.sort_by_key(|key| threads.iter().position(|other| other == key));
        assert_eq!(found, threads);
        assert_eq!(suggested("stripes"), Vec::<&str>::new());
        let mut sizes = suggested("batch-size");
        sizes.sort_unstable();
        assert_eq!(
            sizes,
            [
                "evaluation.batch_size",
                "teacher.batch_size",
                "training.global_batch_size",
                "training.micro_batch_size"
            ][..]
        );
    }
}
