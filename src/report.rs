//! `ddk report`: a run's report as a page, as Markdown, or its figures alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ddk_report::{RunReport, run_report::Changed};

use crate::{cli, hint, progress::say, train::differences};

pub fn run(args: &cli::Report) -> Result<()> {
    let folder = &args.run;
    hint::must_hold_a_run(folder)?;
    let report = of_run(folder)?;
    let out = args.out.clone().unwrap_or_else(|| folder.clone());
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    for format in &args.format {
        match format {
            cli::ReportFormat::Html => write(out.join("report.html"), &report.html())?,
            cli::ReportFormat::Md => write(out.join("report.md"), &report.markdown())?,
            cli::ReportFormat::Svg => {
                let figures = out.join("figures");
                fs::create_dir_all(&figures)
                    .with_context(|| format!("cannot create {}", figures.display()))?;
                for chart in report.charts() {
                    let path = figures.join(format!("{}.svg", chart.name));
                    write(path, &ddk_report::svg(chart))?;
                }
            }
        }
    }
    Ok(())
}

/// A run's report, its settings held against the defaults.
pub fn of_run(folder: &Path) -> Result<RunReport> {
    Ok(RunReport::of(folder, &changed(folder)?)?)
}

fn changed(folder: &Path) -> Result<Vec<Changed>> {
    let defaults = ddk_settings::load(&[], &[], [])?.settings;
    let config = folder.join("config.toml");
    let settings = ddk_settings::load(&[config], &[], [])?.settings;
    differences(&defaults, &settings)
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    ddk_files::write_atomically(&path, text.as_bytes())?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}
