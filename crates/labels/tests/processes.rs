//! Several processes on one set, and processes that meet limits of the system. The children are this program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod common;

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use common::{Place, id, label, provenance};
use ddk_labels::{LabelError, LabelSet, Put, Report, remove};

const CACHE: &str = "DDK_TEST_CACHE";
const ARGUMENT: &str = "DDK_TEST_ARGUMENT";

/// Makes a command run a child's test: a program, or the start of a shell's line that executes one.
fn child_of(mut command: Command, test: &str, place: &Place, argument: &str) -> Command {
    command
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CACHE, &place.cache)
        .env(ARGUMENT, argument);
    command
}

/// The place and argument of a child. `None` if the test runs by itself.
fn in_child() -> Option<(Place, u64)> {
    let cache = std::env::var(CACHE).ok()?;
    let argument = std::env::var(ARGUMENT).unwrap();
    Some((Place::at(Path::new(&cache)), argument.parse().unwrap()))
}

/// Tells the parent that a point is reached, and waits for its answer.
fn meet_parent() {
    println!("\nhere");
    io::stdin().read_line(&mut String::new()).unwrap();
}

fn start(test: &str, place: &Place, argument: &str) -> Child {
    let mut command = child_of(Command::new("env"), test, place, argument);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_for(child: &mut Child) {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line == "here"));
}

fn answer(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
}

const LABELS: u64 = 1000;

/// Fills two thirds of the set, from its own end.
#[test]
fn child_that_fills_two_thirds() {
    let Some((place, number)) = in_child() else {
        return;
    };
    let set = place.open(None);
    meet_parent();
    for position in 0..LABELS * 2 / 3 {
        let number = if number == 0 {
            position
        } else {
            LABELS - 1 - position
        };
        set.put(&id(number), &label(number)).unwrap();
        assert!(set.get(&id(number)).unwrap() == Some(label(number)));
    }
    set.flush().unwrap();
    meet_parent();
    assert!((0..LABELS).all(|number| set.get(&id(number)).unwrap() == Some(label(number))));
    assert_eq!(set.take_reports(), []);
}

#[test]
fn two_processes_fill_one_set_at_once() {
    let place = Place::new();
    let watching = place.open(None);
    let mut children =
        ["0", "1"].map(|number| start("child_that_fills_two_thirds", &place, number));
    for _ in 0..2 {
        children.iter_mut().for_each(wait_for);
        children.iter_mut().for_each(answer);
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for set in [watching, place.find()] {
        assert!((0..LABELS).all(|number| set.get(&id(number)).unwrap() == Some(label(number))));
        assert_eq!(set.stats().labels, LABELS);
        assert_eq!(set.take_reports(), []);
    }
}

/// Keeps a set open.
#[test]
fn child_that_holds() {
    if let Some((place, write)) = in_child() {
        let _set = if write == 1 {
            place.open(None)
        } else {
            place.find()
        };
        meet_parent();
    }
}

#[test]
fn a_set_is_removed_only_while_no_process_has_it_open() {
    let place = Place::new();
    let name = provenance("a").name("set");
    for write in ["1", "0"] {
        drop(place.open(None));
        let mut child = start("child_that_holds", &place, write);
        wait_for(&mut child);
        assert!(matches!(
            remove(&place.cache, &name),
            Err(LabelError::InUse { .. })
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        remove(&place.cache, &name).unwrap();
    }
}

/// Writes labels of this many bytes until the system refuses.
#[test]
fn child_without_space() {
    let Some((place, bytes)) = in_child() else {
        return;
    };
    let set = place.open(None);
    let bytes = vec![7; bytes as usize];
    let mut numbers = 0..100_000;
    let refused = numbers
        .find(|number| set.put(&id(*number), &bytes).unwrap() != Put::Stored)
        .unwrap();
    for number in [refused, refused + 1] {
        assert_eq!(set.put(&id(number), &bytes).unwrap(), Put::DiskFull);
        assert_eq!(set.get(&id(number)).unwrap(), None);
    }
    let reports = set.take_reports();
    assert!(
        matches!(reports.as_slice(), [Report::DiskFull { .. }]),
        "{reports:?}"
    );
    set.flush().unwrap();
    let stored = (0..refused)
        .filter(|number| set.get(&id(*number)).unwrap().is_some())
        .count();
    assert_eq!(set.take_reports(), []);
    assert_eq!(set.stats().labels, stored as u64);
    println!("\n{refused} {stored}");
}

#[test]
fn a_system_without_space_ends_writing_and_harms_nothing() {
    // The limit of a file's size cuts a write short and refuses the next, as a full disk does. With labels of one
    // byte, it is the index that reaches the limit.
    for bytes in [30_000, 1] {
        let place = Place::new();
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""]);
        let child = child_of(shell, "child_without_space", &place, &bytes.to_string())
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let output = String::from_utf8(child.stdout).unwrap();
        let mut counts = output.lines().filter_map(|line| {
            let (refused, stored) = line.split_once(' ')?;
            Some((refused.parse::<u64>().ok()?, stored.parse::<u64>().ok()?))
        });
        let (refused, stored) = counts.next().unwrap();
        assert!(stored >= 3 && refused - stored < 256, "{refused} {stored}");
        let set = place.open(None);
        assert_eq!(set.stats().labels, stored);
        let label = vec![7; bytes];
        for number in 0..refused + 2 {
            assert!(
                set.get(&id(number))
                    .unwrap()
                    .is_none_or(|found| found == label)
            );
            set.put(&id(number), &label).unwrap();
        }
        assert_eq!(set.take_reports(), []);
        drop(set);
        assert_eq!(place.find().stats().labels, refused + 2);
    }
}

/// Reads a set that it may not write.
#[test]
fn child_without_rights() {
    let Some((place, _)) = in_child() else {
        return;
    };
    assert_eq!(place.find().get(&id(0)).unwrap().unwrap(), label(0));
    for slug in ["set", "new"] {
        let error = LabelSet::open(&place.cache, slug, &provenance("a"), None).unwrap_err();
        assert!(matches!(&error, LabelError::ReadOnly { .. }), "{error}");
    }
    println!("\nrefused");
}

#[test]
fn a_read_only_folder_can_be_read() {
    let place = Place::new();
    let set = place.open(None);
    set.put(&id(0), &label(0)).unwrap();
    let folder = set.folder().to_owned();
    drop(set);
    let allow = |mode| {
        for path in [&place.cache, &folder] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    allow(0o555);
    // Root may write everywhere, unless it gives up that right.
    let mut command = Command::new("env");
    if rustix::process::geteuid().is_root() {
        command.args([
            "setpriv",
            "--bounding-set=-dac_override",
            "--inh-caps=-dac_override",
        ]);
    }
    let child = child_of(command, "child_without_rights", &place, "0")
        .output()
        .unwrap();
    allow(0o755);
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && output.contains("\nrefused\n"),
        "{child:?}"
    );
}
