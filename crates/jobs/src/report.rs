//! `ddk report`: writes a run's report as a page, as Markdown, or its figures alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ddk_report::{RunReport, run_report::Changed};
use ddk_run::RunView;

use crate::{args, hint, progress::say};

/// Writes the report of a run in each requested format.
///
/// # Errors
/// If the folder holds no run, or if a file cannot be written.
pub fn run(args: &args::Report) -> Result<()> {
    let folder = &args.run;
    hint::must_hold_a_run(folder)?;
    let report = of_run(folder)?;
    let out = args.out.clone().unwrap_or_else(|| folder.clone());
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    for format in &args.format {
        match format {
            args::ReportFormat::Html => write(out.join("report.html"), &report.html()?)?,
            args::ReportFormat::Md => write(out.join("report.md"), &report.markdown())?,
            args::ReportFormat::Svg => {
                let figures = out.join("figures");
                fs::create_dir_all(&figures)
                    .with_context(|| format!("cannot create {}", figures.display()))?;
                for chart in report.charts() {
                    let path = figures.join(format!("{}.svg", chart.name));
                    write(path, &ddk_report::svg(chart, ddk_report::WIDTH)?)?;
                }
            }
        }
    }
    Ok(())
}

/// Builds a run's report, including how its settings differ from the defaults.
///
/// # Errors
/// If the run's `config.toml` cannot be read.
pub fn of_run(folder: &Path) -> Result<RunReport> {
    Ok(RunReport::new(&RunView::read(folder), &changed(folder)?))
}

fn changed(folder: &Path) -> Result<Vec<Changed>> {
    let defaults = ddk_settings::load(&[], &[], [])?.settings;
    let config = folder.join("config.toml");
    let settings = ddk_settings::load(&[config], &[], [])?.settings;
    let changes = ddk_settings::diff(&defaults, &settings)?.into_iter();
    let changes = changes.map(|change| {
        let [before, after] = change.shown();
        (change.path, before, after)
    });
    Ok(changes.collect())
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    ddk_files::write_atomically(&path, text.as_bytes())?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}
