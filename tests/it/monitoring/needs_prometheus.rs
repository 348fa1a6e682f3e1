//! A real Prometheus scrapes a real run with faults and answers every query of the dashboard and the rules.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ddk_telemetry::metrics::{self, Kind, SOMETIMES};
use serde_json::Value;
use tempfile::TempDir;

use super::{committed_dashboard, expressions, repository, selectors};
use crate::world::World;

const MISSING: &str = "prometheus and promtool are needed: tools/test-tools installs them, SKIP=prometheus \
                       leaves these tests out";

/// A query that takes longer than this has failed.
const DEADLINE: Duration = Duration::from_secs(120);

struct Prometheus {
    child: Child,
    address: String,
    /// Keeps the configuration and the data until drop.
    _folder: TempDir,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes the run at `target`.
    fn start(target: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let config = folder.path().join("prometheus.yml");
        let rules = repository("dashboards/alerts.yml");
        let text = format!(
            "global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 500ms}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - {{job_name: ddk, static_configs: [{{targets: ['{target}']}}]}}\n",
            rules.display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect(MISSING);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
            said.push_str(&line);
            said.push('\n');
            let (_, rest) = line.split_once("msg=\"Listening on\" address=")?;
            Some(rest.trim().to_owned())
        });
        let address = address.unwrap_or_else(|| panic!("prometheus ended: {said}"));
        // Keep reading, so that Prometheus never blocks on a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = get(&self.address, path);
        let answer: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
        // Prometheus answers 503 until it is ready.
        match status {
            200 => answer["data"].clone(),
            503 => Value::Null,
            _ => panic!("{path}: {body}"),
        }
    }

    /// The current value of each series that the expression returns.
    fn query(&self, expression: &str) -> Vec<f64> {
        let data = self.get(&format!("/api/v1/query?query={}", encode(expression)));
        let series = data["result"].as_array().cloned().unwrap_or_default();
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        series.iter().map(value).collect()
    }

    /// Repeats the query until `good` accepts its values.
    fn wait(&self, expression: &str, good: impl Fn(&[f64]) -> bool) {
        let began = Instant::now();
        loop {
            let values = self.query(expression);
            if good(&values) {
                return;
            }
            assert!(
                began.elapsed() < DEADLINE,
                "{expression} is still {values:?}"
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a plain GET.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The output of `promtool check metrics` for a page; empty if the page is valid.
fn lint(page: &str) -> String {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(MISSING);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(repository("dashboards"))
            .output()
            .expect(MISSING);
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {arguments:?}: {said}");
    }
}

#[test]
fn prometheus_answers_all_that_dashboard_and_rules_ask_about_a_run_with_faults() {
    let world = World::new();
    let file = world.path().join("small.prom");
    let mut arguments = vec!["train", "config.toml", "--metrics-file", "small.prom"];
    for set in [
        "telemetry.enabled=true",
        "telemetry.listen=127.0.0.1:0",
        "telemetry.required=true",
        "run.max_steps=1000000",
        "log.samples=false",
        "teacher.cache.dir=\"cache\"",
        "mixture.interval=20",
        "checkpoint.interval=50",
        // A loss above the mean is a spike.
        "recovery.spike_threshold=0.5",
        "recovery.spike_min_history=20",
        "log.interval_seconds=3600",
        // Late enough for Prometheus to have seen the counters before the faults.
        "fault_injection.plan=[\"nan student 4000\", \"panic teacher 4010\", \"eio save 4050 4\", \"panic student \
         4060\", \"nan evaluation 220\"]",
    ] {
        arguments.extend(["--set", set]);
    }
    let mut target = String::new();
    let run = world.start_until_with(&arguments, &[("DDK_ALLOW_FAULTS", "1")], |line| {
        let address = line
            .split_once("metrics: http://")
            .and_then(|(_, rest)| rest.strip_suffix("/metrics"));
        target = address.unwrap_or_default().to_owned();
        address.is_some()
    });
    // Hold the run until Prometheus scrapes it, so that Prometheus sees the counters before the faults move them.
    run.signal("STOP");
    let prometheus = Prometheus::start(&target);
    run.signal("CONT");

    // The run survives its faults, and the alerts about them fire.
    let known = |values: &[f64]| !values.is_empty();
    for alert in [
        "DdkWorkerRestarting",
        "DdkNonFiniteUpdates",
        "DdkSpike",
        "DdkRewound",
        "DdkSaveFailing",
    ] {
        let firing = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        prometheus.wait(&firing, known);
    }
    prometheus.wait("ddk_checkpoint_step >= 4100", known);

    // The dashboard.
    let runs = "run=~\"small|another\"";
    let sometimes = |expression: &str| SOMETIMES.iter().any(|(name, _)| expression.contains(name));
    let asked = expressions(&committed_dashboard(), runs, "5s");
    assert!(asked.len() > 40);
    for (title, expression) in &asked {
        let of_marks = title == "Rewinds";
        if !sometimes(expression) {
            // A mark appears only when something happened; without the comparison, its series always exists.
            let expression = if of_marks {
                expression.trim_end_matches(" > 0")
            } else {
                expression
            };
            prometheus.wait(expression, known);
        }
    }

    // The rules: Prometheus evaluates each without an error and finds the series that it compares. (The comparison
    // itself is empty while all is well; alerts_test.yml has a case for each.)
    let groups = prometheus.get("/api/v1/rules?type=alert");
    let rules = groups["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 10);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{}", rule["name"]);
        for selector in selectors(rule["query"].as_str().unwrap()) {
            prometheus.wait(&format!("last_over_time({selector}[10m])"), known);
        }
    }

    // The registry: every declared metric is set somewhere, and every counter and histogram has counted.
    for metric in metrics::ALL.iter().filter(|metric| !sometimes(metric.name)) {
        let name = match metric.kind {
            Kind::Histogram => format!("{}_count", metric.name),
            _ => metric.name.to_owned(),
        };
        prometheus.wait(&format!("{name}{{run=\"small\"}}"), known);
        if metric.kind != Kind::Gauge {
            prometheus.wait(&format!("max_over_time({name}[10m]) > 0"), known);
        }
        // Every possible value of a label occurs.
        for label in metric.labels {
            for value in label.values {
                if sometimes(&format!("{}{{{}=\"{value}\"}}", metric.name, label.name)) {
                    continue;
                }
                prometheus.wait(&format!("{name}{{{}=\"{value}\"}}", label.name), known);
            }
        }
    }

    let (status, page) = get(&target, "/metrics");
    assert_eq!((status, lint(&page)), (200, String::new()));
    // The status page agrees.
    let (_, page) = get(&target, "/api/status");
    let status: Value = serde_json::from_str(&page).unwrap();
    let workers = status["workers"].as_array().unwrap();
    let student = workers.iter().find(|worker| worker["name"] == "student");
    assert_eq!(student.unwrap()["restarts"], 1, "{workers:?}");
    run.signal("TERM");
    let (status, said) = run.wait();
    assert_eq!(status.code(), Some(143), "{said}");

    // The run wrote the file one last time after everything was done.
    let page = fs::read_to_string(&file).unwrap();
    assert_eq!(lint(&page), "");
    let last = world.lines("run.jsonl").last().unwrap()["step"].clone();
    assert!(page.contains(&format!("ddk_step{{run=\"small\"}} {last}\n")));
    assert!(
        page.contains("ddk_worker_state{run=\"small\",worker=\"student\",state=\"stopped\"} 1\n")
    );
}
