//! Results for people: charts ([`charts`]), a table for the terminal ([`table()`]), a report with figures
//! ([`run_report()`]) as one self-contained page or as Markdown, and the comparison of many runs ([`Comparison`]).
//!
//! A [`chart`] is data that [`svg()`] draws. A [`document`] with tables and figures becomes Markdown or a page.
//!
//! ```
//! use ddk_report::chart::{Chart, Content, Line, Panel};
//!
//! let line = Line { name: "prose".to_owned(), points: vec![(0.0, 0.9), (100.0, 0.4)], raw: Vec::new() };
//! let panel = Panel { title: String::new(), content: Content::Lines(vec![line]), level: None };
//! let chart = Chart { name: "gap".to_owned(), panels: vec![panel], ..Chart::default() };
//! assert!(ddk_report::svg(&chart, ddk_report::WIDTH)?.contains("<polyline"));
//! # Ok::<(), ddk_report::ChartError>(())
//! ```

pub mod chart;
pub mod comparison;
pub mod document;
mod figures;
pub mod run_report;
pub mod scores;
pub mod statistics;
mod svg;
mod table;

pub use chart::Chart;
pub use comparison::{ComparedRun, Comparison};
pub use figures::{RunSeries, charts, runs_charts};
pub use run_report::run_report;
pub use svg::{ChartError, WIDTH, svg, svg_without_legend};
pub use table::table;
