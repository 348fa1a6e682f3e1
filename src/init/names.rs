//! Names of domains, and how the configuration spells them.

/// Converts `text` to a name that works as a folder and as a bare key.
pub(super) fn domain_name(text: &str) -> String {
    let is_allowed = |letter: char| letter.is_alphanumeric() || letter == '-';
    text.replace(|letter| !is_allowed(letter), "_")
}

/// Names of files and folders whose text others keep for validation and for tests.
const HELD_OUT: [&str; 6] = ["validation", "valid", "val", "dev", "eval", "test"];

/// Returns the place of a name among those of held-out data: validation comes before tests.
pub(super) fn held_out_place(name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    HELD_OUT.iter().position(|other| *other == name)
}

/// Whether a name is that of the part to train on, beside held-out data.
pub(super) fn is_train(name: &str) -> bool {
    name.eq_ignore_ascii_case("train")
}

/// The first lines of a domain's table.
pub(super) fn head(name: &str, files: &[String]) -> String {
    format!("[domains.{}]\nfiles = {}\n", key(name), list(files))
}

/// A list of strings of TOML.
pub(super) fn list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quote(text)).collect();
    format!("[{}]", quoted.join(", "))
}

/// A string of TOML, which a JSON string is too.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A name as a key of TOML.
fn key(name: &str) -> String {
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        quote(name)
    }
}
