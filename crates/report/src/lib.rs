//! A run's result as people read it: a table for the terminal ([`table`]), and a report with figures
//! ([`RunReport`]), as one self-contained page or as Markdown; and the comparison of many runs
//! ([`Comparison`]).
//!
//! A figure is data ([`chart`]) that is drawn into a page or into an SVG file ([`svg()`]); a text with tables
//! and figures ([`document`]) becomes Markdown or a page.

pub mod chart;
pub mod comparison;
pub mod document;
mod figures;
mod plot;
pub mod run_report;
pub mod scores;
pub mod statistics;
mod svg;
mod table;

pub use comparison::{ComparedRun, Comparison};
pub use run_report::RunReport;
pub use svg::svg;
pub use table::table;
