//! Plans the runs of a comparison.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use ddk_run::RunFolder;
use ddk_settings::{Loaded, Method, Settings};
use rustix::fs::statvfs;

use crate::{args, config, hint::Hint, train::options::most_steps};

/// A swept key with one of its values, if there is a sweep.
pub(super) type Swept = Option<(String, String)>;

/// All runs of a comparison.
pub(super) struct Plan {
    /// Name of the comparison: `run.name`, plus `-quick` for a quick one.
    pub(super) name: String,
    /// The folder of its runs.
    pub(super) folder: PathBuf,
    /// The settings that all runs have in common.
    pub(super) base: Settings,
    /// Settings of the teacher's cache that the runs share, unless the configuration has one or the user wants none.
    cache: Vec<String>,
    pub(super) methods: Vec<Method>,
    pub(super) seeds: Vec<u64>,
    /// One entry per swept value, or a single `None` without a sweep.
    pub(super) sweep: Vec<Swept>,
    /// The name in `[pretrain.NAME]` of the student, if each seed has one of its own.
    pub(super) student: Option<String>,
    /// In training order: all methods of a seed come together, so that an interrupted comparison has complete
    /// seeds.
    pub(super) runs: Vec<Planned>,
}

/// One run.
pub(super) struct Planned {
    pub(super) method: Method,
    pub(super) seed: u64,
    pub(super) swept: Swept,
    /// Method and swept value; also the name of its folder.
    pub(super) label: String,
    /// The comparison's arguments, plus the settings of this run.
    pub(super) config: args::ConfigArgs,
    pub(super) settings: Settings,
    pub(super) folder: PathBuf,
    /// The folder that keeps its records.
    pub(super) archive: Option<PathBuf>,
}

impl Planned {
    /// The folder with its records: the archive if it has them, or the run's own.
    pub(super) fn records(&self) -> &Path {
        match &self.archive {
            Some(archive) if archive.join("summary.json").exists() => archive,
            _ => &self.folder,
        }
    }
}

impl Plan {
    pub(super) fn new(args: &args::Compare) -> Result<Self> {
        let base = config::load(&args.config)?.settings;
        let name = base.run.name.as_ref();
        let name = name.context("`run.name` is missing: it names the folder of the runs");
        let name = name.usage()?;
        if let Some(method) = base.method {
            return Err(anyhow!(
                "`method` is \"{method}\", but a comparison sets it for each of its runs"
            ))
            .hint("leave it out, and choose the methods with --methods")
            .usage();
        }
        let name = format!("{name}{}", if args.quick { "-quick" } else { "" });
        let folder = base.run.output_dir.join(&name);
        if RunFolder::holds_a_run(&folder) {
            return Err(anyhow!("{} already contains a run", folder.display()))
                .hint(format!(
                    "choose another name for the comparison: --set run.name={name}-compare"
                ))
                .usage();
        }
        let (mut methods, mut seen) = (args.methods.clone(), BTreeSet::new());
        methods.retain(|method| seen.insert(*method));
        let sweep = args.sweep.as_deref().map(swept).transpose()?;
        let seeds: Vec<u64> = (0..args.seeds).map(|index| base.run.seed + index).collect();
        let cache = match &base.teacher.cache.dir {
            None if !args.no_cache => shared_cache(&folder),
            _ => Vec::new(),
        };
        let mut plan = Self {
            name,
            folder,
            cache,
            base,
            methods,
            seeds,
            sweep: sweep.unwrap_or_else(|| vec![None]),
            student: None,
            runs: Vec::new(),
        };
        if args.vary == args::Varied::Student {
            plan.student = Some(pretrained(&plan.base)?);
        }
        for &seed in &plan.seeds {
            for swept in &plan.sweep {
                for &method in &plan.methods {
                    plan.runs.push(plan.planned(args, method, seed, swept)?);
                }
            }
        }
        same_budget(&plan.runs)?;
        Ok(plan)
    }

    fn planned(
        &self,
        args: &args::Compare,
        method: Method,
        seed: u64,
        swept: &Swept,
    ) -> Result<Planned> {
        let mut label = method.to_string();
        let quarter = args.quick.then(|| quarter(&self.base)).transpose()?;
        let mut sets = quarter.unwrap_or_default();
        sets.extend_from_slice(&self.cache);
        if let Some((key, value)) = swept {
            label.push_str(&format!("-{key}-{}", config::plain_name(value)));
            sets.push(format!("{key}={value}"));
        }
        let folder = self.folder.join(&label);
        let archive = args.archive.as_ref();
        let archive = archive.map(|archive| archive.join(&label).join(format!("seed-{seed}")));
        // Seeds affect what is drawn from a corpus. The corpus is the same for all runs.
        let corpus_seed = self.base.corpus.seed.unwrap_or(self.base.run.seed);
        let output_dir = toml::Value::from(folder.display().to_string());
        let own = [
            ("method", method.to_string()),
            ("run.seed", seed.to_string()),
            ("corpus.seed", corpus_seed.to_string()),
            ("run.name", format!("seed-{seed}")),
            ("run.output_dir", output_dir.to_string()),
        ];
        let mut own = own.map(|(key, value)| (key.to_owned(), value)).to_vec();
        own.extend(self.student_of(seed));
        let swept_key = swept.as_ref().map(|(key, _)| key.as_str());
        if let Some((key, _)) = own.iter().find(|(key, _)| Some(&**key) == swept_key) {
            return Err(anyhow!("--sweep {key}: a comparison sets this key itself"))
                .hint("choose the runs with --methods and --seeds; name the comparison with --set run.name=NAME")
                .usage();
        }
        let own = own.iter();
        sets.extend(own.map(|(key, value)| format!("{key}={value}")));
        let mut config = args.config.clone();
        config.set.extend(sets);
        let loaded = config::load(&config)?;
        is_method(method, &loaded)?;
        Ok(Planned {
            method,
            seed,
            swept: swept.clone(),
            label,
            config,
            settings: loaded.settings,
            folder: folder.join(format!("seed-{seed}")),
            archive,
        })
    }

    /// The settings of a seed's own student, if there is one.
    fn student_of(&self, seed: u64) -> Vec<(String, String)> {
        let section = self.student.as_ref();
        let section = section.and_then(|name| Some((name, self.base.pretrain.get(name)?)));
        let Some((name, section)) = section else {
            return Vec::new();
        };
        let folder = format!("{}-seed-{seed}", section.output_dir.display());
        let folder = toml::Value::from(folder).to_string();
        vec![
            (format!("pretrain.{name}.output_dir"), folder.clone()),
            (format!("pretrain.{name}.seed"), seed.to_string()),
            ("student.model".to_owned(), folder),
        ]
    }
}

/// The name in `[pretrain.NAME]` of the initial student.
fn pretrained(settings: &Settings) -> Result<String> {
    let sections = settings.pretrain.iter();
    let mut sections = sections
        .filter(|(_, section)| settings.student.model.as_ref() == Some(&section.output_dir));
    let (name, _) = sections
        .next()
        .context("--vary student: no [pretrain.NAME] writes to `student.model`")
        .hint("add a [pretrain.NAME] whose output_dir is `student.model`: each seed then trains its own student")
        .usage()?;
    Ok(name.clone())
}

/// Checks that all runs have the same token budget. A longer interval would lengthen a run whose end is counted in
/// intervals, and so make it look better. Sweeping a limit itself (`run.*`) is allowed.
fn same_budget(runs: &[Planned]) -> Result<()> {
    let step_tokens = |run: &Planned| {
        run.settings.training.global_batch_size * run.settings.corpus.sequence_length as u64
    };
    let tokens = |run: &Planned| Some(most_steps(&run.settings).ok()? * step_tokens(run));
    let Some((first, budget)) = runs.first().and_then(|run| Some((run, tokens(run)?))) else {
        return Ok(());
    };
    let swept = runs
        .iter()
        .filter_map(|run| Some((run, run.swept.as_ref()?)));
    for (run, (key, value)) in swept.filter(|(_, (key, _))| !key.starts_with("run.")) {
        // A token limit is reached in whole steps.
        let slack = step_tokens(run).max(step_tokens(first));
        if let Some(own) = tokens(run).filter(|own| own.abs_diff(budget) >= slack) {
            return Err(anyhow!(
                "--sweep {key}: a run with {value} trains on {own} tokens, a run with {} on {budget}",
                first.swept.as_ref().map_or("", |(_, value)| value)
            ))
            .hint("give all runs the same number of tokens: --set run.max_tokens=N, and if run.max_intervals is set, \
                   raise it so that no run reaches it")
            .usage();
        }
    }
    Ok(())
}

/// Checks that the configuration does not set a method's own choices. Explicit settings take precedence over a
/// method, so the comparison would compare a choice with itself.
fn is_method(method: Method, loaded: &Loaded) -> Result<()> {
    let values = loaded.settings.values()?;
    for (key, expected) in method.choices() {
        let expected = toml::Value::from(expected);
        let found = values.iter().find(|setting| setting.path == key);
        if let Some(found) = found.filter(|found| found.value != expected) {
            return Err(anyhow!(
                "{}: `{key}` is {}, but the method {method} needs {expected}",
                loaded.origins.of(key),
                found.value
            ))
            .hint(format!(
                "leave `{key}` out of the configuration: the methods set it"
            ))
            .usage();
        }
    }
    Ok(())
}

/// Parses `KEY=VALUE,VALUE,…`.
fn swept(text: &str) -> Result<Vec<Swept>> {
    let (key, values) = text.split_once('=').unwrap_or_default();
    let (key, values) = (key.trim(), values.trim());
    if key.is_empty() || values.is_empty() {
        let example = "expected a key and its values, for example objective.gamma=0,0.1,0.2";
        return Err(anyhow!("--sweep {text}: {example}")).usage();
    }
    let mut swept: Vec<Swept> = Vec::new();
    for value in values.split(',').map(str::trim) {
        let one = Some((key.to_owned(), value.to_owned()));
        if swept.contains(&one) {
            return Err(anyhow!("--sweep {key}: the value {value} appears twice")).usage();
        }
        swept.push(one);
    }
    Ok(swept)
}

/// Returns the settings for a quarter of the steps. The interval, the warmup, the preliminary runs and the limits
/// shrink alike, so that the mixture changes as often.
fn quarter(settings: &Settings) -> Result<Vec<String>> {
    let values = settings.values()?.into_iter();
    let shrunk = values.filter_map(|setting| {
        let divisor = setting.key.quick?;
        let value = u64::try_from(setting.value.as_integer()?).ok()?;
        Some(format!("{}={}", setting.path, value.div_ceil(divisor)))
    });
    Ok(shrunk.collect())
}

/// Settings of a cache in the comparison's folder. It may fill half of the disk's free space, because checkpoints need
/// room too.
fn shared_cache(folder: &Path) -> Vec<String> {
    let dir = toml::Value::from(folder.join("teacher-cache").display().to_string());
    let mut sets = vec![format!("teacher.cache.dir={dir}")];
    // The folder may not exist yet.
    let existing = folder.ancestors().find(|folder| folder.exists());
    if let Ok(disk) = statvfs(existing.unwrap_or(Path::new("."))) {
        let free = disk.f_bavail * disk.f_frsize;
        sets.push(format!("teacher.cache.max_bytes={}", (free / 2).max(1)));
    }
    sets
}
