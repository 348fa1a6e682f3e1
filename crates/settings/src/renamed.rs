//! Earlier names of keys, and of words that are values.

use crate::keys::matches;

/// One key per line: its earlier name, its current name, and how its values changed.
const RENAMED: &str = "\
batch.micro_rows                 training.micro_batch_size
batch.rows                       training.global_batch_size
checkpoint.every                 checkpoint.interval
checkpoint.keep                  checkpoint.keep_latest
corpus.end_token                 corpus.eos_token
corpus.folder                    corpus.dir
corpus.max_bad_share             corpus.max_bad_fraction
corpus.validation_by             corpus.validation_split
corpus.validation_share          corpus.validation_fraction
corpus.when_stale                corpus.on_stale
domains.*.domain_field           domains.*.filter_field
domains.*.domain_value           domains.*.filter_value
domains.*.prompt                 domains.*.prompt_template
domains.*.text                   domains.*.text_template
evaluation.batch_rows            evaluation.batch_size
evaluation.every                 evaluation.interval
faults.plan                      fault_injection.plan
guard.compute_limit_seconds      recovery.watchdog_seconds
guard.grace_seconds              recovery.shutdown_grace_seconds
guard.max_rollbacks              recovery.max_rollbacks
guard.max_skipped                recovery.max_consecutive_skips
guard.spike                      recovery.spike_action
guard.spike_from                 recovery.spike_min_history
guard.spike_sigmas               recovery.spike_threshold
guard.spike_window               recovery.spike_window
log.line_seconds                 log.interval_seconds
mixture.first                    mixture.initial
mixture.max_passes               mixture.max_epochs
mixture.shares                   mixture.weights
objective.chunk                  objective.chunk_size
objective.mask_prompt            objective.completion_only_loss
objective.temperature_squared    objective.scale_by_temperature_squared
pretrain.*.architecture.heads    pretrain.*.architecture.num_attention_heads
pretrain.*.architecture.kv_heads pretrain.*.architecture.num_key_value_heads
pretrain.*.architecture.layers   pretrain.*.architecture.num_hidden_layers
pretrain.*.architecture.tie      pretrain.*.architecture.tie_word_embeddings
pretrain.*.init                  pretrain.*.init_from
pretrain.*.lr_end                pretrain.*.min_lr
pretrain.*.micro_rows            pretrain.*.micro_batch_size
pretrain.*.out                   pretrain.*.output_dir
pretrain.*.rows                  pretrain.*.global_batch_size
pretrain.*.shares                pretrain.*.weights
queues.depth                     pipeline.queue_depth
run.folder                       run.output_dir
run.stop_ratio                   run.target_gap, in nats: the logarithm of the ratio
run.take_turns                   pipeline.time_slicing
run.threads                      pipeline.threads, with `manual` instead of `given`
run.trace                        log.samples
student.beta1                    optimizer.beta1
student.beta2                    optimizer.beta2
student.clip_norm                optimizer.max_grad_norm
student.epsilon                  optimizer.eps
student.lr                       optimizer.lr
student.lr_end                   lr_scheduler.min_lr
student.recompute                student.activation_checkpointing
student.schedule_steps           lr_scheduler.total_steps
student.warmup_steps             lr_scheduler.warmup_steps
student.weight_decay             optimizer.weight_decay
teacher.batch_rows               teacher.batch_size
teacher.lanes                    teacher.devices, with one entry per replica
telemetry.address                telemetry.listen
telemetry.file                   telemetry.metrics_file";

/// One word per line: its key's current name, the earlier word, and the current one.
const WORDS: &str = "\
corpus.on_stale         refuse   error
corpus.packing          document concat_masked
corpus.validation_split share    fraction
pipeline.threads        given    manual";

/// All renamed words: the key, the earlier word, and the current one.
pub(crate) fn words() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    WORDS.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?, words.next()?, words.next()?))
    })
}

/// Returns the current word for an earlier one.
pub(crate) fn new_word(path: &[&str], word: &str) -> Option<&'static str> {
    let mut words = words();
    let found = words.find(|(key, old, _)| matches(key, path) && *old == word);
    found.map(|(.., new)| new)
}

fn renamed() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    RENAMED.lines().filter_map(|line| {
        let (old, new) = line.split_once(' ')?;
        let (new, note) = new.split_at(new.find(',').unwrap_or(new.len()));
        Some((old, new.trim_start(), note))
    })
}

/// Returns an error message with the current name of a renamed key.
pub(crate) fn new_name(path: &[&str]) -> Option<String> {
    let (_, new, note) = renamed().find(|(old, ..)| matches(old, path))?;
    // The name that the user chose, as in `domains.math.text`.
    let new = new.replace('*', path.get(1)?);
    Some(format!("`{}` is now `{new}`{note}", path.join(".")))
}

/// Returns the pattern of a renamed key, and the segments of its current name.
pub(crate) fn new_path(path: &[&str]) -> Option<(&'static str, Vec<String>)> {
    let (old, new, _) = renamed().find(|(old, ..)| matches(old, path))?;
    // The name that the user chose stays.
    let own = path.get(1).copied().unwrap_or_default();
    let segments = new.split('.');
    let segments = segments.map(|segment| if segment == "*" { own } else { segment }.to_owned());
    Some((old, segments.collect()))
}

/// Whether a table had keys in earlier versions.
pub(crate) fn was_table(name: &str) -> bool {
    let mut old = renamed().filter_map(|(old, ..)| old.split_once('.'));
    old.any(|(table, _)| table == name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::keys;

    #[test]
    fn each_new_name_is_a_key_and_no_earlier_name_is() {
        let is_key =
            |name: &str| keys().any(|key| key.path == name || key.path == format!("{name}.*"));
        for (old, new, _) in renamed() {
            assert!(is_key(new) && !is_key(old), "{old} {new}");
        }
    }

    #[test]
    fn each_new_word_is_a_choice_and_no_earlier_word_is() {
        for (path, old, new) in words() {
            let key = keys().find(|key| key.path == path).unwrap();
            let has = |word: &str| key.choices.iter().any(|choice| choice == word);
            assert!(has(new) && !has(old), "{path} {old} {new}");
        }
        assert_eq!(words().count(), 4);
    }
}
