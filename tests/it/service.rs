//! A run for days: settings read again, a service manager told, nothing that grows.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::Duration,
};

use crate::world::{World, is_step, scale};

#[test]
fn settings_are_read_again_at_sighup() {
    let world = World::new();
    // Steps enough to be told something while they last.
    let train = ["train", "config.toml", "--set", "run.max_steps=4000"];
    let mut child = world
        .command(&train)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.any(|line| is_step(&line, 3)));
    let path = world.path().join("config.toml");
    let config = fs::read_to_string(&path).unwrap();
    let config = config
        .replace("every = 3", "every = 7")
        .replace("lr_end = 5e-4\nwarmup", "lr_end = 4e-4\nwarmup");
    fs::write(
        &path,
        config.replace("[mixture]\n", "[mixture]\nalpha = 0.4\n"),
    )
    .unwrap();
    let signal = |name: &str| {
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    };
    signal("-HUP");
    let told: Vec<String> = lines
        .by_ref()
        .filter(|line| line.starts_with("SIGHUP"))
        .take(3)
        .collect();
    assert!(
        told[0].contains("checkpoint.every was 3, is 7: taken"),
        "{told:?}"
    );
    assert!(
        told[1].contains("mixture.alpha") && told[1].contains("left as it is"),
        "{told:?}"
    );
    assert!(
        told[2].contains("student.lr_end") && told[2].contains("taken"),
        "{told:?}"
    );
    // Long enough for the three that stay to be of the new rhythm.
    let mut since = 0;
    assert!(lines.any(|line| {
        since += u32::from(line.starts_with("step "));
        since == 40
    }));
    signal("-TERM");
    for _ in lines {}
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let listed = world.succeed(&["checkpoints", "runs/small"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let steps: Vec<u64> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    // All but the last, which the signal asked for, are of the new rhythm.
    assert!(
        steps[..steps.len() - 1].iter().all(|step| step % 7 == 0),
        "{listed}"
    );
}

#[test]
fn systemd_is_told_of_readiness_and_stop() {
    let world = World::new();
    let path = world.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut child = world
        .command(&["train", "config.toml", "--set", "run.max_steps=4000"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let hear = |word: &str| {
        let mut buffer = [0; 256];
        loop {
            let length = socket.recv(&mut buffer).unwrap();
            if String::from_utf8_lossy(&buffer[..length]).contains(word) {
                return;
            }
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    assert!(
        Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    hear("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// A number of kilobytes in /proc/PID/status, and how many files are open.
fn resident_and_open(id: u32) -> Option<(f64, usize)> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon"))?;
    let kilobytes = line.split_whitespace().nth(1)?.parse::<f64>().ok()?;
    Some((
        kilobytes,
        fs::read_dir(format!("/proc/{id}/fd")).ok()?.count(),
    ))
}

#[test]
fn memory_files_and_step_time_do_not_grow_with_steps() {
    let world = World::new();
    let steps = (2_000 * scale()).min(20_000);
    let limit = format!("run.max_steps={steps}");
    let mut child = world
        .command(&[
            "train",
            "config.toml",
            "--set",
            &limit,
            "--set",
            "run.trace=false",
            "--set",
            "mixture.interval=100",
            "--set",
            "checkpoint.every=50",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut samples = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let step = line
            .strip_prefix("step ")
            .and_then(|rest| rest.split('/').next()?.parse::<u64>().ok());
        if let Some(step) = step.filter(|step| step % (steps / 20) == 0)
            && let Some((memory, files)) = resident_and_open(child.id())
        {
            samples.push((step as f64, memory, files));
        }
    }
    assert!(child.wait().unwrap().success());
    // The first fifth warms up.
    let samples = &samples[4..];
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&(f64, f64, usize)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (step_mean, memory_mean) = (mean(&|sample| sample.0), mean(&|sample| sample.1));
    let slope = mean(&|sample| (sample.0 - step_mean) * (sample.1 - memory_mean))
        / mean(&|sample| (sample.0 - step_mean).powi(2));
    let files: Vec<usize> = samples.iter().map(|sample| sample.2).collect();
    let (least, most) = (files.iter().min().unwrap(), files.iter().max().unwrap());
    let times: Vec<f64> = world
        .lines_with_seconds("run.jsonl")
        .iter()
        .map(|line| {
            line["seconds"]
                .as_object()
                .unwrap()
                .values()
                .map(|value| value.as_f64().unwrap())
                .sum()
        })
        .collect();
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part[part.len() / 2]
    };
    let fifth = times.len() / 5;
    let (first, last) = (
        median(&times[fifth..2 * fifth]),
        median(&times[4 * fifth..]),
    );
    eprintln!(
        "{steps} steps: {slope:.4} kB a step of {memory_mean:.0} kB, {least} to {most} files, step {:.2} ms at first, {:.2} ms at last",
        1e3 * first,
        1e3 * last
    );
    assert!(
        slope * (steps as f64) < 0.1 * memory_mean,
        "{slope} kB a step"
    );
    assert!(most - least <= 3, "{least} to {most} open files");
    assert!(last < 1.5 * first, "{first} s, {last} s");
}
