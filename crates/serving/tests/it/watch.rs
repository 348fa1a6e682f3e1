//! A caller that counts what it hears.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use ddk_serving::{HiddenDtype, ServerOptions, ServingError, TeacherServer, Watch};

use crate::stub::{WIDTH, rows};

/// Counts the calls, and ends when a test says so.
#[derive(Default)]
pub struct Seen {
    pub responses: Cell<usize>,
    pub bytes: Cell<u64>,
    pub retries: Cell<usize>,
    pub away: RefCell<Vec<String>>,
    pub back: RefCell<Vec<f64>>,
    pub is_over: Option<Box<dyn Fn() -> bool>>,
    /// Called when the server is away.
    pub when_away: Option<Box<dyn Fn()>>,
}

impl Watch for Seen {
    fn is_over(&self) -> bool {
        self.is_over.as_ref().is_some_and(|is_over| is_over())
    }
    fn on_response(&self, seconds: f64, bytes: u64) {
        assert!(seconds > 0.0);
        self.responses.update(|count| count + 1);
        self.bytes.update(|sum| sum + bytes);
    }
    fn on_retry(&self) {
        self.retries.update(|count| count + 1);
    }
    fn on_away(&self, reason: &str) {
        self.away.borrow_mut().push(reason.to_owned());
        if let Some(act) = &self.when_away {
            act();
        }
    }
    fn on_back(&self, seconds: f64) {
        self.back.borrow_mut().push(seconds);
    }
}

/// Options for a stub: no timeout or patience that a test could exceed.
pub fn options(address: &str) -> ServerOptions {
    ServerOptions {
        address: address.to_owned(),
        served_model: None,
        hidden_size: WIDTH,
        dtype: HiddenDtype::Fp32,
        requests_in_flight: 2,
        request_timeout: Duration::from_secs(60),
        patience: Duration::from_secs(120),
        token: None,
    }
}

pub fn server(address: &str) -> TeacherServer {
    TeacherServer::new(options(address)).unwrap()
}

/// Asks for sequences, and checks the rows that come.
pub fn ask(server: &mut TeacherServer, sequences: &[Vec<u32>], seen: &Seen) {
    let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let came = server.hidden_states(&borrowed, seen).unwrap().unwrap();
    let expected: Vec<Vec<u8>> = sequences.iter().map(|tokens| rows(tokens)).collect();
    assert!(came == expected, "the rows are not those of the sequences");
}

/// The error for one sequence of three tokens, if no request is repeated.
pub fn refused(options: ServerOptions) -> ServingError {
    let patience = Duration::ZERO;
    let mut server = TeacherServer::new(ServerOptions {
        patience,
        ..options
    })
    .unwrap();
    let result = server.hidden_states(&[&[1, 2, 3]], &Seen::default());
    result.unwrap_err()
}
