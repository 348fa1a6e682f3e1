//! The models and the method of a run in words, from its `config.toml` and the changes since its start.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::overrides::{Assignments, Overrides};

/// A setting that tells a run from others, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is: `teacher`, `student`, `objective`, `mixture`, `learning rate` or `batch`.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Reads the facts of the run in `folder`. What the file lacks is left out, so that a run of another version can still
/// be viewed.
pub(super) fn read(folder: &Path) -> Vec<Fact> {
    let text = fs::read_to_string(folder.join("config.toml"));
    let settings = text.ok().and_then(|text| text.parse::<Table>().ok());
    let overrides = Overrides::look(folder);
    // An unreadable file of changes hides no facts.
    let _ = overrides.reload();
    settings.map_or_else(Vec::new, |settings| {
        changed(settings, &overrides.up_to(u64::MAX))
    })
}

/// The facts after changes. Says which facts differ from those at the start.
fn changed(mut settings: Table, changes: &Assignments) -> Vec<Fact> {
    let at_start = facts(&settings);
    for (key, value) in changes {
        let section = key
            .split_once('.')
            .and_then(|(section, key)| Some((settings.get_mut(section)?.as_table_mut()?, key)));
        if let (Some((section, key)), Ok(value)) = (section, Value::try_from(value)) {
            section.insert(key.to_owned(), value);
        }
    }
    let mut facts = facts(&settings);
    for (fact, before) in facts.iter_mut().zip(at_start) {
        if *fact != before {
            fact.value += " (changed during the run)";
        }
    }
    facts
}

fn facts(settings: &Table) -> Vec<Fact> {
    let all = [
        ("teacher", teacher(settings)),
        ("student", model(settings, "student")),
        ("objective", objective(settings)),
        ("mixture", mixture(settings)),
        ("learning rate", learning_rate(settings)),
        ("batch", batch(settings)),
    ];
    let known = all.into_iter().filter_map(|(name, value)| {
        Some(Fact {
            name: name.to_owned(),
            value: value?,
        })
    });
    known.collect()
}

fn value<'a>(settings: &'a Table, section: &str, key: &str) -> Option<&'a Value> {
    settings.get(section)?.get(key)
}

fn text(settings: &Table, section: &str, key: &str) -> Option<String> {
    value(settings, section, key)?.as_str().map(str::to_owned)
}

/// A number as people write it: `0.2`, `1e-4`, `48`.
fn number(settings: &Table, section: &str, key: &str) -> Option<String> {
    match value(settings, section, key)? {
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) if number.abs() < 1e-2 && *number != 0.0 => {
            Some(format!("{number:e}"))
        }
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    }
}

fn teacher(settings: &Table) -> Option<String> {
    let served = text(settings, "teacher", "served_model");
    let is_served = value(settings, "teacher", "servers")
        .and_then(Value::as_array)
        .is_some_and(|servers| !servers.is_empty());
    if !is_served {
        return model(settings, "teacher");
    }
    let name = served.or_else(|| model_name(settings, "teacher"))?;
    Some(format!("{name} (served)"))
}

/// A model's name and the type of its weights.
fn model(settings: &Table, section: &str) -> Option<String> {
    let name = model_name(settings, section)?;
    Some(match text(settings, section, "dtype") {
        Some(dtype) => format!("{name} ({dtype})"),
        None => name,
    })
}

/// The name of a model's folder, or of the model that a folder of Hugging Face's cache holds.
fn model_name(settings: &Table, section: &str) -> Option<String> {
    let path = text(settings, section, "model")?;
    let parts = || path.split('/').filter(|part| !part.is_empty());
    let cached = parts().find_map(|part| part.strip_prefix("models--"));
    let name = cached.map(|name| name.replace("--", "/"));
    name.or_else(|| parts().next_back().map(str::to_owned))
}

fn objective(settings: &Table) -> Option<String> {
    let name = text(settings, "objective", "name")?;
    if name == "ce" {
        return Some("cross-entropy, without the teacher".to_owned());
    }
    let mut said = name.replace('_', " ");
    let parameters = match name.as_str() {
        "jsd" => &["gamma", "temperature", "beta"][..],
        "skew_kl" | "skew_reverse_kl" => &["gamma", "temperature", "skew"],
        "ted" => &["gamma", "temperature", "ted_weight"],
        _ => &["gamma", "temperature"],
    };
    for parameter in parameters {
        if let Some(number) = number(settings, "objective", parameter) {
            said += &format!(", {} {number}", parameter.replace('_', " "));
        }
    }
    Some(said)
}

fn mixture(settings: &Table) -> Option<String> {
    let mut said = text(settings, "mixture", "policy")?;
    if let Some(alpha) = number(settings, "mixture", "alpha").filter(|_| said == "ddk") {
        said += &format!(", alpha {alpha}");
    }
    if let Some(interval) = number(settings, "mixture", "interval") {
        said += &match interval.as_str() {
            "1" => ", every step".to_owned(),
            _ => format!(", every {interval} steps"),
        };
    }
    Some(said)
}

fn learning_rate(settings: &Table) -> Option<String> {
    let mut said = number(settings, "optimizer", "lr")?;
    let schedule = text(settings, "lr_scheduler", "type");
    let schedule = schedule.unwrap_or_else(|| "cosine".to_owned());
    said += &format!(", {schedule}");
    let lowest = number(settings, "lr_scheduler", "min_lr");
    if let Some(lowest) = lowest.filter(|_| schedule != "constant") {
        said += &format!(" to {lowest}");
    }
    if let Some(warmup) = number(settings, "lr_scheduler", "warmup_steps") {
        said += &format!(", {warmup} warmup steps");
    }
    Some(said)
}

fn batch(settings: &Table) -> Option<String> {
    let sequences = number(settings, "training", "global_batch_size")?;
    let length = number(settings, "corpus", "sequence_length")?;
    Some(format!("{sequences} sequences of {length} tokens"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_during_the_run_is_in_its_facts() {
        let settings = "[optimizer]\nlr = 2e-4\n[mixture]\npolicy = 'kd'\n";
        let changes = [
            ("optimizer.lr".to_owned(), 1e-4.into()),
            ("log.interval_seconds".to_owned(), 3.into()),
        ];
        let facts = changed(settings.parse().unwrap(), &changes.into());
        let values: Vec<&str> = facts.iter().map(|fact| fact.value.as_str()).collect();
        assert_eq!(values, ["kd", "1e-4, cosine (changed during the run)"]);
    }

    fn of(config: &str) -> Vec<String> {
        let facts = facts(&config.parse().unwrap());
        let lines = facts
            .into_iter()
            .map(|Fact { name, value }| format!("{name}: {value}"));
        lines.collect()
    }

    #[test]
    fn a_configuration_becomes_words() {
        let config = r#"
            [corpus]
            sequence_length = 256
            [teacher]
            model = "/home/me/.cache/huggingface/hub/models--Qwen--Qwen2.5-1.5B/snapshots/8faed7"
            dtype = "bf16"
            [student]
            model = "models/small/"
            [training]
            global_batch_size = 8
            [optimizer]
            lr = 0.0002
            [lr_scheduler]
            warmup_steps = 20
            min_lr = 1e-5
            [mixture]
            policy = "ddk"
            alpha = 0.5
            interval = 48
            [objective]
            name = "skew_kl"
            gamma = 0.2
            temperature = 1.0
            skew = 0.1
            beta = 0.5
        "#;
        assert_eq!(
            of(config),
            [
                "teacher: Qwen/Qwen2.5-1.5B (bf16)",
                "student: small",
                "objective: skew kl, gamma 0.2, temperature 1, skew 0.1",
                "mixture: ddk, alpha 0.5, every 48 steps",
                "learning rate: 2e-4, cosine to 1e-5, 20 warmup steps",
                "batch: 8 sequences of 256 tokens",
            ]
        );
    }

    #[test]
    fn what_is_missing_is_left_out() {
        assert_eq!(of("[run]\nname = \"old\"\n"), [""; 0]);
        let config = "[teacher]\nservers = [\"http://gpu:8000\"]\nserved_model = \"big\"\n\
                      [lr_scheduler]\ntype = \"constant\"\nmin_lr = 0.1\n[optimizer]\nlr = 0.5\n\
                      [mixture]\npolicy = \"static\"\nalpha = 0.5\n[objective]\nname = \"ce\"\n";
        assert_eq!(
            of(config),
            [
                "teacher: big (served)",
                "objective: cross-entropy, without the teacher",
                "mixture: static",
                "learning rate: 0.5, constant",
            ]
        );
    }
}
