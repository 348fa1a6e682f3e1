//! Reads the messages of a record, in the layout of OpenAI or of ShareGPT.

use minijinja::Value;
use serde_json::{Map, Value as Json, json};

use super::{Chat, Context, Doubts, jinja};
use crate::{quarantine::Unusable, template::value};

/// What a template renders of a record.
#[derive(Debug)]
pub(super) struct Conversation {
    /// In OpenAI's layout.
    pub(super) messages: Vec<Value>,
    /// Positions of the assistant's messages that are learned.
    pub(super) answers: Vec<usize>,
    /// Number of messages at the start whose turns are not learned.
    pub(super) prompt: usize,
    pub(super) context: Context,
    /// What is unusual in it.
    pub(super) doubts: Doubts,
}

impl Conversation {
    pub(super) fn of(record: &Json, chat: &Chat) -> Result<Self, Unusable> {
        let prompt = list(record, &chat.messages)?;
        let completion = chat.completion.as_deref();
        let completion = completion.map(|field| list(record, field)).transpose()?;
        Ok(Self::read(record, prompt, completion, chat)?)
    }

    /// `completion`: the messages that follow, if only their answers are learned.
    fn read(
        record: &Json,
        mut found: Vec<Json>,
        completion: Option<Vec<Json>>,
        chat: &Chat,
    ) -> Result<Self, String> {
        let mut prompt = completion.as_ref().map_or(0, |_| found.len());
        found.extend(completion.into_iter().flatten());
        let mut doubts = Doubts::default();
        doubts.add(&found);
        let mut messages: Vec<Map<String, Json>> = Vec::with_capacity(found.len() + 1);
        for (number, message) in (1..).zip(&found) {
            let read = self::message(message, chat.template.reads_parts);
            messages.push(read.map_err(|reason| format!("message {number}: {reason}"))?);
        }
        // ShareGPT keeps the system prompt beside the messages.
        let is_sharegpt = found
            .first()
            .is_some_and(|first| first.get("from").is_some());
        let has_system = messages
            .first()
            .is_some_and(|first| first["role"] == "system");
        if let Some(system) = record.get("system").and_then(Json::as_str)
            && is_sharegpt
            && !has_system
            && !system.is_empty()
        {
            messages.insert(0, with_content("system", json!(system)));
            prompt += usize::from(chat.completion.is_some());
        }
        let is_answer = |(place, message): (usize, &Map<String, Json>)| {
            (place >= prompt && message["role"] == "assistant").then_some(place)
        };
        let answers: Vec<usize> = messages.iter().enumerate().filter_map(is_answer).collect();
        if answers.is_empty() {
            let field = chat.completion.as_ref().unwrap_or(&chat.messages);
            return Err(format!("no message of `{field}` is the assistant's"));
        }
        let tools = match value(record, &chat.tools) {
            None => None,
            Some(tools) => self::tools(tools)
                .ok_or_else(|| format!("the field `{}` is not a list of tools", chat.tools))?,
        };
        let arguments = record.get("chat_template_kwargs").and_then(Json::as_object);
        Ok(Self {
            messages: messages.iter().map(Value::from_serialize).collect(),
            answers,
            prompt,
            doubts,
            context: Context {
                tools: tools.map(Value::from_serialize),
                arguments: arguments.cloned().unwrap_or_default(),
            },
        })
    }
}

/// Returns the messages in a field of a record.
fn list(record: &Json, field: &str) -> Result<Vec<Json>, Unusable> {
    let Some(found) = value(record, field) else {
        let fields = record.as_object().into_iter().flat_map(Map::keys);
        return Err(Unusable {
            reason: format!("no field `{field}`"),
            fields: fields.cloned().collect(),
        });
    };
    match parsed(found) {
        Some(Json::Array(messages)) => Ok(messages),
        Some(_) => Err(format!("the field `{field}` is not a list of messages").into()),
        None => Err(format!("the field `{field}` is not JSON").into()),
    }
}

/// A list or object, or one that is stored as a string, as Parquet files do.
fn parsed(value: &Json) -> Option<Json> {
    match value {
        Json::String(text) => serde_json::from_str(text).ok(),
        _ => Some(value.clone()),
    }
}

/// Returns the tools of a record; `Some(None)` if it has none.
fn tools(found: &Json) -> Option<Option<Json>> {
    match found {
        Json::Null => Some(None),
        Json::String(text) if text.trim().is_empty() => Some(None),
        _ => match parsed(found)? {
            Json::Array(tools) if tools.is_empty() => Some(None),
            Json::Array(tools) => Some(Some(Json::Array(tools))),
            Json::Null => Some(None),
            _ => None,
        },
    }
}

fn with_content(role: &str, content: Json) -> Map<String, Json> {
    Map::from_iter([
        ("role".to_owned(), json!(role)),
        ("content".to_owned(), content),
    ])
}

/// Returns a message in OpenAI's layout.
fn message(found: &Json, reads_parts: bool) -> Result<Map<String, Json>, String> {
    let Json::Object(found) = found else {
        return Err("not an object".to_owned());
    };
    let text = |key: &str| found.get(key).and_then(Json::as_str);
    if let Some(speaker) = text("from") {
        let content = text("value").ok_or("no `value` that is a string")?;
        marks(content)?;
        return of_sharegpt(speaker, content);
    }
    text("role").ok_or("neither a `role` (OpenAI) nor a `from` (ShareGPT)")?;
    // Files with one schema for all messages fill in null for what a message lacks.
    let mut message: Map<String, Json> = found
        .iter()
        .filter(|(key, value)| !value.is_null() || *key == "content")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    match found.get("content") {
        Some(Json::Array(parts)) => {
            let texts = texts_of(parts)?;
            texts.iter().try_for_each(|text| marks(text))?;
            if !reads_parts {
                message.insert("content".to_owned(), json!(texts.join("\n")));
            }
        }
        Some(Json::String(text)) => marks(text)?,
        None | Some(Json::Null) => {}
        Some(_) => return Err("its `content` is neither a string nor a list of parts".to_owned()),
    }
    if let Some(Json::Array(calls)) = message.get_mut("tool_calls") {
        calls.iter_mut().for_each(read_arguments);
    }
    Ok(message)
}

fn marks(text: &str) -> Result<(), String> {
    if jinja::has_marks(text) {
        return Err("it contains U+FDD0 or U+FDD1, which are not characters".to_owned());
    }
    Ok(())
}

/// Returns the texts of a content that is a list.
fn texts_of(parts: &[Json]) -> Result<Vec<&str>, String> {
    fn text(part: &Json) -> Result<&str, String> {
        if let Some(kind) = part.get("type").and_then(Json::as_str)
            && kind != "text"
        {
            return Err(format!(
                "its content has a part of type `{kind}`, not `text`"
            ));
        }
        let text = part.as_str().or_else(|| part.get("text")?.as_str());
        text.ok_or_else(|| "its content has a part without a text".to_owned())
    }
    parts.iter().map(text).collect()
}

/// Parses the arguments of a tool call. OpenAI's interface has them as a string; templates expect an object.
fn read_arguments(call: &mut Json) {
    let function = match call.get_mut("function") {
        Some(function) => function,
        None => call,
    };
    if let Some(arguments) = function.get_mut("arguments")
        && let Some(text) = arguments.as_str()
        && let Ok(object @ Json::Object(_)) = serde_json::from_str(text)
    {
        *arguments = object;
    }
}

/// Whether a role of OpenAI's layout or a speaker of ShareGPT's is the assistant.
pub(crate) fn is_assistant(speaker: &str) -> bool {
    let names = [
        "gpt",
        "chatgpt",
        "bing",
        "bard",
        "assistant",
        "model",
        "function_call",
    ];
    names.contains(&speaker)
}

/// Whether DDK knows a speaker of ShareGPT's layout.
pub(crate) fn is_speaker(speaker: &str) -> bool {
    of_sharegpt(speaker, "").is_ok()
}

fn of_sharegpt(speaker: &str, content: &str) -> Result<Map<String, Json>, String> {
    let role = match speaker {
        "function_call" => return Ok(function_call(content)),
        "human" | "user" => "user",
        _ if is_assistant(speaker) => "assistant",
        "system" => "system",
        "tool" | "function_response" | "observation" => "tool",
        _ => return Err(format!("`from` is `{speaker}`, which is no known speaker")),
    };
    Ok(with_content(role, json!(content)))
}

/// Makes tool calls of a text that is one call, or a list of calls, in JSON. Any other text is a plain answer.
fn function_call(content: &str) -> Map<String, Json> {
    let calls = match serde_json::from_str(content) {
        Ok(Json::Array(calls)) => calls,
        Ok(call @ Json::Object(_)) => vec![call],
        _ => Vec::new(),
    };
    let is_call = |call: &Json| call.get("name").is_some() && call.get("arguments").is_some();
    if calls.is_empty() || !calls.iter().all(is_call) {
        return with_content("assistant", json!(content));
    }
    let call = |mut function: Json| {
        read_arguments(&mut function);
        json!({ "type": "function", "function": function })
    };
    let calls: Vec<Json> = calls.into_iter().map(call).collect();
    let mut message = with_content("assistant", json!(""));
    message.insert("tool_calls".to_owned(), json!(calls));
    message
}
