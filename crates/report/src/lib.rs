//! A run's result as people read it: a table for the terminal ([`table`]), and one self-contained page with figures
//! ([`html`]), both from the run's folder alone.

mod figures;
mod html;
mod table;

pub use html::html;
pub use table::table;
