//! Failures that pass, and outages that do not.

use std::{
    cell::RefCell,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ddk_serving::{ServerOptions, ServingError, TeacherServer};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
use serde_json::json;

use crate::{
    stub::{Reply, Stub, first, metadata, pooled, respond_chunked, respond_json, rows, standard},
    watch::{Seen, ask, options, server},
};

#[test]
fn a_server_that_refuses_connections_may_come_back() {
    // A port that is taken, and on which nothing listens yet.
    let closed = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&closed, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddrV4::try_from(getsockname(&closed).unwrap()).unwrap();
    let closed = RefCell::new(Some(closed));
    let stub = std::rc::Rc::new(RefCell::new(None));
    let started = stub.clone();
    let seen = Seen {
        when_away: Some(Box::new(move || {
            let socket = closed.borrow_mut().take().unwrap();
            listen(&socket, 16).unwrap();
            *started.borrow_mut() = Some(Stub::on(TcpListener::from(socket), standard(|_| None)));
        })),
        ..Seen::default()
    };
    let mut server = server(&format!("http://{address}"));
    ask(&mut server, &[vec![1; 20], vec![2; 30]], &seen);
    assert_eq!((seen.away.borrow().len(), seen.back.borrow().len()), (1, 1));
    assert!(seen.away.borrow()[0].contains("refused"), "{:?}", seen.away);
    assert!(seen.back.borrow()[0] >= 0.25, "{:?}", seen.back);
    assert_eq!((seen.retries.get(), seen.responses.get()), (2, 2));
    assert_eq!(stub.borrow().as_ref().unwrap().pooled().len(), 2);
}

#[test]
fn a_single_failure_is_only_a_retry() {
    // Both requests fail at once. Still, the server answers the next attempt.
    let stub = Stub::start(standard(first(2, |_| Reply::Close(Vec::new()))));
    let seen = Seen::default();
    ask(
        &mut server(&stub.address),
        &[vec![1; 20], vec![2; 30]],
        &seen,
    );
    assert_eq!(seen.away.borrow().len() + seen.back.borrow().len(), 0);
    assert_eq!((seen.retries.get(), seen.responses.get()), (2, 2));
}

#[test]
fn a_truncated_answer_is_repeated() {
    type Cut = fn(Vec<u8>) -> Vec<u8>;
    let cuts: [Cut; 5] = [
        // Within the rows, before the last chunk's end, and within the headers.
        |bytes| bytes[..bytes.len() - 20].to_vec(),
        |bytes| bytes[..bytes.len() - 5].to_vec(),
        |bytes| bytes[..30].to_vec(),
        // With a length that promises more.
        |_| {
            let rows = rows(&[1, 2, 3]);
            let metadata = metadata(&[3]);
            let head = format!(
                "HTTP/1.1 200 OK\r\nmetadata: {metadata}\r\ncontent-length: {}\r\n\r\n",
                rows.len()
            );
            [head.as_bytes(), &rows[1..]].concat()
        },
        // Complete in HTTP's eyes.
        |_| respond_chunked(&metadata(&[3]), &[&rows(&[1, 2, 3])[4..]]),
    ];
    for cut in cuts {
        let stub = Stub::start(standard(first(1, move |request| {
            Reply::Close(cut(pooled(request)))
        })));
        let seen = Seen::default();
        ask(&mut server(&stub.address), &[vec![1, 2, 3]], &seen);
        assert_eq!((seen.retries.get(), stub.pooled().len()), (1, 2));
    }
}

#[test]
fn statuses_that_may_pass_are_repeated() {
    for status in [408, 429, 500, 502, 503, 504] {
        let refuse = move |_: &_| {
            Reply::Send(respond_json(
                &format!("{status} Later"),
                &json!({"message": "later"}),
            ))
        };
        let stub = Stub::start(standard(first(1, refuse)));
        let seen = Seen::default();
        ask(&mut server(&stub.address), &[vec![1, 2, 3]], &seen);
        assert_eq!((seen.retries.get(), seen.responses.get()), (1, 1));
    }
}

#[test]
fn the_description_is_repeated_too() {
    let asked = AtomicUsize::new(0);
    let work = standard(|_| None);
    let stub = Stub::start(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
        0..2 => Reply::Send(respond_json(
            "503 Unavailable",
            &json!({"detail": "loading"}),
        )),
        _ => work(request),
    });
    let seen = Seen::default();
    ask(&mut server(&stub.address), &[vec![1, 2, 3]], &seen);
    assert_eq!(*seen.away.borrow(), ["HTTP status 503: loading"]);
    assert_eq!((seen.back.borrow().len(), seen.responses.get()), (1, 1));
}

#[test]
fn a_slow_request_times_out_and_is_repeated() {
    let stub = Stub::start(standard(first(1, |_| Reply::Never)));
    let mut server = TeacherServer::new(ServerOptions {
        request_timeout: Duration::from_secs(2),
        ..options(&stub.address)
    })
    .unwrap();
    let seen = Seen::default();
    ask(&mut server, &[vec![1, 2, 3]], &seen);
    assert_eq!((seen.retries.get(), stub.pooled().len()), (1, 2));
}

#[test]
fn an_outage_ends_with_the_patience() {
    let failing = || {
        let message = json!({"error": {"message": "EngineCore encountered an issue"}});
        Reply::Send(respond_json("500 Error", &message))
    };
    type Case = (fn() -> Reply, u64, &'static str);
    let cases: [Case; 2] = [
        (|| Reply::Never, 1, "no answer within 1s"),
        (
            failing,
            60,
            "HTTP status 500: EngineCore encountered an issue",
        ),
    ];
    for (reply, timeout, reason) in cases {
        let asked = AtomicUsize::new(0);
        let stub = Stub::start(standard(move |_| {
            (asked.fetch_add(1, Ordering::SeqCst) > 0).then(reply)
        }));
        let mut server = TeacherServer::new(ServerOptions {
            request_timeout: Duration::from_secs(timeout),
            patience: Duration::from_millis(1500),
            ..options(&stub.address)
        })
        .unwrap();
        ask(&mut server, &[vec![1, 2, 3]], &Seen::default());
        let seen = Seen::default();
        let error = server.hidden_states(&[&[1, 2, 3]], &seen).unwrap_err();
        let text = error.to_string();
        let ServingError::Away { seconds, .. } = error else {
            panic!("{text}");
        };
        assert!(seconds >= 1.5 && text.contains(reason), "{text}");
        assert_eq!((seen.away.borrow().len(), seen.back.borrow().len()), (1, 0));
        // The first request was answered, and the last attempt is not repeated.
        assert_eq!(seen.retries.get(), stub.pooled().len() - 2);
    }
}

#[test]
fn no_patience_means_one_attempt() {
    let stub = Stub::start(standard(|_| Some(Reply::Close(Vec::new()))));
    let error = crate::watch::refused(options(&stub.address));
    assert!(matches!(error, ServingError::Away { .. }), "{error}");
    assert_eq!(stub.pooled().len(), 1);
}

#[test]
fn a_caller_that_is_done_does_not_wait() {
    let asked = Arc::new(AtomicBool::new(false));
    let told = asked.clone();
    let stub = Stub::start(standard(move |_| {
        told.store(true, Ordering::SeqCst);
        Some(Reply::Never)
    }));
    let seen = Seen {
        is_over: Some(Box::new(move || asked.load(Ordering::SeqCst))),
        ..Seen::default()
    };
    let start = Instant::now();
    let mut server = server(&stub.address);
    assert_eq!(server.hidden_states(&[&[1, 2, 3]], &seen).unwrap(), None);
    drop(server);
    // The request itself would end after 60 s.
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_answer_to_an_abandoned_request_is_not_used() {
    // The first answer waits for the second call.
    let (state, asked) = (
        Arc::new((Mutex::new(0), Condvar::new())),
        Arc::new(AtomicBool::new(false)),
    );
    let (shared, told) = (state.clone(), asked.clone());
    let stub = Stub::start(standard(move |request| {
        let (count, changed) = &*shared;
        let mut guard = count.lock().unwrap();
        *guard += 1;
        changed.notify_all();
        told.store(true, Ordering::SeqCst);
        if request.sequences() == [[7, 7, 7]] {
            drop(changed.wait_while(guard, |count| *count < 2).unwrap());
        }
        None
    }));
    let seen = Seen {
        is_over: Some(Box::new(move || asked.load(Ordering::SeqCst))),
        ..Seen::default()
    };
    let mut server = server(&stub.address);
    assert_eq!(server.hidden_states(&[&[7, 7, 7]], &seen).unwrap(), None);
    for token in 0..20 {
        ask(&mut server, &[vec![token; 3]], &Seen::default());
    }
    assert_eq!(seen.responses.get(), 0);
}
