//! Finds the models and the data that the settings name on the Hugging Face Hub.
//!
//! Every command calls [`located`] once, before it opens a model or a file. Settings keep the names; their places on
//! this machine travel with them ([`ddk_settings::Places`]). A run records the commit of each repository at its first
//! start, and later starts use the same one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Error, Result, anyhow};
use ddk_hub::{Event, Found, Hub, HubError, IsWanted, Name, Options, Parts};
use ddk_model::{ModelConfig, is_head};
use ddk_run::{RunFolder, read::record};
use ddk_settings::{Places, Settings};
use ddk_telemetry::Meter;
use serde::Deserialize;

use crate::{
    config::run_folder,
    hint::{Hint, usage, with_hint},
    local,
    phase::Phase,
    progress::{Reporter, say},
    signals::Signals,
};

/// Seconds between two lines of a download's progress.
const LINE_SECONDS: f64 = 5.0;
/// Bytes from which a download is announced.
const ANNOUNCED: u64 = 1 << 20;
/// Endings of the data files of a data set, before `.gz` or `.zst`.
const DATA: [&str; 8] = [
    "jsonl", "ndjson", "json", "parquet", "arrow", "csv", "tsv", "txt",
];
/// Descriptions of a data set that end like its data.
const NO_DATA: [&str; 4] = [
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
];

/// What a command needs of the names in its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// Teacher, student, and the model that DoReMi's preliminary runs start from.
    Models,
    /// The student alone.
    Student,
    /// The tokenizer and the text of the corpus.
    Corpus,
    /// The model that a pretraining starts from.
    Initial(&'a Path),
}

/// Commits by the key of a repository and revision.
pub type Revisions = BTreeMap<String, String>;

/// The part of a run's inputs that chooses the commits.
#[derive(Deserialize)]
struct Recorded {
    #[serde(default)]
    revisions: Revisions,
}

/// Returns the settings with the places of everything that a command needs, after downloading what is missing.
/// `pinned`: the commits to use, whatever the revisions are now. With `signals`, a signal during a download says what
/// the same command will do next.
///
/// # Errors
/// If a name is wrong, if the Hub has no such repository or forbids access, or if a download fails.
pub fn located(
    settings: &Settings,
    wanted: &[Wanted<'_>],
    pinned: &Revisions,
    signals: Option<&Signals>,
) -> Result<Settings> {
    let mut finder = Finder::new(pinned, signals);
    let mut located = settings.clone();
    let has_cache = settings.teacher.cache.dir.is_some();
    for wanted in wanted {
        match wanted {
            Wanted::Models => {
                let teacher = settings.teacher.model.as_deref();
                let of_teacher = match (settings.teacher.is_served(), has_cache) {
                    (true, _) => &[Parts::Tensors(&head)][..],
                    // The cache may have all outputs, so that the LM head is enough.
                    (false, true) => &[Parts::All, Parts::Tensors(&head)],
                    (false, false) => &[Parts::All],
                };
                finder.model(settings, teacher, of_teacher, &mut located.places)?;
                let student = settings.student.model.as_deref();
                let doremi = settings.mixture.doremi_model.as_deref();
                for model in [student, doremi] {
                    finder.model(settings, model, &[Parts::All], &mut located.places)?;
                }
            }
            Wanted::Student => {
                let student = settings.student.model.as_deref();
                finder.model(settings, student, &[Parts::All], &mut located.places)?;
            }
            Wanted::Initial(model) => {
                finder.model(settings, Some(model), &[Parts::All], &mut located.places)?;
            }
            Wanted::Corpus => {
                let own = settings.corpus.tokenizer.as_deref();
                let tokenizer = own.or(settings.student.model.as_deref());
                finder.model(
                    settings,
                    tokenizer,
                    &[Parts::Tokenizer],
                    &mut located.places,
                )?;
                for domain in settings.domains.values() {
                    for pattern in domain.files.iter().chain(&domain.validation_files) {
                        finder.files(pattern, &mut located.places)?;
                    }
                }
            }
        }
    }
    Ok(located)
}

/// Returns the commits that the run of these settings uses; none if it has not begun.
///
/// # Errors
/// If the run's inputs cannot be read.
pub fn pinned(settings: &Settings) -> Result<Revisions> {
    run_folder(settings).map_or_else(|_| Ok(Revisions::new()), |run| revisions_of(&run))
}

/// Returns the commits that the run in this folder uses; none if the folder holds no run.
///
/// # Errors
/// If the run's inputs cannot be read.
pub fn revisions_of(run: &Path) -> Result<Revisions> {
    let inputs = run.join("inputs.json");
    if !RunFolder::holds_a_run(run) || !inputs.exists() {
        return Ok(Revisions::new());
    }
    Ok(record::<Recorded>(&inputs)?.revisions)
}

/// Returns the folder of the model that a command line names, after downloading what is missing.
///
/// # Errors
/// As for [`located`].
pub fn model(name: &Path) -> Result<PathBuf> {
    of_name(name, &[Parts::All])
}

/// Like [`model`], but without weights.
///
/// # Errors
/// As for [`located`].
pub fn model_without_weights(name: &Path) -> Result<PathBuf> {
    of_name(name, &[Parts::Tensors(&|_| None)])
}

fn of_name(name: &Path, parts: &[Parts<'_>]) -> Result<PathBuf> {
    let (mut settings, none) = (Settings::default(), Revisions::new());
    let mut places = Places::default();
    Finder::new(&none, None).model(&settings, Some(name), parts, &mut places)?;
    settings.places = places;
    Ok(settings.local(name))
}

/// Returns the local files of a pattern that begins with `hf://`, after downloading those that are missing; none for
/// any other pattern.
///
/// # Errors
/// As for [`located`].
pub fn files(pattern: &str) -> Result<Option<Vec<String>>> {
    let mut places = Places::default();
    Finder::new(&Revisions::new(), None).files(pattern, &mut places)?;
    Ok(places.files.remove(pattern))
}

/// Returns the last part of a name on the Hub, or of a path.
pub fn short_name(name: &Path) -> String {
    let text = name.to_string_lossy();
    let of_hub = Name::dataset(&text).ok().flatten();
    let of_hub = of_hub.or_else(|| Name::model(&text).ok().flatten());
    match of_hub {
        Some(of_hub) if !name.exists() => {
            let id = of_hub.id();
            id.rsplit('/').next().unwrap_or(id).to_owned()
        }
        _ => {
            let path = name.canonicalize().unwrap_or_else(|_| name.to_owned());
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        }
    }
}

/// Describes the repositories that the settings name, one per line.
pub(crate) fn describe(settings: &Settings) -> Vec<String> {
    let places = &settings.places;
    let models = places.models.iter();
    let models = models.map(|(name, folder)| format!("{} is {}", name.display(), folder.display()));
    let files = places.files.iter();
    let files = files.map(|(pattern, files)| match &files[..] {
        [file] => format!("{pattern} is {file}"),
        files => format!("{pattern} is {} files, the first {}", files.len(), files[0]),
    });
    models.chain(files).collect()
}

/// Chooses the tensors of the LM head.
fn head(folder: &Path) -> Option<IsWanted> {
    let (name, _) = ModelConfig::read_served(folder).ok()?.head();
    Some(Box::new(move |tensor| is_head(&name, tensor)))
}

/// Finds names one after the other.
struct Finder<'a> {
    /// Connected to at the first name.
    hub: Option<Hub>,
    pinned: &'a Revisions,
    signals: Option<&'a Signals>,
}

impl<'a> Finder<'a> {
    fn new(pinned: &'a Revisions, signals: Option<&'a Signals>) -> Self {
        Self {
            hub: None,
            pinned,
            signals,
        }
    }

    /// Finds a model, if its name is one of the Hub's, with the first of these parts that can be had.
    fn model(
        &mut self,
        settings: &Settings,
        path: Option<&Path>,
        parts: &[Parts<'_>],
        places: &mut Places,
    ) -> Result<()> {
        let Some(path) = path else {
            return Ok(());
        };
        let explicit = path.to_str().is_some_and(Name::is_explicit);
        // A path that a command makes later is a path.
        let is_made = settings
            .pretrain
            .values()
            .any(|model| model.output_dir == path);
        if !explicit && (path.exists() || is_made) {
            return Ok(());
        }
        if path.starts_with("~") {
            return Err(anyhow!("there is no folder {}", path.display()))
                .hint("a configuration does not expand ~: write the whole path")
                .usage();
        }
        let name = Name::model(path.to_str().unwrap_or_default()).map_err(advised)?;
        let Some(name) = name else {
            return Ok(());
        };
        if !explicit && !self.hub()?.knows(&name) {
            if local::is_local(path) {
                return Ok(());
            }
            // Without a connection, the attempts take a while.
            say(&local::not_here(path));
        }
        let mut found = Err(None);
        for parts in parts {
            let attempt = self.find(&name, |hub, pinned, tell| {
                hub.model(&name, pinned, parts, tell)
            })?;
            match (attempt, &found) {
                (Ok(model), _) => {
                    found = Ok(model);
                    break;
                }
                // The first error says what the user asked for.
                (Err(error), Err(None)) => found = Err(Some(error)),
                (Err(_), _) => {}
            }
        }
        let Found {
            folder, revision, ..
        } = match found {
            Ok(found) => found,
            Err(error) => return error.map_or(Ok(()), |error| Err(advised(error))),
        };
        places.models.insert(path.to_owned(), folder);
        places.revisions.insert(name.key(), revision);
        Ok(())
    }

    /// Finds the files of a pattern, if it is one of the Hub's.
    fn files(&mut self, pattern: &str, places: &mut Places) -> Result<()> {
        let Some(name) = Name::dataset(pattern).map_err(advised)? else {
            return Ok(());
        };
        let found = self.find(&name, |hub, pinned, tell| {
            hub.dataset(&name, pinned, &is_data, tell)
        })?;
        let Found {
            files, revision, ..
        } = found.map_err(advised)?;
        let files = files.iter().map(|file| file.display().to_string());
        places.files.insert(pattern.to_owned(), files.collect());
        places.revisions.insert(name.key(), revision);
        Ok(())
    }

    fn hub(&mut self) -> Result<&Hub> {
        let hub = match self.hub.take() {
            Some(hub) => hub,
            None => {
                if let Some(signals) = self.signals {
                    signals.begin(Phase::Download)?;
                }
                Hub::new(Options::from_env()).map_err(advised)?
            }
        };
        Ok(self.hub.insert(hub))
    }

    /// Finds something, and reports the download.
    fn find(
        &mut self,
        name: &Name,
        work: impl FnOnce(&Hub, Option<&str>, &mut dyn FnMut(Event<'_>)) -> Result<Found, HubError>,
    ) -> Result<Result<Found, HubError>> {
        let pinned = self.pinned.get(&name.key()).map(String::as_str);
        let mut teller = Teller::new(name);
        Ok(work(self.hub()?, pinned, &mut |event| teller.tell(&event)))
    }
}

/// Reports a download.
struct Teller {
    reporter: Reporter,
    meter: Meter,
    /// The size of the files that were announced last.
    announced: u64,
}

impl Teller {
    fn new(name: &Name) -> Self {
        let reporter = Reporter::new(LINE_SECONDS);
        Self {
            meter: reporter.meter(&format!("downloading {name}"), "MB"),
            reporter,
            announced: 0,
        }
    }

    fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Transfer(transfer) if transfer.all_total < ANNOUNCED => {}
            Event::Transfer(transfer) => {
                let phase = self.meter.phase().to_owned();
                if self.announced != transfer.all_total {
                    self.announced = transfer.all_total;
                    let megabytes = transfer.all_total as f64 / 1e6;
                    say(&match megabytes {
                        _ if megabytes < 1e3 => format!("{phase}: {megabytes:.1} MB"),
                        _ => format!("{phase}: {:.2} GB", megabytes / 1e3),
                    });
                    self.meter = self.reporter.meter(&phase, "MB");
                }
                let megabytes = |bytes: u64| bytes / 1_000_000;
                let progress = self
                    .meter
                    .at(megabytes(transfer.all_done), megabytes(transfer.all_total));
                self.reporter.report(&progress);
            }
            Event::Waits { file } => say(&format!(
                "another process is downloading {file}: waiting for it"
            )),
            Event::Retries { what, reason, wait } => say(&format!(
                "{what}: {reason}; trying again in {:.0} s",
                wait.as_secs_f64()
            )),
        }
    }
}

/// Whether a file of a data set is data.
fn is_data(path: &str) -> bool {
    let path = path.to_lowercase();
    let plain = [".gz", ".zst"]
        .iter()
        .find_map(|end| path.strip_suffix(end))
        .unwrap_or(&path);
    let name = plain.rsplit('/').next().unwrap_or(plain);
    let is_format = name
        .rsplit_once('.')
        .is_some_and(|(_, end)| DATA.contains(&end));
    is_format && !name.starts_with('.') && !NO_DATA.contains(&name)
}

/// Adds advice to an error, and marks it as the user's if it is.
fn advised(error: HubError) -> Error {
    let (advice, is_usage) = (error.advice(), error.is_usage());
    let error = match advice {
        Some(advice) => with_hint(error, advice),
        None => error.into(),
    };
    if is_usage { usage(error) } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_a_data_set_are_no_data() {
        for data in [
            "a/train.JSONL",
            "x.parquet",
            "en/c4.json.gz",
            "a.csv.zst",
            "book.txt",
        ] {
            assert!(is_data(data), "{data}");
        }
        for other in [
            "README.md",
            ".gitattributes",
            "dataset_infos.json",
            "a/state.json",
            "x.py",
            "img.png",
            "gz",
        ] {
            assert!(!is_data(other), "{other}");
        }
    }

    #[test]
    fn a_name_and_a_path_have_a_short_name() {
        for (name, short) in [
            ("Qwen/Qwen2.5-1.5B@v1", "Qwen2.5-1.5B"),
            ("hf://gpt2", "gpt2"),
            ("hf://datasets/a/b/c/*.jsonl", "b"),
            ("models/qwen/teacher", "teacher"),
        ] {
            assert_eq!(short_name(Path::new(name)), short);
        }
    }
}
