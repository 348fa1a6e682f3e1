//! Tests the messages that users see after a mistake.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::PathBuf};

use ddk_settings::load;
use insta::assert_snapshot;

/// Returns the message for a file with this text, these `--set` options and these variables.
fn said(text: &str, sets: &[&str], environment: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|text| (*text).to_owned()).collect();
    let environment = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let error = load(&[path], &sets, environment).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest_valid_one() {
    assert_snapshot!(said(
        "[lr_scheduler]\nmin_lr = 1e-3\nwarm_up_steps = 5\n",
        &[],
        &[]
    ));
}

#[test]
fn the_end_of_a_name_suggests_the_whole_names() {
    let training = said("[training]\nbatch_size = 8\n", &[], &[]);
    let expected = "unknown field `batch_size`";
    assert!(training.contains(expected), "{training}");
    let suggested = "(did you mean `global_batch_size` or `micro_batch_size`?)";
    assert!(training.ends_with(suggested), "{training}");
    let run = said("", &["run.batch_size=8"], &[]);
    for key in ["training.global_batch_size", "training.micro_batch_size"] {
        assert!(run.contains(&format!("`{key}`")), "{run}");
    }
}

#[test]
fn a_key_of_an_earlier_version_is_named_with_its_new_name() {
    let earlier =
        "[run]\nstop_ratio = 1.05\n[batch]\nmicro_rows = 4\n[domains.math]\ntext = \"{body}\"\n";
    assert_snapshot!(said(
        earlier,
        &["teacher.lanes=2"],
        &[("DDK__STUDENT__LR", "1")]
    ));
}

#[test]
fn an_unknown_table_lists_those_there_are() {
    assert_snapshot!(said("[zebra]\nstripes = 5\n", &[], &[]));
}

#[test]
fn a_mistyped_value_is_never_coerced() {
    assert_snapshot!(said("[training]\nglobal_batch_size = \"16\"\n", &[], &[]));
    assert_snapshot!(said("[training]\nglobal_batch_size = 16.5\n", &[], &[]));
    assert_snapshot!(said("[log]\nsamples = 1\n", &[], &[]));
}

#[test]
fn toml_that_is_none_is_underlined() {
    assert_snapshot!(said("[run\nname = \"a\"\n", &[], &[]));
}

#[test]
fn all_values_out_of_range_are_named_at_once() {
    assert_snapshot!(said(
        "[mixture]\nalpha = 1.5\n[training]\nglobal_batch_size = 16\nmicro_batch_size = 5\n\
         [pipeline]\nqueue_depth = 9\n[student]\ndevice = \"gpu\"\n[optimizer]\nlr = -1.0\n\
         [domains.a]\nfiles = []\n",
        &[],
        &[],
    ));
}

#[test]
fn numbers_that_no_run_has_are_named_before_they_overflow() {
    assert_snapshot!(said(
        "[run]\nmax_intervals = 18446744073709551\n\
         [recovery]\nshutdown_grace_seconds = 1e30\nspike_window = 32\n\
         [training]\nglobal_batch_size = 10000000000\nmicro_batch_size = 1\n\
         [log]\ninterval_seconds = 1e20\n",
        &["mixture.max_epochs=1e7"],
        &[],
    ));
    assert_snapshot!(said(
        "",
        &[
            "mixture.interval=1000000",
            "training.global_batch_size=8000"
        ],
        &[]
    ));
}

#[test]
fn an_objectives_numbers_are_checked() {
    assert_snapshot!(said(
        "[objective]\nbeta = 1.0\nskew = 1.0\nted_weight = 0\nted_layers = [[1, 2], [0, 3]]\n",
        &[],
        &[],
    ));
    assert_snapshot!(said("", &["objective.ted_layers=[[1, 2], [1, 2]]"], &[]));
}

#[test]
fn the_environment_and_set_are_checked_as_files_are() {
    assert_snapshot!(said("", &["optimizer.lrr=1"], &[]));
    assert_snapshot!(said("", &["optimizer.lr=fast"], &[]));
    assert_snapshot!(said("", &["optimizer.lr"], &[]));
    assert_snapshot!(said("", &[], &[("DDK__LR_SCHEDULER__WARMUP", "3")]));
    assert_snapshot!(said("", &["mixture.alpha=2"], &[]));
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    assert_snapshot!(said("[telemetry]\nlisten = \"0.0.0.0:9469\"\n", &[], &[]));
    assert_snapshot!(said(
        "[telemetry]\nlisten = \"0.0.0.0:9469\"\n",
        &[],
        &[("DDK__TELEMETRY__TOKEN", "guess me")]
    ));
}

#[test]
fn a_pretrained_model_needs_a_shape_or_a_start() {
    assert_snapshot!(said(
        "[pretrain.teacher]\noutput_dir = \"models/teacher\"\nsteps = 10\nweights = { math = 1.0 }\n",
        &[],
        &[]
    ));
}

#[test]
fn a_mixture_that_cannot_be_is_named() {
    let domains = "[domains.a]\nfiles = [\"a\"]\n";
    assert_snapshot!(said(domains, &["mixture.policy=equall"], &[]));
    assert_snapshot!(said(domains, &["mixture.policy=static"], &[]));
    assert_snapshot!(said(
        &format!(
            "{domains}[mixture]\npolicy = \"static\"\nweights = {{ a = 1.0, b = 1.0 }}\n\
             [mixture.reference_loss]\nc = -1.0\n"
        ),
        &[
            "mixture.odm_smoothing=1.0",
            "mixture.doremi_eta=0.0",
            "mixture.doremi_smoothing=2.0"
        ],
        &[]
    ));
    assert_snapshot!(said(
        domains,
        &[
            "mixture.policy=odm",
            "run.target_gap=1.1",
            "checkpoint.keep_best=true"
        ],
        &[]
    ));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(&[PathBuf::from("absent.toml")], &[], [])
        .unwrap_err()
        .to_string();
    assert_snapshot!(error);
}

#[test]
fn a_token_in_the_arguments_is_refused_and_not_repeated() {
    let secret = "12345678901234567890";
    for set in [
        format!("telemetry.token={secret}"),
        format!("telemetry.token = \"{secret}\""),
        format!("telemetry={{ token = \"{secret}\" }}"),
        format!("\"telemetry\".token=\"{secret}\""),
    ] {
        let said = said("", &[&set], &[]);
        assert!(said.contains("DDK__TELEMETRY__TOKEN"), "{said}");
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn slots_take_whole_micro_batches() {
    let sizes = "[training]\nglobal_batch_size = 16\nmicro_batch_size = 2\n";
    for (sets, expected) in [
        (
            &["parallel.slots=3"][..],
            "`parallel.slots` is 3, expected a power of two",
        ),
        (
            &["parallel.slots=16"],
            "`parallel.slots` is 16, and each slot takes whole micro-batches of 2 sequences: expected \
             `training.global_batch_size` to be a multiple of 32, not 16",
        ),
        (
            &[
                "parallel.slots=2",
                "parallel.timeout_seconds=60",
                "teacher.servers=[\"http://10.0.0.5:8000\"]",
            ],
            "`parallel.timeout_seconds` is 60, expected more than `teacher.patience_seconds` = 600",
        ),
    ] {
        let said = said(sizes, sets, &[]);
        assert!(said.contains(expected), "{said}");
    }
}
