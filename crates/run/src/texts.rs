//! What the models write after the prompts of `samples.prompts`: the lines of `texts.jsonl`.

use serde::{Deserialize, Serialize};

/// A line of `texts.jsonl`: what a model writes after each prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextLine {
    /// The student's last step; 0 for the teacher, which does not change.
    pub step: u64,
    /// The model.
    pub model: Writer,
    /// One text per prompt.
    pub texts: Vec<Text>,
}

/// A model that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writer {
    /// The teacher.
    Teacher,
    /// The student.
    Student,
}

/// A prompt and its most likely continuation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The prompt.
    pub prompt: String,
    /// The continuation.
    pub text: String,
}
