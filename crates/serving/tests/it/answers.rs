//! Answers that are not the hidden states of the sequences.

use ddk_serving::{HiddenDtype, ServerOptions, ServingError};
use serde_json::{Value, json};

use crate::{
    stub::{Reply, Stub, WIDTH, metadata, respond, respond_chunked, respond_json, rows, standard},
    watch::{options, refused},
};

/// The error for three tokens if the server answers with these bytes.
fn error(bytes: Vec<u8>) -> ServingError {
    let stub = Stub::start(standard(move |_| Some(Reply::Send(bytes.clone()))));
    refused(options(&stub.address))
}

/// Metadata for three tokens with another value at a place.
fn changed(pointer: &str, value: Value) -> Value {
    let mut metadata = metadata(&[3]);
    *metadata.pointer_mut(pointer).unwrap() = value;
    metadata
}

#[test]
fn a_wrong_shape_is_refused_with_both_shapes() {
    let right = rows(&[1, 2, 3]);
    let with = |metadata: Value| respond_chunked(&metadata, &[&right]);
    let item = "/data/0";
    let kind = "content-type: application/octet-stream\r\n";
    let header = format!("metadata: {}\r\n{kind}", metadata(&[3]));
    for (bytes, came, expected) in [
        (
            with(changed(&format!("{item}/shape"), json!([3, 16]))),
            "rows of 16 numbers",
            "8, the hidden_size",
        ),
        (
            with(changed(&format!("{item}/shape"), json!([2, WIDTH]))),
            "shape [2, 8]",
            "shape [3, 8]",
        ),
        (
            with(changed(&format!("{item}/shape"), json!([WIDTH]))),
            "shape [8]",
            "tok_pooling_type ALL",
        ),
        (
            with(changed(&format!("{item}/start"), json!(32))),
            "bytes 32..96",
            "bytes 0..96",
        ),
        (
            with(changed(&format!("{item}/end"), json!(128))),
            "bytes 0..128",
            "bytes 0..96",
        ),
        (
            with(changed(&format!("{item}/index"), json!(1))),
            "sequence 1",
            "sequence 0",
        ),
        (
            with(changed(&format!("{item}/embed_dtype"), json!("float16"))),
            "float16",
            "float32",
        ),
        (
            with(changed(&format!("{item}/endianness"), json!("big"))),
            "big",
            "little",
        ),
        (with(metadata(&[3, 3])), "2 sequences", "1 sequence"),
        (
            with(json!({"data": "none"})),
            "other metadata",
            "octet-stream",
        ),
        (
            respond("200 OK", kind, &right),
            "without a metadata header",
            "octet-stream",
        ),
        (
            respond_json("200 OK", &json!({"data": []})),
            "application/json without",
            "octet-stream",
        ),
        (
            respond("200 OK", &header, [&right[..], &[0]].concat()),
            "97 bytes",
            "96 bytes",
        ),
        (
            respond("200 OK", &header, &right[1..]),
            "95 bytes",
            "96 bytes",
        ),
        (
            respond_chunked(&metadata(&[3]), &[&right, &right]),
            "more than 96 bytes",
            "96 bytes",
        ),
    ] {
        let error = error(bytes);
        let text = error.to_string();
        assert!(matches!(error, ServingError::WrongShape { .. }), "{text}");
        let (first, second) = text.split_once("; expected ").unwrap();
        assert!(
            first.contains(came) && second.contains(expected),
            "{text}: {came}, {expected}"
        );
    }
}

#[test]
fn sequences_out_of_order_are_refused() {
    let stub = Stub::start(standard(|request| {
        let lengths: Vec<usize> = request.sequences().iter().rev().map(Vec::len).collect();
        let rows: Vec<Vec<u8>> = request
            .sequences()
            .iter()
            .rev()
            .map(|tokens| rows(tokens))
            .collect();
        Some(Reply::Send(respond_chunked(&metadata(&lengths), &rows)))
    }));
    let mut server = ddk_serving::TeacherServer::new(ServerOptions {
        requests_in_flight: 1,
        ..options(&stub.address)
    })
    .unwrap();
    let result = server.hidden_states(&[&[1], &[2, 3]], &crate::watch::Seen::default());
    assert!(matches!(result, Err(ServingError::WrongShape { .. })));
}

/// Rows of this length. The second of three differs, as it is not checked.
fn rows_of_length(length: f32, dtype: HiddenDtype) -> Vec<u8> {
    let number = |row: usize, column: usize| match (row, column) {
        (1, _) => 9.0,
        (_, column) => {
            length * [0.1_f32, 0.2, 0.3, 0.4, -0.5, 0.6, -0.2, (0.05_f32).sqrt()][column]
        }
    };
    let numbers = (0..3).flat_map(|row| (0..WIDTH).map(move |column| number(row, column)));
    match dtype {
        HiddenDtype::Fp32 => numbers.flat_map(f32::to_le_bytes).collect(),
        // Rounded half up.
        HiddenDtype::Bf16 => {
            let rounded = numbers.map(|number| ((number.to_bits() + 0x8000) >> 16) as u16);
            rounded.flat_map(u16::to_le_bytes).collect()
        }
    }
}

#[test]
fn normalized_rows_are_refused_with_the_remedy() {
    for dtype in [HiddenDtype::Fp32, HiddenDtype::Bf16] {
        let answer = move |length: f32| {
            let stub = Stub::start(standard(move |_| {
                let rows = rows_of_length(length, dtype);
                let mut metadata = metadata(&[3]);
                if dtype == HiddenDtype::Bf16 {
                    metadata["data"][0]["embed_dtype"] = json!("bfloat16");
                    metadata["data"][0]["end"] = json!(3 * WIDTH * 2);
                }
                Some(Reply::Send(respond_chunked(&metadata, &[rows])))
            }));
            let options = ServerOptions {
                dtype,
                ..options(&stub.address)
            };
            let mut server = ddk_serving::TeacherServer::new(options).unwrap();
            server.hidden_states(&[&[1, 2, 3]], &crate::watch::Seen::default())
        };
        let error = answer(1.0).unwrap_err();
        assert!(matches!(error, ServingError::Normalized { .. }), "{error}");
        assert!(
            error.to_string().contains("\"use_activation\":false"),
            "{error}"
        );
        // A teacher's rows are about as long as the square root of their width.
        assert!(answer(1.01).is_ok() && answer(0.99).is_ok() && answer(2.8).is_ok());
    }
}
