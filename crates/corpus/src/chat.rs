//! Renders conversations with a tokenizer's chat template, as transformers' `apply_chat_template` does.

mod doubts;
mod jinja;
mod messages;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use crate::{CorpusError, TokenizerFolder, document::Document, quarantine::Unusable};
use jinja::Rendered;
use messages::Conversation;

pub use doubts::Doubts;
pub(crate) use doubts::speaker;
pub(crate) use messages::{is_assistant, is_speaker};

/// The name of the template for conversations without tools, and of the one for those with tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
/// A message that no conversation contains, to see what a template does with it.
const PROBE: &str = "ddk-probe";

/// How the records of a domain become conversations.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// Path of the field that holds a record's messages.
    pub messages: String,
    /// Path of the field that holds the messages after them. The loss then learns only the assistant's turns there.
    pub completion: Option<String>,
    /// Path of the field that holds the descriptions of a record's tools.
    pub tools: String,
    /// The template that renders the messages.
    pub template: Arc<ChatTemplate>,
}

impl Chat {
    /// Returns the document of a record, or why it has none.
    pub(crate) fn document(&self, record: &Json) -> Result<Document, Unusable> {
        let conversation = Conversation::of(record, self)?;
        let turns = turns::learned(&self.template, &conversation)?;
        Ok(Document::Conversation {
            text: turns.text,
            learned: turns.learned,
            rewritten: turns.rewritten,
            doubts: conversation.doubts,
        })
    }
}

/// A tokenizer's chat template. It is Jinja, with the settings, filters and functions of transformers.
#[derive(Debug)]
pub struct ChatTemplate {
    folder: PathBuf,
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and so on.
    named_tokens: BTreeMap<String, String>,
    /// The tokens that the tokenizer never splits.
    added_tokens: Vec<String>,
    /// Names of the templates that mark the assistant's turns with `{% generation %}`.
    marking: BTreeSet<String>,
    /// Whether it expects a message's content as a list of parts.
    reads_parts: bool,
    hash: String,
}

/// Templates are equal if they render alike.
impl PartialEq for ChatTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl ChatTemplate {
    /// Opens the template in a tokenizer's folder: `chat_template.jinja` (and `additional_chat_templates/`), or
    /// `chat_template` in `tokenizer_config.json`.
    ///
    /// # Errors
    /// If the folder has no chat template, if a file cannot be read, or if the template has a syntax error.
    pub fn open(tokenizer: &TokenizerFolder) -> Result<Self, CorpusError> {
        let folder = tokenizer.folder();
        let wrong = |reason: String| CorpusError::Tokenizer {
            path: folder.to_owned(),
            reason,
        };
        let sources = sources(folder)?;
        if !sources.contains_key(DEFAULT) {
            return Err(wrong(
                "it has no chat template: there is neither a chat_template.jinja nor a chat_template in \
                 tokenizer_config.json"
                    .to_owned(),
            ));
        }
        let named_tokens = tokenizer.named_tokens();
        let mut hasher = blake3::Hasher::new();
        for (name, text) in sources.iter().chain(&named_tokens) {
            for part in [name, text] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
        // Templates that no conversation uses need not be valid.
        let used = sources
            .into_iter()
            .filter(|(name, _)| name == DEFAULT || name == TOOL_USE);
        let used: BTreeMap<String, String> = used.collect();
        let marking = used.iter().filter(|(_, source)| jinja::can_mark(source));
        let marking = marking.map(|(name, _)| name.clone()).collect();
        let environment = jinja::environment(used)
            .map_err(|reason| wrong(format!("its chat template has an error: {reason}")))?;
        let mut template = Self {
            folder: folder.to_owned(),
            environment,
            marking,
            named_tokens,
            added_tokens: tokenizer.added_tokens(),
            reads_parts: false,
            hash: hasher.finalize().to_hex().to_string(),
        };
        let parts = serde_json::json!({
            "role": "user",
            "content": [{ "type": "text", "text": PROBE }],
        });
        let rendered = template.render(&[Value::from_serialize(parts)], false, &Context::default());
        // A template that prints the list itself does not read it.
        template.reads_parts = rendered
            .is_ok_and(|rendered| rendered.text.contains(PROBE) && !rendered.text.contains("type"));
        Ok(template)
    }

    /// Hash of everything that affects the text of a conversation.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Renders messages, as pairs of a role and a text, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// If the template refuses the messages.
    pub fn prompt(&self, messages: &[(String, String)]) -> Result<String, CorpusError> {
        let message = |(role, text): &(String, String)| {
            Value::from_serialize(serde_json::json!({ "role": role, "content": text }))
        };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let rendered = self.render(&messages, true, &Context::default());
        let rendered = rendered.map_err(|reason| CorpusError::Tokenizer {
            path: self.folder.clone(),
            reason,
        })?;
        Ok(rendered.text)
    }

    /// The token that ends the assistant's turns, if a token of the vocabulary does.
    pub fn end_of_turn(&self) -> Option<&str> {
        let message = |role, text: &str| {
            Value::from_serialize(serde_json::json!({ "role": role, "content": text }))
        };
        let messages = [message("user", "."), message("assistant", PROBE)];
        let rendered = self.render(&messages, false, &Context::default()).ok()?;
        let (_, after) = rendered.text.split_once(PROBE)?;
        let after = after.trim_start();
        let starts = self.added_tokens.iter();
        let longest = starts
            .filter(|token| after.starts_with(*token))
            .max_by_key(|token| token.len());
        longest.map(String::as_str)
    }

    /// Whether a text ends with a token that the tokenizer never splits.
    fn ends_with_token(&self, text: &str) -> bool {
        self.added_tokens.iter().any(|token| text.ends_with(token))
    }

    /// Returns a text without such a token at its end, and without the white space after that.
    fn without_last_token<'a>(&self, text: &'a str) -> &'a str {
        let trimmed = text.trim_end();
        let tokens = self.added_tokens.iter();
        let shorter = tokens.filter_map(|token| trimmed.strip_suffix(token.as_str()));
        shorter.min_by_key(|rest| rest.len()).unwrap_or(text)
    }

    /// Renders messages. `generation_prompt`: append what comes before the assistant's next turn.
    fn render(
        &self,
        messages: &[Value],
        generation_prompt: bool,
        context: &Context,
    ) -> Result<Rendered, String> {
        let of_tokens = self.named_tokens.iter();
        let of_tokens = of_tokens.map(|(name, token)| (name.clone(), Value::from(token.as_str())));
        let of_record = context.arguments.iter();
        let of_record = of_record.map(|(name, value)| (name.clone(), Value::from_serialize(value)));
        let tools = context.tools.clone();
        let own = [
            ("messages", Value::from(messages.to_vec())),
            ("tools", tools.clone().unwrap_or(Value::from(()))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(generation_prompt)),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let variables: Value = of_tokens.chain(of_record).chain(own).collect();
        let for_tools = tools.and_then(|_| self.environment.get_template(TOOL_USE).ok());
        let template = match for_tools {
            Some(template) => Ok(template),
            None => self.environment.get_template(DEFAULT),
        };
        let rendered = template.and_then(|template| {
            let marks = self.marking.contains(template.name());
            let text = template.render(variables)?;
            Ok(if marks {
                jinja::unmark(&text)
            } else {
                Rendered { text, marked: None }
            })
        });
        rendered.map_err(|error| jinja::describe(&error))
    }
}

/// What a record passes to its template beside messages.
#[derive(Debug, Clone, Default)]
struct Context {
    tools: Option<Value>,
    /// Arguments of the template that the record itself sets, such as `enable_thinking`.
    arguments: Map<String, Json>,
}

/// Returns the sources of a folder's templates by name.
fn sources(folder: &Path) -> Result<BTreeMap<String, String>, CorpusError> {
    let mut sources = BTreeMap::new();
    let read = |path: &Path| fs::read_to_string(path).map_err(CorpusError::io("read", path));
    let path = folder.join("tokenizer_config.json");
    if path.exists() {
        let config: Json = serde_json::from_str(&read(&path)?)
            .map_err(|error| CorpusError::damaged(&path, error.to_string()))?;
        match &config["chat_template"] {
            Json::String(text) => {
                sources.insert(DEFAULT.to_owned(), text.clone());
            }
            Json::Array(list) => {
                let text = |entry: &Json, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
                let pair = |entry| Some((text(entry, "name")?, text(entry, "template")?));
                sources.extend(list.iter().filter_map(pair));
            }
            _ => {}
        }
    }
    // As in transformers, files replace what the configuration has.
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        sources = BTreeMap::from([(DEFAULT.to_owned(), read(&path)?)]);
        let path = folder
            .join("additional_chat_templates")
            .join("tool_use.jinja");
        if path.exists() {
            sources.insert(TOOL_USE.to_owned(), read(&path)?);
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests;
