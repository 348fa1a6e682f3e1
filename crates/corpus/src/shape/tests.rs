//! Tests of what `ddk init` makes of the fields of records.

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
        (
            json!({ "Question": "a", "Answer": "b" }),
            of("{Question}\n", "{Answer}"),
        ),
        (
            json!({ "user": "a", "assistant": "b" }),
            of("{user}\n", "{assistant}"),
        ),
    ] {
        assert_eq!(templates(record), expected);
    }
}

#[test]
fn conversations_and_ids_are_recognized_by_their_form() {
    let asked = json!([{ "role": "user", "content": "a" }]);
    let answered = json!([{ "role": "assistant", "content": "b" }]);
    let turns = json!([asked[0], answered[0]]);
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
    let completion = |completion: &str| {
        Ok(Shape::Completion {
            messages: "prompt".to_owned(),
            completion: completion.to_owned(),
        })
    };
    let record = json!({ "prompt": asked, "completion": answered });
    assert_eq!(shape(&[record]), completion("completion"));
    let record = json!({ "prompt": turns, "chosen": answered, "rejected": answered });
    assert_eq!(shape(&[record]), completion("chosen"));
    let record = json!({ "prompt": "a", "rejected": turns, "zchosen": turns });
    assert_eq!(shape(&[record]), Ok(Shape::Messages("zchosen".to_owned())));
    let reason = shape(&[json!({ "prompt": asked, "other": 1 })]).unwrap_err();
    assert!(
        reason.contains("`prompt` have no assistant message"),
        "{reason}"
    );
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
fn records_that_a_shape_cannot_use_are_counted() {
    let turns =
        json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }]);
    for (good, bad) in [
        (
            json!({ "text": "a" }),
            vec![json!({ "text": "" }), json!({ "text": null })],
        ),
        (
            json!({ "instruction": "a", "input": "b", "output": "c" }),
            vec![
                json!({ "instruction": "a", "output": " " }),
                json!({ "instruction": null, "output": "c" }),
            ],
        ),
        (
            json!({ "messages": turns }),
            vec![json!({ "messages": [turns[0]] }), json!({ "messages": [] })],
        ),
        (
            json!({ "messages": turns }),
            vec![
                json!({ "messages": [{ "from": "moderator", "value": "a" }, { "from": "gpt", "value": "b" }] }),
                json!({ "messages": null }),
            ],
        ),
    ] {
        let mut fields = Fields::default();
        let records = [&[good.clone(), good.clone(), good][..], &bad].concat();
        for record in &records {
            fields.add(record.as_object().unwrap());
        }
        let shape = fields.shape().unwrap();
        // Both bad records lack another field, and each field counts by itself.
        let usable = fields.usable(&shape);
        assert!((3..5).contains(&usable), "{shape:?}: {usable}");
        if !matches!(shape, Shape::Prompt { .. }) {
            assert_eq!(usable, 3, "{shape:?}");
        }
    }
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
