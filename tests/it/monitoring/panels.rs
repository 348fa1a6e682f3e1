//! The panels of the dashboard, row by row: what a person sees in ten seconds is on top.

use super::layout::{
    Kind::{Lines, Log, Number, Plain, Stacked, States},
    Spec,
};

pub const ROWS: &[(&str, &[Spec])] = &[
    ("Health", HEALTH),
    ("Learning", LEARNING),
    ("Mixture", MIXTURE),
    ("Throughput, and where the time goes", THROUGHPUT),
    ("Domains", DOMAINS),
    ("Data", DATA),
    ("Machine", MACHINE),
];

const HEALTH: &[Spec] = &[
    Spec {
        title: "Training",
        look_for: "1 while the run trains; 0 while it starts, ends, or rewinds.",
        kind: Number(1.0, 0.5),
        unit: "none",
        queries: &[("ddk_ready{@}", "{{run}}")],
    },
    Spec {
        title: "Done",
        look_for: "Share of the run's steps that are made.",
        kind: Plain,
        unit: "percentunit",
        queries: &[("ddk_step{@} / ddk_step_limit{@}", "{{run}}")],
    },
    Spec {
        title: "Time left",
        look_for: "At the speed of the last ten minutes. Runs that also end by a token budget or a ratio may \
                   end earlier.",
        kind: Plain,
        unit: "s",
        queries: &[(
            "(ddk_step_limit{@} - ddk_step{@}) / rate(ddk_steps_total{@}[10m])",
            "{{run}}",
        )],
    },
    Spec {
        title: "Last checkpoint",
        look_for: "What a crash would cost. It rises to the time between two saves and falls to nothing; where \
                   it keeps rising, saves fail or hang.",
        kind: Plain,
        unit: "s",
        queries: &[("time() - ddk_checkpoint_timestamp_seconds{@}", "{{run}}")],
    },
    Spec {
        title: "Incidents in an hour",
        look_for: "Restarts, restorations, refused mixtures, failed saves. 0 is normal; events.jsonl of the run \
                   says what each was.",
        kind: Number(1.0, 5.0),
        unit: "none",
        queries: &[(
            "sum by (run) (increase(ddk_worker_restarts_total{@}[1h])) + on (run) sum by (run) \
             (increase(ddk_restorations_total{@}[1h])) + on (run) sum by (run) \
             (increase(ddk_mixture_refused_total{@}[1h])) + on (run) sum by (run) \
             (increase(ddk_checkpoint_failures_total{@}[1h]))",
            "{{run}}",
        )],
    },
    Spec {
        title: "Alerts",
        look_for: "Alerts of DDK that fire now. docs/runbook.md says for each what it means and what to do.",
        kind: Number(1.0, 3.0),
        unit: "none",
        queries: &[(
            "count(ALERTS{alertname=~\"Ddk.*\", alertstate=\"firing\"}) or vector(0)",
            "alerts",
        )],
    },
    Spec {
        title: "Progress",
        look_for: "Steps made, the last one that is saved, and the step at which the run ends. A flat line is a \
                   run that stands still.",
        kind: Lines,
        unit: "none",
        queries: &[
            ("ddk_step{@}", "{{run}} made"),
            ("ddk_checkpoint_step{@}", "{{run}} saved"),
            ("ddk_step_limit{@}", "{{run}} end"),
        ],
    },
    Spec {
        title: "Incidents",
        look_for: "What went wrong, by kind. Each point is the last five minutes.",
        kind: Lines,
        unit: "none",
        queries: &[
            (
                "sum by (run, worker) (increase(ddk_worker_restarts_total{@}[5m]))",
                "{{run}} {{worker}} restarted",
            ),
            (
                "sum by (run, reason) (increase(ddk_restorations_total{@}[5m]))",
                "{{run}} restored: {{reason}}",
            ),
            (
                "increase(ddk_checkpoint_failures_total{@}[5m])",
                "{{run}} save failed",
            ),
        ],
    },
    Spec {
        title: "Seconds since a worker said something",
        look_for: "Waiting may take long (a checkpointer between two saves); a teacher or student that computes \
                   for minutes at a stretch is stuck. /livez says so after 15 minutes.",
        kind: Log,
        unit: "s",
        queries: &[("ddk_worker_heartbeat_age_seconds{@}", "{{run}} {{worker}}")],
    },
];

const LEARNING: &[Spec] = &[
    Spec {
        title: "Loss by term",
        look_for: "Nats a prediction. All terms should fall, fast at first; a jump that stays is a problem, a \
                   jump that heals a spike.",
        kind: Lines,
        unit: "none",
        queries: &[("ddk_loss{@}", "{{run}} {{term}}")],
    },
    Spec {
        title: "Gradient norm",
        look_for: "Before clipping. Steady, or slowly falling; where it climbs for long, the learning rate is \
                   too high.",
        kind: Log,
        unit: "none",
        queries: &[("ddk_gradient_norm{@}", "{{run}}")],
    },
    Spec {
        title: "Learning rate",
        look_for: "Warm-up, then a cosine to its end.",
        kind: Lines,
        unit: "sci",
        queries: &[("ddk_learning_rate{@}", "{{run}}")],
    },
    Spec {
        title: "Updates that were not made",
        look_for: "Nearly always none. not_finite: overflow, or data that breaks the model; skip_list: data \
                   that is skipped after a rewind.",
        kind: Lines,
        unit: "none",
        queries: &[(
            "increase(ddk_skipped_updates_total{@}[5m])",
            "{{run}} {{reason}}",
        )],
    },
    Spec {
        title: "Updates that were undone",
        look_for: "Work lost to rewinds: at most the steps between two saves, each time.",
        kind: Lines,
        unit: "none",
        queries: &[("increase(ddk_rolled_back_updates_total{@}[5m])", "{{run}}")],
    },
    Spec {
        title: "Spikes",
        look_for: "Losses far above those before them. One now and then heals; many in a row ask for a lower \
                   learning rate, or for another guard.spike.",
        kind: Lines,
        unit: "none",
        queries: &[("increase(ddk_loss_spikes_total{@}[5m])", "{{run}}")],
    },
];

const MIXTURE: &[Spec] = &[
    Spec {
        title: "Weights",
        look_for: "Each domain's weight. They should move towards the domains with the largest ratio, smoothly, \
                   and not stick to a limit.",
        kind: Stacked,
        unit: "percentunit",
        queries: &[("ddk_mixture_weight{@}", "{{run}} {{domain}}")],
    },
    Spec {
        title: "Weights and their limits",
        look_for: "A domain at the cap is one that the mixture cannot help; one at the floor is done. alpha sets both.",
        kind: Lines,
        unit: "percentunit",
        queries: &[
            ("ddk_mixture_weight{@}", "{{run}} {{domain}}"),
            ("ddk_mixture_weight_limit{@}", "{{run}} {{limit}}"),
        ],
    },
    Spec {
        title: "Realised less target",
        look_for: "Near 0 at the end of each interval: the quota is exact in rows. Before that, and by padding, \
                   it is off by a little.",
        kind: Lines,
        unit: "percentunit",
        queries: &[(
            "ddk_mixture_realised{@} - ddk_mixture_target{@}",
            "{{run}} {{domain}}",
        )],
    },
    Spec {
        title: "Version",
        look_for: "Rises by one an interval.",
        kind: Lines,
        unit: "none",
        queries: &[("ddk_mixture_version{@}", "{{run}}")],
    },
    Spec {
        title: "Since the last update",
        look_for: "A saw: rises to the time of an interval, then falls to 0.",
        kind: Lines,
        unit: "s",
        queries: &[("time() - ddk_mixture_timestamp_seconds{@}", "{{run}}")],
    },
    Spec {
        title: "Updates that were refused",
        look_for: "None. A perplexity that is not finite, or absurd, leaves the mixture as it is.",
        kind: Lines,
        unit: "none",
        queries: &[("increase(ddk_mixture_refused_total{@}[1h])", "{{run}}")],
    },
];

const THROUGHPUT: &[Spec] = &[
    Spec {
        title: "Tokens per second",
        look_for: "Flat. A drop with a busy teacher is a slow teacher; with a starved teacher, slow data. Dips \
                   at the intervals' ends are evaluations.",
        kind: Lines,
        unit: "none",
        queries: &[
            ("sum by (run) (rate(ddk_tokens_total{@}[$w]))", "{{run}}"),
            ("ddk_tokens_per_second{@}", "{{run}} last step"),
        ],
    },
    Spec {
        title: "Tokens per second by model",
        look_for: "The same for both in the long run: the teacher runs ahead by no more than the queues hold.",
        kind: Lines,
        unit: "none",
        queries: &[("rate(ddk_model_tokens_total{@}[$w])", "{{run}} {{model}}")],
    },
    Spec {
        title: "FLOP/s by model",
        look_for: "Floating-point operations of the matrix products. Held against what the device can do, it \
                   says how well it is used; a fall with full utilisation is a slower device: heat, or a \
                   neighbor.",
        kind: Lines,
        unit: "flops",
        queries: &[("ddk_model_flops_per_second{@}", "{{run}} {{model}}")],
    },
    Spec {
        title: "Utilisation by model",
        look_for: "Share of the time that the model's lanes compute. The slower one should be near 100 %; where \
                   neither is, look at the waits below.",
        kind: Lines,
        unit: "percentunit",
        queries: &[("ddk_model_utilisation_ratio{@}", "{{run}} {{model}}")],
    },
    Spec {
        title: "Step time",
        look_for: "Half of the steps, and 95 of 100, take less. A wide gap is unsteady: evaluations, saves, or \
                   neighbors on the machine.",
        kind: Lines,
        unit: "s",
        queries: &[
            (
                "histogram_quantile(0.5, sum by (run, le) (rate(ddk_step_seconds_bucket{@}[$w])))",
                "{{run}} half",
            ),
            (
                "histogram_quantile(0.95, sum by (run, le) (rate(ddk_step_seconds_bucket{@}[$w])))",
                "{{run}} 95 of 100",
            ),
        ],
    },
    Spec {
        title: "Where a step's time goes",
        look_for: "Share of the student's time by phase. teacher_wait: the teacher is the slower one. data: \
                   rows come too slowly. The rest is the student's own work.",
        kind: Stacked,
        unit: "percentunit",
        queries: &[(
            "rate(ddk_step_phase_seconds_sum{@, phase!=\"teacher\"}[$w]) / on (run, instance, job) group_left \
             () rate(ddk_step_seconds_sum{@}[$w])",
            "{{run}} {{phase}}",
        )],
    },
    Spec {
        title: "Mean time by phase",
        look_for: "Seconds of a step in each phase; teacher is beside the student, not before it.",
        kind: Log,
        unit: "s",
        queries: &[(
            "rate(ddk_step_phase_seconds_sum{@}[$w]) / rate(ddk_step_phase_seconds_count{@}[$w])",
            "{{run}} {{phase}}",
        )],
    },
    Spec {
        title: "Workers: what they do",
        look_for: "Green while the worker computes. Teacher and student should be green nearly all the time, \
                   side by side.",
        kind: States,
        unit: "none",
        queries: &[(
            "ddk_worker_state{@, state=\"computing\"}",
            "{{run}} {{worker}}",
        )],
    },
    Spec {
        title: "Workers: computing",
        look_for: "Share of each worker's time that it computed.",
        kind: Lines,
        unit: "percentunit",
        queries: &[(
            "rate(ddk_worker_busy_seconds_total{@}[$w])",
            "{{run}} {{worker}}",
        )],
    },
    Spec {
        title: "Workers: waiting",
        look_for: "Starved: waiting for input. Blocked: waiting to hand on. The slowest part is the one that \
                   does neither.",
        kind: Lines,
        unit: "percentunit",
        queries: &[
            (
                "rate(ddk_worker_starved_seconds_total{@}[$w])",
                "{{run}} {{worker}} starved",
            ),
            (
                "rate(ddk_worker_blocked_seconds_total{@}[$w])",
                "{{run}} {{worker}} blocked",
            ),
        ],
    },
    Spec {
        title: "Queues",
        look_for: "Full before a slow part, empty behind it. micro_batches full and teacher_outputs empty: \
                   the teacher is slow. teacher_outputs full: the student is.",
        kind: Lines,
        unit: "none",
        queries: &[("ddk_queue_waiting{@}", "{{run}} {{queue}}")],
    },
    Spec {
        title: "Through the queues, in a second",
        look_for: "In and out are the same in the long run.",
        kind: Log,
        unit: "none",
        queries: &[
            ("rate(ddk_queue_sent_total{@}[$w])", "{{run}} {{queue}} in"),
            (
                "rate(ddk_queue_received_total{@}[$w])",
                "{{run}} {{queue}} out",
            ),
        ],
    },
    Spec {
        title: "At an interval's end",
        look_for: "Mean seconds from an interval's last update to the first micro-batch of the next: the \
                   student's evaluation, and the drained pipeline.",
        kind: Lines,
        unit: "s",
        queries: &[(
            "rate(ddk_boundary_seconds_sum{@}[1h]) / rate(ddk_boundary_seconds_count{@}[1h])",
            "{{run}}",
        )],
    },
];

const DOMAINS: &[Spec] = &[
    Spec {
        title: "Ratio",
        look_for: "Student's over teacher's perplexity; 1 is caught up. The mixture follows the largest. A \
                   ratio that rises is a domain that is neglected or that others harm.",
        kind: Lines,
        unit: "none",
        queries: &[("ddk_perplexity_ratio{@}", "{{run}} {{domain}}")],
    },
    Spec {
        title: "Student's perplexity",
        look_for: "Falls in every domain, to the teacher's at best.",
        kind: Log,
        unit: "none",
        queries: &[("ddk_perplexity{@, model=\"student\"}", "{{run}} {{domain}}")],
    },
    Spec {
        title: "Teacher's perplexity",
        look_for: "Never changes within a run. A domain in which the teacher itself is bad has little to teach.",
        kind: Log,
        unit: "none",
        queries: &[("ddk_perplexity{@, model=\"teacher\"}", "{{run}} {{domain}}")],
    },
];

const DATA: &[Spec] = &[
    Spec {
        title: "Tokens per second by domain",
        look_for: "Follows the weights.",
        kind: Stacked,
        unit: "none",
        queries: &[("rate(ddk_tokens_total{@}[$w])", "{{run}} {{domain}}")],
    },
    Spec {
        title: "Passes",
        look_for: "A domain far over the others is small and drawn often; from four passes on a text teaches \
                   little. mixture.max_passes limits it.",
        kind: Lines,
        unit: "none",
        queries: &[("ddk_domain_passes{@}", "{{run}} {{domain}}")],
    },
    Spec {
        title: "Records that could not be used",
        look_for: "None, or few: quarantine.jsonl of the run names each with its reason.",
        kind: Lines,
        unit: "none",
        queries: &[("ddk_quarantined_records{@}", "{{run}} {{domain}}")],
    },
];

const MACHINE: &[Spec] = &[
    Spec {
        title: "Memory",
        look_for: "Resident memory is flat after the first interval. A slope over hours is a leak.",
        kind: Lines,
        unit: "bytes",
        queries: &[
            ("ddk_resident_memory_bytes{@}", "{{run}} now"),
            ("ddk_peak_resident_memory_bytes{@}", "{{run}} peak"),
        ],
    },
    Spec {
        title: "CPU",
        look_for: "Cores in use. On the CPU: the threads of both lanes, and a little.",
        kind: Lines,
        unit: "none",
        queries: &[("rate(ddk_cpu_seconds_total{@}[$w])", "{{run}}")],
    },
    Spec {
        title: "Open files",
        look_for: "Flat, far below the limit.",
        kind: Log,
        unit: "none",
        queries: &[
            ("ddk_open_files{@}", "{{run}} open"),
            ("ddk_open_files_limit{@}", "{{run}} limit"),
        ],
    },
    Spec {
        title: "Disk",
        look_for: "Room for at least three more checkpoints.",
        kind: Lines,
        unit: "bytes",
        queries: &[
            ("ddk_disk_free_bytes{@}", "{{run}} free"),
            ("ddk_disk_size_bytes{@}", "{{run}} size"),
            ("ddk_checkpoint_bytes{@}", "{{run}} a checkpoint"),
        ],
    },
    Spec {
        title: "Saves",
        look_for: "Mean seconds of a save, beside training, and how long training waited for its snapshot. \
                   Steps between two saves are checkpoint.every.",
        kind: Log,
        unit: "s",
        queries: &[
            (
                "rate(ddk_checkpoint_seconds_sum{@}[1h]) / rate(ddk_checkpoint_seconds_count{@}[1h])",
                "{{run}} a save",
            ),
            (
                "rate(ddk_step_phase_seconds_sum{@, phase=\"save\"}[1h]) / rate(ddk_step_phase_seconds_count{@, \
                 phase=\"save\"}[1h])",
                "{{run}} wait",
            ),
        ],
    },
    Spec {
        title: "GPU memory",
        look_for: "Flat after the first interval, with some room to its size. Empty without a GPU.",
        kind: Lines,
        unit: "bytes",
        queries: &[
            ("ddk_device_memory_used_bytes{@}", "{{run}} gpu {{device}}"),
            (
                "ddk_device_memory_size_bytes{@}",
                "{{run}} gpu {{device}} size",
            ),
        ],
    },
    Spec {
        title: "GPU utilisation",
        look_for: "Near 100 % on the slower model's GPU. Empty without a GPU.",
        kind: Lines,
        unit: "percentunit",
        queries: &[("ddk_device_utilisation_ratio{@}", "{{run}} gpu {{device}}")],
    },
    Spec {
        title: "Versions",
        look_for: "Which program runs, and since when.",
        kind: Lines,
        unit: "s",
        queries: &[(
            "(time() - ddk_start_timestamp_seconds{@}) * on (run, instance, job) group_left (version) \
             ddk_build_info{@}",
            "{{run}} {{version}} up",
        )],
    },
];
