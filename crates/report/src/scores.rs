//! Reads lm-evaluation-harness scores of runs' students, from the results files that the harness writes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The scores of one model: task to metric to value.
pub type Scores = BTreeMap<String, BTreeMap<String, f64>>;

/// A results file of the harness.
#[derive(Debug, Clone, PartialEq)]
pub struct Harness {
    /// The model's folder, as given in `pretrained=`.
    pub model: String,
    /// Its scores.
    pub scores: Scores,
}

/// Why a file is not a results file of the harness.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScoresError {
    /// It is not JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// It has no scores.
    #[error("no object `results` with a task's numbers")]
    NoResults,
    /// It names no model.
    #[error("`config.model_args` names no model (`pretrained=FOLDER`)")]
    NoModel,
}

/// Parses the text of a results file: `results` (task to `"metric,filter"` to number) and `config.model_args`, which
/// names the model. Leaves out standard errors and values that are not numbers. Also leaves out the parts of a group
/// that has an overall score (the subjects of MMLU).
///
/// # Errors
/// If the text is not JSON, holds no scores, or names no model.
pub fn harness(text: &str) -> Result<Harness, ScoresError> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| ScoresError::NotJson(error.to_string()))?;
    let results = value["results"].as_object().ok_or(ScoresError::NoResults)?;
    let mut scores = Scores::new();
    let groups = value["group_subtasks"].as_object();
    let is_part = |task: &String| {
        groups.into_iter().flatten().any(|(group, parts)| {
            let mut parts = parts.as_array().into_iter().flatten();
            group != task && results.contains_key(group) && parts.any(|part| part == task)
        })
    };
    for (task, metrics) in results.iter().filter(|(task, _)| !is_part(task)) {
        let numbers = metrics.as_object().into_iter().flatten();
        let numbers = numbers.filter(|(name, _)| !name.contains("_stderr"));
        let numbers = numbers.filter_map(|(name, value)| {
            Some((name.trim_end_matches(",none").to_owned(), value.as_f64()?))
        });
        let numbers: BTreeMap<String, f64> = numbers.collect();
        if !numbers.is_empty() {
            scores.insert(task.clone(), numbers);
        }
    }
    if scores.is_empty() {
        return Err(ScoresError::NoResults);
    }
    let model = model(&value).ok_or(ScoresError::NoModel)?;
    Ok(Harness { model, scores })
}

/// `model_args` is a string in older versions of the harness and an object in newer ones.
fn model(value: &Value) -> Option<String> {
    let model = match &value["config"]["model_args"] {
        Value::String(text) => {
            let mut arguments = text.split(',').map(str::trim);
            arguments.find_map(|argument| argument.strip_prefix("pretrained="))?
        }
        other => other["pretrained"].as_str()?,
    };
    Some(model.trim_end_matches('/').to_owned())
}

/// Selects the one metric of a task that a table shows: the first of `FIRST` that exists, otherwise the first by name.
pub(crate) fn shown<'a>(metrics: &BTreeSet<&'a str>) -> Option<&'a str> {
    const FIRST: [&str; 5] = [
        "exact_match,strict-match",
        "exact_match",
        "pass@1,create_test",
        "acc_norm",
        "acc",
    ];
    let named = FIRST.into_iter().find(|name| metrics.contains(name));
    named.or_else(|| metrics.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_model_are_taken_from_either_form_of_the_file() {
        for arguments in [
            r#""pretrained=runs/a/kd/seed-0/student/,dtype=float32""#,
            r#"{"pretrained": "runs/a/kd/seed-0/student", "dtype": "float32"}"#,
        ] {
            let text = format!(
                r#"{{"results": {{"arc_easy": {{"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.01,
                        "acc_norm,none": 0.25}}}},
                    "config": {{"model_args": {arguments}}}}}"#
            );
            let harness = harness(&text).unwrap();
            assert_eq!(harness.model, "runs/a/kd/seed-0/student");
            let metrics = &harness.scores["arc_easy"];
            assert_eq!(metrics.len(), 2);
            assert_eq!(metrics["acc_norm"], 0.25);
            let names = metrics.keys().map(String::as_str).collect();
            assert_eq!(shown(&names), Some("acc_norm"));
        }
    }

    #[test]
    fn the_parts_of_a_group_are_left_out() {
        let text = r#"{"results": {"mmlu": {"acc,none": 0.3}, "mmlu_law": {"acc,none": 0.2},
            "arc_easy": {"acc,none": 0.4}},
            "group_subtasks": {"mmlu": ["mmlu_law"], "arc_easy": []}, "config": {"model_args": "pretrained=m"}}"#;
        let scores = harness(text).unwrap().scores;
        assert_eq!(scores.keys().collect::<Vec<_>>(), ["arc_easy", "mmlu"]);
    }

    #[test]
    fn other_files_are_refused_by_what_they_lack() {
        assert!(matches!(harness("runs"), Err(ScoresError::NotJson(_))));
        assert_eq!(harness(r#"{"a": 1}"#), Err(ScoresError::NoResults));
        assert_eq!(
            harness(r#"{"results": {"t": {"acc,none": 1.0}}}"#),
            Err(ScoresError::NoModel)
        );
    }
}
