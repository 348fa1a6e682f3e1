//! A secret setting.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// Placeholder for a token in everything that DDK writes.
const WITHHELD: &str = "(given to the process, not written down)";

/// The token that a server requires. DDK shows and writes a placeholder instead. A configuration with the placeholder
/// (a run's own `config.toml`) still loads, but [`Token::secret`] is then `None`.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Creates a token, usable or not.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret, if it is known.
    pub fn secret(&self) -> Option<&str> {
        (self.0 != WITHHELD).then_some(&self.0)
    }

    /// Whether it is too long to guess and needs no escaping in headers and URLs.
    pub fn is_usable(&self) -> bool {
        let plain =
            |character: char| character.is_ascii_alphanumeric() || "-._~".contains(character);
        self.0 == WITHHELD || (self.0.len() >= 16 && self.0.chars().all(plain))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(WITHHELD)
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(WITHHELD)
    }
}
