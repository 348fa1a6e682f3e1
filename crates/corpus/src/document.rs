//! What a document holds, and its identity.

use std::ops::Range;

use crate::chat::Doubts;

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
        /// What is unusual in the conversation.
        doubts: Doubts,
    },
    /// Token ids that others made.
    Tokens {
        ids: Vec<u32>,
        /// Ranges of tokens that need not be predicted, in order.
        masked: Vec<Range<u64>>,
    },
}

/// Bytes that a token id counts for the limits on bytes.
pub(crate) const BYTES_PER_ID: u64 = 4;

impl Document {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Text { prompt, text } => {
                (prompt.as_ref().map_or(0, String::len) + text.len()) as u64
            }
            Self::Conversation { text, .. } => text.len() as u64,
            Self::Tokens { ids, .. } => BYTES_PER_ID * ids.len() as u64,
        }
    }

    /// The prompt and the text; `None` for token ids.
    pub(crate) fn into_whole_text(self) -> Option<String> {
        match self {
            Self::Text { prompt, text } => Some(prompt.unwrap_or_default() + &text),
            Self::Conversation { text, .. } => Some(text),
            Self::Tokens { .. } => None,
        }
    }

    /// Equal documents have equal hashes. The bytes 0xff and 0xfe occur in no text.
    pub(crate) fn hash(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::Text { prompt, text } => {
                if let Some(prompt) = prompt {
                    hasher.update(prompt.as_bytes());
                    hasher.update(&[0xff]);
                }
                hasher.update(text.as_bytes());
            }
            Self::Conversation { text, learned, .. } => {
                hasher.update(text.as_bytes());
                for range in learned {
                    hasher.update(&[0xfe]);
                    hasher.update(&(range.start as u64).to_le_bytes());
                    hasher.update(&(range.end as u64).to_le_bytes());
                }
            }
            Self::Tokens { ids, masked } => {
                // No text begins like this: these bytes are not UTF-8.
                hasher.update(&[0xff; 2]);
                hasher.update(&(ids.len() as u64).to_le_bytes());
                for id in ids {
                    hasher.update(&id.to_le_bytes());
                }
                for range in masked {
                    hasher.update(&range.start.to_le_bytes());
                    hasher.update(&range.end.to_le_bytes());
                }
            }
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        hash
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Text { text, .. } | Self::Conversation { text, .. } => text.trim().is_empty(),
            Self::Tokens { ids, .. } => ids.is_empty(),
        }
    }
}
