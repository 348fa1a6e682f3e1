//! The files of the pages (`dashboards/page/`), embedded in the program.

use axum::{Router, http::header, response::IntoResponse, routing::get};
use ddk_report::chart::PALETTE;

/// The page of one run.
pub(crate) const RUN: &str = include_str!("../../../dashboards/page/run.html");
/// The list of runs.
pub(crate) const RUNS: &str = include_str!("../../../dashboards/page/runs.html");

/// A file of `dashboards/page/`: its address and content.
macro_rules! file {
    ($name:literal) => {
        (
            concat!("/", $name),
            include_str!(concat!("../../../dashboards/page/", $name)),
        )
    };
}

/// The files that the pages load.
const FILES: [(&str, &str); 9] = [
    file!("page.css"),
    file!("shared.js"),
    file!("pointer.js"),
    file!("chart.js"),
    file!("table.js"),
    file!("lanes.js"),
    file!("run.js"),
    file!("runs.js"),
    file!("icon.svg"),
];

/// Routes to all files except the pages themselves. Appends the colors of the charts to the stylesheet.
pub(crate) fn files<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for (path, content) in FILES {
        let (content, kind) = match path.rsplit('.').next() {
            Some("css") => (content.to_owned() + &colors(), "text/css; charset=utf-8"),
            Some("svg") => (content.to_owned(), "image/svg+xml"),
            _ => (content.to_owned(), "text/javascript; charset=utf-8"),
        };
        // Browsers must request them each time, because they change with the program. They are small.
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router = router.route(path, get(move || async move { (headers, content) }));
    }
    router
}

fn colors() -> String {
    let colors = PALETTE.iter().enumerate();
    let colors = colors.map(|(index, color)| format!("--series-{index}: #{color:06x};"));
    let colors = colors.collect::<Vec<_>>().join(" ");
    format!(":root {{ --series-count: {}; {colors} }}\n", PALETTE.len())
}

/// Answers with a page.
pub(crate) async fn page(content: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_nothing_inline_and_load_nothing_from_elsewhere() {
        for (name, content) in [("run.html", RUN), ("runs.html", RUNS)] {
            for forbidden in [
                " onclick",
                " onload",
                "<style",
                " style=",
                "javascript:",
                "http:",
                "https:",
                "<script>",
            ] {
                assert!(!content.contains(forbidden), "{name} has {forbidden}");
            }
        }
        for (name, content) in FILES {
            let content = content.replace("http://www.w3.org/2000/svg", "");
            for forbidden in ["http:", "https:", "innerHTML", "eval("] {
                assert!(!content.contains(forbidden), "{name} has {forbidden}");
            }
        }
    }
}
