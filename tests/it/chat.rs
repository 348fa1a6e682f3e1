//! Conversations from records to answers: prepare, inspect, train on the assistant's turns, generate --chat.

use std::{fs, io::Write, process::Stdio};

use ddk_corpus::{Packing, PreparedDomain, SequenceOptions, TokenizerFolder};
use serde_json::{Value, json};

use crate::world::{World, stderr};

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content \
                        + '<|im_end|>\\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A template that writes only the last message of the assistant in full.
const REWRITING: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' \
                         + (message.content if loop.last or message.role != 'assistant' else '...') \
                         + '<|im_end|>\\n' }}{% endfor %}\
                         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The answers of each conversation, in the order of the file.
fn write_conversations(world: &World, domain: &str) -> Vec<[String; 2]> {
    let path = world.path().join(format!("sources/{domain}.jsonl"));
    let texts: Vec<String> = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            record["text"].as_str().unwrap().trim().to_owned()
        })
        .collect();
    let question = format!("Tell me about {domain}.");
    let (mut records, mut answers) = (String::new(), Vec::new());
    for text in texts {
        let (first, rest) = text.split_once(". ").unwrap();
        let (first, rest) = (format!("{first}."), rest.to_owned());
        // One domain in each layout.
        let record = if domain == "coins" {
            json!({ "messages": [
                { "role": "user", "content": question },
                { "role": "assistant", "content": first },
                { "role": "user", "content": "And then?" },
                { "role": "assistant", "content": rest },
            ] })
        } else {
            json!({ "talk": { "turns": [
                { "from": "human", "value": question },
                { "from": "gpt", "value": first },
                { "from": "human", "value": "And then?" },
                { "from": "gpt", "value": rest },
            ] } })
        };
        records.push_str(&format!("{record}\n"));
        answers.push([first, rest]);
    }
    fs::write(path, records).unwrap();
    answers
}

/// A world with conversations in two of three domains, a tokenizer with a chat template, and models of it.
fn world() -> (World, Vec<[String; 2]>) {
    let world = World::new();
    let mut answers = write_conversations(&world, "coins");
    answers.extend(write_conversations(&world, "rivers"));
    let path = world.path().join("tokenizer/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap().len();
    for (index, token) in ["<|im_start|>", "<|im_end|>"].iter().enumerate() {
        let added = json!({
            "id": vocabulary + index, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(added);
    }
    fs::write(&path, tokenizer.to_string()).unwrap();
    fs::write(world.path().join("tokenizer/chat_template.jinja"), TEMPLATE).unwrap();
    let path = world.path().join("config.toml");
    let config = fs::read_to_string(&path).unwrap();
    let config = config
        .replace(
            "files = [\"sources/coins.jsonl\"]",
            "files = [\"sources/coins.jsonl\"]\nmessages_field = \"messages\"",
        )
        .replace(
            "files = [\"sources/rivers.jsonl\"]",
            "files = [\"sources/rivers.jsonl\"]\nmessages_field = \"talk.turns\"",
        )
        .replace(
            "sequence_length = 32",
            "sequence_length = 384\npacking = \"best_fit\"",
        )
        .replace("models/", "chat/")
        .replace("dir = \"prepared\"", "dir = \"chats\"");
    let config = format!("{config}\n[objective]\ncompletion_only_loss = true\n");
    fs::write(path, config).unwrap();
    (world, answers)
}

fn generate(world: &World, arguments: &[&str], input: &str) -> String {
    let mut command = world.command(&[&["generate", "--max-new-tokens", "12"], arguments].concat());
    let command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn conversations_train_on_the_answers_and_the_student_answers() {
    let (world, answers) = world();
    world.succeed(&["prepare", "config.toml"]);

    // The loss learns the answers with the token that ends a turn, and nothing else.
    let tokenizer = TokenizerFolder::open(&world.path().join("tokenizer"), None).unwrap();
    let options = SequenceOptions {
        packing: Packing::BestFit,
        sequence_length: 384,
        completion_only_loss: true,
    };
    let mut whole = 0;
    for name in ["coins", "rivers"] {
        let domain = PreparedDomain::open(&world.path().join("chats"), name, options).unwrap();
        for document in domain.validation().unwrap() {
            let is_masked = |place: &usize| {
                let mut masked = document.masked.iter();
                masked.any(|range| range.contains(&(*place as u64)))
            };
            let learned = (0..document.tokens.len()).filter(|place| !is_masked(place));
            let learned: Vec<u32> = learned.map(|place| document.tokens[place]).collect();
            let learned = tokenizer.decode_with_special(&learned).unwrap();
            let of_turns = answers
                .iter()
                .map(|[first, rest]| format!("{first}<|im_end|>{rest}<|im_end|>"));
            let expected = of_turns
                .filter(|expected| expected.starts_with(&learned))
                .count();
            assert!(expected > 0, "{learned}");
            whole += usize::from(learned.matches("<|im_end|>").count() == 2);
        }
    }
    assert!(whole >= 4, "only {whole} documents fit");

    let inspect = ["data", "inspect", "config.toml", "--domain", "coins"];
    let said = String::from_utf8(world.succeed(&inspect).stdout).unwrap();
    for expected in [
        "⟦text in such brackets⟧ is excluded",
        "|   ⟦<|im_start|>user⟧\n",
        "|   ⟦Tell me about coins.<|im_end|>⟧\n",
        ".<|im_end|>",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    let off = ["--set", "objective.completion_only_loss=false"];
    let said = world.succeed(&[&inspect[..], &off].concat());
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.contains("the loss includes prompts") && !said.contains('⟦'),
        "{said}"
    );

    for model in ["teacher", "student"] {
        let fewer = ["--set", "pretrain.teacher.steps=30"];
        world.succeed(&[&["pretrain", "config.toml", "--model", model][..], &fewer].concat());
        let copied = world
            .path()
            .join(format!("chat/{model}/chat_template.jinja"));
        assert_eq!(fs::read_to_string(copied).unwrap(), TEMPLATE);
    }
    world.succeed(&["train", "config.toml"]);

    // Both models answer each line of standard input, as they answer alone.
    let questions = ["Tell me about coins.", "Tell me about storms."];
    let both = generate(
        &world,
        &["--config", "runs/small", "--chat"],
        &questions.join("\n"),
    );
    let of = |folder: &str| {
        let mut arguments = vec!["--model", folder, "--chat"];
        for question in &questions {
            arguments.extend(["--prompt", question]);
        }
        generate(&world, &arguments, "")
    };
    let blocks = |text: &str| -> Vec<String> {
        let mut blocks = text.split("> Tell me about ").skip(1);
        let mut next = || {
            blocks
                .next()
                .unwrap()
                .split_once(".\n")
                .unwrap()
                .1
                .strip_suffix("\n\n")
                .unwrap()
                .to_owned()
        };
        vec![next(), next()]
    };
    let (teacher, student) = (of("chat/teacher"), of("runs/small/student"));
    let alone = blocks(&teacher).into_iter().zip(blocks(&student));
    for (both, (teacher, student)) in blocks(&both).into_iter().zip(alone) {
        assert_eq!(both, format!("[teacher]\n{teacher}\n[student]\n{student}"));
    }
    assert_ne!(teacher, student);

    // With half the memory, the teacher still answers.
    let halved = [
        "--model",
        "chat/teacher",
        "--dtype",
        "bf16",
        "--prompt",
        "Tell",
    ];
    assert!(generate(&world, &halved, "").starts_with("Tell"));

    // The answer is what the model writes after the rendered messages.
    let system = [
        "--model",
        "chat/teacher",
        "--chat",
        "--system",
        "Be brief.",
        "--prompt",
        "And then?",
    ];
    let answer = generate(&world, &system, "");
    let rendered = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n\
                    <|im_start|>assistant\n";
    let plain = generate(
        &world,
        &["--model", "chat/teacher", "--prompt", rendered],
        "",
    );
    let plain = plain.strip_prefix(rendered).unwrap();
    assert!(
        !answer.trim().is_empty() && plain.starts_with(answer.trim_end()),
        "{plain} {answer}"
    );

    fs::remove_file(world.path().join("chat/teacher/chat_template.jinja")).unwrap();
    let said = world.fail(1, &[&["generate"][..], &system].concat());
    assert!(
        said.contains("has no chat template") && said.contains("leave out --chat"),
        "{said}"
    );
}

#[test]
fn a_template_that_rewrites_turns_is_reported() {
    let (world, _) = world();
    fs::write(
        world.path().join("tokenizer/chat_template.jinja"),
        REWRITING,
    )
    .unwrap();
    let expected =
        "coins: the chat template changes earlier turns of the assistant in 100 of the first 100";
    let checked = String::from_utf8(world.run(&["check", "config.toml"]).stdout).unwrap();
    assert!(checked.contains(expected), "{checked}");
    let said = stderr(&world.succeed(&["prepare", "config.toml"]));
    assert!(
        said.contains(expected) && !said.contains("storms: the chat"),
        "{said}"
    );
    // Another template makes another corpus.
    fs::write(world.path().join("tokenizer/chat_template.jinja"), TEMPLATE).unwrap();
    let checked = String::from_utf8(world.run(&["check", "config.toml"]).stdout).unwrap();
    assert!(
        checked.contains("coins: the chat template has changed"),
        "{checked}"
    );
    assert!(!checked.contains("storms: the chat template"), "{checked}");
}

#[test]
fn what_a_domain_of_conversations_lacks_is_said() {
    let (world, _) = world();
    fs::remove_file(world.path().join("tokenizer/chat_template.jinja")).unwrap();
    let said = world.fail(1, &["prepare", "config.toml"]);
    assert!(
        said.contains("has no chat template") && said.contains("messages_field"),
        "{said}"
    );
    fs::write(world.path().join("tokenizer/chat_template.jinja"), TEMPLATE).unwrap();
    let set = ["--set", "domains.coins.messages_field=turns"];
    let said = world.fail(1, &[&["prepare", "config.toml"][..], &set].concat());
    assert!(
        said.contains("no field `turns`") && said.contains("`messages`"),
        "{said}"
    );
    let set = [
        "--set",
        "domains.coins.prompt_template={question}",
        "--set",
        "domains.storms.tools_field=f",
    ];
    let said = world.fail(2, &[&["prepare", "config.toml"][..], &set].concat());
    for expected in [
        "domains.coins.prompt_template",
        "the chat template makes the text",
        "domains.storms.tools_field",
    ] {
        assert!(said.contains(expected), "no {expected} in {said}");
    }
}
