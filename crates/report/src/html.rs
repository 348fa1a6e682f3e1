//! The report: one file that works without a network.

use std::{fs, path::Path};

use ddk_run::{
    RunFileError, read,
    records::{ByDomain, Summary},
};
use plotly::Plot;

use crate::{document::STYLE, figures, plot::plot, table};

/// `report.html` of a run's folder. A run that has not ended yet has no summary; its figures are shown as far as they go.
pub fn html(folder: &Path) -> Result<String, RunFileError> {
    let (mixtures, _) = read::mixtures(folder)?;
    let steps = read::steps(folder)?;
    let summary = if folder.join("summary.json").exists() {
        Some(read::summary(folder)?)
    } else {
        None
    };
    let config = fs::read_to_string(folder.join("config.toml")).unwrap_or_default();
    let last_step = steps.last().map_or(0, |line| line.step);
    let after: Option<ByDomain> = summary.as_ref().map(ratios_after);
    let after = after.as_ref().map(|values| (last_step, values));
    let name = folder
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let result = match &summary {
        Some(summary) => format!("<h2>Result</h2><pre>{}</pre>", escape(&table(summary))),
        None => "<p>This run has not ended yet.</p>".to_owned(),
    };
    let figures = [
        figures::weights(&mixtures, last_step),
        figures::ratios(&mixtures, after),
        figures::losses(&steps),
    ];
    let figures: String = figures
        .iter()
        .map(|chart| {
            format!(
                "<section><h2>{}</h2><p>{}</p>{}</section>\n",
                chart.title,
                escape(&chart.about),
                plot(chart)
            )
        })
        .collect();
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title} - DDK</title>\n\
         <style>{STYLE}</style>\n{script}\n</head>\n<body>\n<h1>{title}</h1>\n{result}\n{figures}\
         <section><h2>Settings</h2><details><summary>config.toml</summary><pre>{config}</pre></details></section>\n\
         </body>\n</html>\n",
        title = escape(&name),
        script = Plot::offline_js_sources(),
        config = escape(&config),
    ))
}

fn ratios_after(summary: &Summary) -> ByDomain {
    summary
        .domains
        .iter()
        .map(|(name, domain)| (name.clone(), domain.ratio_after))
        .collect()
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
