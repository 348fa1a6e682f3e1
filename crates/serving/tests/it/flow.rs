//! Requests of a server that works: groups, order, overlap, connections.

use std::sync::Barrier;

use ddk_serving::{Description, ServerOptions, ServingError, TeacherServer, command_line};
use serde_json::json;

use crate::{
    stub::{CONTEXT, Reply, Stub, about, pooled, respond_json, standard},
    watch::{Seen, ask, options, server},
};

#[test]
fn sequences_come_back_in_order_from_few_balanced_requests() {
    let stub = Stub::start(standard(|_| None));
    let mut server = TeacherServer::new(ServerOptions {
        requests_in_flight: 3,
        ..options(&stub.address)
    })
    .unwrap();
    let lengths = [10, 0, 20, 30, 1, 29, 0, 15, 15];
    let sequence = |(index, length): (usize, &usize)| {
        (0..*length)
            .map(|position| (100 * index + position) as u32)
            .collect()
    };
    let sequences: Vec<Vec<u32>> = lengths.iter().enumerate().map(sequence).collect();
    let seen = Seen::default();
    ask(&mut server, &sequences, &seen);
    let mut requests: Vec<Vec<Vec<u32>>> = stub
        .pooled()
        .iter()
        .map(|request| request.sequences())
        .collect();
    requests.sort();
    let tokens = |group: &Vec<Vec<u32>>| group.iter().map(Vec::len).sum::<usize>();
    assert_eq!(
        requests.iter().map(tokens).collect::<Vec<_>>(),
        [30, 60, 30]
    );
    let sent: Vec<Vec<u32>> = sequences
        .into_iter()
        .filter(|tokens| !tokens.is_empty())
        .collect();
    assert_eq!(requests.concat(), sent);
    assert_eq!((seen.responses.get(), seen.bytes.get()), (3, 120 * 32));
    assert_eq!((seen.retries.get(), seen.away.borrow().len()), (0, 0));
    let body = &stub.pooled()[0].body;
    assert_eq!(
        [
            &body["model"],
            &body["task"],
            &body["encoding_format"],
            &body["embed_dtype"],
            &body["endianness"]
        ],
        ["tiny", "token_embed", "bytes", "float32", "little"]
    );
}

#[test]
fn requests_are_in_flight_at_once() {
    // Each answer waits until the server has three requests.
    let together = Barrier::new(3);
    let stub = Stub::start(standard(move |_| {
        together.wait();
        None
    }));
    let mut server = TeacherServer::new(ServerOptions {
        requests_in_flight: 3,
        ..options(&stub.address)
    })
    .unwrap();
    ask(
        &mut server,
        &[vec![1; 9], vec![2; 9], vec![3; 9]],
        &Seen::default(),
    );
}

#[test]
fn connections_are_used_again() {
    let stub = Stub::start(standard(|_| None));
    let mut server = server(&stub.address);
    for call in 0..10 {
        ask(
            &mut server,
            &[vec![call; 9], vec![call; 8]],
            &Seen::default(),
        );
    }
    assert_eq!(stub.pooled().len(), 20);
    assert!(
        stub.connections() <= 2,
        "{} connections",
        stub.connections()
    );
}

#[test]
fn nothing_is_sent_for_nothing() {
    let stub = Stub::start(standard(|_| None));
    let mut server = server(&stub.address);
    ask(&mut server, &[], &Seen::default());
    ask(&mut server, &[vec![], vec![]], &Seen::default());
    assert_eq!(stub.connections(), 0);
}

#[test]
fn an_answer_may_describe_many_sequences() {
    let stub = Stub::start(standard(|_| None));
    let mut server = TeacherServer::new(ServerOptions {
        requests_in_flight: 1,
        ..options(&stub.address)
    })
    .unwrap();
    let sequences: Vec<Vec<u32>> = (0..3000).map(|token| vec![token]).collect();
    ask(&mut server, &sequences, &Seen::default());
}

#[test]
fn an_answer_may_have_a_known_length_and_a_prefix_in_its_path() {
    let stub = Stub::start(|request| match request.path.as_str() {
        "/large/pooling" => {
            let text = String::from_utf8_lossy(&pooled(request)).into_owned();
            let metadata = text
                .lines()
                .find(|line| line.starts_with("metadata"))
                .unwrap();
            let headers = format!("{metadata}\r\ncontent-type: application/octet-stream\r\n");
            let rows: Vec<u8> = request
                .sequences()
                .iter()
                .flat_map(|tokens| crate::stub::rows(tokens))
                .collect();
            Reply::Send(crate::stub::respond("200 OK", &headers, rows))
        }
        path => about(&crate::stub::Request {
            path: path.strip_prefix("/large").unwrap().to_owned(),
            ..request.clone()
        }),
    });
    let mut server = server(&format!("{}/large/", stub.address));
    ask(&mut server, &[vec![5; 7], vec![6; 5]], &Seen::default());
}

#[test]
fn a_server_describes_itself() {
    let stub = Stub::start(standard(|_| None));
    let mut expected = Description {
        model: "tiny".to_owned(),
        context: CONTEXT,
        version: Some("0.24.0".to_owned()),
    };
    assert_eq!(server(&stub.address).describe().unwrap(), expected);
    // The server lists two models and no version; the client asks for one of them.
    let stub = Stub::start(|request| match request.path.as_str() {
        "/v1/models" => Reply::Send(respond_json(
            "200 OK",
            &json!({"data": [{"id": "other", "max_model_len": 5}, {"id": "tiny", "max_model_len": CONTEXT}]}),
        )),
        _ => Reply::Send(respond_json("404 Not Found", &json!({}))),
    });
    expected.version = None;
    let served_model = Some("tiny".to_owned());
    let server = TeacherServer::new(ServerOptions {
        served_model,
        ..options(&stub.address)
    });
    assert_eq!(server.unwrap().describe().unwrap(), expected);
}

#[test]
fn a_sequence_leaves_a_position_of_the_context_free() {
    let stub = Stub::start(standard(|_| None));
    let mut server = server(&stub.address);
    ask(&mut server, &[vec![1; CONTEXT - 1]], &Seen::default());
    let error = server
        .hidden_states(&[&[1; 3], &[1; CONTEXT]], &Seen::default())
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&command_line("tiny", CONTEXT)), "{text}");
    let ServingError::ContextTooShort {
        context, needed, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((context, needed), (CONTEXT, CONTEXT + 1));
    assert_eq!(stub.pooled().len(), 1);
}
