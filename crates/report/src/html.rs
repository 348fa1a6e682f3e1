//! The report: one file that works without a network.

use std::{fs, path::Path};

use ddk_run::{
    RunFileError, read,
    records::{ByDomain, Summary},
};
use plotly::Plot;

use crate::{figures, table};

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
    let sections = [
        (
            "Mixture",
            "How much of the data is drawn from each domain. Before the first update the corpus is drawn as it is; then \
             weight moves to the domains in which the student is furthest behind.",
            figures::weights(&mixtures, last_step),
        ),
        (
            "How far behind the student is",
            "The student's perplexity on each domain's validation documents, divided by the teacher's.",
            figures::ratios(&mixtures, after),
        ),
        (
            "Loss",
            "Means over each step's predictions: loss = cross-entropy + gamma KL(teacher || student).",
            figures::losses(&steps),
        ),
    ];
    let figures: String = sections
        .iter()
        .map(|(title, about, plot)| {
            format!("<section><h2>{title}</h2><p>{about}</p><div class=\"figure\">{plot}</div></section>\n")
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

const STYLE: &str = "\
:root { color-scheme: light dark; } \
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; } \
h1, h2 { font-weight: 600; } pre { overflow-x: auto; font-size: 13px; line-height: 1.4; } \
.figure { min-height: 380px; }";

fn ratios_after(summary: &Summary) -> ByDomain {
    summary
        .domains
        .iter()
        .map(|(name, domain)| (name.clone(), domain.ratio_after))
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
