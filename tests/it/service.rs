//! Runs that last for days: they reload settings, notify the service manager, and do not grow.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::Duration,
};

use crate::world::{World, is_step, scale, stderr};

#[test]
fn settings_are_read_again_at_sighup() {
    let world = World::new();
    // Enough steps for the signals to arrive before the run ends.
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
        .replace("interval = 3", "interval = 7")
        .replace("min_lr = 5e-4", "min_lr = 4e-4");
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
        told[0].contains("checkpoint.interval was 3, is now 7: applied"),
        "{told:?}"
    );
    assert!(
        told[2].contains("mixture.alpha") && told[2].contains("not applied"),
        "{told:?}"
    );
    assert!(
        told[1].contains("lr_scheduler.min_lr") && told[1].contains(": applied"),
        "{told:?}"
    );
    // Run long enough for the three checkpoints that remain to follow the new interval.
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
    // All checkpoints follow the new interval, except the last one, which the signal caused.
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

/// The resources that a process uses at a step.
struct Sample {
    step: f64,
    kilobytes: f64,
    files: usize,
    /// CPU seconds of all threads. Unlike wall time, they do not depend on other load.
    cpu: f64,
}

fn sample(id: u32, step: u64) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon"))?;
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // After the name in parentheses come, among others, user and system time in hundredths of a second.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some(Sample {
        step: step as f64,
        kilobytes: line.split_whitespace().nth(1)?.parse().ok()?,
        files: fs::read_dir(format!("/proc/{id}/fd")).ok()?.count(),
        cpu: (ticks()? + ticks()?) / 100.0,
    })
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
            "log.samples=false",
            "--set",
            "mixture.interval=100",
            "--set",
            "checkpoint.interval=50",
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
        if let Some(step) = step.filter(|step| step % (steps / 20) == 0) {
            samples.extend(sample(child.id(), step));
        }
    }
    assert!(child.wait().unwrap().success());
    // The first fifth is warm-up.
    let samples = &samples[4..];
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let step_mean = mean(&|sample| sample.step);
    let memory_mean = mean(&|sample| sample.kilobytes);
    let slope = mean(&|sample| (sample.step - step_mean) * (sample.kilobytes - memory_mean))
        / mean(&|sample| (sample.step - step_mean).powi(2));
    let files: Vec<usize> = samples.iter().map(|sample| sample.files).collect();
    let (least, most) = (files.iter().min().unwrap(), files.iter().max().unwrap());
    let per_step = |part: &[Sample]| {
        let (first, last) = (&part[0], &part[part.len() - 1]);
        (last.cpu - first.cpu) / (last.step - first.step)
    };
    let first = per_step(&samples[..5]);
    let last = per_step(&samples[samples.len() - 5..]);
    eprintln!(
        "{steps} steps: {slope:.4} kB a step of {memory_mean:.0} kB, {least} to {most} files, {:.2} ms of CPU a \
         step at first, {:.2} ms at last",
        1e3 * first,
        1e3 * last
    );
    // The allocator's noise stays under 1%: 0.16 MB over 2,000 steps, 0.5 MB over 6,000.
    assert!(
        slope * (steps as f64) < 0.02 * memory_mean,
        "{slope} kB a step"
    );
    assert!(most - least <= 3, "{least} to {most} open files");
    assert!(last < 1.5 * first, "{first} s of CPU, {last} s");
}

/// A run that resumes inside an interval shows its mixture on its metrics page at once.
#[test]
fn a_run_that_goes_on_shows_its_mixture() {
    let world = World::new();
    let train = [
        "train",
        "config.toml",
        "--set",
        "mixture.interval=100000",
        "--set",
        "run.max_steps=100000",
        "--set",
        "log.samples=false",
        "--metrics-file",
        "run.prom",
    ];
    let started = world.start_until(&train, |line| line.starts_with("step 12/"));
    started.signal("KILL");
    started.wait();
    fs::remove_file(world.path().join("run.prom")).unwrap();
    let started = world.start_until(&train, |line| line.starts_with("step 20/"));
    started.signal("TERM");
    let (status, said) = started.wait();
    assert_eq!(status.code(), Some(143), "{said}");
    let page = fs::read_to_string(world.path().join("run.prom")).unwrap();
    for gauge in [
        "ddk_mixture_weight{",
        "ddk_mixture_target{",
        "ddk_mixture_interval{",
        "ddk_mixture_weight_limit{",
        "ddk_perplexity{",
        "ddk_gap_nats{",
        "ddk_domain_epochs{",
    ] {
        assert!(page.contains(gauge), "no {gauge} in {page}");
    }
    let last = world.lines("events.jsonl").pop().unwrap();
    assert_eq!(last["kind"], "stopped");
}

/// The progress lines of an evaluation, as (documents done, all documents).
fn progress(said: &str, phase: &str) -> Vec<(u64, u64)> {
    let start = format!("{phase}: ");
    let told = said.lines().filter_map(|line| line.strip_prefix(&start));
    told.map(|rest| {
        let words: Vec<&str> = rest.split([' ', ',']).collect();
        assert_eq!((words[1], words[3]), ("of", "documents"), "{rest}");
        (words[0].parse().unwrap(), words[2].parse().unwrap())
    })
    .collect()
}

/// If every step prints a line (`log.interval_seconds = 0`), so does every evaluation batch. Otherwise the short
/// evaluations of this world print none.
#[test]
fn evaluations_say_how_far_they_are() {
    let world = World::new();
    let train = ["train", "config.toml", "--set", "evaluation.batch_size=4"];
    let said = stderr(&world.succeed(&train));
    let log = fs::read_to_string(world.run_folder().join("run.log")).unwrap();
    let mut all = Vec::new();
    for phase in [
        "first evaluation of the student",
        "evaluation of the teacher",
        "evaluation of the student after step 4",
        "evaluation of the student after step 8",
        "last evaluation of the student",
    ] {
        all.push(progress(&said, phase));
        assert!(log.contains(&format!("{phase}: 4 of ")), "{phase}: {log}");
    }
    let documents = all[0][0].1;
    let batches: Vec<(u64, u64)> = (0..documents)
        .step_by(4)
        .map(|done| (done, documents))
        .collect();
    assert!(batches.len() > 3 && documents % 3 == 0);
    // Each domain has 8 documents, which fill two batches.
    assert!(all.iter().all(|told| *told == batches), "{all:?}");
    let eval = [
        "eval",
        "config.toml",
        "--model",
        "models/teacher",
        "--set",
        "evaluation.batch_size=4",
    ];
    let said = stderr(&world.succeed(&eval));
    assert_eq!(progress(&said, "evaluation of models/teacher"), batches);
    let quiet = World::new();
    let train = [&train[..], &["--set", "log.interval_seconds=60"]].concat();
    let said = stderr(&quiet.succeed(&train));
    assert!(!said.contains(" documents"), "{said}");
}
