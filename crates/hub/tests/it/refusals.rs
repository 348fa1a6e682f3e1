//! What the Hub or this machine refuses, and to whom the token goes.

use ddk_hub::HubError;

use crate::{add_model, all, data, hub, noise, offline, server::Server, with_token};

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_server() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    add_model(&server, "org/gated", &noise(1000, 20));
    server.gate("models/org/gated", "hf_secret");
    all(
        &with_token(&server, cache.path(), "hf_secret"),
        "org/gated",
        None,
    )
    .unwrap();
    let seen = server.seen();
    let (storage, own): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.is_storage);
    assert!(storage.len() == 1 && own.len() == 5);
    assert!(storage.iter().all(|seen| seen.authorization.is_none()));
    assert!(
        own.iter()
            .all(|seen| seen.authorization.as_deref() == Some("Bearer hf_secret"))
    );
}

#[test]
fn a_gated_repository_needs_a_license_and_a_token() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    add_model(&server, "org/gated", b"weights");
    server.gate("models/org/gated", "hf_secret");
    for (hub, status, advice) in [
        (hub(&server, cache.path()), "401", "set HF_TOKEN to a token"),
        (
            with_token(&server, cache.path(), "hf_other"),
            "403",
            "check that HF_TOKEN belongs",
        ),
    ] {
        let error = all(&hub, "org/gated", None).unwrap_err();
        assert!(error.to_string().contains(status), "{error}");
        let page = format!("accept the license at {}/org/gated", server.endpoint());
        let text = error.advice().unwrap();
        assert!(text.contains(&page) && text.contains(advice), "{text}");
    }
}

#[test]
fn a_name_that_nobody_has_is_neither_here_nor_there() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    add_model(&server, "org/small", b"weights");
    for hub in [
        hub(&server, cache.path()),
        with_token(&server, cache.path(), "hf_any"),
    ] {
        let error = all(&hub, "org/smal", None).unwrap_err();
        assert!(matches!(error, HubError::NoRepository { .. }) && error.is_usage());
        let said = error.to_string();
        assert!(
            said.contains("org/smal is neither a folder here nor a model on the Hub"),
            "{said}"
        );
    }
    let error = data(&hub(&server, cache.path()), "hf://datasets/org/small")
        .unwrap_err()
        .to_string();
    assert!(error.contains("nor a data set on the Hub"), "{error}");
    let error = all(&hub(&server, cache.path()), "org/small@v9", None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("org/small") && error.contains("no revision `v9`"),
        "{error}"
    );
}

#[test]
fn offline_nothing_is_asked_for() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    add_model(&server, "org/small", b"weights");
    let error = all(&offline(&server, cache.path()), "org/small@v1", None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&cache.path().display().to_string()),
        "{error}"
    );
    assert!(
        error
            .advice()
            .unwrap()
            .contains("`hf download org/small --revision v1`")
    );
    let error = data(
        &offline(&server, cache.path()),
        "hf://datasets/org/d/*.jsonl",
    )
    .unwrap_err();
    assert!(
        error
            .advice()
            .unwrap()
            .contains("`hf download org/d --repo-type dataset`")
    );
    assert_eq!(server.seen().len(), 0);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn weights_that_ddk_does_not_read_are_refused_before_the_download() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let pickled: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("pytorch_model.bin", b"x")];
    server.commit("models", "org/old", "main", &pickled);
    let error = all(&hub(&server, cache.path()), "org/old", None).unwrap_err();
    assert!(matches!(error, HubError::Pickled { .. }), "{error}");
    assert!(error.advice().unwrap().contains("save_pretrained"));
    server.commit(
        "models",
        "org/lora",
        "main",
        &[("adapter_config.json", b"{}")],
    );
    let error = all(&hub(&server, cache.path()), "org/lora", None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("org/lora on the Hub has no config.json"),
        "{error}"
    );
    // Only the lists were asked for.
    assert_eq!(server.seen().len(), 2);
}
