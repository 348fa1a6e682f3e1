//! Problems in a configuration, as the user sees them.

/// All problems in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Error(pub Vec<Problem>);

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Problem {
    /// The file and line, the variable, or the option.
    pub place: String,
    /// What is wrong: the key, its value, and what was expected; if it is known, also what to write instead.
    pub message: String,
}

impl Error {
    pub(crate) fn one(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self(vec![Problem {
            place: place.into(),
            message: message.into(),
        }])
    }

    /// Whether a problem is an earlier name, which [`crate::migrate()`] replaces.
    pub fn has_earlier_names(&self) -> bool {
        let mut problems = self.0.iter();
        problems.any(|problem| problem.message.contains(" is now `"))
    }

    /// Returns an error if there are problems.
    pub(crate) fn unless_none(problems: Vec<Problem>) -> Result<(), Self> {
        match problems[..] {
            [] => Ok(()),
            _ => Err(Self(problems)),
        }
    }

    pub(crate) fn not_written(error: &toml::ser::Error) -> Self {
        let message = format!("cannot be written as TOML: {error}");
        Self::one("the settings", message)
    }
}
