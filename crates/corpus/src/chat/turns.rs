//! Finds the assistant's turns in a rendered conversation.

use std::ops::Range;

use super::{ChatTemplate, jinja::Rendered, messages::Conversation};

/// A rendered conversation, and what the loss learns of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turns {
    pub(super) text: String,
    /// Byte ranges of the assistant's turns, in order.
    pub(super) learned: Vec<Range<usize>>,
    /// Whether the template renders an earlier turn differently once other messages follow. Such turns are not
    /// learned: the model would never produce them this way.
    pub(super) rewritten: bool,
}

/// Renders a conversation and finds the assistant's turns, or returns why it cannot be used.
///
/// If the template marks turns with `{% generation %}`, those marks decide. Otherwise, a turn is what the template adds
/// for the assistant's message after the generation prompt, up to and including the token that ends the turn.
pub(super) fn learned(
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<Turns, String> {
    let messages = &conversation.messages;
    let render = |count: usize, generation_prompt| {
        template.render(&messages[..count], generation_prompt, &conversation.context)
    };
    let whole = render(messages.len(), false)?;
    let text = whole.text;
    let (mut learned, mut rewritten) = (Vec::new(), false);
    if let Some(marked) = whole.marked {
        learned = marked;
    } else {
        for &place in &conversation.answers {
            let after = match place + 1 {
                count if count == messages.len() => text.clone(),
                count => render(count, false)?.text,
            };
            // Some templates write a token once, at the end of the whole conversation.
            let without = template.without_last_token(&after);
            let after = [after.as_str(), without];
            let Some(after) = after.into_iter().find(|after| text.starts_with(after)) else {
                rewritten = true;
                continue;
            };
            let start = start_of_turn(after, &render, place)?;
            let Some(start) = start else {
                rewritten = true;
                continue;
            };
            let end = end_of_turn(template, after);
            if start < end {
                learned.push(start..end);
            }
        }
    }
    if learned.is_empty() {
        let reason = if rewritten {
            "the chat template changes every turn of the assistant once messages follow it"
        } else {
            "the assistant's turns are empty"
        };
        return Err(reason.to_owned());
    }
    Ok(Turns {
        text,
        learned,
        rewritten,
    })
}

/// Returns where the turn of message `place` starts in the text that ends with this turn; `None` if the template
/// changes what comes before.
fn start_of_turn(
    after: &str,
    render: &dyn Fn(usize, bool) -> Result<Rendered, String>,
    place: usize,
) -> Result<Option<usize>, String> {
    let prompt = render(place, true)?.text;
    if after.starts_with(&prompt) {
        return Ok(Some(prompt.len()));
    }
    // A prompt may begin what the model is to write, such as its thoughts. The turn then starts where both part.
    let before = match place {
        0 => String::new(),
        _ => render(place, false)?.text,
    };
    let common = common_prefix(after, &prompt);
    Ok((after.starts_with(&before) && common > before.len()).then_some(common))
}

/// Returns where a turn at the end of `text` ends: after its last token if that is a special one, without the white
/// space that follows such a token.
fn end_of_turn(template: &ChatTemplate, text: &str) -> usize {
    let trimmed = text.trim_end();
    if template.ends_with_token(trimmed) {
        trimmed.len()
    } else {
        text.len()
    }
}

/// Length in bytes of the common prefix of two texts.
fn common_prefix(one: &str, other: &str) -> usize {
    let pairs = one.chars().zip(other.chars());
    let equal = pairs.take_while(|(a, b)| a == b);
    equal.map(|(letter, _)| letter.len_utf8()).sum()
}
