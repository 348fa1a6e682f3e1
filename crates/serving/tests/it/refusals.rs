//! Servers that refuse, or that are not the teacher's: each fails at once.

use std::time::Duration;

use ddk_serving::{ServerOptions, ServingError, TeacherServer};
use serde_json::{Value, json};

use crate::{
    stub::{Reply, Stub, about, respond, respond_json, standard},
    watch::{Seen, options, refused, server},
};

/// The error of a server that answers every request with these bytes, and the number of requests to `/pooling`. A
/// failure that is repeated would take two minutes.
fn error_at_once(address: &str) -> ServingError {
    server(address)
        .hidden_states(&[&[1, 2, 3]], &Seen::default())
        .unwrap_err()
}

#[test]
fn a_refused_token_names_the_variable() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let stub = Stub::start(move |_| {
            Reply::Send(respond_json(status, &json!({"error": "Unauthorized"})))
        });
        let error = error_at_once(&stub.address);
        assert!(
            matches!(error, ServingError::Unauthorized { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("DDK_TEACHER_TOKEN"), "{error}");
        assert_eq!(stub.connections(), 1);
    }
}

#[test]
fn the_token_is_sent_with_every_request() {
    let stub =
        Stub::start(
            |request| match request.headers.get("authorization").map(String::as_str) {
                Some("Bearer secret") => standard(|_| None)(request),
                _ => Reply::Send(respond_json("401 Unauthorized", &json!({}))),
            },
        );
    let token = Some("secret".to_owned());
    let mut server = TeacherServer::new(ServerOptions {
        token,
        ..options(&stub.address)
    })
    .unwrap();
    crate::watch::ask(&mut server, &[vec![1, 2]], &Seen::default());
}

#[test]
fn a_token_that_no_header_can_hold_is_refused_without_being_shown() {
    let token = Some("secret\n".to_owned());
    let made = TeacherServer::new(ServerOptions {
        token,
        ..options("http://localhost:1")
    });
    let error = made.err().unwrap();
    assert!(matches!(error, ServingError::BadToken), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn a_redirect_is_refused_and_the_token_stays() {
    let elsewhere = Stub::start(standard(|_| None));
    for status in [
        "301 Moved",
        "302 Found",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let target = format!("{}/pooling", elsewhere.address);
        let location = format!("location: {target}\r\n");
        let stub = Stub::start(standard(move |_| {
            Some(Reply::Send(respond(status, &location, "")))
        }));
        let token = Some("secret".to_owned());
        let error = refused(ServerOptions {
            token,
            ..options(&stub.address)
        });
        assert!(matches!(error, ServingError::Refused { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains(&format!("redirects to {target}")),
            "{error}"
        );
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn other_statuses_are_final_and_carry_the_servers_message() {
    for status in [
        "400 Bad Request",
        "404 Not Found",
        "413 Too Large",
        "422 Unprocessable",
        "501 Not Implemented",
    ] {
        let body = json!({"error": {"message": format!("too {}", "l".repeat(600)), "code": 400}});
        let stub = Stub::start(standard(move |_| {
            Some(Reply::Send(respond_json(status, &body)))
        }));
        let error = error_at_once(&stub.address);
        let text = error.to_string();
        let ServingError::Refused {
            status: number,
            message,
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert!(status.starts_with(&number.to_string()));
        assert_eq!(message, format!("too {}", "l".repeat(496)));
        assert!(text.contains("vllm serve MODEL"), "{text}");
        assert_eq!(stub.pooled().len(), 1);
    }
}

#[test]
fn a_model_that_is_not_served_is_named_with_those_that_are() {
    let models = |ids: &[&str]| -> Value {
        let data: Vec<Value> = ids
            .iter()
            .map(|id| json!({"id": id, "max_model_len": 100}))
            .collect();
        json!({"data": data})
    };
    for (asked, served, expected) in [
        (
            None,
            vec!["large", "small"],
            "serves large, small; expected one model",
        ),
        (
            Some("tiny"),
            vec!["large", "small"],
            "serves large, small; expected tiny",
        ),
        (None, vec![], "serves no model; expected one"),
    ] {
        let list = models(&served);
        let stub = Stub::start(move |_| Reply::Send(respond_json("200 OK", &list)));
        let served_model = asked.map(str::to_owned);
        let options = ServerOptions {
            served_model,
            ..options(&stub.address)
        };
        let error = TeacherServer::new(options).unwrap().describe().unwrap_err();
        assert!(matches!(error, ServingError::NoModel { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn what_is_not_vllm_cannot_be_used() {
    for bytes in [
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        respond("200 OK", "", "<h1>Welcome</h1>"),
        respond_json("200 OK", &json!({"data": [{"id": "tiny"}]})),
        respond_json(
            "200 OK",
            &json!({"data": [{"id": "tiny", "max_model_len": null}]}),
        ),
    ] {
        let stub = Stub::start(move |_| Reply::Close(bytes.clone()));
        let error = error_at_once(&stub.address);
        assert!(matches!(error, ServingError::Unusable { .. }), "{error}");
    }
    // Garbage in place of an answer to the second question.
    let stub = Stub::start(standard(|_| {
        Some(Reply::Close(b"\x16\x03\x01garbage\r\n\r\n".to_vec()))
    }));
    let error = error_at_once(&stub.address);
    assert!(matches!(error, ServingError::Unusable { .. }), "{error}");
}

#[test]
fn a_description_is_asked_for_once() {
    let stub = Stub::start(|_| {
        Reply::Send(respond_json(
            "503 Unavailable",
            &json!({"detail": "loading"}),
        ))
    });
    let error = server(&stub.address).describe().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not answer: HTTP status 503: loading"),
        "{error}"
    );
    assert_eq!(stub.connections(), 1);
    // Nothing listens: the port was free a moment ago.
    let address = Stub::start(about)
        .address
        .replace("127.0.0.1", "127.0.0.77");
    let error = server(&address).describe().unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn an_unknown_host_counts_as_away() {
    let timeout = Duration::from_secs(20);
    let options = ServerOptions {
        request_timeout: timeout,
        ..options("http://no-such-host.invalid:8000")
    };
    let error = refused(options);
    assert!(matches!(error, ServingError::Away { .. }), "{error}");
}
