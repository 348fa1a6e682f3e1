//! Words serde's messages about values of a wrong type for people who write configurations.

use crate::Key;

/// Says what a value is, and what its key expects. `message`: serde's. Returns messages of other forms as they are.
pub(crate) fn wrong_type(message: &str, key: Option<&Key>) -> String {
    let start = ["invalid type: ", "invalid value: "];
    let mut rests = start.iter().filter_map(|start| message.strip_prefix(start));
    let parts = rests
        .next()
        .and_then(|rest| rest.rsplit_once(", expected "));
    let Some((found, expected)) = parts else {
        return message.to_owned();
    };
    let bounds = key.map(Key::expected).filter(|text| !text.is_empty());
    let expected = match expected {
        "u64" | "u32" | "usize" => {
            let bounds = bounds.unwrap_or_else(|| "0 or more".to_owned());
            format!("a whole number: {bounds}")
        }
        "i64" | "i32" => "a whole number".to_owned(),
        "f64" | "f32" => bounds.unwrap_or_else(|| "a number".to_owned()),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => match found.strip_prefix("string ") {
            Some(text) => format!("a list: [{text}]"),
            None => "a list".to_owned(),
        },
        "a map" => "a table".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    };
    let found = match found {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        other => format!("the {}", other.replacen("floating point", "number", 1)),
    };
    format!("found {found}, expected {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &str, key: &str) -> String {
        let path: Vec<&str> = key.split('.').collect();
        wrong_type(message, Key::of(&path))
    }

    #[test]
    fn messages_name_what_a_key_expects() {
        for (message, key, expected) in [
            (
                "invalid value: integer `-5`, expected u64",
                "training.micro_batch_size",
                "found the integer `-5`, expected a whole number: 1 to 1000000",
            ),
            (
                "invalid type: string \"cuda:0\", expected a sequence",
                "teacher.devices",
                "found the string \"cuda:0\", expected a list: [\"cuda:0\"]",
            ),
            (
                "invalid type: string \"fast\", expected f64",
                "optimizer.lr",
                "found the string \"fast\", expected a positive number",
            ),
            (
                "invalid type: integer `1`, expected a boolean",
                "log.samples",
                "found the integer `1`, expected true or false",
            ),
            (
                "invalid type: integer `3`, expected struct Run",
                "run",
                "found the integer `3`, expected a table",
            ),
            (
                "expected `]`, found `,`",
                "run.name",
                "expected `]`, found `,`",
            ),
        ] {
            assert_eq!(of(message, key), expected);
        }
    }
}
