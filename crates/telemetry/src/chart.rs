//! The charts of runs over HTTP.

use axum::{
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use ddk_report::{RunSeries, WIDTH, charts, runs_charts, svg, svg_without_legend};

use crate::server::{Asked, blocking, no_such_run, values};

/// Maximum number of runs in a chart.
const MOST_RUNS: usize = 16;
/// Maximum width of a chart, pixels.
const WIDEST: u32 = 4096;

/// Draws a chart of one run, or of several runs if several names are given.
pub(crate) async fn chart(
    Path(file): Path<String>,
    (State(site), Query(query)): Asked,
) -> Response {
    let drawn = blocking(move || {
        let names: Vec<&str> = values(&query, "name").take(MOST_RUNS).collect();
        let series = |name: Option<&str>| {
            let source = site.runs.find(name)?;
            let name = name.unwrap_or_default().to_owned();
            Some(source.look(|view| RunSeries::new(name, view)))
        };
        let charts = match &names[..] {
            [] => charts(&series(None)?),
            [name] if values(&query, "side_by_side").next().is_none() => {
                charts(&series(Some(name))?)
            }
            names => {
                let runs = names.iter().map(|name| series(Some(name)));
                runs_charts(&runs.collect::<Option<Vec<_>>>()?)
            }
        };
        let name = file.strip_suffix(".svg")?;
        let mut chart = charts.into_iter().find(|chart| chart.name == name)?;
        if let Some(factor) = values(&query, "smoothing").find_map(|factor| factor.parse().ok()) {
            chart.smooth(factor);
        }
        let width = values(&query, "width").find_map(|width| width.parse().ok());
        let width = width.unwrap_or(WIDTH).min(WIDEST);
        Some(match values(&query, "legend").next() {
            Some("none") => svg_without_legend(&chart, width),
            _ => svg(&chart, width),
        })
    });
    match drawn.await {
        Some(Ok(svg)) => ([(header::CONTENT_TYPE, "image/svg+xml")], svg).into_response(),
        Some(Err(error)) => {
            tracing::error!(%error, "cannot draw a chart");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
        None => no_such_run(),
    }
}
