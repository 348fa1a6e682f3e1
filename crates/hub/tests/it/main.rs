//! Tests the client against a server on a real socket that speaks the Hub's API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod broken;
mod cache;
mod needs_torchrun;
mod refusals;
mod server;

use std::{path::Path, time::Duration};

use ddk_hub::{Event, Found, Hub, HubError, Name, Options, Parts, Token};
use server::Server;

/// Options for a server, without a token and without patience.
fn options(server: &Server, cache: &Path) -> Options {
    Options {
        endpoint: server.endpoint(),
        token: None,
        offline: false,
        cache: cache.to_owned(),
        timeout: Duration::from_secs(20),
        attempts: 1,
        backoff: Duration::from_millis(1),
    }
}

/// A client without any state.
fn hub(server: &Server, cache: &Path) -> Hub {
    Hub::new(options(server, cache)).unwrap()
}

fn with_token(server: &Server, cache: &Path, token: &str) -> Hub {
    let token = Some(Token::new(token));
    Hub::new(Options {
        token,
        ..options(server, cache)
    })
    .unwrap()
}

fn offline(server: &Server, cache: &Path) -> Hub {
    Hub::new(Options {
        offline: true,
        ..options(server, cache)
    })
    .unwrap()
}

fn model_name(text: &str) -> Name {
    Name::model(text).unwrap().unwrap()
}

fn all(hub: &Hub, name: &str, pinned: Option<&str>) -> Result<Found, HubError> {
    hub.model(&model_name(name), pinned, &Parts::All, &mut |_| {})
}

fn data(hub: &Hub, name: &str) -> Result<Found, HubError> {
    let is_data = |path: &str| path.ends_with(".jsonl") || path.ends_with(".parquet");
    let name = Name::dataset(name).unwrap().unwrap();
    hub.dataset(&name, None, &is_data, &mut |_| {})
}

/// Bytes that no compression and no repetition explains.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A repository of a model with everything that DDK reads, and much that it does not.
fn add_model(server: &Server, name: &str, weights: &[u8]) -> String {
    server.commit(
        "models",
        name,
        "main",
        &[
            ("config.json", b"{}"),
            ("tokenizer.json", b"{\"version\": \"1.0\"}"),
            ("generation_config.json", b"{\"eos_token_id\": 0}"),
            ("model.safetensors", weights),
            ("pytorch_model.bin", b"pickled"),
            ("onnx/model.onnx", b"onnx"),
            ("model.gguf", b"gguf"),
            ("README.md", b"words"),
        ],
    )
}

/// The states of a download, as (file, its bytes here, its size, all bytes here, the size of all).
fn transfers(hub: &Hub, name: &str) -> Vec<(String, u64, u64, u64, u64)> {
    let mut seen = Vec::new();
    let mut tell = |event: Event<'_>| {
        if let Event::Transfer(now) = event {
            seen.push((
                now.file.to_owned(),
                now.done,
                now.total,
                now.all_done,
                now.all_total,
            ));
        }
    };
    hub.model(&model_name(name), None, &Parts::All, &mut tell)
        .unwrap();
    seen
}
