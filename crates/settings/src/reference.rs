//! The schema of a configuration file, and its reference for people; both from the comments in `options.rs`
//! and `options/`.

use serde_json::{Map, Value};

use crate::Options;

/// The JSON schema of a configuration file.
pub fn schema() -> Value {
    schemars::schema_for!(Options).to_value()
}

/// docs/settings.md.
pub fn reference() -> String {
    let schema = schema();
    let defaults: Value = toml::from_str(include_str!("defaults.toml")).unwrap_or_default();
    let mut text = String::from(
        "# Settings\n\n\
         Made from `crates/settings/src/options.rs` and `options/`; `ddk config schema` prints the JSON schema, `ddk config show --origin CONFIG` \
         the values in use and where each comes from.\n\n\
         Layers: built-in defaults, then what `method` stands for, then files in order, then the environment (`DDK__STUDENT__LR=1e-4`), then `--set student.lr=1e-4`. \
         Tables merge key by key; arrays replace each other. Paths are relative to the folder in which `ddk` is started.\n",
    );
    text.push_str("\n## Before the first table\n\n| key | what |\n|---|---|\n");
    for (key, value) in properties(&schema) {
        if is_plain(&schema, value) {
            let about = one_line(description(value));
            text.push_str(&format!("| `{key}` | {about} |\n"));
        }
    }
    for (name, section) in properties(&schema).filter(|(_, value)| !is_plain(&schema, value)) {
        let (path, table) = match resolve(&schema, section) {
            Some(table) => (name.clone(), table),
            // A map of tables.
            None => match entries(section).and_then(|entry| resolve(&schema, entry)) {
                Some(table) => (format!("{name}.NAME"), table),
                None => continue,
            },
        };
        write_table(
            &mut text,
            &schema,
            &path,
            description(section),
            table,
            defaults.get(name),
        );
    }
    text
}

fn write_table(
    text: &mut String,
    schema: &Value,
    path: &str,
    about: &str,
    table: &Value,
    defaults: Option<&Value>,
) {
    text.push_str(&format!(
        "\n## [{path}]\n\n{about}\n\n| key | default | what |\n|---|---|---|\n"
    ));
    let mut inner = Vec::new();
    for (key, value) in properties(table) {
        if let Some(nested) =
            resolve(schema, value).filter(|nested| nested.get("properties").is_some())
        {
            inner.push((format!("{path}.{key}"), description(value), nested));
            continue;
        }
        let default = defaults
            .and_then(|defaults| defaults.get(key))
            .map_or(String::new(), |value| format!("`{value}`"));
        let about = one_line(description(value));
        text.push_str(&format!("| `{key}` | {default} | {about} |\n"));
    }
    for (path, about, nested) in inner {
        write_table(text, schema, &path, about, nested, None);
    }
}

fn properties(table: &Value) -> impl Iterator<Item = (&String, &Value)> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    table
        .get("properties")
        .and_then(Value::as_object)
        .unwrap_or(&EMPTY)
        .iter()
}

fn description(value: &Value) -> &str {
    value
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A cell of a table has no line breaks.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The definition that an optional value refers to.
fn resolve<'a>(schema: &'a Value, value: &'a Value) -> Option<&'a Value> {
    let reference = value.get("$ref").or_else(|| {
        value
            .get("anyOf")?
            .as_array()?
            .iter()
            .find_map(|choice| choice.get("$ref"))
    })?;
    schema.pointer(reference.as_str()?.strip_prefix('#')?)
}

/// A key of its own, no table.
fn is_plain(schema: &Value, value: &Value) -> bool {
    let table = resolve(schema, value).is_some_and(|table| table.get("properties").is_some());
    !table && entries(value).is_none()
}

fn entries(value: &Value) -> Option<&Value> {
    value.get("additionalProperties")
}
