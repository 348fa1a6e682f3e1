//! Every metric of DDK, declared once: name, unit, labels (with their values where these are known), help.
//! Each also has the label `run`. Names follow Prometheus' conventions: base units, `_total` for counters; no
//! label by step.
//!
//! The process's own metrics are not called `process_…`, because the node exporter, which may read them from
//! a file, has metrics of these names already.

mod kinds;

pub(crate) use self::kinds::describe;
pub use self::kinds::{CounterOf, GaugeOf, HistogramOf, Kind, LabelOf, Metric, SampledOf, Unit};

/// Declares the handles and the table of all of them.
macro_rules! declare {
    ($(
        $handle:ident: $type:ident $kind:ident $name:literal $unit:ident
        [$($label:ident $(= $($value:ident)|+)?),*] $help:literal;
    )*) => {
        $(
            #[doc = $help]
            pub static $handle: $type = $type(Metric {
                name: $name,
                unit: Unit::$unit,
                help: $help,
                labels: &[$(LabelOf { name: stringify!($label), values: &[$($(stringify!($value)),+)?] }),*],
                kind: Kind::$kind,
                sampled: $type::SAMPLED,
            });
        )*
        /// All metrics.
        pub static ALL: &[&Metric] = &[$(&$handle.0),*];
    };
}

declare! {
    BUILD_INFO: GaugeOf Gauge "ddk_build_info" Plain [version] "Always 1; the version that runs.";
    READY: SampledOf Gauge "ddk_ready" Plain [] "1 while the run trains: models are loaded, workers are up.";
    START_TIME: SampledOf Gauge "ddk_start_timestamp_seconds" Seconds []
        "When this process began with the run, seconds since 1970.";

    STEPS: CounterOf Counter "ddk_steps_total" Count []
        "Optimizer steps made by this process, those made again after a restoration included.";
    STEP: GaugeOf Gauge "ddk_step" Plain [] "The last optimizer step.";
    STEP_LIMIT: GaugeOf Gauge "ddk_step_limit" Plain [] "The step at which the run ends, where it has one.";
    TOKENS: CounterOf Counter "ddk_tokens_total" Count [domain] "Tokens trained on, without padding.";
    TOKENS_PER_SECOND: GaugeOf Gauge "ddk_tokens_per_second" Plain []
        "Tokens trained on in a second, over the last step.";

    LOSS: GaugeOf Gauge "ddk_loss" Plain [term]
        "The last step's loss by term (total, ce, kl, and layer with TED), nats a prediction.";
    GRADIENT_NORM: GaugeOf Gauge "ddk_gradient_norm" Plain [] "The last step's global gradient norm before clipping.";
    LEARNING_RATE: GaugeOf Gauge "ddk_learning_rate" Plain [] "The last step's learning rate.";
    SKIPPED_UPDATES: CounterOf Counter "ddk_skipped_updates_total" Count [reason = not_finite | spike | skip_list]
        "Updates that were not made: a number was not finite, the loss was a spike, or the step's data is skipped.";
    SPIKES: CounterOf Counter "ddk_loss_spikes_total" Count [] "Losses that were spikes, by guard.spike_sigmas.";
    RESTORATIONS: CounterOf Counter "ddk_restorations_total" Count [reason = panic | numbers | memory]
        "Times that the last checkpoint was restored: the student or the batcher panicked, numbers went wrong, a \
         device ran out of memory.";
    ROLLED_BACK_UPDATES: CounterOf Counter "ddk_rolled_back_updates_total" Count []
        "Updates that were undone because the last checkpoint was restored.";

    PERPLEXITY: GaugeOf Gauge "ddk_perplexity" Plain [model = student | teacher, domain]
        "Perplexity on the domain's validation documents at the last evaluation.";
    RATIO: GaugeOf Gauge "ddk_perplexity_ratio" Ratio [domain]
        "Student's over teacher's perplexity at the last evaluation.";
    WEIGHT: GaugeOf Gauge "ddk_mixture_weight" Ratio [domain] "The domain's weight in the mixture.";
    TARGET: GaugeOf Gauge "ddk_mixture_target" Ratio [domain]
        "The domain's share of the interval's rows, after limits.";
    REALISED: GaugeOf Gauge "ddk_mixture_realised" Ratio [domain]
        "The domain's share of the tokens trained on in this interval so far.";
    WEIGHT_LIMIT: GaugeOf Gauge "ddk_mixture_weight_limit" Ratio [limit = floor | cap]
        "The least and the most that a weight can be, (1 - alpha)/N and alpha + (1 - alpha)/N.";
    MIXTURE_VERSION: GaugeOf Gauge "ddk_mixture_version" Plain [] "The version of the mixture in use: its interval.";
    MIXTURE_TIME: GaugeOf Gauge "ddk_mixture_timestamp_seconds" Seconds []
        "When the mixture was last set, seconds since 1970.";
    REFUSED_UPDATES: CounterOf Counter "ddk_mixture_refused_total" Count []
        "Mixture updates refused because a perplexity was not finite, or absurd.";
    PASSES: GaugeOf Gauge "ddk_domain_passes" Plain [domain] "Passes over the domain at the end of the last interval.";
    QUARANTINED: GaugeOf Gauge "ddk_quarantined_records" Count [domain] "Records of the domain that could not be used.";

    WORKER_BUSY: SampledOf Counter "ddk_worker_busy_seconds_total" Seconds [worker]
        "Seconds that the worker has computed.";
    WORKER_STARVED: SampledOf Counter "ddk_worker_starved_seconds_total" Seconds [worker]
        "Seconds that the worker has waited for input.";
    WORKER_BLOCKED: SampledOf Counter "ddk_worker_blocked_seconds_total" Seconds [worker]
        "Seconds that the worker has waited to hand on its output.";
    WORKER_STATE: SampledOf Gauge "ddk_worker_state" Plain [worker, state = computing | starved | blocked | stopped]
        "1 for what the worker does now, 0 for the others.";
    WORKER_HEARTBEAT: SampledOf Gauge "ddk_worker_heartbeat_age_seconds" Seconds [worker]
        "Seconds since the worker last said what it does; only computing for long is a bad sign.";
    WORKER_RESTARTS: CounterOf Counter "ddk_worker_restarts_total" Count [worker]
        "Restarts of the worker after a failure.";
    QUEUE_SENT: CounterOf Counter "ddk_queue_sent_total" Count
        [queue = sequences | micro_batches | teacher_outputs | checkpoints]
        "Items put into the queues of this kind.";
    QUEUE_RECEIVED: CounterOf Counter "ddk_queue_received_total" Count
        [queue = sequences | micro_batches | teacher_outputs | checkpoints]
        "Items taken out of the queues of this kind.";
    QUEUE_WAITING: GaugeOf Gauge "ddk_queue_waiting" Count
        [queue = sequences | micro_batches | teacher_outputs | checkpoints]
        "Items waiting in the queues of this kind, lanes and domains together.";

    WHOLE_STEP_SECONDS: HistogramOf Histogram "ddk_step_seconds" Seconds []
        "Seconds from an update to the next, evaluations and saves between them included.";
    STEP_SECONDS: HistogramOf Histogram "ddk_step_phase_seconds" Seconds
        [phase = data | teacher_wait | teacher | forward | head | backward | optimizer | evaluation | save]
        "Seconds of a step by phase. teacher_wait is for labels and, with run.take_turns, for a turn; teacher is the \
         teachers' own time, beside the student's; evaluation and save are only counted where there was one.";
    BOUNDARY_SECONDS: HistogramOf Histogram "ddk_boundary_seconds" Seconds []
        "Seconds from an interval's last update to the first micro-batch of the next.";
    MODEL_TOKENS: CounterOf Counter "ddk_model_tokens_total" Count [model = student | teacher]
        "Tokens that the model has processed, without padding and evaluations.";
    MODEL_FLOPS: GaugeOf Gauge "ddk_model_flops_per_second" Plain [model = student | teacher]
        "Floating-point operations of the model's matrix products in a second, over the last step, evaluations left \
         out.";
    MODEL_UTILISATION: GaugeOf Gauge "ddk_model_utilisation_ratio" Ratio [model = student | teacher]
        "Share of the last step's time that the model's lanes were busy, evaluations left out.";

    CHECKPOINT_SECONDS: HistogramOf Histogram "ddk_checkpoint_seconds" Seconds [] "Seconds of a save, beside training.";
    CHECKPOINT_BYTES: GaugeOf Gauge "ddk_checkpoint_bytes" Bytes [] "Bytes of the last checkpoint.";
    CHECKPOINT_STEP: GaugeOf Gauge "ddk_checkpoint_step" Plain []
        "The step of the last checkpoint; 0 where there is none.";
    CHECKPOINT_EVERY: GaugeOf Gauge "ddk_checkpoint_every_steps" Plain [] "Steps between two saves, as it is set now.";
    CHECKPOINT_TIME: GaugeOf Gauge "ddk_checkpoint_timestamp_seconds" Seconds []
        "When this process last completed a checkpoint, seconds since 1970.";
    CHECKPOINT_FAILURES: CounterOf Counter "ddk_checkpoint_failures_total" Count [] "Saves that failed.";

    RESIDENT: SampledOf Gauge "ddk_resident_memory_bytes" Bytes [] "Resident memory of the process.";
    PEAK_RESIDENT: SampledOf Gauge "ddk_peak_resident_memory_bytes" Bytes []
        "The largest resident memory of the process so far.";
    CPU_SECONDS: SampledOf Counter "ddk_cpu_seconds_total" Seconds [] "CPU time of the process, user and system.";
    OPEN_FILES: SampledOf Gauge "ddk_open_files" Count [] "Files that the process has open.";
    OPEN_FILES_LIMIT: SampledOf Gauge "ddk_open_files_limit" Count [] "Files that the process may have open.";
    DISK_FREE: SampledOf Gauge "ddk_disk_free_bytes" Bytes []
        "Bytes that the process may still write on the file system of the run's folder.";
    DISK_SIZE: SampledOf Gauge "ddk_disk_size_bytes" Bytes [] "Bytes of the file system of the run's folder.";
    DEVICE_MEMORY: SampledOf Gauge "ddk_device_memory_used_bytes" Bytes [device]
        "Memory of a GPU that the run uses, taken by any process (NVML).";
    DEVICE_MEMORY_SIZE: SampledOf Gauge "ddk_device_memory_size_bytes" Bytes [device]
        "Memory of a GPU that the run uses (NVML).";
    DEVICE_UTILISATION: SampledOf Gauge "ddk_device_utilisation_ratio" Ratio [device]
        "Share of the last moment in which the GPU ran anything (NVML).";
}

/// Metrics that are not there in every run, and when they are.
pub static SOMETIMES: &[(&str, &str)] = &[
    ("ddk_device_memory_used_bytes", "where NVML finds a GPU"),
    ("ddk_device_memory_size_bytes", "where NVML finds a GPU"),
    ("ddk_device_utilisation_ratio", "where NVML finds a GPU"),
];

/// docs/metrics.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Made from `crates/telemetry/src/metrics.rs`. Each metric also has the label `run`, the run's name. \
         A histogram `X` is `X_bucket`, `X_sum` and `X_count` to Prometheus.\n\n\
         | metric | kind | unit | labels | what |\n|---|---|---|---|---|\n",
    );
    for metric in ALL {
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|label| match label.values {
                [] => format!("`{}`", label.name),
                values => format!("`{}`: {}", label.name, values.join(", ")),
            })
            .collect();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | {} |\n",
            metric.name,
            format!("{:?}", metric.kind).to_lowercase(),
            match metric.unit {
                Unit::Plain => String::new(),
                unit => format!("{unit:?}").to_lowercase(),
            },
            labels.join("; "),
            metric.help
        ));
    }
    text.push_str("\nNot there in every run:\n\n");
    for (name, when) in SOMETIMES {
        text.push_str(&format!("- `{name}`: only {when}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "a name twice");
        for metric in ALL {
            let name = metric.name;
            let plain = |character: char| character.is_ascii_lowercase() || character == '_';
            assert!(
                name.starts_with("ddk_") && name.chars().all(plain),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            assert!(
                metric.kind != Kind::Histogram || name.ends_with("_seconds"),
                "{name}"
            );
            let stem = name.strip_suffix("_total").unwrap_or(name);
            match metric.unit {
                Unit::Seconds => assert!(stem.ends_with("_seconds"), "{name}"),
                Unit::Bytes => assert!(stem.ends_with("_bytes"), "{name}"),
                _ => assert!(
                    !(stem.ends_with("seconds") || stem.ends_with("bytes")),
                    "{name}"
                ),
            }
            assert!(
                metric.unit == Unit::Ratio || !name.ends_with("_ratio"),
                "{name}"
            );
            let step = |label: &LabelOf| label.name == "step" || label.name == "run";
            assert!(
                metric.help.ends_with('.') && !metric.labels.iter().any(step),
                "{name}"
            );
        }
        for (name, _) in SOMETIMES {
            assert!(ALL.iter().any(|metric| metric.name == *name), "{name}");
        }
    }
}
