//! Tests the migration of configurations with earlier names.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use ddk_settings::{Loaded, load, migrate, without_secrets};
use insta::assert_snapshot;

/// Every key and word that has been renamed, with values that are not the defaults.
const OLD: &str = include_str!("configs/earlier.toml");
/// The same settings as a user would write them today.
const TODAY: &str = include_str!("configs/today.toml");

fn loaded(text: &str) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    fs::write(&path, text).unwrap();
    load(&[path], &[], []).unwrap()
}

fn error(text: &str) -> String {
    migrate(text, "my.toml").unwrap_err().to_string()
}

/// The keys of the table in the sources, the first word of each line.
fn renamed(table: &str) -> impl Iterator<Item = &'static str> {
    let source = include_str!("../src/renamed.rs");
    let start = source.find(&format!("const {table}: &str")).unwrap();
    let lines = source[start..].lines().skip(1);
    let lines = lines.take_while(|line| !line.starts_with('}') && !line.trim().is_empty());
    lines.filter_map(|line| line.split_whitespace().next())
}

#[test]
fn every_earlier_name_becomes_the_setting_that_was_meant() {
    // Complete: each renamed key is in the file.
    let names: toml::Table = OLD.parse().unwrap();
    let mut count = 0;
    for path in renamed("RENAMED") {
        // A model is new or starts as another one.
        let model = if path.ends_with(".init") {
            "warm"
        } else {
            "tiny"
        };
        let path = path.replace("domains.*", "domains.math");
        let path = path.replace("pretrain.*", &format!("pretrain.{model}"));
        let mut table = Some(&names);
        let (parents, key) = path.rsplit_once('.').unwrap();
        for name in parents.split('.') {
            table = table.and_then(|table| table.get(name)?.as_table());
        }
        assert!(
            table.is_some_and(|table| table.contains_key(key)),
            "{path} is not in the file"
        );
        count += 1;
    }
    assert_eq!(count, 62);

    let new = migrate(OLD, "earlier.toml").unwrap();
    let (migrated, today) = (loaded(&new.text).settings, loaded(TODAY).settings);
    assert_eq!(migrated.to_toml().unwrap(), today.to_toml().unwrap());
    // What the file looks like: comments and order.
    assert_snapshot!(new.text);
    // A second migration has nothing to do.
    let again = migrate(&new.text, "earlier.toml").unwrap();
    assert_eq!((again.text, again.changes), (new.text, Vec::new()));
}

#[test]
fn a_current_file_stays_as_it_is() {
    let text =
        "# A comment.\n\nrun.name = 'my'   # quoted\n[optimizer]\n\n  lr=1e-4\n\n# The end.\n";
    let same = migrate(text, "my.toml").unwrap();
    assert_eq!((same.text.as_str(), same.changes.len()), (text, 0));
}

#[test]
fn dotted_keys_and_inline_tables_keep_their_form() {
    let text = "student.lr = 1e-4 # slow\nstudent.model = \"s\"\ncheckpoint = { every = 5, keep = 2 }\n\
                guard = { spike_from = 9 }\nrun = { name = \"my\", trace = true }\n";
    let new = migrate(text, "my.toml").unwrap();
    let settings = loaded(&new.text).settings;
    assert_eq!(
        (settings.optimizer.lr, settings.checkpoint.interval),
        (1e-4, 5)
    );
    assert_eq!(
        (settings.recovery.spike_min_history, settings.log.samples),
        (9, true)
    );
    assert_snapshot!(new.text, @r#"
    student.model = "s"
    checkpoint = { interval = 5, keep_latest = 2 }
    recovery = { spike_min_history = 9 }
    run = { name = "my"}
    optimizer.lr = 1e-4 # slow
    log = { samples = true }
    "#);
}

#[test]
fn keys_go_into_tables_that_exist_and_lanes_repeat_the_devices() {
    let text = "[queues]\n# How deep.\ndepth = 3\n[pipeline]\ntime_slicing = false\n[teacher]\n\
                devices = [\"cuda:0+cuda:1\", \"cuda:2\"] # both\nlanes = 2\n[corpus]\nwhen_stale = \"use\"\n";
    let new = migrate(text, "my.toml").unwrap();
    assert_snapshot!(new.text, @r#"
    [pipeline]
    time_slicing = false
    # How deep.
    queue_depth = 3
    [teacher]
    devices = ["cuda:0+cuda:1", "cuda:2", "cuda:0+cuda:1", "cuda:2"] # both
    [corpus]
    on_stale = "use"
    "#);
}

#[test]
fn what_cannot_be_migrated_is_named() {
    let both = error("[student]\nlr = 1\n[optimizer]\nlr = 2\n");
    let why = "are both set, but they are the earlier and the current name of one key: remove one of them";
    assert_eq!(
        both,
        format!("my.toml: `student.lr` and `optimizer.lr` {why}")
    );
    let lanes = error("teacher.lanes = 0\nrun.stop_ratio = \"low\"\n");
    assert_snapshot!(lanes, @r#"
    my.toml: `teacher.lanes` is 0, expected 1 to 64
    my.toml: `run.stop_ratio` is "low", expected a positive number
    "#);
    let leftover = error("[batch]\nrows = 8\ncolumns = 2\n");
    assert_snapshot!(leftover, @"my.toml: unknown field `batch.columns`: it is no earlier name either, remove it");
    let unknown = error("[batch]\nrows = 8\n[student]\nrate = 1\nsteps = 2\n");
    assert_snapshot!(unknown, @r"
    my.toml:4: unknown field `rate`
      | rate = 1
      | ^^^^ (there are model, device, dtype, activation_checkpointing, threads)
    my.toml:5: unknown field `steps`
      | steps = 2
      | ^^^^^ (there are model, device, dtype, activation_checkpointing, threads)
    ");
    let syntax = error("[batch\nrows = 8\n");
    assert!(
        syntax.starts_with("my.toml: TOML parse error at line 1"),
        "{syntax}"
    );
}

#[test]
fn secrets_are_not_shown() {
    let text =
        "[telemetry]\ntoken = \"0123456789abcdef0123456789abcdef\" # mine\nlisten = \"[::1]:1\"\n";
    assert_eq!(
        without_secrets(text),
        "[telemetry]\ntoken = \"…\"                                # mine\nlisten = \"[::1]:1\"\n"
    );
}
