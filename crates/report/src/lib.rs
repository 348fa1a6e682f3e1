//! A run's result as people read it: charts ([`charts`]), a table for the terminal ([`table`]), a report with figures
//! ([`RunReport`]), as one self-contained page or as Markdown; and the comparison of many runs ([`Comparison`]).
//!
//! A [`chart`] is data that [`svg()`] draws. A text with tables and figures ([`document`]) becomes Markdown or a page.

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
pub use run_report::RunReport;
pub use svg::{ChartError, WIDTH, svg};
pub use table::table;
