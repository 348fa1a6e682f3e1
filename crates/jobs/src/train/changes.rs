//! Settings that change after a run's start: edited between two starts, or reloaded on SIGHUP. `ddk ctl` is the
//! third way; SIGHUP sends the same command to the run.

use std::{path::Path, sync::Arc};

use anyhow::Result;
use ddk_run::{
    Assignments, Overrides, Source,
    control::{Command, Control},
};
use ddk_settings::{Change, Settings, diff};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use super::threads;
use crate::{args, config, control::RunControl, progress::say};

/// Returns the settings with the live values that a run started with. Later changes are in its `overrides.jsonl`.
pub(super) fn of_start(settings: &Settings, at_start: &Settings) -> Result<Settings> {
    Ok(settings.with(&live_values(&diff(settings, at_start)?)?)?)
}

/// Returns the live settings that were edited since the configuration was last read: their new values, and a
/// description.
pub(super) fn edited(
    at_start: &Settings,
    settings: &Settings,
    overrides: &Overrides,
) -> Result<(Assignments, String)> {
    let before = at_start.with(&overrides.configured())?;
    let mut changes = diff(&before, settings)?;
    changes.retain(|change| change.key.live);
    Ok((live_values(&changes)?, in_words(&changes)))
}

/// Returns the settings that differ but must not.
pub(super) fn differences(then: &Settings, now: &Settings) -> Result<Vec<Change>> {
    let mut changes = diff(then, now)?;
    changes.retain(|change| !change.is_allowed_on_resume());
    Ok(changes)
}

/// Describes changes.
pub(super) fn in_words(changes: &[Change]) -> String {
    let in_words = changes.iter().map(|change| {
        let [old, new] = change.shown();
        format!("`{}` was {old} and is now {new}", change.path)
    });
    in_words.collect::<Vec<_>>().join("; ")
}

/// Returns the new values of live settings.
fn live_values(changes: &[Change]) -> Result<Assignments> {
    let live = changes.iter().filter(|change| change.key.live);
    let values = live.filter_map(|change| Some((change.path.clone(), change.values[1].as_ref()?)));
    values
        .map(|(path, value)| Ok((path, serde_json::to_value(value)?)))
        .collect()
}

/// Reloads the settings on SIGHUP.
pub(super) fn on_hangup(
    source: args::ConfigArgs,
    settings: Settings,
    control: Arc<RunControl>,
) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut current = settings;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if let Err(error) = read_again(&source, &mut current, &control).await {
                tracing::warn!(%error, "cannot reload the settings");
                say(&format!("SIGHUP: nothing changed: {error}"));
            }
        }
    });
    Ok(())
}

async fn read_again(
    source: &args::ConfigArgs,
    current: &mut Settings,
    control: &Arc<RunControl>,
) -> Result<()> {
    let mut new = config::load(source)?.settings;
    threads::adopt(&mut new, current);
    let changes = diff(current, &new)?;
    if changes.is_empty() {
        say("SIGHUP: no setting has changed");
    }
    let values = live_values(&changes)?;
    if !values.is_empty() {
        let set = Command::Set {
            values: values.clone(),
        };
        Arc::clone(control).ask(set, Source::Sighup).await?;
        *current = current.with(&values)?;
    }
    for change in &changes {
        let (key, [old, new]) = (&change.path, change.shown());
        let done = if change.key.live {
            "applied"
        } else {
            "not applied: it needs a restart"
        };
        say(&format!("SIGHUP: {key} was {old}, is now {new}: {done}"));
    }
    Ok(())
}

/// Answers SIGHUP without reloading while the result is held, because a preliminary run has derived settings. Leaves
/// SIGHUP alone unless this program `reloads` its settings.
pub(super) fn not_yet(reloads: bool, runtime: &Runtime) -> Result<JoinSet<()>> {
    let mut answers = JoinSet::new();
    if !reloads {
        return Ok(answers);
    }
    let _context = runtime.enter();
    let mut hangup = signal(SignalKind::hangup())?;
    answers.spawn(async move {
        while hangup.recv().await.is_some() {
            say(
                "SIGHUP: nothing changed: `ddk train` reloads settings only after its own steps have begun",
            );
        }
    });
    Ok(answers)
}

/// What to do instead of resuming the run in this folder with other settings, which have these `changes`.
pub(super) fn advice(folder: &Path, now: &Settings, changes: &[Change]) -> String {
    let done = ddk_run::read::summary(folder).map(|summary| summary.steps);
    let is_lower =
        |change: &Change| change.key.may_grow && change.values.iter().all(Option::is_some);
    if done.is_err() && !changes.is_empty() && changes.iter().all(is_lower) {
        return format!(
            "a limit of a started run can only be raised; to end this run earlier, resume it with its own limit, and \
             stop it with Ctrl-C or `ddk ctl {} stop`",
            folder.display()
        );
    }
    // A fork of a finished run needs more steps.
    let enough = |steps: &u64| now.run.max_steps.is_some_and(|most| most > *steps);
    let (purpose, more) = match done {
        Ok(steps) if enough(&steps) => ("print its result", String::new()),
        Ok(steps) => (
            "print its result",
            format!(" --set run.max_steps={}", 2 * steps),
        ),
        Err(_) => ("resume", String::new()),
    };
    format!(
        "to {purpose}, use the settings in {}/config.toml{}; to train on with these settings in a new run, from the \
         last checkpoint of this one, pass --fork NAME{more}; to start from the beginning, choose another run.name",
        folder.display(),
        in_use(folder).unwrap_or_default()
    )
}

/// Returns the options for the settings that edits of the configuration have changed since the run began: its
/// `config.toml` has the values of its start.
fn in_use(folder: &Path) -> Option<String> {
    let overrides = Overrides::look(folder);
    overrides.reload().ok()?;
    let sets = overrides.configured().into_iter().map(|(key, value)| {
        let text = value.as_str().map(str::to_owned);
        format!(" --set {key}={}", text.unwrap_or_else(|| value.to_string()))
    });
    let sets: String = sets.collect();
    (!sets.is_empty()).then(|| format!(" with{sets}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_may_grow_and_not_shrink_come_or_go() {
        let with = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            ddk_settings::load(&[], &sets, []).unwrap().settings
        };
        let then = with(&["run.max_steps=100", "run.max_tokens=1000"]);
        let refused = |sets: &[&str]| {
            let changes = differences(&then, &with(sets)).unwrap();
            let paths = changes.into_iter().map(|change| change.path);
            paths.collect::<Vec<_>>()
        };
        assert_eq!(
            refused(&[
                "run.max_steps=150",
                "run.max_tokens=1000",
                "run.export=best"
            ]),
            [""; 0]
        );
        assert_eq!(
            refused(&["run.max_steps=100", "run.max_tokens=9000"]),
            [""; 0]
        );
        for (sets, keys) in [
            (
                &["run.max_steps=99", "run.max_tokens=1000"][..],
                &["run.max_steps"][..],
            ),
            (&["run.max_tokens=1000"], &["run.max_steps"]),
            (
                &["run.max_steps=99", "optimizer.beta1=0.5"],
                &["optimizer.beta1", "run.max_steps", "run.max_tokens"],
            ),
            (
                &[
                    "run.max_steps=100",
                    "run.max_tokens=1000",
                    "run.max_intervals=9",
                ],
                &["run.max_intervals"],
            ),
            (
                &[
                    "run.max_steps=150",
                    "run.max_tokens=1000",
                    "optimizer.beta1=0.5",
                ],
                &["optimizer.beta1"],
            ),
        ] {
            assert_eq!(refused(sets), keys);
        }
    }
}
