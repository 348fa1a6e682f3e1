//! Runs the jobs in one process, as another program would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ddk_jobs::{
    args, bench, check, eval, export, prepare, pretrain, report, signals::Signals, train,
};
use serde_json::Value;
use tempfile::TempDir;

/// Signals belong to the process, so one listener serves all tests.
fn signals() -> &'static Signals {
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    SIGNALS.get_or_init(|| Signals::listen().unwrap())
}

/// Two domains of a few hundred words, and two models to train on them.
fn world() -> (TempDir, args::ConfigArgs) {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path).display().to_string();
    let domains = [
        (
            "fish",
            ["the trout", "a pike", "an eel", "the weir", "a net"],
        ),
        (
            "rain",
            ["a squall", "hail", "the gale", "a front", "drizzle"],
        ),
    ];
    let mut texts = Vec::new();
    for (name, nouns) in domains {
        let document = |number: usize| {
            // Uses digits of the number, so that no two documents are the same.
            let noun = |at: usize| nouns[(number / 5_usize.pow(at as u32 % 3) + at) % nouns.len()];
            let sentences =
                (0..12).map(|at| format!("{} follows {}. ", noun(at), noun(2 * at + 1)));
            sentences.collect::<String>()
        };
        let documents: Vec<String> = (0..60).map(document).collect();
        let line = |text: &String| serde_json::json!({ "text": text }).to_string() + "\n";
        let lines: String = documents.iter().map(line).collect();
        fs::write(at(&format!("{name}.jsonl")), lines).unwrap();
        texts.extend(documents);
    }
    let tokenizer = PathBuf::from(at("tokenizer"));
    ddk_corpus::train_tokenizer(texts.into_iter(), 280, &tokenizer).unwrap();
    let shape = |hidden: u32| {
        format!(
            "{{ hidden_size = {hidden}, intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2, \
             num_key_value_heads = 1 }}"
        )
    };
    let config = format!(
        r#"
[run]
name = "small"
output_dir = "{runs}"
max_steps = 6
[corpus]
dir = "{prepared}"
tokenizer = "{tokenizer}"
sequence_length = 24
validation_fraction = 0.1
[domains.fish]
files = ["{fish}"]
[domains.rain]
files = ["{rain}"]
[teacher]
model = "{teacher}"
[student]
model = "{student}"
[lr_scheduler]
warmup_steps = 1
[training]
global_batch_size = 4
micro_batch_size = 2
[mixture]
interval = 3
[telemetry]
enabled = false
[pretrain.teacher]
output_dir = "{teacher}"
steps = 8
global_batch_size = 4
micro_batch_size = 2
warmup_steps = 1
threads = 1
architecture = {large}
[pretrain.student]
output_dir = "{student}"
steps = 4
global_batch_size = 4
micro_batch_size = 2
warmup_steps = 1
threads = 1
architecture = {small}
"#,
        runs = at("runs"),
        prepared = at("prepared"),
        tokenizer = tokenizer.display(),
        fish = at("fish.jsonl"),
        rain = at("rain.jsonl"),
        teacher = at("teacher"),
        student = at("student"),
        large = shape(16),
        small = shape(8),
    );
    let file = PathBuf::from(at("config.toml"));
    fs::write(&file, config).unwrap();
    let config = args::ConfigArgs {
        files: vec![file],
        set: Vec::new(),
    };
    (folder, config)
}

fn train_args(config: &args::ConfigArgs) -> args::Train {
    args::Train {
        config: config.clone(),
        json: true,
        ..args::Train::default()
    }
}

fn pretrain_args(config: &args::ConfigArgs, model: &str) -> args::Pretrain {
    args::Pretrain {
        config: config.clone(),
        model: model.to_owned(),
        force: false,
    }
}

/// Returns what a job wrote. The job must succeed.
fn out(job: impl FnOnce(&mut dyn std::io::Write) -> anyhow::Result<()>) -> String {
    let mut out = Vec::new();
    job(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_job_runs_in_process_and_a_finished_run_is_left_alone() {
    let (folder, config) = world();
    let at = |path: &str| folder.path().join(path);
    let prepare_args = args::Prepare {
        config: config.clone(),
        force: false,
        verify: false,
    };
    prepare::run(&prepare_args, signals()).unwrap();
    for model in ["teacher", "student"] {
        pretrain::run(&pretrain_args(&config, model), signals()).unwrap();
    }
    let pretraining = json(&at("teacher.run/summary.json"));
    assert_eq!(pretraining["steps"], 8);
    assert_eq!(
        pretraining["domains"]["fish"]["teacher_perplexity"],
        Value::Null
    );
    assert_eq!(pretraining["teacher_flops"], 0.0);

    let check_args = args::Check {
        config: config.clone(),
        forward: true,
        ranks: 1,
        bandwidth: 1.0,
    };
    let checked = out(|out| check::run(&check_args, out));
    assert!(checked.contains("ready"), "{checked}");
    let bench_args = args::Bench {
        config: config.clone(),
        seconds: 0.0,
        json: true,
    };
    let measured = out(|out| bench::run(&bench_args, signals(), out));
    assert!(
        serde_json::from_str::<Value>(&measured).is_ok(),
        "{measured}"
    );

    let first = out(|out| train::run(&train_args(&config), signals(), out));
    let summary: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(
        (&summary["steps"], &summary["intervals"]),
        (&6.into(), &2.into())
    );
    let lines = fs::read(at("runs/small/run.jsonl")).unwrap();
    let again = out(|out| train::run(&train_args(&config), signals(), out));
    assert_eq!(first, again);
    assert_eq!(fs::read(at("runs/small/run.jsonl")).unwrap(), lines);

    let eval_args = args::Eval {
        config: config.clone(),
        model: at("runs/small/student"),
        baseline: Some(at("teacher")),
        json: true,
        dump_token_ids: None,
    };
    let evaluated = out(|out| eval::run(&eval_args, signals(), out));
    let evaluated: Value = serde_json::from_str(&evaluated).unwrap();
    for domain in ["fish", "rain"] {
        let number = |value: &Value| value.as_f64().unwrap();
        let of_run = number(&summary["domains"][domain]["student_perplexity_after"]);
        let of_model = number(&evaluated["domains"][domain]["perplexity"]);
        assert!(
            (of_run / of_model - 1.0).abs() < 1e-5,
            "{of_run} and {of_model}"
        );
    }
    let export_args = args::Export {
        run: at("runs/small"),
        out: at("exported"),
        step: None,
        dtype: "fp32".to_owned(),
    };
    export::run(&export_args, signals()).unwrap();
    let weights = |folder: &str| fs::read(at(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("exported"), weights("runs/small/student"));
    let report_args = args::Report {
        run: at("teacher.run"),
        format: vec![args::ReportFormat::Md],
        out: Some(at("")),
    };
    report::run(&report_args).unwrap();
    let text = fs::read_to_string(at("report.md")).unwrap();
    assert!(text.contains("fish") && !text.contains("NaN"), "{text}");
}

#[test]
fn a_job_says_what_is_wrong_with_its_arguments() {
    let (_folder, config) = world();
    let unknown = pretrain::run(&pretrain_args(&config, "giant"), signals()).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "the configuration has no [pretrain.giant] (available: student, teacher)"
    );
    let mut forked = train_args(&config);
    forked.resume_from = Some(3);
    let nothing = train::run(&forked, signals(), &mut Vec::new()).unwrap_err();
    assert!(
        nothing.to_string().contains("there is no run in"),
        "{nothing}"
    );
}
