//! One layer: a TOML text, checked on its own, with the place of each of its values.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::{
    Options, Origin, Origins,
    error::{Error, Problem},
};

/// Parses a layer strictly. `place` turns a line number into what an error and the origins name.
pub(crate) fn check(
    text: &str,
    place: &dyn Fn(usize) -> Origin,
    origins: &mut Origins,
) -> Result<(), Error> {
    let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| problem(text, place, line, &error))?;
    toml::from_str::<Options>(text).map_err(|error| problem(text, place, line, &error))?;
    record(table.get_ref(), "", &mut |key, span| {
        origins.record(key, place(line(span.start)));
    });
    Ok(())
}

fn record(table: &DeTable<'_>, prefix: &str, each: &mut dyn FnMut(String, Range<usize>)) {
    for (key, value) in table {
        let path = match prefix {
            "" => key.get_ref().to_string(),
            _ => format!("{prefix}.{}", key.get_ref()),
        };
        match value.get_ref() {
            DeValue::Table(inner) => record(inner, &path, each),
            _ => each(path, key.span()),
        }
    }
}

fn problem(
    text: &str,
    place: &dyn Fn(usize) -> Origin,
    line: impl Fn(usize) -> usize,
    error: &toml::de::Error,
) -> Error {
    let number = error.span().map_or(1, |span| line(span.start));
    let origin = place(number);
    let shown = match (&origin, error.span()) {
        // The line with the mistake underlined; a variable or an option is its own line.
        (Origin::File(..), Some(span)) => format!("{}\n{}", error.message(), underline(text, span)),
        _ => error.message().to_owned(),
    };
    Error(vec![Problem {
        place: origin.to_string(),
        suggestion: suggestion(error.message()),
        message: match suggestion(error.message()) {
            // The list of all keys is long; the nearest one is what helps.
            Some(_) => shown.replacen(list_of_keys(error.message()), "", 1),
            None => shown,
        },
    }])
}

fn underline(text: &str, span: Range<usize>) -> String {
    let start = text[..span.start.min(text.len())]
        .rfind('\n')
        .map_or(0, |at| at + 1);
    let end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let width = span.end.min(end).saturating_sub(span.start).max(1);
    let indent = text[start..span.start.min(end)].chars().count();
    format!(
        "  | {}\n  | {}{}",
        &text[start..end],
        " ".repeat(indent),
        "^".repeat(width)
    )
}

fn list_of_keys(message: &str) -> &str {
    message.find(", expected").map_or("", |at| &message[at..])
}

/// The valid name nearest to an unknown one, from serde's message.
fn suggestion(message: &str) -> Option<String> {
    let unknown = message
        .strip_prefix("unknown field `")
        .or_else(|| message.strip_prefix("unknown variant `"))?;
    let (unknown, rest) = unknown.split_once('`')?;
    let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let nearest = names.iter().max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    })?;
    if strsim::jaro_winkler(unknown, nearest) > 0.75 {
        Some(format!("did you mean `{nearest}`?"))
    } else {
        Some(format!("there are {}", names.join(", ")))
    }
}
