//! Finds the assistant's turns in a rendered conversation.

use std::ops::Range;

use minijinja::Value;
use serde_json::json;

use super::{ChatTemplate, PROBE, messages::Conversation};

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
            let start = start_of_turn(template, conversation, after, place)?;
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
    template: &ChatTemplate,
    conversation: &Conversation,
    after: &str,
    place: usize,
) -> Result<Option<usize>, String> {
    let (messages, context) = (&conversation.messages, &conversation.context);
    // Templates do not expect a conversation without a message, so nothing says what they write before the first.
    if place == 0 {
        return Ok(start_by_another(template, conversation, after, 0));
    }
    let before = &messages[..place];
    let prompt = template.render(before, true, context)?.text;
    if after.starts_with(&prompt) {
        return Ok(Some(prompt.len()));
    }
    let before = template.render(before, false, context)?.text;
    if !after.starts_with(&before) {
        return Ok(None);
    }
    let common = common_prefix(after, &prompt);
    let start = start_by_another(template, conversation, after, place);
    Ok(start.or((common > before.len()).then_some(common)))
}

/// Finds the start of a turn by the same message after a user's, where the generation prompt shows the turn's start.
fn start_by_another(
    template: &ChatTemplate,
    conversation: &Conversation,
    after: &str,
    place: usize,
) -> Option<usize> {
    let (messages, context) = (&conversation.messages, &conversation.context);
    let render = |messages: &[Value], generation_prompt| {
        let rendered = template.render(messages, generation_prompt, context);
        rendered.ok().map(|rendered| rendered.text)
    };
    let user = Value::from_serialize(json!({ "role": "user", "content": PROBE }));
    let known = [user, messages.get(place)?.clone()];
    let (before, prompt) = (render(&known[..1], false)?, render(&known[..1], true)?);
    let turn = render(&known, false)?;
    let turn = turn.strip_prefix(&before)?;
    // A prompt may begin what the model is to write, such as its thoughts. The turn then starts where both part.
    let header = common_prefix(turn, prompt.strip_prefix(&before)?);
    let (header, turn) = turn.split_at(header);
    // With what the template writes after the conversation, which `after` may lack.
    let whole = render(&messages[..=place], false)?;
    if let Some(start) = whole.strip_suffix(turn).map(str::len)
        && start <= after.len()
        && whole.starts_with(after)
    {
        return Some(start);
    }
    if header.is_empty() {
        return None;
    }
    let earlier = match place {
        0 => 0,
        _ => render(&messages[..place], false)?.len(),
    };
    let found = after.get(earlier..)?.find(header)?;
    Some(earlier + found + header.len())
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
