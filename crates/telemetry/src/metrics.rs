//! Declares every metric of DDK once: name, unit, labels (with their values if these are known), help, and panel on
//! the dashboard. Each metric also has the label `run`. Names follow Prometheus' conventions: base units, `_total` for
//! counters. No metric has a label by step.
//!
//! The process's own metrics are not called `process_…`. The node exporter, which may read them from a file, already
//! has metrics with these names.

mod kinds;

pub(crate) use self::kinds::describe;
pub use self::kinds::{
    CounterOf, GaugeOf, HistogramOf, Kind, LabelOf, Look, Metric, Panel, Row, SampledOf, Unit,
};

/// Declares the handles of the metrics and the table of all metrics. `=>` starts the dashboard panel of a metric.
/// Panels that show several metrics are in `tests/it/monitoring/dashboard.rs`.
macro_rules! declare {
    ($(
        $handle:ident: $type:ident $kind:ident $name:literal $unit:ident
        [$($label:ident $(= $($value:ident)|+)?),*] $help:literal
        $(=> $row:ident $look:ident $title:literal $look_for:literal)?;
    )*) => {
        $(
            #[doc = $help]
            pub static $handle: $type = $type(Metric {
                name: $name,
                unit: Unit::$unit,
                help: $help,
                labels: &[$(LabelOf { name: stringify!($label), values: &[$($(stringify!($value)),+)?] }),*],
                kind: Kind::$kind,
                sampled: declare!(@sampled $type),
                panel: declare!(@panel $($row $look $title $look_for)?),
            });
        )*
        /// All metrics.
        pub static ALL: &[&Metric] = &[$(&$handle.0),*];
    };
    (@sampled SampledOf) => { true };
    (@sampled $type:ident) => { false };
    (@panel) => { None };
    (@panel $row:ident $look:ident $title:literal $look_for:literal) => {
        Some(Panel {
            row: Row::$row,
            look: Look::$look,
            title: $title,
            look_for: $look_for,
        })
    };
}

declare! {
    BUILD_INFO: GaugeOf Gauge "ddk_build_info" Plain [version] "Always 1; the label is the running version.";
    READY: SampledOf Gauge "ddk_ready" Plain []
        "1 while the run trains (models loaded, workers running), otherwise 0.";
    START_TIME: SampledOf Gauge "ddk_start_timestamp_seconds" Seconds []
        "Unix time at which this process started.";

    STEPS: CounterOf Counter "ddk_steps_total" Count []
        "Optimizer steps of this process, including those repeated after a rewind.";
    STEP: GaugeOf Gauge "ddk_step" Plain [] "Last completed optimizer step.";
    MAX_STEPS: GaugeOf Gauge "ddk_max_steps" Plain [] "Step at which the run ends, if it has a limit.";
    TOKENS: CounterOf Counter "ddk_tokens_total" Count [domain] "Tokens trained on, without padding."
        => Data Stacked "Tokens per second by domain" "Follows the weights.";
    TOKENS_PER_SECOND: GaugeOf Gauge "ddk_tokens_per_second" Plain []
        "Training throughput of the last step, in tokens per second.";

    LOSS: GaugeOf Gauge "ddk_loss" Plain [term]
        "Loss of the last step by term (total, ce, kd, and layer with TED), in nats per prediction."
        => Learning Log "Loss by term" "All terms should fall, fast at first. A jump that stays is a problem; a jump \
        that recovers is a spike.";
    GRAD_NORM: GaugeOf Gauge "ddk_grad_norm" Plain [] "Global gradient norm of the last step, before clipping."
        => Learning Log "Gradient norm" "Before clipping. Steady, or slowly falling. If it climbs for long, the \
        learning rate is too high.";
    LEARNING_RATE: GaugeOf Gauge "ddk_learning_rate" Plain [] "Learning rate of the last step."
        => Learning Lines "Learning rate" "Warmup, then a cosine decay.";
    SKIPPED_UPDATES: CounterOf Counter "ddk_skipped_updates_total" Count [reason = not_finite | spike | skip_list]
        "Skipped updates: a loss or gradient was not finite, the loss spiked, or the step's data is on the skip list."
        => Learning Events "Skipped updates" "Nearly always none. not_finite: an overflow, or data that breaks the \
        model. skip_list: data that the run skips after a rewind.";
    SPIKES: CounterOf Counter "ddk_loss_spikes_total" Count []
        "Loss spikes, as defined by recovery.spike_threshold."
        => Learning Events "Spikes" "Losses far above those before them. One now and then recovers. Many in a row ask \
        for a lower learning rate, or for another recovery.spike_action.";
    REWINDS: CounterOf Counter "ddk_rewinds_total" Count [reason = panic | numbers | memory]
        "Rewinds to the last checkpoint: after a panic of the student or batcher, after spikes or skipped updates, or \
         when a device ran out of memory.";
    REWOUND_STEPS: CounterOf Counter "ddk_rewound_steps_total" Count []
        "Steps lost to rewinds."
        => Learning Events "Rewound steps" "At most the steps between two checkpoints, each time.";

    PERPLEXITY: GaugeOf Gauge "ddk_perplexity" Plain [model = student | teacher, domain]
        "Perplexity on the domain's validation documents at the last evaluation."
        => Domains Log "Perplexity" "The student's falls in every domain, to the teacher's at best. The teacher's \
        never changes within a run. A domain in which the teacher itself is bad has little to teach.";
    GAP: GaugeOf Gauge "ddk_gap_nats" Nats [domain]
        "ln(student's perplexity / teacher's) at the last evaluation, in nats per token."
        => Domains Lines "Gap" "ln(student's perplexity / teacher's); 0 is caught up. The mixture follows the largest. \
        A gap that grows belongs to a domain that is neglected or that others harm.";
    WEIGHT: GaugeOf Gauge "ddk_mixture_weight" Ratio [domain] "Weight of the domain in the mixture."
        => Mixture Stacked "Weights" "They should move toward the domains with the largest gap, smoothly, and not stay \
        at a limit.";
    TARGET: GaugeOf Gauge "ddk_mixture_target" Ratio [domain]
        "Target share of the domain in the interval's sequences, after limits such as mixture.max_epochs.";
    OBSERVED: GaugeOf Gauge "ddk_mixture_observed" Ratio [domain]
        "Share of the domain in the tokens of this interval so far.";
    WEIGHT_LIMIT: GaugeOf Gauge "ddk_mixture_weight_limit" Ratio [limit = floor | cap]
        "Minimum and maximum weight: (1 - alpha)/N and alpha + (1 - alpha)/N.";
    MIXTURE_INTERVAL: GaugeOf Gauge "ddk_mixture_interval" Plain [] "Index of the current interval."
        => Mixture Lines "Interval" "Rises by one with each update of the mixture.";
    MIXTURE_TIME: GaugeOf Gauge "ddk_mixture_timestamp_seconds" Seconds []
        "Unix time of the last mixture update."
        => Mixture Lines "Since the last update" "A sawtooth: rises to the length of an interval, then falls to 0.";
    REFUSED_UPDATES: CounterOf Counter "ddk_mixture_refused_total" Count []
        "Mixture updates that DDK rejected because a perplexity was not finite or not plausible."
        => Mixture Events "Refused updates" "None. A perplexity that is not finite or not plausible leaves the mixture \
        unchanged.";
    EPOCHS: GaugeOf Gauge "ddk_domain_epochs" Plain [domain] "Epochs of the domain at the end of the last interval."
        => Data Lines "Epochs" "A domain far above the others is small and drawn often. From four epochs on, a text \
        teaches little. mixture.max_epochs limits it.";
    QUARANTINED: GaugeOf Gauge "ddk_quarantined_records" Count [domain] "Unusable records of the domain."
        => Data Lines "Unusable records" "None, or few. quarantine.jsonl of the run names each with its reason.";

    WORKER_BUSY: SampledOf Counter "ddk_worker_busy_seconds_total" Seconds [worker]
        "Seconds that the worker has spent computing."
        => Throughput Lines "Workers: computing" "Share of the time that each worker computed.";
    WORKER_INPUT_WAIT: SampledOf Counter "ddk_worker_input_wait_seconds_total" Seconds [worker]
        "Seconds that the worker has waited for input.";
    WORKER_OUTPUT_WAIT: SampledOf Counter "ddk_worker_output_wait_seconds_total" Seconds [worker]
        "Seconds that the worker has waited to pass on its output.";
    WORKER_STATE: SampledOf Gauge "ddk_worker_state" Plain
        [worker, state = computing | input_wait | output_wait | stopped]
        "1 for the current state of the worker, 0 for the others.";
    WORKER_HEARTBEAT: SampledOf Gauge "ddk_worker_heartbeat_age_seconds" Seconds [worker]
        "Seconds since the worker last reported its state."
        => Health Log "Heartbeat age by worker" "A wait may be long, as a checkpointer's between two checkpoints. A \
        teacher or student that computes for minutes without a pause is stuck; /livez reports it after 15 minutes.";
    WORKER_RESTARTS: CounterOf Counter "ddk_worker_restarts_total" Count [worker]
        "Restarts of the worker after a failure.";
    QUEUE_SENT: CounterOf Counter "ddk_queue_sent_total" Count
        [queue = sequences | micro_batches | teacher_outputs | checkpoints]
        "Items added to queues of this kind.";
    QUEUE_RECEIVED: CounterOf Counter "ddk_queue_received_total" Count
        [queue = sequences | micro_batches | teacher_outputs | checkpoints]
        "Items removed from queues of this kind.";
    QUEUE_WAITING: GaugeOf Gauge "ddk_queue_waiting" Count
        [queue = sequences | micro_batches | teacher_outputs | checkpoints]
        "Items waiting in all queues of this kind."
        => Throughput Lines "Queues" "Full before a slow worker, empty behind it. micro_batches full and \
        teacher_outputs empty: the teacher is slow. teacher_outputs full: the student is.";

    WHOLE_STEP_SECONDS: HistogramOf Histogram "ddk_step_seconds" Seconds []
        "Seconds from one update to the next, including evaluations and checkpoints between them."
        => Throughput Lines "Step time" "Median and 95th percentile. A wide gap is unsteady: evaluations, checkpoints, \
        or other programs on the machine.";
    STEP_SECONDS: HistogramOf Histogram "ddk_step_phase_seconds" Seconds
        [phase = data | teacher_wait | teacher | forward | head | backward | exchange | optimizer | evaluation | save]
        "Seconds of a step by phase. teacher_wait: waiting for teacher outputs and, with pipeline.time_slicing, for a \
         turn. teacher: the teachers' compute time, in parallel with the student. exchange: between several ranks, \
         including the wait for the slowest. evaluation, save: only steps that have one.";
    RANK_SECONDS: GaugeOf Gauge "ddk_rank_seconds" Seconds [rank, part = busy | waiting | exchange]
        "Seconds of the last step by rank: its student computed (busy), waited for the teacher or for data (waiting), \
         or exchanged results with the other ranks at the end of the step before (exchange)."
        => Throughput Lines "Ranks: where a step's time goes" "All ranks alike. The rank with the shortest exchange is \
        the one that the others wait for. Empty if one process trains alone.";
    UPDATE_SECONDS: HistogramOf Histogram "ddk_mixture_update_seconds" Seconds []
        "Seconds from the last update of an interval to the first micro-batch of the next."
        => Throughput Lines "Mixture update" "Median and 95th percentile of the time from the last update of an \
        interval to the first micro-batch of the next: the student's evaluation, and the drained pipeline.";
    MODEL_TOKENS: CounterOf Counter "ddk_model_tokens_total" Count [model = student | teacher]
        "Tokens that the model has processed, excluding padding and evaluations."
        => Throughput Lines "Tokens per second by model" "Equal for both in the long run: the teacher runs ahead by no \
        more than the queues hold.";
    MODEL_FLOPS: GaugeOf Gauge "ddk_model_flops_per_second" Plain [model = student | teacher]
        "Floating-point operations per second of the model's matrix products in the last step, excluding evaluations."
        => Throughput Lines "FLOP/s by model" "Compare it with the device's peak. A fall at full utilization is a \
        slower device: heat, or a neighbor.";
    MODEL_UTILIZATION: GaugeOf Gauge "ddk_model_utilization_ratio" Ratio [model = student | teacher]
        "Share of the last step in which the model was computing, excluding evaluations."
        => Throughput Lines "Utilization by model" "The slower model should be near 100%. If neither is, look at the \
        waits below.";

    SERVER_SECONDS: HistogramOf Histogram "ddk_teacher_server_request_seconds" Seconds [server]
        "Seconds from sending a request to the teacher's server to receiving the whole answer."
        => TeacherOutputs Lines "Server: time per request" "Median and 95th percentile. If it rises while the \
        run stays the same, the server or network is busy.";
    SERVER_BYTES: CounterOf Counter "ddk_teacher_server_bytes_total" Bytes [server]
        "Bytes of hidden states that the teacher's server has sent."
        => TeacherOutputs Lines "Server: bytes per second" "Compare it with the network's bandwidth.";
    SERVER_RETRIES: CounterOf Counter "ddk_teacher_server_retries_total" Count [server]
        "Requests that DDK retried because the server failed or did not answer in time."
        => TeacherOutputs Events "Server: repeated requests" "None, or a few while a server restarts.";
    CACHE_SEQUENCES: CounterOf Counter "ddk_teacher_cache_sequences_total" Count [result = hit | miss]
        "Sequences that DDK looked up in the teacher's cache, and found (hit) or did not find (miss)."
        => TeacherOutputs Lines "Cache: sequences per second" "Misses fall to 0 once the cache has every sequence that \
        the run draws.";
    CACHE_BYTES: GaugeOf Gauge "ddk_teacher_cache_bytes" Bytes [] "Size of the run's label set on disk."
        => TeacherOutputs Lines "Cache: size" "Rises with the misses, up to teacher.cache.max_bytes.";

    CHECKPOINT_SECONDS: HistogramOf Histogram "ddk_checkpoint_seconds" Seconds []
        "Seconds to write a checkpoint in the background."
        => Machine Lines "Checkpoint time" "Median and 95th percentile, in the background.";
    CHECKPOINT_BYTES: GaugeOf Gauge "ddk_checkpoint_bytes" Bytes [] "Size of the last checkpoint.";
    CHECKPOINT_STEP: GaugeOf Gauge "ddk_checkpoint_step" Plain [] "Step of the last checkpoint; 0 if there is none.";
    CHECKPOINT_EVERY: GaugeOf Gauge "ddk_checkpoint_every_steps" Plain []
        "Current checkpoint.interval: steps between two checkpoints.";
    CHECKPOINT_TIME: GaugeOf Gauge "ddk_checkpoint_timestamp_seconds" Seconds []
        "Unix time of the last checkpoint that this process completed.";
    CHECKPOINT_FAILURES: CounterOf Counter "ddk_checkpoint_failures_total" Count []
        "Failed checkpoint writes.";

    RESIDENT: SampledOf Gauge "ddk_resident_memory_bytes" Bytes [] "Resident memory of the process.";
    PEAK_RESIDENT: SampledOf Gauge "ddk_peak_resident_memory_bytes" Bytes []
        "Largest resident memory of the process so far.";
    CPU_SECONDS: SampledOf Counter "ddk_cpu_seconds_total" Seconds []
        "CPU time of the process, user and system."
        => Machine Cores "CPU" "Cores in use. On the CPU: the threads of both models, and a little.";
    OPEN_FILES: SampledOf Gauge "ddk_open_files" Count [] "Open file descriptors of the process.";
    OPEN_FILES_LIMIT: SampledOf Gauge "ddk_open_files_limit" Count [] "Soft limit on open file descriptors.";
    DISK_FREE: SampledOf Gauge "ddk_disk_free_bytes" Bytes []
        "Free bytes available to the process on the file system of the run's folder.";
    DISK_SIZE: SampledOf Gauge "ddk_disk_size_bytes" Bytes [] "Size of the file system of the run's folder.";
    DEVICE_MEMORY: SampledOf Gauge "ddk_device_memory_used_bytes" Bytes [device]
        "GPU memory in use by all processes (NVML).";
    DEVICE_MEMORY_SIZE: SampledOf Gauge "ddk_device_memory_size_bytes" Bytes [device]
        "Total GPU memory (NVML).";
    DEVICE_UTILIZATION: SampledOf Gauge "ddk_device_utilization_ratio" Ratio [device]
        "Share of NVML's last sampling period in which the GPU ran a kernel."
        => Machine Lines "GPU utilization" "Near 100% on the slower model's GPU. Empty without a GPU.";
}

/// Metrics, or values of their labels, that only some runs have, and when.
pub static SOMETIMES: &[(&str, &str)] = &[
    ("ddk_teacher_server_request_seconds", "with teacher.servers"),
    ("ddk_teacher_server_bytes_total", "with teacher.servers"),
    ("ddk_teacher_server_retries_total", "with teacher.servers"),
    ("ddk_teacher_cache_bytes", "with teacher.cache"),
    ("ddk_rank_seconds", "with several ranks"),
    (
        "ddk_step_phase_seconds{phase=\"exchange\"}",
        "with several ranks",
    ),
    ("ddk_device_memory_used_bytes", "if NVML finds a GPU"),
    ("ddk_device_memory_size_bytes", "if NVML finds a GPU"),
    ("ddk_device_utilization_ratio", "if NVML finds a GPU"),
];

/// Generates docs/metrics.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from `crates/telemetry/src/metrics.rs` by `make generate`. Each metric also has the label `run`, \
         the name of the run. In Prometheus, a histogram `X` has the series `X_bucket`, `X_sum` and `X_count`.\n\n\
         | metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n",
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
    text.push_str("\nOnly in some runs:\n\n");
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
            let name = name.split('{').next().unwrap();
            assert!(ALL.iter().any(|metric| metric.name == name), "{name}");
        }
    }
}
