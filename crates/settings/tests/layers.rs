//! Tests the layers, the origins and the ready-made configurations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use ddk_settings::{
    InitialMixture, Key, Loaded, Method, MixturePolicy, ObjectiveName, Origins, diff, keys, load,
    reference, schema, sections,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn with(files: &[PathBuf], sets: &[&str], environment: &[(&str, &str)]) -> Loaded {
    let sets: Vec<String> = sets.iter().map(|text| (*text).to_owned()).collect();
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(files, &sets, environment).unwrap()
}

#[test]
fn later_layers_win_key_by_key_and_each_value_knows_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    let base = file(
        folder.path(),
        "base.toml",
        "[optimizer]\nlr = 1e-3\n[lr_scheduler]\nwarmup_steps = 5\n[domains.math]\nfiles = [\"a\", \"b\"]\n",
    );
    let over = file(
        folder.path(),
        "over.toml",
        "[optimizer]\nlr = 2e-3\n[domains.math]\nfiles = [\"c\"]\n[domains.code]\nfiles = [\"d\"]\n",
    );
    let loaded = with(
        &[base.clone(), over.clone()],
        &["optimizer.beta1=0.8", "run.name=from-the-line"],
        &[
            ("DDK__OPTIMIZER__BETA1", "0.7"),
            ("DDK__PIPELINE__QUEUE_DEPTH", "5"),
            ("HOME", "/"),
        ],
    );
    let settings = &loaded.settings;
    assert_eq!(
        (
            settings.optimizer.lr,
            settings.lr_scheduler.warmup_steps,
            settings.optimizer.beta1
        ),
        (2e-3, 5, 0.8)
    );
    assert_eq!(settings.pipeline.queue_depth, 5);
    assert_eq!(settings.run.name.as_deref(), Some("from-the-line"));
    assert_eq!(
        settings.domains["math"].files,
        ["c"],
        "arrays replace each other"
    );
    assert_eq!(settings.domains.len(), 2, "tables merge");
    let origin = |key: &str| loaded.origins.of(key);
    assert_eq!(origin("optimizer.lr"), format!("{}:2", over.display()));
    assert_eq!(
        origin("lr_scheduler.warmup_steps"),
        format!("{}:4", base.display())
    );
    assert_eq!(origin("optimizer.beta1"), "--set optimizer.beta1=0.8");
    assert_eq!(
        origin("pipeline.queue_depth"),
        "environment DDK__PIPELINE__QUEUE_DEPTH"
    );
    assert_eq!(origin("optimizer.beta2"), Origins::DEFAULT);
}

#[test]
fn defaults_are_the_papers_settings() {
    let settings = with(&[], &[], &[]).settings;
    assert_eq!(
        (
            settings.mixture.alpha,
            settings.mixture.interval,
            settings.mixture.initial
        ),
        (0.5, 1000, InitialMixture::Natural)
    );
    assert_eq!(
        (
            settings.mixture.policy,
            settings.mixture.odm_smoothing,
            settings.mixture.doremi_eta,
            settings.mixture.doremi_smoothing
        ),
        (MixturePolicy::Ddk, 0.9, 1.0, 1e-3)
    );
    assert_eq!(
        (settings.objective.gamma, settings.objective.temperature),
        (0.2, 1.0)
    );
    assert_eq!(
        (
            settings.optimizer.lr,
            settings.lr_scheduler.min_lr,
            settings.lr_scheduler.warmup_steps
        ),
        (3e-5, 3e-6, 1000)
    );
    assert_eq!(settings.corpus.validation_documents, 500);
}

#[test]
fn every_ready_configuration_loads_and_reads_back_from_a_runs_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in fs::read_dir(repository().join("config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        let settings = with(std::slice::from_ref(&path), &[], &[]).settings;
        let resolved = file(folder.path(), "config.toml", &settings.to_toml().unwrap());
        assert_eq!(
            with(&[resolved], &[], &[]).settings,
            settings,
            "{}",
            path.display()
        );
    }
    assert_eq!(count, 7);
}

#[test]
fn a_token_is_used_but_never_written_down() {
    let secret = "12345678901234567890";
    let address = "telemetry.listen=0.0.0.0:9469";
    let from_environment = with(&[], &[address], &[("DDK__TELEMETRY__TOKEN", secret)]);
    let source = tempfile::tempdir().unwrap();
    let text = format!("[telemetry]\ntoken = \"{secret}\"\n");
    let from_file = file(source.path(), "secret.toml", &text);
    let from_file = with(&[from_file], &[address], &[]);
    for loaded in [from_environment, from_file] {
        let token = loaded.settings.telemetry.token.clone().unwrap();
        assert_eq!(token.secret(), Some(secret));
        let written = loaded.settings.to_toml().unwrap();
        let origin = loaded.origins.of("telemetry.token").to_string();
        for text in [&written, &origin, &format!("{:?}", loaded.settings)] {
            assert!(!text.contains(secret), "{text}");
        }
        // The configuration in a run's folder loads again, but it contains no token to serve with.
        let folder = tempfile::tempdir().unwrap();
        let resolved = file(folder.path(), "config.toml", &written);
        let again = with(&[resolved], &[], &[]).settings.telemetry.token;
        assert_eq!(again.unwrap().secret(), None);
    }
}

/// Compares the generated files. With `UPDATE=1`, which `make generate` sets, writes them first.
#[test]
fn reference_and_schema_are_current() {
    let schema = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    for (name, text) in [
        ("docs/settings.md", reference()),
        ("config/schema.json", schema),
    ] {
        let path = repository().join(name);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "{name} is not current: run make generate"
        );
    }
}

#[test]
fn every_key_is_documented() {
    for section in sections() {
        let is_root = section.path.is_empty();
        assert!(
            is_root || section.doc.len() > 8,
            "{} has no description",
            section.path
        );
        for key in &section.keys {
            assert!(key.doc.len() > 8, "{} has no description", key.path);
        }
    }
}

#[test]
fn defaults_are_within_their_bounds_unless_a_key_is_needed() {
    let needed = |key: &&Key| {
        let default = key.default.as_ref();
        default.is_some_and(|value| !key.accepts(value))
    };
    let needed = keys().filter(needed).map(|key| key.path.as_str());
    let shape = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ];
    let shape = shape.map(|name| format!("pretrain.*.architecture.{name}"));
    let others = [
        "domains.*.files",
        "pretrain.*.output_dir",
        "pretrain.*.steps",
    ];
    let expected = others.into_iter().chain(shape.iter().map(String::as_str));
    assert_eq!(needed.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let examples = keys().filter_map(|key| Some((key, key.example.as_ref()?)));
    for (key, example) in examples {
        assert!(key.accepts(example), "{}", key.path);
    }
}

#[test]
fn flags_are_those_of_these_keys() {
    let with = |flag: &dyn Fn(&Key) -> bool| {
        let keys = keys().filter(|key| flag(key));
        keys.map(|key| key.path.as_str()).collect::<Vec<_>>()
    };
    let live = [
        "optimizer.lr",
        "lr_scheduler.min_lr",
        "checkpoint.interval",
        "checkpoint.keep_latest",
        "log.interval_seconds",
    ];
    assert_eq!(with(&|key| key.live), live);
    let quick = [
        "run.max_steps",
        "run.max_tokens",
        "lr_scheduler.warmup_steps",
        "lr_scheduler.total_steps",
        "lr_scheduler.decay_steps",
        "mixture.interval",
        "mixture.doremi_steps",
        "objective.ted_steps",
    ];
    assert_eq!(with(&|key| key.quick == Some(4)), quick);
    assert_eq!(with(&|key| key.quick.is_some()), quick);
    assert_eq!(with(&|key| key.secret), ["telemetry.token"]);
}

#[test]
fn what_differs_is_named_with_both_values() {
    let before = with(&[], &["run.max_steps=5", "optimizer.lr=1"], &[]).settings;
    let sets = ["run.max_steps=7", "run.name=a", "log.interval_seconds=0"];
    let after = with(&[], &sets, &[]).settings;
    let changes = diff(&before, &after).unwrap();
    let changes = changes.iter().map(|change| {
        let [before, after] = change.shown();
        let allowed = change.is_allowed_on_resume();
        format!("{}: {before}, {after}, {allowed}", change.path)
    });
    assert_eq!(
        changes.collect::<Vec<_>>(),
        [
            "log.interval_seconds: 15.0, 0.0, true",
            "optimizer.lr: 1.0, 0.00003, true",
            "run.max_steps: 5, 7, true",
            "run.name: not set, \"a\", false",
        ]
    );
    assert!(diff(&before, &before).unwrap().is_empty());
}

#[test]
fn settings_take_other_values_of_some_keys_and_keep_the_rest() {
    let sets = [
        "method=kd",
        "run.name=ab",
        "domains.math.files=[\"m.txt\"]",
        "optimizer.lr=0.1",
    ];
    let before = with(&[], &sets, &[]).settings;
    assert_eq!(before.with(&[].into()).unwrap(), before);
    let values = [
        ("optimizer.lr", 0.2.into()),
        ("run.name", "7".into()),
        ("checkpoint.keep_latest", 9.into()),
    ];
    let values = values.map(|(key, value): (&str, serde_json::Value)| (key.to_owned(), value));
    let after = before.with(&values.into()).unwrap();
    let changed: Vec<String> = diff(&before, &after)
        .unwrap()
        .into_iter()
        .map(|change| change.path)
        .collect();
    assert_eq!(
        changed,
        ["checkpoint.keep_latest", "optimizer.lr", "run.name"]
    );
    assert_eq!((after.optimizer.lr, after.checkpoint.keep_latest), (0.2, 9));
    let wrong = [("optimizer.lr".to_owned(), (-1).into())].into();
    let error = before.with(&wrong).unwrap_err().to_string();
    assert_eq!(
        error,
        "optimizer.lr=-1: `optimizer.lr` is -1, expected a positive number"
    );
}

#[test]
fn a_method_stands_for_two_choices_directly_above_the_defaults() {
    assert_eq!(Method::names().count(), 9);
    for name in Method::names() {
        let method = name.parse::<Method>().unwrap();
        let loaded = with(&[], &[&format!("method={method}")], &[]);
        let written: toml::Table = toml::from_str(&loaded.settings.to_toml().unwrap()).unwrap();
        for (key, value) in method.choices() {
            let (table, key_in_table) = key.split_once('.').unwrap();
            assert_eq!(
                written[table][key_in_table].as_str(),
                Some(&*value),
                "{key}"
            );
            assert_eq!(loaded.origins.of(key), format!("method {name}"));
        }
    }
    // An explicit value wins, wherever it stands. The last `method` counts.
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        "own.toml",
        "method = \"cpt\"\n[objective]\nname = \"tvd\"\n",
    );
    let loaded = with(
        std::slice::from_ref(&path),
        &[],
        &[("DDK__METHOD", "ddk-equal")],
    );
    assert_eq!(loaded.settings.mixture.policy, MixturePolicy::Equal);
    assert_eq!(loaded.settings.objective.name, ObjectiveName::Tvd);
    assert_eq!(
        loaded.origins.of("objective.name"),
        format!("{}:3", path.display())
    );
}
