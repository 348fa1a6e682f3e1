//! Compares conversations with what transformers makes of them (`tests/make_chat_fixtures.py`).

use std::{fs, ops::Range, path::Path, path::PathBuf, sync::Arc};

use serde_json::{Value as Json, json};

use super::*;

const NAMES: [&str; 9] = [
    "chatml", "gemma", "llama3", "mistral", "plain", "qwen", "smollm", "thinking", "zephyr",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/chat_fixtures")
        .join(name)
}

fn cases(name: &str) -> Vec<Json> {
    let text = fs::read_to_string(folder(name).join("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(folder: &Path) -> (TokenizerFolder, Chat) {
    let tokenizer = TokenizerFolder::open(folder, None).unwrap();
    let chat = Chat {
        messages: "messages".to_owned(),
        completion: None,
        tools: "tools".to_owned(),
        template: Arc::new(ChatTemplate::open(&tokenizer).unwrap()),
    };
    (tokenizer, chat)
}

/// Whether each token is learned, as 0 and 1.
fn mask(count: usize, masked: &[Range<u64>]) -> Vec<u64> {
    let is_masked = |place: &u64| masked.iter().any(|range| range.contains(place));
    (0..count as u64)
        .map(|place| u64::from(!is_masked(&place)))
        .collect()
}

fn numbers(list: &Json) -> Vec<u64> {
    let list = list.as_array().unwrap().iter();
    list.map(|number| number.as_u64().unwrap()).collect()
}

/// Keeps only the last run of ones.
fn last_run(mask: &[u64]) -> Vec<u64> {
    let end = mask.iter().rposition(|&one| one == 1).unwrap() + 1;
    let start = mask[..end].iter().rposition(|&one| one == 0).unwrap() + 1;
    let is_last = |place| u64::from((start..end).contains(&place));
    (0..mask.len()).map(is_last).collect()
}

fn assert_equal(
    tokenizer: &TokenizerFolder,
    document: Document,
    case: &Json,
    mask_of_case: &[u64],
) {
    let title = &case["title"];
    assert_eq!(
        document.clone().into_whole_text().as_deref().unwrap(),
        case["text"].as_str().unwrap(),
        "{title}"
    );
    let encoded = tokenizer.encode_documents(vec![document]).unwrap();
    let tokens: Vec<u64> = encoded[0].tokens.iter().map(|&id| id.into()).collect();
    assert_eq!(tokens, numbers(&case["ids"]), "{title}");
    let found = mask(tokens.len(), &encoded[0].masked);
    assert_eq!(found, mask_of_case, "{title}");
}

#[test]
fn text_ids_and_masks_equal_those_of_transformers() {
    let (mut used, mut refused, mut rewritten_cases) = (0, 0, 0);
    for name in NAMES {
        let (tokenizer, chat) = open(&folder(name));
        for case in cases(name) {
            let title = format!("{name}: {}", case["title"]);
            let document = chat.document(&case["record"]);
            if case["error"].is_string() {
                assert!(document.is_err(), "{title}");
                refused += 1;
                continue;
            }
            let whole = numbers(&case["mask"]);
            assert!(whole.contains(&0) && whole.contains(&1), "{title}");
            // The template removes thoughts from earlier turns, and even a turn without thoughts is written differently
            // once it is not the last one.
            let rewrites = name == "thinking";
            if rewrites && case["title"] == "ends with the user" {
                let reason = document.unwrap_err().reason;
                assert!(reason.contains("changes every turn"), "{reason}");
                continue;
            }
            let document = document.unwrap_or_else(|unusable| panic!("{title}: {unusable:?}"));
            let answers = case["record"]["messages"].as_array().unwrap();
            let answers = answers.iter().filter(|turn| turn["role"] == "assistant");
            let several = answers.count() > 1;
            let Document::Conversation { rewritten, .. } = &document else {
                panic!("{title}: not a conversation");
            };
            assert_eq!(*rewritten, rewrites && several, "{title}");
            rewritten_cases += u64::from(*rewritten);
            let expected = if rewrites { last_run(&whole) } else { whole };
            assert_equal(&tokenizer, document, &case, &expected);
            let conversation = Conversation::of(&case["record"], &chat).unwrap();
            let prompt = chat
                .template
                .render(&conversation.messages, true, &conversation.context);
            assert_eq!(
                prompt.unwrap().text,
                case["prompt"].as_str().unwrap(),
                "{title}"
            );
            used += 1;
        }
    }
    assert_eq!((used, refused, rewritten_cases), (108, 8, 8));
}

#[test]
fn marks_of_a_template_are_used_exactly() {
    let mut used = 0;
    for name in NAMES {
        let marked = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(folder(name).join(file), marked.path().join(file)).unwrap();
        }
        // The file replaces the template of tokenizer_config.json.
        let file = marked.path().join("chat_template.jinja");
        fs::copy(folder(name).join("marked.jinja"), file).unwrap();
        let (tokenizer, chat) = open(marked.path());
        assert_ne!(chat.template, open(&folder(name)).1.template);
        for case in cases(name) {
            if case["error"].is_string() {
                continue;
            }
            let document = chat.document(&case["record"]).unwrap();
            assert_equal(&tokenizer, document, &case, &numbers(&case["mask"]));
            used += 1;
        }
    }
    assert_eq!(used, 109);
}

#[test]
fn other_layouts_of_a_record_give_the_same_document() {
    let (_, chat) = open(&folder("chatml"));
    let document = |record: Json| chat.document(&record).unwrap();
    let call = |arguments: Json| json!({ "name": "weather", "arguments": arguments });
    let arguments = json!({ "place": "Bern" });
    let expected = document(json!({ "messages": [
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "Does it rain?" },
        { "role": "assistant", "content": "",
            "tool_calls": [{ "type": "function", "function": call(arguments.clone()) }] },
        { "role": "tool", "content": "yes" },
        { "role": "assistant", "content": "It does." },
    ], "tools": [{ "name": "weather" }] }));
    let sharegpt = json!([
        { "from": "human", "value": "Does it rain?" },
        { "from": "function_call", "value": call(arguments.clone()).to_string() },
        { "from": "observation", "value": "yes" },
        { "from": "gpt", "value": "It does." },
    ]);
    let tools = json!([{ "name": "weather" }]).to_string();
    for messages in [sharegpt.clone(), json!(sharegpt.to_string())] {
        let record = json!({ "system": "Be brief.", "messages": messages, "tools": tools });
        assert_eq!(document(record), expected);
    }
    // Arguments as a string, null for what a message lacks, content as parts.
    let record = json!({ "messages": [
        { "role": "system", "content": [{ "type": "text", "text": "Be brief." }], "tool_calls": null },
        { "role": "user", "content": "Does it rain?", "tool_calls": null },
        { "role": "assistant", "content": null,
            "tool_calls": [{ "type": "function", "function": call(json!(arguments.to_string())) }] },
        { "role": "tool", "content": "yes", "tool_calls": null },
        { "role": "assistant", "content": "It does.", "tool_calls": null },
    ], "tools": [{ "name": "weather" }] });
    assert_eq!(document(record), expected);
}

#[test]
fn a_system_prompt_of_the_template_is_not_learned() {
    let (_, chat) = open(&folder("smollm"));
    let record = json!({ "messages": [
        { "from": "gpt", "value": "Hello." },
        { "from": "human", "value": "Hi." },
    ] });
    let Document::Conversation { text, learned, .. } = chat.document(&record).unwrap() else {
        panic!("not a conversation");
    };
    assert!(text.starts_with("<|im_start|>system\n"), "{text}");
    let learned: Vec<&str> = learned.into_iter().map(|range| &text[range]).collect();
    assert_eq!(learned, ["Hello.<|im_end|>"]);
}

#[test]
fn only_turns_of_the_completion_are_learned() {
    let list = |turns: &[[&str; 2]]| -> Json {
        let turn = |[role, content]: &[&str; 2]| json!({ "role": role, "content": content });
        turns.iter().map(turn).collect()
    };
    let prompt = [["user", "a"], ["assistant", "b"], ["user", "c"]];
    let completion = [["assistant", "d"], ["user", "e"], ["assistant", "f"]];
    let record = json!({
        "prompt": list(&prompt),
        "completion": list(&completion),
        "messages": list(&[&prompt[..], &completion].concat()),
    });
    let marked = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(folder("chatml").join(file), marked.path().join(file)).unwrap();
    }
    let file = marked.path().join("chat_template.jinja");
    fs::copy(folder("chatml").join("marked.jinja"), file).unwrap();
    for folder in [&*folder("chatml"), marked.path()] {
        let (_, whole) = open(folder);
        let both = Chat {
            messages: "prompt".to_owned(),
            completion: Some("completion".to_owned()),
            ..whole.clone()
        };
        let parts = |chat: &Chat| match chat.document(&record).unwrap() {
            Document::Conversation { text, learned, .. } => {
                let learned = learned.into_iter().map(|range| text[range].to_owned());
                (learned.collect::<Vec<_>>(), text)
            }
            other => panic!("{other:?}"),
        };
        let (learned, text) = parts(&both);
        let (learned_of_all, same_text) = parts(&whole);
        assert_eq!(text, same_text);
        assert_eq!(learned, ["d<|im_end|>", "f<|im_end|>"]);
        assert_eq!(
            learned_of_all,
            ["b<|im_end|>", "d<|im_end|>", "f<|im_end|>"]
        );
        // A prompt may have a turn of the assistant, and the completion none.
        let record = json!({ "prompt": list(&prompt), "completion": list(&[["user", "e"]]) });
        let reason = both.document(&record).unwrap_err().reason;
        assert_eq!(reason, "no message of `completion` is the assistant's");
        let missing = both
            .document(&json!({ "prompt": list(&prompt) }))
            .unwrap_err();
        assert_eq!(missing.reason, "no field `completion`");
    }
}

#[test]
fn a_record_that_is_no_conversation_is_refused_with_a_reason() {
    let (_, chat) = open(&folder("chatml"));
    for (record, expected) in [
        (json!({ "text": "a" }), "no field `messages`"),
        (json!({ "messages": "a" }), "is not JSON"),
        (json!({ "messages": { "role": "user" } }), "not a list"),
        (json!({ "messages": [] }), "no message"),
        (
            json!({ "messages": [{ "role": "user", "content": "a" }] }),
            "no message",
        ),
        (json!({ "messages": ["a"] }), "message 1: not an object"),
        (
            json!({ "messages": [{ "content": "a" }] }),
            "neither a `role`",
        ),
        (
            json!({ "messages": [{ "from": "moderator", "value": "a" }] }),
            "`moderator`",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "`image_url`",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": 3 }] }),
            "neither a string",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "content": "a" }], "tools": 3 }),
            "not a list of tools",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "\u{fdd0}" }] }),
            "U+FDD0",
        ),
    ] {
        let unusable = chat.document(&record).unwrap_err();
        assert!(unusable.reason.contains(expected), "{record}: {unusable:?}");
    }
    let unusable = chat.document(&json!({ "chat": [], "id": 1 })).unwrap_err();
    assert_eq!(unusable.fields, ["chat", "id"]);
    let (_, gemma) = open(&folder("gemma"));
    let record = json!({ "messages": [
        { "role": "system", "content": "a" },
        { "role": "assistant", "content": "b" },
    ] });
    let reason = gemma.document(&record).unwrap_err().reason;
    assert!(reason.contains("System role not supported"), "{reason}");
}

#[test]
fn documents_are_equal_if_texts_and_learned_parts_are() {
    let conversation = |learned: &[Range<usize>]| Document::Conversation {
        text: "abc".to_owned(),
        learned: learned.to_vec(),
        rewritten: false,
        doubts: Doubts::default(),
    };
    let text = |prompt: Option<&str>, text: &str| Document::Text {
        prompt: prompt.map(str::to_owned),
        text: text.to_owned(),
    };
    let all = [
        conversation(&[1..2]),
        conversation(&[1..3]),
        conversation(&[0..1, 1..3]),
        text(None, "abc"),
        text(Some("a"), "bc"),
    ];
    let hashes: BTreeSet<[u8; 16]> = all.iter().map(Document::hash).collect();
    assert_eq!(hashes.len(), all.len());
    // Texts keep the hash that they had before there were conversations.
    let before = |bytes: &[u8]| blake3::hash(bytes).as_bytes()[..16].to_owned();
    assert_eq!(text(None, "abc").hash()[..], before(b"abc"));
    assert_eq!(text(Some("a"), "bc").hash()[..], before(b"a\xffbc"));
}

#[test]
fn the_end_of_a_turn_and_the_prompt_for_the_next_are_known() {
    for (name, end) in [
        ("chatml", Some("<|im_end|>")),
        ("gemma", Some("<end_of_turn>")),
        ("llama3", Some("<|eot_id|>")),
        ("mistral", Some("</s>")),
        ("plain", None),
        ("qwen", Some("<|im_end|>")),
        ("smollm", Some("<|im_end|>")),
        ("thinking", Some("<|im_end|>")),
        ("zephyr", Some("</s>")),
    ] {
        let (_, chat) = open(&folder(name));
        assert_eq!(chat.template.end_of_turn(), end, "{name}");
    }
    let (_, chat) = open(&folder("chatml"));
    let prompt = chat
        .template
        .prompt(&[("user".to_owned(), "Hi".to_owned())]);
    let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompt.unwrap(), expected);
}

#[test]
fn a_token_at_the_end_of_the_conversation_changes_no_turn() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(self::folder("chatml").join(file), folder.path().join(file)).unwrap();
    }
    let template = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
                    '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
                    {% else %}{{ '<|endoftext|>' }}{% endif %}";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let (_, chat) = open(folder.path());
    let record = json!({ "messages": [
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "b" },
        { "role": "user", "content": "c" },
        { "role": "assistant", "content": "d" },
    ] });
    let Document::Conversation {
        text,
        learned,
        rewritten,
        ..
    } = chat.document(&record).unwrap()
    else {
        panic!("not a conversation");
    };
    let learned: Vec<&str> = learned.into_iter().map(|range| &text[range]).collect();
    assert_eq!(learned, ["b<|im_end|>", "d<|im_end|>\n<|endoftext|>"]);
    assert!(!rewritten);
}
