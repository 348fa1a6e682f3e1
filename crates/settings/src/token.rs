//! A secret among the settings.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// What stands for a token in everything that the program writes.
const WITHHELD: &str = "(given to the process, not written down)";

/// The token that a server asks for. It is shown and written as a remark that it was there; a configuration
/// that holds the remark (a run's own `config.toml`) reads back, but is no secret to serve with: see
/// [`Token::secret`].
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// What was given as a token, usable or not.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret, where it is known.
    pub fn secret(&self) -> Option<&str> {
        (self.0 != WITHHELD).then_some(&self.0)
    }

    /// Long enough not to be guessed, and of characters that headers and addresses carry as they are.
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
