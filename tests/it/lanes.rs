//! Sharing CPU cores: DDK keeps the settings that it chose by measurement, and the schedule of workers changes no bit.

use std::fs;

use crate::world::{World, stderr};

const TWO: &str = "teacher.devices=[\"cpu\",\"cpu\"]";

fn arguments<'a>(sets: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    ["train", "config.toml"].into_iter().chain(sets).collect()
}

/// The resolved settings of the world's run, by key.
fn resolved(world: &World) -> toml::Table {
    let text = fs::read_to_string(world.run_folder().join("config.toml")).unwrap();
    text.parse().unwrap()
}

/// The settings that a measurement chooses, as values for `--set`.
fn choice(world: &World) -> Vec<String> {
    let settings = resolved(world);
    let keys = [
        ("pipeline", "time_slicing"),
        ("teacher", "devices"),
        ("teacher", "threads"),
        ("student", "threads"),
    ];
    let set = keys.map(|(table, key)| format!("{table}.{key}={}", settings[table][key]));
    set.to_vec()
}

#[test]
fn a_choice_by_measurement_is_said_kept_and_gone_on_with() {
    let world = World::new();
    let auto = ["pipeline.threads=auto"];
    let kill = [
        "pipeline.threads=auto",
        "fault_injection.plan=[\"kill student 7\"]",
    ];
    let mut command = world.command(&arguments(&kill));
    let output = command.env("DDK_ALLOW_FAULTS", "1").output().unwrap();
    let said = stderr(&output);
    assert!(
        said.contains("a step takes the teacher") && said.contains("teacher.devices has "),
        "{said}"
    );
    let chosen = choice(&world);
    let output = world.succeed(&arguments(&auto));
    assert!(
        !stderr(&output).contains("a step takes the teacher"),
        "measured again: {}",
        stderr(&output)
    );
    assert_eq!(choice(&world), chosen);

    // Setting the same choice explicitly gives the same run.
    let given = World::new();
    let sets: Vec<&str> = chosen.iter().map(String::as_str).collect();
    given.succeed(&arguments(&sets));
    assert!(world.trajectory() == given.trajectory());
    assert!(world.student_weights() == given.student_weights());
    assert!(stderr(&world.succeed(&arguments(&auto))).contains("already finished"));
}

#[test]
fn turns_and_lanes_change_no_bit() {
    let worlds = [
        &[][..],
        &["pipeline.time_slicing=true"],
        &["pipeline.time_slicing=true", TWO],
        &["teacher.devices=[\"cpu\",\"cpu\",\"cpu\"]"],
    ]
    .map(|sets| {
        let world = World::new();
        world.succeed(&arguments(sets));
        world
    });
    for world in &worlds[1..] {
        assert!(world.trajectory() == worlds[0].trajectory());
        assert!(world.student_weights() == worlds[0].student_weights());
    }
}

#[test]
fn bench_says_where_the_time_goes() {
    let world = World::new();
    let output = world.succeed(&["bench", "config.toml", "--seconds", "0.1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "8 sequences of 32 tokens",
        "teacher ",
        "heads and losses",
        "optimizer",
        "tokens/s; overlapped",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let output = world.succeed(&[
        "bench",
        "config.toml",
        "--seconds",
        "0.1",
        "--set",
        "method=cpt",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the student works alone"), "{text}");
    assert!(!world.run_folder().exists(), "nothing is written");
}
