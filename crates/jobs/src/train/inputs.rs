//! The inputs of a run: checked before it starts, recorded in its folder, and checked again when it resumes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use ddk_labels::LabelSet;
use ddk_model::Weights;
use ddk_run::{Overrides, RunFolder, read::record};
use ddk_settings::{Change, Settings, diff};
use serde::{Deserialize, Serialize};

use super::{changes, threads};
use crate::{
    config,
    findings::fits,
    hint::Hint,
    prepare::Corpus,
    progress::{hash_tensors, hash_weights},
    wiring::ModelFolders,
};

/// Hashes of everything besides the settings that a run's results depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// The teacher's tensors; empty if only the LM head is here.
    teacher: String,
    /// The teacher's LM head.
    #[serde(default)]
    teacher_head: String,
    /// The part of its config.json that affects the computation.
    teacher_config: String,
    /// The student's tensors at the start.
    student: String,
    /// The same for the student's config.json.
    student_config: String,
    /// The tokenizer.
    tokenizer: String,
    /// The prepared domains, validation documents included.
    corpus: Vec<(String, String)>,
    /// Number of logit columns in use.
    vocabulary: i64,
    /// Tokens of a sequence, and of a validation document.
    sequence_length: usize,
    /// The commit of each repository on the Hub that the settings name. The run always uses these. The hashes say
    /// whether the content is the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) revisions: BTreeMap<String, String>,
}

impl Inputs {
    /// Hashes the inputs of a run.
    ///
    /// # Errors
    /// If a model cannot be read, if teacher and student have the same weights, or if a model is too small for the
    /// tokenizer or the sequence length.
    pub fn of(folders: &ModelFolders, corpus: &Corpus, sequence_length: usize) -> Result<Self> {
        let teacher = if folders.head_only {
            String::new()
        } else {
            hash_weights(&folders.teacher)?
        };
        let student = hash_weights(&folders.student)?;
        if folders.has_teacher && teacher == student {
            return Err(anyhow!(
                "teacher and student have the same weights: {} and {}",
                folders.teacher.display(),
                folders.student.display()
            ))
            .hint("set teacher.model to the larger model's folder")
            .usage();
        }
        let size = (corpus.tokenizer.vocabulary(), sequence_length);
        let configs = folders.configs()?;
        fits("teacher", &folders.teacher, &configs.0, size)?;
        fits("student", &folders.student, &configs.1, size)?;
        Ok(Self {
            teacher,
            student,
            ..Self::without_weights(folders, corpus, sequence_length)?
        })
    }

    /// Hashes everything but the weights, and the teacher's LM head.
    ///
    /// # Errors
    /// If a model cannot be read.
    pub(crate) fn without_weights(
        folders: &ModelFolders,
        corpus: &Corpus,
        sequence_length: usize,
    ) -> Result<Self> {
        let (teacher, student) = folders.configs()?;
        let head = Weights::open_head(&folders.teacher, &teacher.head())?;
        let domains = corpus.domains.iter();
        Ok(Self {
            teacher: String::new(),
            teacher_head: hash_tensors(&folders.teacher, &head),
            teacher_config: teacher.hash()?,
            student: String::new(),
            student_config: student.hash()?,
            tokenizer: corpus.tokenizer.hash().to_owned(),
            corpus: domains
                .map(|domain| (domain.name().to_owned(), domain.content_hash().to_owned()))
                .collect(),
            vocabulary: corpus.tokenizer.vocabulary() as i64,
            sequence_length,
            revisions: BTreeMap::new(),
        })
    }

    /// Returns whether a folder records the inputs of a run, which has therefore begun.
    pub fn are_in(folder: &Path) -> bool {
        folder.join("inputs.json").exists()
    }

    /// Reads the inputs of a run.
    ///
    /// # Errors
    /// If its `inputs.json` cannot be read.
    pub fn of_run(folder: &Path) -> Result<Self> {
        Ok(record(&folder.join("inputs.json"))?)
    }

    /// Returns the hashes with their names: models and tokenizer first, then the domains.
    fn hashes(&self) -> impl Iterator<Item = (String, &String)> {
        let models = [
            ("teacher's weights", &self.teacher),
            ("teacher's LM head", &self.teacher_head),
            ("teacher's config.json", &self.teacher_config),
            ("student's weights", &self.student),
            ("student's config.json", &self.student_config),
            ("tokenizer", &self.tokenizer),
        ];
        let models = models.map(|(what, hash)| (what.to_owned(), hash));
        let domains = self.corpus.iter();
        let domains = domains.map(|(name, hash)| (format!("corpus of domain `{name}`"), hash));
        models.into_iter().chain(domains)
    }

    /// Returns the first input whose hash differs from an earlier run's, with both hashes. Both lists have the same
    /// domains, because the settings name them. An input that is unknown in one of them does not differ.
    pub(crate) fn changed<'a>(
        &'a self,
        then: &'a Self,
    ) -> Option<(String, &'a String, &'a String)> {
        let mut pairs = then.hashes().zip(self.hashes());
        pairs.find_map(|((what, then), (_, now))| {
            let differ = then != now && !then.is_empty() && !now.is_empty();
            differ.then_some((what, then, now))
        })
    }

    /// Leaves out the student's weights.
    pub(crate) fn without_student(&self) -> Self {
        Self {
            student: String::new(),
            ..self.clone()
        }
    }

    /// Returns what the teacher's outputs depend on: names and values. The teacher's weights are left out.
    pub(super) fn of_labels(&self) -> impl Iterator<Item = (String, String)> {
        let others = self
            .hashes()
            .filter(|(what, _)| !what.starts_with("student") && what != "teacher's weights");
        others.map(|(what, hash)| (what, hash.clone()))
    }

    /// Hash of all tensors of the teacher; `None` if only the LM head is here.
    pub(super) fn teacher_weights(&self) -> Option<&str> {
        Some(&*self.teacher).filter(|hash| !hash.is_empty())
    }

    /// Checks that teacher, student and tokenizer are those of the other run. The data may differ.
    ///
    /// # Errors
    /// If a model's weights or `config.json`, or the tokenizer, differ.
    pub fn same_models(&self, other: &Self) -> Result<()> {
        let models = Self {
            corpus: Vec::new(),
            ..other.clone()
        };
        match self.changed(&models) {
            Some((what, ..)) => Err(anyhow!(
                "a fork keeps weights and moments, so the {what} must be the same as in the run it forks"
            ))
            .usage(),
            None => Ok(()),
        }
    }

    /// Returns, for each domain, its index in the other run if its content is the same there.
    pub fn kept(&self, other: &Self) -> Vec<Option<usize>> {
        let find = |domain| other.corpus.iter().position(|old| old == domain);
        self.corpus.iter().map(find).collect()
    }

    /// Returns whether these inputs include a domain with this content.
    pub fn has(&self, domain: &str, content: &str) -> bool {
        let mut all = self.corpus.iter();
        all.any(|(name, hash)| name == domain && hash == content)
    }

    /// Names of the domains.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.corpus.iter().map(|(name, _)| name.as_str())
    }

    /// Writes the settings and inputs to a new run's folder. If the folder holds a run, first checks them against it.
    ///
    /// # Errors
    /// If they do not match the run in the folder, or if a file cannot be read or written.
    pub fn bind(&self, folder: &RunFolder, settings: &Settings) -> Result<()> {
        let text = if RunFolder::holds_a_run(folder.path()) {
            self.check(folder, settings)?;
            // Changes made while a run trains are in `overrides.jsonl`. Everything else is written as it is now.
            changes::of_start(settings, &config::of_run(folder.path())?)?.to_toml()?
        } else {
            let text = serde_json::to_vec_pretty(self)?;
            ddk_files::write_atomically(&folder.path().join("inputs.json"), &text)?;
            settings.to_toml()?
        };
        // Write the configuration last: a folder that has it holds a run.
        ddk_files::write_atomically(&folder.config(), text.as_bytes())?;
        Ok(())
    }

    /// Checks that the run was started with these settings and inputs.
    ///
    /// # Errors
    /// If one of them has changed and may not, or if the run's files cannot be read.
    pub fn check(&self, folder: &RunFolder, settings: &Settings) -> Result<()> {
        same_settings(folder.path(), settings)?;
        let (shown, then) = (folder.path().display(), Self::of_run(folder.path())?);
        let Some((what, then, now)) = self.changed(&then) else {
            return Ok(());
        };
        // Enough to tell two hashes apart.
        let [then, now] = [then, now].map(|hash| hash.get(..12).unwrap_or(hash));
        Err(anyhow!(
            "{shown} contains a different run: the {what} changed since it started (hash {then} then, {now} now)"
        ))
        .hint(changes::advice(folder.path(), settings, &[]))
        .usage()
    }

    /// Returns the known perplexities of the teacher. It is frozen, so DDK measures them once and keeps them: in the
    /// label set, or beside the corpus without a cache.
    pub(crate) fn known_perplexities(
        &self,
        settings: &Settings,
        labels: Option<&LabelSet>,
    ) -> Option<Vec<f64>> {
        let known: Vec<f64> = if let Some(set) = labels {
            let kept = set.record(&of_evaluation(settings)).ok()??;
            serde_json::from_value(kept).ok()?
        } else if settings.teacher.is_served() {
            // Only a label set knows which model the servers had.
            return None;
        } else {
            let text = fs::read_to_string(self.perplexities_file(settings)).ok()?;
            serde_json::from_str(&text).ok()?
        };
        (known.len() == self.corpus.len()).then_some(known)
    }

    /// Keeps the teacher's perplexities. If that fails, the next run measures them again.
    pub(crate) fn keep_perplexities(
        &self,
        settings: &Settings,
        labels: Option<&LabelSet>,
        perplexities: &[f64],
    ) {
        if labels.is_none() && settings.teacher.is_served() {
            return;
        }
        let values = serde_json::json!(perplexities);
        let kept = if let Some(set) = labels {
            set.keep_record(&of_evaluation(settings), &values)
                .map_err(anyhow::Error::from)
        } else {
            let path = self.perplexities_file(settings);
            let written = ddk_files::write_atomically(&path, values.to_string().as_bytes());
            written.map_err(anyhow::Error::from)
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "cannot store the teacher's perplexities");
        }
    }

    fn perplexities_file(&self, settings: &Settings) -> PathBuf {
        let of_teacher = Self {
            student: String::new(),
            student_config: String::new(),
            revisions: BTreeMap::new(),
            ..self.clone()
        };
        // Everything that affects them, down to the last bit.
        let by = (
            settings.objective.completion_only_loss,
            settings.objective.chunk_size,
            settings.evaluation.batch_size,
            settings.teacher.dtype,
            // Replica 0 measures them.
            &settings.teacher.devices[..1],
            settings.teacher.threads,
        );
        let text = serde_json::to_vec(&(of_teacher, by)).unwrap_or_default();
        let key = blake3::hash(&text).to_hex();
        let name = format!("teacher-perplexities-{}.json", &key[..16]);
        settings.corpus.dir.join(name)
    }
}

/// Name of the teacher's perplexities in a label set, by the settings that affect them.
fn of_evaluation(settings: &Settings) -> String {
    let by = (
        settings.objective.completion_only_loss,
        settings.objective.chunk_size,
        settings.evaluation.batch_size,
    );
    let text = serde_json::to_vec(&by).unwrap_or_default();
    format!("perplexities-{}", &blake3::hash(&text).to_hex()[..16])
}

/// Fails if these settings would change the results of the run in this folder.
pub(crate) fn same_settings(folder: &Path, settings: &Settings) -> Result<()> {
    let then = config::of_run(folder)?;
    let mut now = settings.clone();
    threads::adopt(&mut now, &then);
    if now.teacher.is_served() && then.teacher.is_served() {
        // The servers may have moved.
        now.teacher.servers.clone_from(&then.teacher.servers);
    }
    let changes = changes::differences(&then, &now)?;
    if changes.is_empty() {
        return Ok(());
    }
    Err(anyhow!(
        "the run in {} was started with other settings: {}",
        folder.display(),
        changes::in_words(&changes)
    ))
    .hint(changes::advice(folder, settings, &changes))
    .usage()
}

/// Fails if a setting was edited that would have affected the steps of this finished run.
pub(super) fn same_rates(folder: &Path, settings: &Settings) -> Result<()> {
    let overrides = Overrides::open(folder)?;
    let (set, in_words) = changes::edited(&config::of_run(folder)?, settings, &overrides)?;
    let is_rate = |key: &String| key.starts_with("optimizer.") || key.starts_with("lr_scheduler.");
    if !set.keys().any(is_rate) {
        return Ok(());
    }
    let shown = folder.display();
    Err(anyhow!("{shown} contains a finished run: {in_words}"))
        .hint(changes::advice(folder, settings, &[]))
        .usage()
}

/// Returns whether these settings extend the run in this folder.
pub(crate) fn extends(folder: &Path, settings: &Settings) -> Result<bool> {
    Ok(diff(&config::of_run(folder)?, settings)?
        .iter()
        .any(Change::grows))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ddk_settings::{keys, sections};

    /// Returns the code words in the documentation's paragraph that begins like this.
    fn listed(beginning: &str) -> BTreeSet<&'static str> {
        let text = include_str!("../../../../docs/running.md");
        let paragraph = &text[text.find(beginning).unwrap()..];
        let paragraph = paragraph.split("\n\n").next().unwrap();
        paragraph.split('`').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_documentation_lists_what_may_differ() {
        let mut may_differ = BTreeSet::new();
        for section in sections() {
            let names = section.keys.iter().filter(|key| key.may_differ);
            let names: Vec<&str> = names.map(|key| key.path.as_str()).collect();
            if names.len() == section.keys.len() {
                may_differ.extend(section.path.split(".*").next());
            } else {
                may_differ.extend(names);
            }
        }
        may_differ.remove("");
        may_differ.extend(["method"]);
        assert_eq!(listed("These settings may differ"), may_differ);
        let limits = keys().filter(|key| key.may_grow);
        let limits: BTreeSet<&str> = limits.map(|key| key.path.as_str()).collect();
        assert_eq!(limits.len(), 4);
        assert!(listed("A larger").is_superset(&limits));
    }
}
