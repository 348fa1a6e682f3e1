//! Finds the label set of a run in the teacher's cache.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use ddk_labels::{LabelSet, Provenance, SetInfo, sets};
use ddk_settings::Settings;

use super::inputs::Inputs;
use crate::{
    hint::Hint,
    wiring::{ModelFolders, server},
};

/// Opens the label set of a run, if it has a cache. TED has none, because it needs the outputs of layers too.
///
/// # Errors
/// If the cache cannot be used.
pub(crate) fn of_run(
    settings: &Settings,
    folders: &ModelFolders,
    inputs: &Inputs,
) -> Result<Option<Arc<LabelSet>>> {
    let cache = &settings.teacher.cache;
    let dir = cache.dir.as_ref().filter(|_| folders.has_teacher);
    let Some(dir) = dir.filter(|_| !settings.objective.has_layers()) else {
        return Ok(None);
    };
    let teacher = if folders.is_served {
        served(settings, folders)
    } else {
        local(folders, inputs)
    };
    let wanted = Wanted::without_teacher(settings, folders, inputs);
    Ok(Some(Arc::new(wanted.open(
        dir,
        cache.max_bytes,
        teacher,
    )?)))
}

/// What a run needs of its label set.
pub(crate) struct Wanted {
    /// What the labels depend on. If the teacher is not here, the fields that say what computed them are missing.
    fields: Vec<(String, String)>,
    /// Begins the name of a new set.
    slug: String,
}

impl Wanted {
    /// Describes the label set of these inputs, without its teacher.
    pub(crate) fn without_teacher(
        settings: &Settings,
        folders: &ModelFolders,
        inputs: &Inputs,
    ) -> Self {
        let corpus = &settings.corpus;
        let by = if folders.is_served { "vLLM" } else { "DDK" };
        let own = [
            ("packing", corpus.packing.to_string()),
            ("sequence_length", corpus.sequence_length.to_string()),
            (
                "dtype",
                format!("{:?}", settings.teacher.dtype).to_lowercase(),
            ),
            ("computed by", by.to_owned()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let name = folders.teacher.canonicalize();
        let name = name.unwrap_or_else(|_| folders.teacher.clone());
        let name = name.file_name().unwrap_or_default();
        Self {
            fields: inputs.of_labels().chain(own).collect(),
            slug: name.to_string_lossy().into_owned(),
        }
    }

    /// The sets in a cache that fit.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub(crate) fn fitting(&self, dir: &Path) -> Result<Vec<SetInfo>> {
        let fits = |set: &SetInfo| {
            let of = |(name, value): &(String, String)| {
                let mut fields = set.provenance.fields();
                fields.any(|(other, found)| other == name && found == value)
            };
            self.fields.iter().all(of)
        };
        let mut sets = sets(dir)?;
        sets.retain(fits);
        Ok(sets)
    }

    /// Opens the set, and creates it if it is absent. `teacher`: what computes the labels, or why it is not here. Then
    /// opens the only set that fits everything else.
    fn open(
        mut self,
        dir: &Path,
        max_bytes: Option<u64>,
        teacher: Result<[String; 2]>,
    ) -> Result<LabelSet> {
        let absent = match teacher {
            Ok([teacher, engine]) => {
                self.fields.push(("teacher".to_owned(), teacher));
                self.fields.push(("engine".to_owned(), engine));
                None
            }
            Err(error) => Some(error),
        };
        let fitting = self.fitting(dir)?;
        let (slug, provenance) = match (&fitting[..], absent) {
            // A set that another folder of the same teacher began.
            ([set], _) | ([set, ..], None) => (slug(&set.name), set.provenance.clone()),
            ([], None) => {
                let fields = self.fields.iter();
                let fields = fields.map(|(name, value)| (name.as_str(), value.clone()));
                (&*self.slug, Provenance::new(fields))
            }
            (none_or_several, Some(absent)) => {
                let names = none_or_several.iter().map(|set| set.name.as_str());
                let names: Vec<&str> = names.collect();
                let (found, advice) = match names[..] {
                    [] => (
                        "no label set",
                        "run `ddk label` with this configuration where the teacher is".to_owned(),
                    ),
                    _ => (
                        "several label sets",
                        format!("move all but one of them away: {}", names.join(", ")),
                    ),
                };
                let found = format!("{} has {found} for this run", dir.display());
                return Err(absent.context(found)).hint(advice).usage();
            }
        };
        Ok(LabelSet::open(dir, slug, &provenance, max_bytes)?)
    }
}

/// Opens a set of [`Wanted::fitting`] without changing it.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn look_at(dir: &Path, set: &SetInfo) -> Result<Option<LabelSet>> {
    Ok(LabelSet::find(dir, slug(&set.name), &set.provenance)?)
}

/// The part of a set's name before its hash.
fn slug(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(slug, _)| slug)
}

/// Hash of the teacher's weights, and what computes with them.
fn local(folders: &ModelFolders, inputs: &Inputs) -> Result<[String; 2]> {
    let weights = inputs.teacher_weights();
    let folder = folders.teacher.display();
    let weights =
        weights.with_context(|| format!("{folder} holds only the LM head of the teacher"));
    Ok([
        weights?.to_owned(),
        format!("libtorch {}", ddk_torch::VERSION),
    ])
}

/// Name of the model on the first server, and the engine. All servers must agree.
fn served(settings: &Settings, folders: &ModelFolders) -> Result<[String; 2]> {
    let width = folders.teacher_config()?.hidden_size();
    let mut first: Option<[String; 2]> = None;
    for replica in 0..settings.teacher.replicas() {
        let server = server(&settings.teacher, replica, width)?;
        let described = server.describe()?;
        let version = described
            .version
            .unwrap_or_else(|| "of unknown version".to_owned());
        let own = [described.model, format!("vLLM {version}")];
        let agreed = first.get_or_insert_with(|| own.clone());
        if *agreed != own {
            let [[model, engine], [other, other_engine]] = [&*agreed, &own].map(Clone::clone);
            return Err(anyhow!(
                "{} serves {other} with {other_engine}, but {} serves {model} with {engine}",
                settings.teacher.servers[replica],
                settings.teacher.servers[0],
            ))
            .hint("labels of one set come from one teacher: serve the same model with the same version")
            .usage();
        }
    }
    first.ok_or_else(|| anyhow!("`teacher.servers` is empty"))
}
