//! The pages' own files, carried in the program: `dashboards/page/`, and plotly.js from the plotly crate.

use std::sync::OnceLock;

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use plotly::Plot;

/// The page of one run.
pub(crate) const RUN: &str = include_str!("../../../dashboards/page/run.html");
/// The list of runs.
pub(crate) const RUNS: &str = include_str!("../../../dashboards/page/runs.html");

/// What the pages load; by name, content, type.
const FILES: [(&str, &str, &str); 5] = [
    (
        "/page.css",
        include_str!("../../../dashboards/page/page.css"),
        "text/css; charset=utf-8",
    ),
    (
        "/charts.js",
        include_str!("../../../dashboards/page/charts.js"),
        JAVASCRIPT,
    ),
    (
        "/run.js",
        include_str!("../../../dashboards/page/run.js"),
        JAVASCRIPT,
    ),
    (
        "/runs.js",
        include_str!("../../../dashboards/page/runs.js"),
        JAVASCRIPT,
    ),
    (
        "/icon.svg",
        include_str!("../../../dashboards/page/icon.svg"),
        "image/svg+xml",
    ),
];
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Routes to all files but the pages themselves.
pub(crate) fn files<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new().route("/plotly.js", get(plotly));
    for (path, content, kind) in FILES {
        // Asked again each time: they change with the program, and are small.
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router = router.route(path, get(move || async move { (headers, content) }));
    }
    router
}

/// A page.
pub(crate) async fn page(content: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, content)
}

/// 4.6 MB that a browser keeps for a year: the pages name it with its version.
async fn plotly(request: HeaderMap) -> Response {
    let (script, tag) = plotly_script();
    let headers = [
        (header::CONTENT_TYPE, JAVASCRIPT),
        (
            header::CACHE_CONTROL,
            "private, max-age=31536000, immutable",
        ),
        (header::ETAG, tag.as_str()),
    ];
    let known = request.get(header::IF_NONE_MATCH);
    if known.is_some_and(|known| known == tag.as_str()) {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, script.clone()).into_response()
    }
}

/// The script and its tag; taken out of what the crate would write into a page, when first asked for.
fn plotly_script() -> &'static (Bytes, String) {
    static SCRIPT: OnceLock<(Bytes, String)> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let page = Plot::offline_js_sources();
        let inside = page.split_once('>').map_or("", |(_, rest)| rest);
        let script = inside
            .split_once("</script>")
            .map_or("", |(script, _)| script);
        let tag = format!("\"{}\"", &blake3::hash(script.as_bytes()).to_hex()[..16]);
        (Bytes::copy_from_slice(script.as_bytes()), tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plotly_is_whole_and_the_pages_name_its_version() {
        let script = String::from_utf8_lossy(&plotly_script().0);
        let version = script
            .split_once("plotly.js v")
            .unwrap()
            .1
            .split_whitespace()
            .next()
            .unwrap();
        assert!(script.len() > 4_000_000 && script.trim_end().ends_with(['}', ';', ')']));
        for page in [RUN, RUNS] {
            assert!(
                page.contains(&format!("/plotly.js?{version}\"")),
                "{version}"
            );
        }
    }

    #[test]
    fn the_page_counts_the_same_events_as_incidents() {
        use ddk_run::records::EventKind;
        let (_, run, _) = FILES[2];
        let quiet = run.split_once("QUIET = new Set([").unwrap().1;
        let quiet = quiet.split_once(']').unwrap().0.replace('\'', "\"");
        let mut quiet: Vec<EventKind> = serde_json::from_str(&format!("[{quiet}]")).unwrap();
        let mut routine = EventKind::ROUTINE;
        quiet.sort();
        routine.sort();
        assert_eq!(quiet, routine);
    }

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
        for (name, content, _) in FILES {
            let content = content.replace("http://www.w3.org/2000/svg", "");
            for forbidden in ["http:", "https:", "innerHTML", "eval("] {
                assert!(!content.contains(forbidden), "{name} has {forbidden}");
            }
        }
    }
}
