//! A run of fourteen domains, written without training one.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

/// Writes the files of a stopped run of `STEPS` steps and 20 evaluations.
pub fn write(folder: &Path) {
    const STEPS: u64 = 400;
    fs::create_dir_all(folder).unwrap();
    let models = "[teacher]\nmodel = \"models/SmolLM2-135M\"\n[student]\nmodel = \"models/half\"\n";
    let config = format!("[run]\nmax_steps = 1000\n{models}");
    fs::write(folder.join("config.toml"), config).unwrap();
    let lines = |values: Vec<Value>| {
        let lines = values.iter().map(|value| format!("{value}\n"));
        lines.collect::<String>()
    };
    let steps = (1..=STEPS).map(|step| {
        let noise = (step * 37 % 11) as f64 / 20.0;
        let loss = 2.0 + 300.0 / (step + 50) as f64 + noise;
        json!({"step": step, "loss": loss, "ce_loss": loss - 0.2, "kd_loss": 1.0, "gamma": 0.2,
               "learning_rate": 1e-3, "grad_norm": 1.0 + noise, "tokens": 2048, "interval": (step - 1) / 20,
               "seconds": {"forward": 0.5}})
    });
    fs::write(folder.join("run.jsonl"), lines(steps.collect())).unwrap();
    let by_domain = |value: &dyn Fn(f64) -> f64| -> BTreeMap<String, f64> {
        let domains =
            (1..=14).map(|domain| (format!("domain-{domain:02}"), value(f64::from(domain))));
        domains.collect()
    };
    let mixtures = (0..STEPS / 20).map(|interval| {
        let left = 1.0 - interval as f64 / 25.0;
        json!({"interval": interval, "step": 20 * interval, "policy": "ddk", "alpha": 0.5,
               "weights": by_domain(&|_| 1.0 / 14.0), "target": by_domain(&|_| 1.0 / 14.0),
               "student_perplexity": by_domain(&|domain| 5.0 * (domain * left / 4.0).exp()),
               "teacher_perplexity": by_domain(&|_| 5.0), "ratio": by_domain(&|domain| (domain * left / 4.0).exp()),
               "gap": by_domain(&|domain| domain * left / 4.0), "evaluated_at_step": 20 * interval})
    });
    fs::write(folder.join("mixture.jsonl"), lines(mixtures.collect())).unwrap();
    let started = json!({"time": 1.8e9, "step": 0, "kind": "started", "message": "process 1 on trainer (2 CPUs)"});
    fs::write(folder.join("events.jsonl"), lines(vec![started])).unwrap();
}
