//! Defines what a document contains.

use std::ops::Range;

/// What a document contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// A text, split in two if the first part is a prompt.
    Text {
        prompt: Option<String>,
        text: String,
    },
    /// A conversation that a chat template has rendered.
    Conversation {
        text: String,
        /// Byte ranges that the loss learns, in order: the assistant's turns.
        learned: Vec<Range<usize>>,
        /// Whether some of the assistant's turns are not learned, because the template changes them later.
        rewritten: bool,
    },
}

impl Document {
    pub(crate) fn bytes(&self) -> u64 {
        let prompt = match self {
            Self::Text { prompt, .. } => prompt.as_ref().map_or(0, String::len),
            Self::Conversation { .. } => 0,
        };
        (prompt + self.text().len()) as u64
    }

    /// The text, without its prompt.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text { text, .. } | Self::Conversation { text, .. } => text,
        }
    }

    /// The prompt and the text.
    pub(crate) fn into_whole_text(self) -> String {
        match self {
            Self::Text { prompt, text } => prompt.unwrap_or_default() + &text,
            Self::Conversation { text, .. } => text,
        }
    }

    /// Equal documents have equal hashes. The bytes 0xff and 0xfe occur in no text.
    pub(crate) fn hash(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        if let Self::Text {
            prompt: Some(prompt),
            ..
        } = self
        {
            hasher.update(prompt.as_bytes());
            hasher.update(&[0xff]);
        }
        hasher.update(self.text().as_bytes());
        if let Self::Conversation { learned, .. } = self {
            for range in learned {
                hasher.update(&[0xfe]);
                hasher.update(&(range.start as u64).to_le_bytes());
                hasher.update(&(range.end as u64).to_le_bytes());
            }
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        hash
    }
}
