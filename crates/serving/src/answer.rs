//! Reads an answer of vLLM's `/pooling`, and refuses it unless it is exactly what the request asked for.

use std::io::Read;

use serde::Deserialize;
use ureq::{Body, http::Response};

use crate::{HiddenDtype, ServingError, client::Request, command_line, error::Failure, http::Http};

/// Maximum distance from 1 of the length of a normalized row: the rounding of a bf16 number.
const ROUNDING: f64 = 1.0 / 256.0;

/// What vLLM answers.
const VLLM: &str = "application/octet-stream, with the shape of each sequence in a metadata header";

/// The JSON in the `metadata` header.
#[derive(Deserialize)]
struct Metadata {
    data: Vec<Item>,
}

/// A sequence's place in the body.
#[derive(Deserialize)]
struct Item {
    index: usize,
    embed_dtype: Option<String>,
    endianness: Option<String>,
    start: usize,
    end: usize,
    shape: Vec<usize>,
}

/// What came, and what was expected.
type Mismatch = (String, String);

/// Reads the rows of each sequence.
pub(crate) fn read(
    response: Response<Body>,
    request: &Request,
    http: &Http,
    hidden_size: usize,
    dtype: HiddenDtype,
) -> Result<Vec<Vec<u8>>, Failure> {
    let mismatch = |(came, expected)| {
        let address = http.base.clone();
        Failure::Final(ServingError::WrongShape {
            address,
            came,
            expected,
        })
    };
    let total = check(&response, &request.lengths, hidden_size, dtype).map_err(mismatch)?;
    let mut body = response.into_body().into_reader();
    let mut sequences = Vec::with_capacity(request.lengths.len());
    for tokens in &request.lengths {
        let mut rows = vec![0; tokens * hidden_size * dtype.bytes()];
        body.read_exact(&mut rows)
            .map_err(|error| http.failure(error.into()))?;
        sequences.push(rows);
    }
    // Reading the end also frees the connection for another request.
    let more = body
        .read(&mut [0])
        .map_err(|error| http.failure(error.into()))?;
    if more > 0 {
        return Err(mismatch((
            format!("more than {total} bytes"),
            format!("{total} bytes"),
        )));
    }
    if are_normalized(&sequences, hidden_size, dtype) {
        let served = &request.served;
        return Err(Failure::Final(ServingError::Normalized {
            address: http.base.clone(),
            command: command_line(&served.model, served.context.saturating_sub(1)),
        }));
    }
    Ok(sequences)
}

/// Checks the headers, before any memory is reserved. Returns the number of bytes of the body.
fn check(
    response: &Response<Body>,
    lengths: &[usize],
    hidden_size: usize,
    dtype: HiddenDtype,
) -> Result<usize, Mismatch> {
    let kind = response
        .body()
        .mime_type()
        .unwrap_or("no content type")
        .to_owned();
    let header = response.headers().get("metadata");
    let header =
        header.ok_or_else(|| (format!("{kind} without a metadata header"), VLLM.to_owned()))?;
    let metadata: Metadata = serde_json::from_slice(header.as_bytes())
        .map_err(|error| (format!("other metadata ({error})"), VLLM.to_owned()))?;
    if metadata.data.len() != lengths.len() {
        let sequences = |count| match count {
            1 => "1 sequence".to_owned(),
            _ => format!("{count} sequences"),
        };
        return Err((sequences(metadata.data.len()), sequences(lengths.len())));
    }
    let mut total = 0;
    for (index, (item, tokens)) in metadata.data.iter().zip(lengths).enumerate() {
        let start = total;
        total += tokens * hidden_size * dtype.bytes();
        check_item(item, index, &[*tokens, hidden_size], start..total, dtype)?;
    }
    let announced = response.body().content_length();
    if let Some(announced) = announced.filter(|length| *length != total as u64) {
        return Err((format!("{announced} bytes"), format!("{total} bytes")));
    }
    Ok(total)
}

fn check_item(
    item: &Item,
    index: usize,
    shape: &[usize; 2],
    bytes: std::ops::Range<usize>,
    dtype: HiddenDtype,
) -> Result<(), Mismatch> {
    let named = |name: &Option<String>, expected: &str| match name {
        Some(name) if name != expected => Err((name.clone(), expected.to_owned())),
        _ => Ok(()),
    };
    named(&item.embed_dtype, dtype.name())?;
    named(&item.endianness, "little")?;
    if let [tokens, width] = item.shape[..]
        && tokens == shape[0]
        && width != shape[1]
    {
        return Err((
            format!("rows of {width} numbers"),
            format!(
                "{}, the hidden_size of teacher.model, which must be the folder of the served model",
                shape[1]
            ),
        ));
    }
    let came = (item.index, &item.shape[..], item.start..item.end);
    let expected = (index, &shape[..], bytes);
    if came != expected {
        let text = |(index, shape, bytes): &(usize, &[usize], std::ops::Range<usize>)| {
            format!("sequence {index} of shape {shape:?} in bytes {bytes:?}")
        };
        let remedy = "rows for every token of every sequence (tok_pooling_type ALL)";
        return Err((text(&came), format!("{}: {remedy}", text(&expected))));
    }
    Ok(())
}

/// Whether the first and the last row of every sequence have length 1.
fn are_normalized(sequences: &[Vec<u8>], hidden_size: usize, dtype: HiddenDtype) -> bool {
    let width = hidden_size * dtype.bytes();
    let is_unit = |row: &[u8]| {
        let squares = row
            .chunks_exact(dtype.bytes())
            .map(|bytes| dtype.number(bytes).powi(2));
        (squares.sum::<f64>().sqrt() - 1.0).abs() < ROUNDING
    };
    sequences
        .iter()
        .all(|rows| is_unit(&rows[..width]) && is_unit(&rows[rows.len() - width..]))
}
