//! What is unusual in conversations that DDK can use: often a mistake in how they were exported.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Roles of OpenAI's layout that chat templates know, and the speakers of ShareGPT's layout for them.
const ROLES: [&str; 9] = [
    "system",
    "developer",
    "user",
    "human",
    "assistant",
    "tool",
    "function",
    "ipython",
    "model",
];

/// Who speaks in a message: the speaker of ShareGPT's layout, or the role of OpenAI's.
pub(crate) fn speaker(message: &Value) -> Option<&str> {
    message
        .get("from")
        .or_else(|| message.get("role"))?
        .as_str()
}

/// Counts conversations that are unusual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubts {
    /// Number of conversations that end with a message of the user.
    pub unanswered: u64,
    /// Number of conversations with such a role, for each role that chat templates rarely know.
    pub unknown_roles: BTreeMap<String, u64>,
}

impl Doubts {
    /// Counts a conversation.
    pub(crate) fn add(&mut self, turns: &[Value]) {
        let last = turns.last().and_then(speaker);
        self.unanswered += u64::from(matches!(last, Some("user" | "human")));
        // Records with an unknown speaker of ShareGPT's layout are unusable, and counted as such.
        let of_openai = turns.iter().filter(|turn| turn.get("from").is_none());
        let roles = of_openai.filter_map(speaker);
        let unknown: BTreeSet<&str> = roles.filter(|role| !ROLES.contains(role)).collect();
        for role in unknown {
            *self.unknown_roles.entry(role.to_owned()).or_default() += 1;
        }
    }

    /// Adds the counts of other conversations.
    pub(crate) fn merge(&mut self, other: Self) {
        self.unanswered += other.unanswered;
        for (role, count) in other.unknown_roles {
            *self.unknown_roles.entry(role).or_default() += count;
        }
    }

    /// Says what is unusual. `all`: the conversations in words, such as `300 conversations`.
    pub fn describe(&self, all: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if self.unanswered > 0 {
            lines.push(format!(
                "{} of {all} end with a message of the user that has no answer",
                self.unanswered
            ));
        }
        for (role, count) in &self.unknown_roles {
            lines.push(format!(
                "{count} of {all} have the role `{role}`, which few chat templates know: do you mean `user` or \
                 `assistant`?"
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unanswered_messages_and_unknown_roles_are_counted_once_per_conversation() {
        let turn = |role: &str| json!({ "role": role, "content": "a" });
        let speaker = |from: &str| json!({ "from": from, "value": "a" });
        let mut all = Doubts::default();
        for turns in [
            vec![turn("system"), turn("user"), turn("assistant")],
            vec![turn("user"), turn("assistant"), turn("user")],
            vec![speaker("human"), speaker("gpt"), speaker("human")],
            vec![turn("moderator"), turn("assistant"), turn("moderator")],
            vec![],
        ] {
            let mut one = Doubts::default();
            one.add(&turns);
            all.merge(one);
        }
        assert_eq!(
            all.describe("5 conversations"),
            [
                "2 of 5 conversations end with a message of the user that has no answer",
                "1 of 5 conversations have the role `moderator`, which few chat templates know: do you mean `user` \
                 or `assistant`?",
            ]
        );
        assert!(Doubts::default().describe("5 conversations").is_empty());
    }
}
