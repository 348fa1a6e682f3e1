//! Answers that a real vLLM gave (`tests/recorded`), sent again.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use ddk_serving::{Description, HiddenDtype, ServerOptions, ServingError, TeacherServer};
use serde_json::Value;

use crate::{
    stub::{Reply, Request, Stub},
    watch::{Seen, options},
};

/// A recorded exchange.
fn recording(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/recorded")
        .join(name);
    let text = fs::read_to_string(path.with_extension("json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Bytes from base64.
fn bytes(text: &Value) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("{c} is not base64"),
    };
    let text = text.as_str().unwrap().trim_end_matches('=').as_bytes();
    let group = |group: &[u8]| {
        let bits = group
            .iter()
            .fold(0, |bits, c| bits << 6 | u32::from(digit(*c)));
        let bits = bits << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    text.chunks(4).flat_map(group).collect()
}

/// The response as vLLM sent it: the same headers and chunks.
fn response(recording: &Value) -> Vec<u8> {
    let response = &recording["response"];
    let mut sent = format!("HTTP/1.1 {} \r\n", response["status"]).into_bytes();
    for header in response["headers"].as_array().unwrap() {
        let [name, value] = [0, 1].map(|part| header[part].as_str().unwrap());
        sent.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    sent.extend_from_slice(b"\r\n");
    let mut body = &bytes(&response["body"])[..];
    let Some(chunks) = response["chunks"].as_array() else {
        sent.extend_from_slice(body);
        return sent;
    };
    for length in chunks
        .iter()
        .map(|length| length.as_u64().unwrap() as usize)
    {
        let (chunk, rest) = body.split_at(length);
        sent.extend_from_slice(format!("{length:x}\r\n").as_bytes());
        sent.extend_from_slice(chunk);
        sent.extend_from_slice(b"\r\n");
        body = rest;
    }
    assert!(body.is_empty());
    sent.extend_from_slice(b"0\r\n\r\n");
    sent
}

/// The recorded request's sequences. vLLM also accepts one sequence without a list around it.
fn sequences(recording: &Value) -> Vec<Vec<u32>> {
    let input = &recording["request"]["body"]["input"];
    let one = serde_json::from_value(input.clone()).map(|tokens| vec![tokens]);
    one.unwrap_or_else(|_| serde_json::from_value(input.clone()).unwrap())
}

/// A server that repeats one recording for `/pooling`, and those of its kind for the rest.
fn replay(pooling: &str) -> Stub {
    let answers: BTreeMap<&str, Vec<u8>> = [
        ("/pooling", pooling),
        ("/v1/models", "models"),
        ("/version", "version"),
    ]
    .into_iter()
    .map(|(path, name)| (path, response(&recording(name))))
    .collect();
    let expected = recording(pooling);
    Stub::start(move |request: &Request| {
        if request.path == "/pooling" {
            // What the client sends is what vLLM answered to.
            let body = &expected["request"]["body"];
            for (key, value) in body.as_object().unwrap() {
                // The client never asks for these two.
                let is_other = *value == "another" || *value == "float12";
                assert!(
                    key == "input" || is_other || request.body[key] == *value,
                    "{key}"
                );
            }
            assert_eq!(request.sequences(), sequences(&expected));
        }
        Reply::Send(answers[request.path.as_str()].clone())
    })
}

fn ask(name: &str, dtype: HiddenDtype) -> Result<Vec<Vec<u8>>, ServingError> {
    let stub = replay(name);
    let mut server = TeacherServer::new(ServerOptions {
        hidden_size: 128,
        dtype,
        requests_in_flight: 1,
        patience: Duration::ZERO,
        ..options(&stub.address)
    })
    .unwrap();
    let sequences = sequences(&recording(name));
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let rows = server.hidden_states(&sequences, &Seen::default())?;
    Ok(rows.unwrap())
}

fn floats(rows: &[u8]) -> Vec<f32> {
    rows.chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

#[test]
fn hidden_states_are_bit_for_bit_those_that_vllm_sent() {
    for (name, dtype) in [
        ("pooling-one-float32", HiddenDtype::Fp32),
        ("pooling-one-bfloat16", HiddenDtype::Bf16),
        ("pooling-several-float32", HiddenDtype::Fp32),
        ("pooling-several-bfloat16", HiddenDtype::Bf16),
        // vLLM asks for no token there.
        ("pooling-wrong-token", HiddenDtype::Fp32),
    ] {
        let rows = ask(name, dtype).unwrap();
        let lengths: Vec<usize> = sequences(&recording(name)).iter().map(Vec::len).collect();
        let size = if dtype == HiddenDtype::Fp32 { 4 } else { 2 };
        assert_eq!(
            rows.iter().map(Vec::len).collect::<Vec<_>>(),
            lengths
                .iter()
                .map(|tokens| tokens * 128 * size)
                .collect::<Vec<_>>()
        );
        assert_eq!(
            rows.concat(),
            bytes(&recording(name)["response"]["body"]),
            "{name}"
        );
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let expected = recording("expected");
    let rows = ask("pooling-several-float32", HiddenDtype::Fp32).unwrap();
    for (rows, hidden) in rows.iter().zip(expected["hidden"].as_array().unwrap()) {
        let (came, wanted) = (floats(rows), floats(&bytes(hidden)));
        assert_eq!(came.len(), wanted.len());
        let apart = came
            .iter()
            .zip(&wanted)
            .map(|(one, other)| (one - other).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-5);
    }
}

#[test]
fn the_description_is_read() {
    let stub = replay("pooling-one-float32");
    let server = TeacherServer::new(options(&stub.address)).unwrap();
    let expected = Description {
        model: "tiny".to_owned(),
        context: 32,
        version: Some("0.24.0".to_owned()),
    };
    assert_eq!(server.describe().unwrap(), expected);
}

#[test]
fn a_wrong_token_is_told() {
    for name in ["models-wrong-token", "models-no-token"] {
        let answer = response(&recording(name));
        let stub = Stub::start(move |_| Reply::Send(answer.clone()));
        let error = TeacherServer::new(options(&stub.address))
            .unwrap()
            .describe()
            .unwrap_err();
        assert!(
            matches!(error, ServingError::Unauthorized { status: 401, .. }),
            "{error}"
        );
    }
}

#[test]
fn vllms_errors_are_told_at_once() {
    for (name, status, expected) in [
        (
            "error-unknown-model",
            404,
            "The model `another` does not exist.",
        ),
        (
            "error-unknown-dtype",
            400,
            "5 validation errors: {'type': 'literal_error'",
        ),
        ("pooling-of-a-generating-server", 404, "Not Found"),
    ] {
        let error = ask(name, HiddenDtype::Fp32).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(expected) && text.contains("vllm serve"),
            "{text}"
        );
        assert!(
            matches!(error, ServingError::Refused { status: came, .. } if came == status),
            "{text}"
        );
    }
}

#[test]
fn a_dead_engine_counts_as_away() {
    // A token past the vocabulary kills it.
    for name in ["error-past-vocabulary", "after-past-vocabulary-pooling"] {
        let error = ask(name, HiddenDtype::Fp32).unwrap_err();
        let text = error.to_string();
        let reason = "HTTP status 500: EngineCore encountered an issue.";
        assert!(
            matches!(error, ServingError::Away { .. }) && text.contains(reason),
            "{text}"
        );
    }
}

#[test]
fn what_vllm_would_refuse_or_hang_on_is_not_sent() {
    for name in ["error-too-long", "pooling-full-context"] {
        let error = ask(name, HiddenDtype::Fp32).unwrap_err();
        assert!(
            matches!(error, ServingError::ContextTooShort { context: 32, .. }),
            "{error}"
        );
    }
    let empty = ask("error-empty-sequence", HiddenDtype::Fp32);
    assert_eq!(empty.unwrap(), [Vec::<u8>::new()]);
}

#[test]
fn normalized_hidden_states_are_noticed() {
    let error = ask("pooling-normalized", HiddenDtype::Fp32).unwrap_err();
    assert!(matches!(error, ServingError::Normalized { .. }), "{error}");
}
