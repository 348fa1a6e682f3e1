//! Finds the label set of a run in the teacher's cache.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use ddk_labels::{LabelSet, Provenance, SetInfo, sets};
use ddk_serving::{ServingError, Watch};
use ddk_settings::{Settings, Teacher};

use super::inputs::Inputs;
use crate::{
    hint::Hint,
    progress::say,
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
    let wanted = Wanted::without_teacher(settings, folders, inputs);
    let teacher = if folders.is_served {
        // A set that fits may have every label, so there is no need to wait.
        let is_needed = wanted.fitting(dir)?.len() != 1;
        let patience = settings.teacher.patience_seconds;
        match served(settings, folders, if is_needed { patience } else { 0.0 }) {
            Err(error) if is_away(&error) => Err(error),
            known => Ok(known?),
        }
    } else {
        local(folders, inputs)
    };
    let set = match teacher {
        Ok(teacher) => wanted.open(dir, cache.max_bytes, teacher)?,
        Err(absent) => wanted.open_without_teacher(dir, absent)?,
    };
    Ok(Some(Arc::new(set)))
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

    /// Opens the set of this teacher and engine, and creates it if it is absent.
    fn open(
        mut self,
        dir: &Path,
        max_bytes: Option<u64>,
        [teacher, engine]: [String; 2],
    ) -> Result<LabelSet> {
        self.fields.push(("teacher".to_owned(), teacher));
        self.fields.push(("engine".to_owned(), engine));
        // Another folder of the same teacher may have begun the set.
        let begun = self.fitting(dir)?.into_iter().next();
        let slug = begun.as_ref().map_or(&*self.slug, |set| slug(&set.name));
        let fields = self.fields.iter();
        let fields = fields.map(|(name, value)| (name.as_str(), value.clone()));
        Ok(LabelSet::open(
            dir,
            slug,
            &Provenance::new(fields),
            max_bytes,
        )?)
    }

    /// Opens the only set that fits, for reading: nothing says that later labels would come from its teacher. `absent`:
    /// why the teacher is not here.
    fn open_without_teacher(&self, dir: &Path, absent: anyhow::Error) -> Result<LabelSet> {
        let fitting = self.fitting(dir)?;
        if let [set] = &fitting[..]
            && let Some(opened) = look_at(dir, set)?
        {
            return Ok(opened);
        }
        let names: Vec<&str> = fitting.iter().map(|set| set.name.as_str()).collect();
        let (found, advice) = match names[..] {
            [] => (
                "no label set",
                "start the teacher's server, or run `ddk label` where the whole teacher is"
                    .to_owned(),
            ),
            _ => (
                "several label sets",
                format!("move all but one of them away: {}", names.join(", ")),
            ),
        };
        let found = format!("{} has {found} for this run", dir.display());
        Err(absent.context(found)).hint(advice).usage()
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

/// Name of the model on the first server, and the engine. All servers must agree. Waits for servers that are away.
fn served(
    settings: &Settings,
    folders: &ModelFolders,
    patience_seconds: f64,
) -> Result<[String; 2]> {
    let width = folders.teacher_config()?.hidden_size();
    let teacher = Teacher {
        patience_seconds,
        ..settings.teacher.clone()
    };
    let mut first: Option<[String; 2]> = None;
    for (replica, address) in teacher.servers.iter().enumerate() {
        let mut server = server(&teacher, replica, width)?;
        let described = server.wait(&Startup(address))?;
        let described = described.with_context(|| format!("{address} was not asked"))?;
        let version = described.version.as_deref().unwrap_or("of unknown version");
        let own = [described.model.clone(), format!("vLLM {version}")];
        let [model, engine] = first.get_or_insert_with(|| own.clone());
        if [&*model, &*engine] != own.each_ref() {
            let (one, [other_model, other_engine]) = (&teacher.servers[0], own);
            return Err(anyhow!(
                "{address} serves {other_model} with {other_engine}, but {one} serves {model} with {engine}"
            ))
            .hint("all labels of a set must come from one teacher: serve the same model with the same version")
            .usage();
        }
    }
    first.context("`teacher.servers` is empty")
}

/// Whether a server did not answer, which it may do later.
fn is_away(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ServingError::Away { .. }))
}

/// Follows a server before the run starts. A signal ends the process at once.
struct Startup<'a>(&'a str);

impl Watch for Startup<'_> {
    fn on_away(&self, reason: &str) {
        say(&format!("waiting for teacher server {}: {reason}", self.0));
    }
}
