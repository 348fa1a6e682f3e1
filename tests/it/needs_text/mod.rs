//! What runs on the demo's own text, whose documents `tools/demo-text/fetch` has put into the cache folder.

mod documents;
mod methods;
