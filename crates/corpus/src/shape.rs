//! Finds the fields of records that hold their text.

use serde_json::{Map, Value};

use crate::pretokenized::is_ids;

/// Maximum number of fields to count.
const FIELDS: usize = 200;
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
            Self::Tokens { field, .. } => vec![("tokens_field", field.clone())],
            Self::Megatron => vec![("format", "megatron".to_owned())],
        }
    }

    /// Whether its documents have parts that a model need not learn to write.
    pub fn has_prompts(&self) -> bool {
        match self {
            Self::Prompt { .. } | Self::Messages(_) => true,
            Self::Tokens { is_masked, .. } => *is_masked,
            _ => false,
        }
    }

    /// Whether its documents are conversations, which need a chat template.
    pub fn is_chat(&self) -> bool {
        matches!(self, Self::Messages(_))
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
const PROMPTS: [&str; 6] = [
    "instruction",
    "question",
    "prompt",
    "query",
    "problem",
    "input",
];
/// Names of fields that an instruction may need, and that may be empty.
const INPUTS: [&str; 2] = ["input", "context"];
/// Names of fields that hold an answer, best first.
const ANSWERS: [&str; 7] = [
    "completion",
    "output",
    "response",
    "answer",
    "chosen",
    "solution",
    "canonical_solution",
];
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
    texts: u64,
    chats: u64,
    ids: u64,
    /// Whether a list holds the label of masked tokens.
    has_masks: bool,
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
            field.texts += u64::from(has_text && !is_list);
            field.chats += u64::from(is_chat(value));
            let masks = |list: &Vec<Value>| list.iter().any(|label| label.as_i64() == Some(-100));
            field.has_masks |= value.as_array().is_some_and(masks);
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.fields.iter().map(|field| field.name.clone()).collect()
    }

    /// Whether most records have this.
    fn most(&self, count: u64) -> bool {
        2 * count > self.records
    }

    /// The first of these names that most records have as such a field.
    fn first(&self, names: &[&str], count: impl Fn(&Field) -> u64) -> Option<&str> {
        let has = |name: &str| {
            let field = self.fields.iter().find(|field| field.name == name)?;
            self.most(count(field)).then_some(&*field.name)
        };
        names.iter().find_map(|name| has(name))
    }

    /// Decides where the text is, or returns why a record has no text.
    pub(crate) fn shape(&self) -> Result<Shape, String> {
        let chats = |field: &Field| field.chats;
        let texts = |field: &Field| field.texts;
        let other_chat = || {
            let field = self.fields.iter().find(|field| self.most(field.chats))?;
            Some(&*field.name)
        };
        // A name with a dot or a brace means something else in the settings.
        let usable = |name: &&str| !name.contains(['.', '{', '}']);
        if let Some(field) = self
            .first(&MESSAGES, chats)
            .or_else(other_chat)
            .filter(usable)
        {
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
            self.most(field.texts) && usable(&&*field.name) && !ABOUT.contains(&&*field.name)
        });
        match (strings.next(), strings.next()) {
            (Some(only), None) => Ok(Shape::Field(only.name.clone())),
            _ => Err(self.none()),
        }
    }

    fn pair(&self) -> Option<(&str, &str)> {
        let texts = |field: &Field| field.texts;
        let prompt = self.first(&PROMPTS, texts)?;
        let answers = ANSWERS.iter().filter(|answer| **answer != prompt);
        let answer = self.first(&answers.copied().collect::<Vec<_>>(), texts)?;
        Some((prompt, answer))
    }

    /// The field with what an instruction needs. It may be empty in most records.
    fn input(&self, prompt: &str) -> Option<&str> {
        let has = |name: &&str| {
            let field = self.fields.iter().find(|field| field.name == *name)?;
            (field.texts > 0 && field.name != prompt).then_some(&*field.name)
        };
        INPUTS.iter().find_map(has).filter(|_| prompt != "input")
    }

    fn none(&self) -> String {
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
    let prompt_template = match (prompt, input, answer) {
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
mod tests {
    use serde_json::json;

    use super::*;

    fn shape(records: &[Value]) -> Result<Shape, String> {
        let mut fields = Fields::default();
        for record in records {
            fields.add(record.as_object().unwrap());
        }
        fields.shape()
    }

    fn templates(record: Value) -> (String, String) {
        match shape(&[record]).unwrap() {
            Shape::Prompt {
                prompt_template,
                text_template,
            } => (prompt_template, text_template),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_text_is_found_by_its_name_or_as_the_only_one() {
        for (record, field) in [
            (json!({ "text": "a", "meta": { "a": 1 } }), "text"),
            (json!({ "title": "t", "content": "a" }), "content"),
            (json!({ "title": "t", "content": "a", "text": "b" }), "text"),
            (json!({ "id": "7", "poem": "a", "lines": 3 }), "poem"),
        ] {
            assert_eq!(shape(&[record]), Ok(Shape::Field(field.to_owned())));
        }
        let reason = shape(&[json!({ "left": "a", "right": "b", "n": 1 })]).unwrap_err();
        assert_eq!(reason, "no text field: the fields are `left`, `right`, `n`");
        let reason = shape(&[json!({ "n": 1 })]).unwrap_err();
        assert_eq!(reason, "no text field: its only field is `n`");
    }

    #[test]
    fn prompts_and_answers_become_templates() {
        let of = |prompt: &str, text: &str| (prompt.to_owned(), text.to_owned());
        for (record, expected) in [
            (
                json!({ "instruction": "a", "input": "b", "output": "c" }),
                of("{instruction}{?input}\n\n{input}{/}\n", "{output}"),
            ),
            (
                json!({ "instruction": "a", "context": "b", "response": "c", "category": "qa" }),
                of("{instruction}{?context}\n\n{context}{/}\n", "{response}"),
            ),
            (
                json!({ "instruction": "a", "input": "", "output": "c" }),
                of("{instruction}\n", "{output}"),
            ),
            (
                json!({ "question": "a", "answer": "b" }),
                of("{question}\n", "{answer}"),
            ),
            (
                json!({ "prompt": "a", "completion": "b" }),
                of("{prompt}", "{completion}"),
            ),
            (
                json!({ "prompt": "a", "chosen": "b", "rejected": "c" }),
                of("{prompt}\n", "{chosen}"),
            ),
            (
                json!({ "prompt": "a", "response": "b" }),
                of("{prompt}\n", "{response}"),
            ),
            (
                json!({ "input": "a", "output": "b" }),
                of("{input}\n", "{output}"),
            ),
        ] {
            assert_eq!(templates(record), expected);
        }
    }

    #[test]
    fn conversations_and_ids_are_recognized_by_their_form() {
        let turns = json!([{ "role": "user", "content": "a" }]);
        let sharegpt = json!([{ "from": "human", "value": "a" }, { "from": "gpt", "value": "b" }]);
        for (record, field) in [
            (json!({ "messages": turns, "text": "a" }), "messages"),
            (
                json!({ "id": "1", "conversations": sharegpt }),
                "conversations",
            ),
            (json!({ "log": turns, "summary": "a" }), "log"),
        ] {
            assert_eq!(shape(&[record]), Ok(Shape::Messages(field.to_owned())));
        }
        // A list of other objects is no conversation.
        assert!(shape(&[json!({ "messages": [{ "a": 1 }] })]).is_err());
        let ids = |is_masked| Shape::Tokens {
            field: "input_ids".to_owned(),
            is_masked,
        };
        let record = json!({ "input_ids": [1, 2], "attention_mask": [1, 1] });
        assert_eq!(shape(&[record]), Ok(ids(false)));
        let record = json!({ "input_ids": [1, 2], "labels": [-100, 2] });
        assert_eq!(shape(&[record]), Ok(ids(true)));
        assert_eq!(shape(&[json!({ "input_ids": "[1, 2]" })]), Ok(ids(false)));
    }

    #[test]
    fn most_records_decide() {
        let good = json!({ "text": "a" });
        let other = json!({ "body": "b" });
        let expected = Ok(Shape::Field("text".to_owned()));
        assert_eq!(
            shape(&[good.clone(), other.clone(), good.clone()]),
            expected
        );
        assert!(shape(&[good, other.clone(), json!({ "x": 1 })]).is_err());
    }
}
