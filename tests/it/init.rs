//! What `ddk init` says and writes for data of one kind.

use std::fs;

use serde_json::json;

use crate::{
    formats::{Data, lines},
    world::stderr,
};

#[test]
fn a_file_is_a_domain_and_conversations_name_their_field() {
    let data = Data::new();
    let texts = data.some(20);
    let turns = |text: &String| {
        let asked = json!({ "role": "user", "content": "Speak." });
        json!({ "messages": [asked, { "role": "assistant", "content": text }] })
    };
    data.write("chat.jsonl", &lines(texts.iter().map(turns)));
    let (succeeded, said) = data.init(&["--data", "data/chat.jsonl", "--out", "chat.toml"]);
    assert!(
        succeeded && said.contains("1 domain in chat.toml"),
        "{said}"
    );
    // These models cannot chat.
    let warning = "warning: chat contains conversations, which need a chat template: tokenizer models/student: it \
                   has no chat template";
    assert!(
        said.contains(warning) && said.contains("copy chat_template.jinja"),
        "{said}"
    );
    let template = data.world.path().join("models/student/chat_template.jinja");
    fs::write(&template, "{{ messages[0].content }}").unwrap();
    let (succeeded, said) = data.init(&["--data", "data/chat.jsonl", "--out", "with.toml"]);
    assert!(succeeded && !said.contains("warning"), "{said}");
    fs::remove_file(template).unwrap();
    let config = fs::read_to_string(data.world.path().join("chat.toml")).unwrap();
    for text in [
        "[domains.chat]",
        "files = [\"data/chat.jsonl\"]",
        "messages_field = \"messages\"",
        "completion_only_loss = true",
        "name = \"student-from-teacher-on-chat\"",
        "dir = \"prepared/student-from-teacher-on-chat\"",
        "lr = 3e-5 ",
        "# [samples]\n# prompts = [",
    ] {
        assert!(config.contains(text), "no {text} in {config}");
    }
    let (succeeded, said) = data.init(&["--data", "data/chats.jsonl", "--out", "wrong.toml"]);
    assert!(
        !succeeded
            && said.contains("there is no file or folder data/chats.jsonl")
            && said.contains("hf://datasets/data/chats.jsonl"),
        "{said}"
    );
    // Nothing that is a text: each file has its reason.
    data.write("photos/one.png", b"\x89PNG\r\n\x1a\n\0\0");
    let (succeeded, said) = data.init(&["--data", "data/photos", "--out", "none.toml"]);
    assert!(
        !succeeded && said.contains("data/photos contains no text"),
        "{said}"
    );
    assert!(
        said.contains("one.png: skipped: binary: a PNG image"),
        "{said}"
    );
    assert!(!data.world.path().join("none.toml").exists());
    // A field that the user names.
    data.write("sides.jsonl", b"{\"left\": \"a\", \"right\": \"b\"}\n");
    let sides = [
        "--data",
        "data/sides.jsonl",
        "--out",
        "sides.toml",
        "--text-field",
    ];
    let (succeeded, said) = data.init(&sides[..4]);
    assert!(
        !succeeded
            && said.contains("hint: name the field that contains the text with --text-field"),
        "{said}"
    );
    let (succeeded, said) = data.init(&[&sides[..], &["right"]].concat());
    assert!(succeeded, "{said}");
    let config = fs::read_to_string(data.world.path().join("sides.toml")).unwrap();
    assert!(config.contains("text_field = \"right\""), "{config}");
    let sides = [
        "--data",
        "data/sides.jsonl",
        "--out",
        "more.toml",
        "--text-field",
        "top",
    ];
    let (succeeded, said) = data.init(&sides);
    assert!(
        !succeeded && said.contains("no field `top`: the fields are `left`, `right`"),
        "{said}"
    );
}

/// Prepares the corpus of `my.toml`. Returns what the program says.
fn prepared(data: &Data) -> String {
    let sets = [
        "--set",
        "corpus.sequence_length=16",
        "--set",
        "corpus.validation_fraction=0.3",
    ];
    let output = data
        .world
        .run(&[&["prepare", "my.toml"][..], &sets].concat());
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_skipped_file_gets_a_table_to_uncomment() {
    let data = Data::new();
    let records = data.some(20).into_iter().enumerate();
    let records = records
        .map(|(id, text)| json!({ "id": id, "frage": format!("Was {id}?"), "antwort": text }));
    data.write("german.jsonl", &lines(records));
    let texts = data.some(20).into_iter();
    data.write(
        "english.jsonl",
        &lines(texts.map(|text| json!({ "text": text }))),
    );
    let (succeeded, said) = data.init(&["--data", "data", "--out", "my.toml"]);
    assert!(
        succeeded && said.contains("my.toml ends with commented tables for skipped files"),
        "{said}"
    );
    let path = data.world.path().join("my.toml");
    let config = fs::read_to_string(&path).unwrap();
    let table = r#"
# skipped: no text field: the fields are `id`, `frage`, `antwort`. To train on it, choose fields and uncomment:
# [domains.german]
# files = ["data/german.jsonl"]
# text_field = "frage"
# # or several fields: text_template = "{frage}\n{antwort}"
# # or a prompt and what to learn after it: prompt_template = "{frage}\n" and text_template = "{antwort}"
"#;
    assert!(config.ends_with(table), "{config}");
    // As uncommented, it works.
    let start = config.len() - table.len();
    let table = table.replace("\n# ", "\n");
    let (_, table) = table.split_once("uncomment:\n").unwrap();
    fs::write(&path, format!("{}{table}", &config[..start])).unwrap();
    let said = prepared(&data);
    assert!(said.contains("german"), "{said}");
}

#[test]
fn a_bad_file_among_many_is_left_out_by_its_name() {
    let data = Data::new();
    for (number, text) in data.some(20).iter().enumerate() {
        data.write(
            &format!("web/{number}.jsonl"),
            &lines([json!({ "text": text })]),
        );
    }
    data.write("web/bad.jsonl", b"not JSON\n");
    let (succeeded, said) = data.init(&["--data", "data", "--out", "my.toml"]);
    assert!(succeeded, "{said}");
    let config = fs::read_to_string(data.world.path().join("my.toml")).unwrap();
    let files = "files = [\"data/web\", \"!data/web/bad.jsonl\"]";
    assert!(config.contains(files), "{config}");
    let said = prepared(&data);
    assert!(!said.contains("quarantine"), "{said}");
}

#[test]
fn unusual_conversations_are_counted_by_init_and_check() {
    let data = Data::new();
    let turn = |role: &str, text: &str| json!({ "role": role, "content": text });
    let texts = data.some(20);
    let record = |(number, text): (usize, &String)| {
        let mut turns = vec![turn("user", "Speak."), turn("assistant", text)];
        if number < 3 {
            turns.push(turn("user", "Thanks."));
        }
        if number == 3 {
            turns[0]["role"] = json!("customer");
        }
        // Without an answer, a conversation is unusable.
        if number > 17 {
            turns.pop();
        }
        json!({ "messages": turns })
    };
    data.write("chat.jsonl", &lines(texts.iter().enumerate().map(record)));
    let question = |text: &String| json!({ "question": "Which?", "answer": text });
    data.write("qa.jsonl", &lines(texts.iter().map(question)));
    let template = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
    let path = data.world.path().join("models/student/chat_template.jinja");
    fs::write(path, template).unwrap();
    let (succeeded, said) = data.init(&["--data", "data", "--out", "my.toml"]);
    assert!(succeeded, "{said}");
    for text in [
        "warning: data/chat.jsonl: 2 of 20 records cannot be used, more than corpus.max_bad_fraction = 0.01 allows",
        "warning: data/chat.jsonl: 3 of 18 conversations end with a message of the user that has no answer",
        "warning: data/chat.jsonl: 1 of 18 conversations have the role `customer`",
    ] {
        assert!(said.contains(text), "no {text} in {said}");
    }
    let config = fs::read_to_string(data.world.path().join("my.toml")).unwrap();
    let not_chats = "# These records are not conversations, so DDK does not apply the chat template to them.\n\
                     # To apply it, convert them to `messages`.\n[domains.qa]";
    assert!(config.contains(not_chats), "{config}");
    let output = data.world.run(&["check", "my.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    let doubt = "domain `chat`: 2 of the first 20 records cannot be used";
    assert!(said.contains(doubt), "{said}");
    let output = data.world.run(&[
        "check",
        "my.toml",
        "--set",
        "corpus.max_bad_fraction=0.2",
        "--set",
        "corpus.sequence_length=16",
    ]);
    let said = String::from_utf8_lossy(&output.stdout);
    for text in [
        "warning: chat: 3 of the first 18 conversations end with a message of the user",
        "warning: chat: 1 of the first 18 conversations have the role `customer`",
    ] {
        assert!(said.contains(text), "no {text} in {said}");
    }
}

#[test]
fn data_that_is_held_out_or_too_little_is_named() {
    let data = Data::new();
    let record = |text: &String| json!({ "text": text });
    let texts = data.some(20);
    data.write("train.jsonl", &lines(texts[..15].iter().map(record)));
    data.write("test.jsonl", &lines(texts[15..].iter().map(record)));
    data.write("only.txt", texts[0].as_bytes());
    data.write("same.jsonl", &lines(vec![record(&texts[0]); 12]));
    let (succeeded, said) = data.init(&["--data", "data", "--out", "my.toml"]);
    assert!(succeeded, "{said}");
    for text in [
        "warning: the domain test looks like held-out data",
        "warning: the domain only has one document",
    ] {
        assert!(said.contains(text), "no {text} in {said}");
    }
    assert!(!said.contains("domain train"), "{said}");
    let output = data.world.run(&["check", "my.toml"]);
    let said = String::from_utf8_lossy(&output.stdout);
    for text in [
        "domain `only` has only one document",
        "domain `same` has the same text in all of its documents",
    ] {
        assert!(said.contains(text), "no {text} in {said}");
    }
}

#[test]
fn a_method_within_a_table_is_told_its_place() {
    let data = Data::new();
    data.write(
        "web.jsonl",
        &lines(data.some(20).iter().map(|text| json!({ "text": text }))),
    );
    let (succeeded, said) = data.init(&["--data", "data", "--out", "my.toml"]);
    assert!(succeeded, "{said}");
    let path = data.world.path().join("my.toml");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains("# method = \"ddk\" "), "{config}");
    fs::write(&path, format!("{config}method = \"kd\"\n")).unwrap();
    let output = data.world.run(&["check", "my.toml"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("unknown field `method`")
            && said.contains("(it belongs above the first [table])"),
        "{said}"
    );
}

#[test]
fn documents_beside_each_other_are_one_domain() {
    let data = Data::new();
    for (number, text) in data.some(12).iter().enumerate() {
        data.write(&format!("{number}.md"), text.as_bytes());
    }
    data.write("README.md", b"About these files.");
    let texts = data.some(20).into_iter();
    data.write(
        "web.jsonl",
        &lines(texts.map(|text| json!({ "text": text }))),
    );
    let (succeeded, said) = data.init(&["--data", "data", "--out", "my.toml"]);
    assert!(succeeded && said.contains("2 domains in my.toml"), "{said}");
    let documents = "data: 12 files: text, one document each";
    assert!(
        said.contains(documents) && !said.contains("has one document"),
        "{said}"
    );
    let config = fs::read_to_string(data.world.path().join("my.toml")).unwrap();
    let table = "[domains.data]\nfiles = [\"data/*.md\", \"!data/README.md\"]\n";
    assert!(config.contains(table), "{config}");
    let said = prepared(&data);
    assert!(said.contains("data: 6 documents"), "{said}");
    // Held-out text is not trained on in silence.
    data.write("test.md", b"Held out.");
    let (succeeded, said) = data.init(&["--data", "data", "--out", "other.toml"]);
    assert!(
        succeeded && said.contains("the domain test looks like held-out data"),
        "{said}"
    );
    let config = fs::read_to_string(data.world.path().join("other.toml")).unwrap();
    assert!(config.contains("\"!data/test.md\"]"), "{config}");
}

#[test]
fn parts_for_training_and_validation_are_one_domain() {
    let data = Data::new();
    let record = |text: &String| json!({ "text": text });
    let texts = data.some(20);
    for (name, part) in [("train", 0..12), ("test", 12..16), ("validation", 16..20)] {
        data.write(
            &format!("{name}.jsonl"),
            &lines(texts[part].iter().map(record)),
        );
    }
    let (succeeded, said) = data.init(&["--data", "data", "--out", "my.toml"]);
    assert!(succeeded && said.contains("1 domain in my.toml"), "{said}");
    let left_out = "left out: data/test.jsonl, which looks like held-out data; DDK validates with `validation`";
    assert!(said.contains(left_out), "{said}");
    let config = fs::read_to_string(data.world.path().join("my.toml")).unwrap();
    let table = "[domains.data]\nfiles = [\"data/train.jsonl\"]\nvalidation_files = [\"data/validation.jsonl\"]\n";
    assert!(config.contains(table), "{config}");
    prepared(&data);
}
