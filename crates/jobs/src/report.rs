//! `ddk report`: writes a run's report as a page, as Markdown, or its figures alone.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ddk_report::{document::Document, run_report, run_report::Changed};
use ddk_run::RunView;

use crate::{args, config, hint, progress::say};

/// Writes the report of a run in each requested format.
///
/// # Errors
/// If the folder holds no run, or if a file cannot be written.
pub fn run(args: &args::Report) -> Result<()> {
    let folder = &args.run;
    hint::must_hold_a_run(folder)?;
    let report = of_run(folder)?;
    let out = args.out.clone().unwrap_or_else(|| folder.clone());
    ddk_files::create_folder(&out)?;
    for format in &args.format {
        match format {
            args::ReportFormat::Html => write(out.join("report.html"), &report.html()?)?,
            args::ReportFormat::Md => write(out.join("report.md"), &report.markdown())?,
            args::ReportFormat::Svg => {
                let figures = out.join("figures");
                ddk_files::create_folder(&figures)?;
                for (name, text) in report.svgs()? {
                    write(figures.join(name), &text)?;
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
pub fn of_run(folder: &Path) -> Result<Document> {
    let defaults = ddk_settings::load(&[], &[], [])?.settings;
    let changes = ddk_settings::diff(&defaults, &config::of_run(folder)?)?.into_iter();
    let changes = changes.filter_map(|mut change| {
        // The defaults name no domain and no model to pretrain, so each key there seems to be new.
        if change.values[0].is_none() {
            change.values[0].clone_from(&change.key.default);
        }
        let [before, after] = change.shown();
        (before != after).then_some((change.path, before, after))
    });
    let changes: Vec<Changed> = changes.collect();
    Ok(run_report(&RunView::read(folder), &changes))
}

fn write(path: PathBuf, text: &str) -> Result<()> {
    ddk_files::write_atomically(&path, text.as_bytes())?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}
