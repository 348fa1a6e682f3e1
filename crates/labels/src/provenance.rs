//! Describes what labels depend on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::format::VERSION;

/// Everything that a set's labels depend on: names and values, ordered by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Provenance(BTreeMap<String, String>);

impl Provenance {
    /// Takes names and values in any order.
    pub fn new<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let fields = fields.into_iter();
        Self(
            fields
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    /// Name of the set's folder: `slug`, with `-` for each character that is not fit for a file name, and the first 12
    /// hexadecimal digits of the BLAKE3 hash of all fields and of the format's version.
    pub fn name(&self, slug: &str) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(&VERSION.to_le_bytes());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        let fit = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        };
        let slug: String = slug.chars().map(fit).take(100).collect();
        format!("{slug}-{}", &hash.finalize().to_hex()[..12])
    }

    /// Names and values, ordered by name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// One phrase for each field that differs: "`dtype` is `fp32`, not `bf16`" if `self` has `fp32`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let text = |value: Option<&String>| {
            value.map_or("absent".to_owned(), |value| format!("`{value}`"))
        };
        let differing = names.into_iter().filter_map(|name| {
            let (here, there) = (self.0.get(name), other.0.get(name));
            (here != there).then(|| format!("`{name}` is {}, not {}", text(here), text(there)))
        });
        differing.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, &str)]) -> Provenance {
        Provenance::new(
            fields
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        )
    }

    #[test]
    fn a_name_follows_from_the_fields_in_any_order() {
        let provenance = of(&[("teacher", "a"), ("dtype", "bf16")]);
        assert_eq!(provenance, of(&[("dtype", "bf16"), ("teacher", "a")]));
        // Frozen: another name would abandon everybody's labels.
        assert_eq!(
            provenance.name("Qwen/Qwen3 8B"),
            "Qwen-Qwen3-8B-d6686b4f9211"
        );
        let others = [
            of(&[("teacher", "a")]),
            of(&[("teacher", "b"), ("dtype", "bf16")]),
            of(&[("teacher", "adtype"), ("", "bf16")]),
        ];
        for other in others {
            assert_ne!(provenance.name("x"), other.name("x"));
        }
    }

    #[test]
    fn differences_name_each_field_that_differs() {
        let here = of(&[("dtype", "fp32"), ("engine", "1"), ("teacher", "a")]);
        let there = of(&[("dtype", "bf16"), ("teacher", "a"), ("window", "9")]);
        assert_eq!(
            here.differences(&there),
            [
                "`dtype` is `fp32`, not `bf16`",
                "`engine` is `1`, not absent",
                "`window` is absent, not `9`"
            ]
        );
        assert!(here.differences(&here).is_empty());
    }
}
