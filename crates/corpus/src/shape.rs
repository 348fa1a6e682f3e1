//! Finds the fields of records that hold their text.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    chat::{Doubts, is_assistant, is_speaker, speaker},
    pretokenized::is_ids,
};

/// Maximum number of fields to count.
const FIELDS: usize = 200;
/// Maximum number of roles that a reason names.
const ROLES: usize = 8;
/// Maximum number of fields that a reason names.
const NAMED: usize = 12;

/// Where the text of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// The whole file is a text.
    Text,
    /// A field of its records.
    Field(String),
    /// Templates of a prompt and of a text.
    Prompt {
        /// The prompt.
        prompt_template: String,
        /// What the model learns to write after it.
        text_template: String,
    },
    /// A field that holds conversations.
    Messages(String),
    /// A field that holds conversations, and one with the messages that the model learns to write after them.
    Completion {
        /// The conversations.
        messages: String,
        /// What follows them.
        completion: String,
    },
    /// A field that holds token ids.
    Tokens {
        /// The field.
        field: String,
        /// Whether labels beside it mask some tokens.
        is_masked: bool,
    },
    /// An index of Megatron with token ids.
    Megatron,
}

impl Shape {
    /// The keys of a domain's table and their values, as far as they are not the defaults.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Text => Vec::new(),
            Self::Field(field) if field == "text" => Vec::new(),
            Self::Field(field) => vec![("text_field", field.clone())],
            Self::Prompt {
                prompt_template,
                text_template,
            } => vec![
                ("prompt_template", prompt_template.clone()),
                ("text_template", text_template.clone()),
            ],
            Self::Messages(field) => vec![("messages_field", field.clone())],
            Self::Completion {
                messages,
                completion,
            } => vec![
                ("messages_field", messages.clone()),
                ("completion_field", completion.clone()),
            ],
            Self::Tokens { field, .. } => vec![("tokens_field", field.clone())],
            Self::Megatron => vec![("format", "megatron".to_owned())],
        }
    }

    /// Whether its documents have parts that a model need not learn to write.
    pub fn has_prompts(&self) -> bool {
        match self {
            Self::Prompt { .. } | Self::Messages(_) | Self::Completion { .. } => true,
            Self::Tokens { is_masked, .. } => *is_masked,
            _ => false,
        }
    }

    /// Whether its documents are conversations, which need a chat template.
    pub fn is_chat(&self) -> bool {
        matches!(self, Self::Messages(_) | Self::Completion { .. })
    }

    /// Whether the domain must name the tokenizer that made its ids.
    pub fn needs_tokenizer(&self) -> bool {
        matches!(self, Self::Tokens { .. } | Self::Megatron)
    }

    /// Describes in words where the text is.
    pub fn describe(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Field(field) => format!("text in `{field}`"),
            Self::Prompt {
                prompt_template,
                text_template,
            } => format!(
                "prompt \"{}\", text \"{}\"",
                prompt_template.escape_debug(),
                text_template.escape_debug()
            ),
            Self::Messages(field) => format!("conversations in `{field}`"),
            Self::Completion {
                messages,
                completion,
            } => format!(
                "conversations in `{messages}`, and what to learn after them in `{completion}`"
            ),
            Self::Tokens { field, .. } => format!("token ids in `{field}`"),
            Self::Megatron => "token ids".to_owned(),
        }
    }
}

/// Names of fields that hold conversations, best first. Another field may hold them too.
const MESSAGES: [&str; 6] = [
    "messages",
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "chat",
];
/// Names of fields that hold a whole text, best first.
const TEXTS: [&str; 9] = [
    "text",
    "content",
    "document",
    "article",
    "body",
    "raw_content",
    "code",
    "markdown",
    "story",
];
/// Names of fields that hold what a model is asked, best first.
const PROMPTS: [&str; 7] = [
    "instruction",
    "question",
    "prompt",
    "query",
    "problem",
    "input",
    "user",
];
/// Names of fields that an instruction may need, and that may be empty.
const INPUTS: [&str; 2] = ["input", "context"];
/// Names of fields that hold an answer, best first.
const ANSWERS: [&str; 8] = [
    "completion",
    "output",
    "response",
    "answer",
    "chosen",
    "solution",
    "canonical_solution",
    "assistant",
];
/// A field with an answer that a model must not learn.
const REJECTED: &str = "rejected";
/// Names of fields that hold token ids, best first.
const IDS: [&str; 3] = ["input_ids", "token_ids", "tokens"];
/// Names of fields that describe a record and are never its text.
const ABOUT: [&str; 22] = [
    "_id",
    "author",
    "category",
    "date",
    "dump",
    "file_name",
    "file_path",
    "filename",
    "hash",
    "id",
    "lang",
    "language",
    "license",
    "meta",
    "name",
    "path",
    "source",
    "split",
    "timestamp",
    "title",
    "url",
    "uuid",
];

/// What records have in a field.
#[derive(Debug, Default)]
struct Field {
    name: String,
    strings: u64,
    /// Strings that are not empty.
    texts: u64,
    chats: u64,
    /// Who speaks in them.
    roles: BTreeSet<String>,
    /// Conversations with a turn of the assistant.
    answered: u64,
    /// These without a speaker that DDK does not know.
    known: u64,
    /// What is unusual in these.
    doubts: Doubts,
    ids: u64,
    /// Whether a list holds the label of masked tokens.
    has_masks: bool,
}

impl Field {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The fields of the records of a file.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    records: u64,
    fields: Vec<Field>,
}

impl Fields {
    pub(crate) fn add(&mut self, record: &Map<String, Value>) {
        self.records += 1;
        for (name, value) in record {
            let place = self.fields.iter().position(|field| field.name == *name);
            let place = match place {
                Some(place) => place,
                None if self.fields.len() == FIELDS => continue,
                None => {
                    self.fields.push(Field {
                        name: name.clone(),
                        ..Field::default()
                    });
                    self.fields.len() - 1
                }
            };
            let field = &mut self.fields[place];
            let has_text = value.as_str().is_some_and(|text| !text.trim().is_empty());
            let is_list = is_ids(value);
            field.ids += u64::from(is_list);
            field.strings += u64::from(value.is_string());
            field.texts += u64::from(has_text && !is_list);
            field.chats += u64::from(is_chat(value));
            if is_chat(value) && field.roles.len() < ROLES {
                let turns = value.as_array().into_iter().flatten();
                field
                    .roles
                    .extend(turns.filter_map(speaker).map(str::to_owned));
            }
            let is_answered = is_chat(value) && is_answered(value);
            field.answered += u64::from(is_answered);
            if is_answered && is_known(value) {
                field.known += 1;
                field
                    .doubts
                    .add(value.as_array().map_or(&[], Vec::as_slice));
            }
            let masks = |list: &Vec<Value>| list.iter().any(|label| label.as_i64() == Some(-100));
            field.has_masks |= value.as_array().is_some_and(masks);
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.fields.iter().map(|field| field.name.clone()).collect()
    }

    pub(crate) fn texts(&self) -> Vec<u64> {
        self.fields.iter().map(|field| field.texts).collect()
    }

    /// Number of records whose fields have what a shape needs.
    pub(crate) fn usable(&self, shape: &Shape) -> u64 {
        let count = |name: &str, of: fn(&Field) -> u64| {
            let field = self.fields.iter().find(|field| field.name == name);
            field.map_or(0, of)
        };
        // Each template of this module uses a field once, and an input only under its condition.
        let filled = |template: &str, of: fn(&Field) -> u64| {
            let names = self.fields.iter().map(|field| &*field.name);
            let needed = names.filter(|name| {
                template.contains(&format!("{{{name}}}"))
                    && !template.contains(&format!("{{?{name}}}"))
            });
            needed.map(|name| count(name, of)).min().unwrap_or(0)
        };
        match shape {
            Shape::Field(name) => count(name, |field| field.texts),
            Shape::Prompt {
                prompt_template,
                text_template,
            } => {
                let asked = filled(prompt_template, |field| field.strings);
                asked.min(filled(text_template, |field| field.texts))
            }
            Shape::Messages(name) => count(name, |field| field.known),
            Shape::Completion {
                messages,
                completion,
            } => {
                let asked = count(messages, |field| field.chats);
                asked.min(count(completion, |field| field.known))
            }
            Shape::Tokens { field, .. } => count(field, |field| field.ids),
            Shape::Text | Shape::Megatron => self.records,
        }
    }

    /// What is unusual in the conversations of a shape.
    pub(crate) fn doubts(&self, shape: &Shape) -> Doubts {
        let last = match shape {
            Shape::Messages(name)
            | Shape::Completion {
                completion: name, ..
            } => name,
            _ => return Doubts::default(),
        };
        let field = self.fields.iter().find(|field| field.name == *last);
        field.map_or_else(Doubts::default, |field| field.doubts.clone())
    }

    /// Whether most records have this.
    fn most(&self, count: u64) -> bool {
        2 * count > self.records
    }

    /// The first of these names that most records have as such a field.
    fn first(&self, names: &[&str], count: impl Fn(&Field) -> u64) -> Option<&str> {
        let has = |name: &str| {
            let mut alike = self.fields.iter().filter(|field| field.is(name));
            let field = alike.find(|field| self.most(count(field)))?;
            Some(&*field.name)
        };
        names.iter().find_map(|name| has(name))
    }

    /// Decides where the text is, or returns why a record has no text.
    pub(crate) fn shape(&self) -> Result<Shape, String> {
        let answered = |field: &Field| field.answered;
        let texts = |field: &Field| field.texts;
        let other_chat = || {
            let mut fields = self.fields.iter();
            let field = fields.find(|field| self.most(field.answered) && !field.is(REJECTED))?;
            Some(&*field.name)
        };
        // A name with a dot or a brace means something else in the settings.
        let usable = |name: &&str| !name.contains(['.', '{', '}']);
        let messages = self.first(&MESSAGES, answered);
        if let (None, Some(prompt), Some(answer)) = (
            messages,
            self.first(&PROMPTS, |field| field.chats),
            self.first(&ANSWERS, answered),
        ) {
            return Ok(Shape::Completion {
                messages: prompt.to_owned(),
                completion: answer.to_owned(),
            });
        }
        if let Some(field) = messages.or_else(other_chat).filter(usable) {
            return Ok(Shape::Messages(field.to_owned()));
        }
        if let Some(field) = self.first(&TEXTS, texts) {
            return Ok(Shape::Field(field.to_owned()));
        }
        if let Some((prompt, answer)) = self.pair() {
            return Ok(prompted(prompt, self.input(prompt), answer));
        }
        if let Some(field) = self.first(&IDS, |field| field.ids) {
            let is_masked = |field: &Field| field.name == "labels" && field.has_masks;
            return Ok(Shape::Tokens {
                field: field.to_owned(),
                is_masked: self.fields.iter().any(is_masked),
            });
        }
        let mut strings = self.fields.iter().filter(|field| {
            let is_about = ABOUT.iter().any(|name| field.is(name));
            self.most(field.texts) && usable(&&*field.name) && !is_about
        });
        match (strings.next(), strings.next()) {
            (Some(only), None) => Ok(Shape::Field(only.name.clone())),
            _ => Err(self.none()),
        }
    }

    fn pair(&self) -> Option<(&str, &str)> {
        let texts = |field: &Field| field.texts;
        let prompt = self.first(&PROMPTS, texts)?;
        let answer = self.first(&ANSWERS, texts)?;
        Some((prompt, answer))
    }

    /// The field with what an instruction needs. It may be empty in most records.
    fn input(&self, prompt: &str) -> Option<&str> {
        let has = |name: &&str| {
            let field = self.fields.iter().find(|field| field.is(name))?;
            (field.texts > 0 && field.name != prompt).then_some(&*field.name)
        };
        INPUTS
            .iter()
            .find_map(has)
            .filter(|_| !prompt.eq_ignore_ascii_case("input"))
    }

    fn none(&self) -> String {
        if let Some(field) = self.fields.iter().find(|field| self.most(field.chats)) {
            let roles: Vec<&str> = field.roles.iter().take(ROLES).map(String::as_str).collect();
            return format!(
                "the conversations in `{}` have no assistant message (their roles are `{}`), and no other field \
                 contains it",
                field.name,
                roles.join("`, `")
            );
        }
        let names = self.fields.iter().take(NAMED);
        let names: Vec<String> = names.map(|field| format!("`{}`", field.name)).collect();
        match self.fields.len() {
            0 => "its records have no fields".to_owned(),
            1 => format!("no text field: its only field is {}", names[0]),
            count if count > NAMED => format!(
                "no text field: the fields are {} and {} more",
                names.join(", "),
                count - NAMED
            ),
            _ => format!("no text field: the fields are {}", names.join(", ")),
        }
    }
}

fn prompted(prompt: &str, input: Option<&str>, answer: &str) -> Shape {
    let [of_prompt, of_answer] = [prompt, answer].map(str::to_ascii_lowercase);
    let prompt_template = match (&*of_prompt, input, &*of_answer) {
        (_, Some(input), _) => format!("{{{prompt}}}{{?{input}}}\n\n{{{input}}}{{/}}\n"),
        // Such records are split where they are because nothing belongs between both parts.
        ("prompt", None, "completion" | "canonical_solution") => format!("{{{prompt}}}"),
        _ => format!("{{{prompt}}}\n"),
    };
    Shape::Prompt {
        prompt_template,
        text_template: format!("{{{answer}}}"),
    }
}

/// Whether one of the turns is the assistant's.
fn is_answered(value: &Value) -> bool {
    let mut turns = value.as_array().into_iter().flatten();
    turns.any(|turn| speaker(turn).is_some_and(is_assistant))
}

/// Whether DDK knows the speakers of all turns in the layout of ShareGPT.
fn is_known(value: &Value) -> bool {
    let speaker = |turn: &Value| turn.get("from")?.as_str().map(is_speaker);
    let mut turns = value.as_array().into_iter().flatten();
    turns.all(|turn| speaker(turn) != Some(false))
}

/// Whether a value is a list of turns, with a role and a content each.
fn is_chat(value: &Value) -> bool {
    let is_turn = |turn: &Value| {
        let has = |key: &str| turn.get(key).is_some();
        (has("role") && (has("content") || has("tool_calls"))) || (has("from") && has("value"))
    };
    let turns = value.as_array();
    turns.is_some_and(|turns| !turns.is_empty() && turns.iter().all(is_turn))
}

#[cfg(test)]
mod tests;
