//! Connections that break, and contents that are not what they should be.

use std::{fs, net::TcpListener, path::PathBuf};

use ddk_hub::{Event, Hub, HubError, Options, Parts};

use crate::{
    add_model, all, hub, model_name, noise, options,
    server::{Server, sha256},
};

const SIZE: usize = 1_500_000;

/// A server with a model, an empty cache, and the place of the weights in it.
fn world(seed: u64) -> (Server, tempfile::TempDir, Vec<u8>, PathBuf) {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let weights = noise(SIZE, seed);
    add_model(&server, "org/small", &weights);
    let blob = cache
        .path()
        .join("models--org--small/blobs")
        .join(sha256(&weights));
    (server, cache, weights, blob)
}

/// What the storage sent of the weights: the first byte that was asked for, and the number of bytes.
fn parts(server: &Server) -> Vec<(Option<u64>, u64)> {
    let seen = server.seen();
    let parts = seen.iter().filter(|seen| seen.is_storage);
    parts.map(|seen| (seen.from, seen.sent)).collect()
}

#[test]
fn a_later_process_asks_only_for_what_is_missing() {
    let (server, cache, weights, blob) = world(10);
    server.break_after("model.safetensors", 400_000);
    let error = all(&hub(&server, cache.path()), "org/small", None).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    let incomplete = blob.with_added_extension("incomplete");
    assert!(!blob.exists() && fs::metadata(&incomplete).unwrap().len() == 400_000);
    assert_eq!(parts(&server), [(None, 400_000)]);
    let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    assert_eq!(parts(&server), [(Some(400_000), SIZE as u64 - 400_000)]);
    assert_eq!(
        fs::read(found.folder.join("model.safetensors")).unwrap(),
        weights
    );
    assert!(blob.exists() && !incomplete.exists());
}

#[test]
fn the_same_process_goes_on_where_the_connection_broke() {
    let (server, cache, weights, _) = world(11);
    for bytes in [100_000, 0, 200_000] {
        server.break_after("model.safetensors", bytes);
    }
    let patient = Hub::new(Options {
        attempts: 3,
        ..options(&server, cache.path())
    })
    .unwrap();
    let mut retries = Vec::new();
    let mut tell = |event: Event<'_>| {
        if let Event::Retries { what, wait, .. } = event {
            retries.push((what.to_owned(), wait.as_millis()));
        }
    };
    let found = patient
        .model(&model_name("org/small"), None, &Parts::All, &mut tell)
        .unwrap();
    assert_eq!(
        fs::read(found.folder.join("model.safetensors")).unwrap(),
        weights
    );
    let sent = parts(&server);
    let expected = [
        (None, 100_000),
        (Some(100_000), 0),
        (Some(100_000), 200_000),
        (Some(300_000), 1_200_000),
    ];
    assert_eq!(sent, expected);
    // Waits grow until more arrives.
    let weights = "model.safetensors".to_owned();
    assert_eq!(
        retries,
        [(weights.clone(), 1), (weights.clone(), 2), (weights, 1)]
    );
}

#[test]
fn a_server_that_ignores_ranges_sends_the_whole_again() {
    let (server, cache, weights, _) = world(12);
    server.break_after("model.safetensors", 300_000);
    all(&hub(&server, cache.path()), "org/small", None).unwrap_err();
    server.ignore_ranges();
    let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
    assert_eq!(parts(&server)[1], (Some(300_000), SIZE as u64));
    assert_eq!(
        fs::read(found.folder.join("model.safetensors")).unwrap(),
        weights
    );
}

#[test]
fn damaged_contents_are_refused_and_removed() {
    let (server, cache, mut weights, blob) = world(13);
    weights[700_000] ^= 1;
    server.damage("model.safetensors", &weights);
    let error = all(&hub(&server, cache.path()), "org/small", None).unwrap_err();
    let HubError::Damaged { found, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*found, sha256(&weights));
    assert!(!blob.exists() && !blob.with_added_extension("incomplete").exists());
    assert!(fs::read_dir(cache.path().join("models--org--small/refs")).is_err());
    // A file that git keeps is checked too.
    let (server, cache, ..) = world(14);
    server.damage("config.json", b"[]");
    let error = all(&hub(&server, cache.path()), "org/small", None).unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn what_an_earlier_process_left_may_be_damaged() {
    for left in [SIZE / 2, SIZE, SIZE + 1] {
        let (server, cache, weights, blob) = world(15);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob.with_added_extension("incomplete"), vec![0; left]).unwrap();
        let found = all(&hub(&server, cache.path()), "org/small", None).unwrap();
        assert_eq!(
            fs::read(found.folder.join("model.safetensors")).unwrap(),
            weights
        );
        assert_eq!(parts(&server).last(), Some(&(None, SIZE as u64)), "{left}");
    }
}

#[test]
fn a_server_in_trouble_is_asked_again() {
    let (server, cache, ..) = world(16);
    server.fail_next(503);
    let error = all(&hub(&server, cache.path()), "org/small", None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("after 1 attempts") && error.contains("503"),
        "{error}"
    );
    server.fail_next(503);
    let patient = Hub::new(Options {
        attempts: 2,
        ..options(&server, cache.path())
    })
    .unwrap();
    all(&patient, "org/small", None).unwrap();
}

#[test]
fn an_address_where_nobody_listens_is_named() {
    let (server, cache, ..) = world(17);
    // Free again at the end of this line.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let options = Options {
        endpoint: endpoint.clone(),
        attempts: 5,
        ..options(&server, cache.path())
    };
    let error = all(&Hub::new(options).unwrap(), "org/small", None).unwrap_err();
    let text = error.to_string();
    // Before the first answer, patience is of little use.
    assert!(
        text.contains(&endpoint) && text.contains("after 2 attempts"),
        "{text}"
    );
    assert!(error.advice().unwrap().contains("HF_HUB_OFFLINE=1"));
}
