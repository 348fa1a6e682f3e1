//! Tests on the demo's own text. `tools/demo-text/fetch` must have put its documents into the cache folder.

mod documents;
mod methods;
