//! Errors of a teacher's server.

use crate::options::TOKEN;

/// A failure that waiting cannot repair, or an outage that lasted too long.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The address does not name a server.
    #[error(
        "the teacher server's address {address:?} {problem}; expected http://HOST:PORT or https://HOST:PORT"
    )]
    BadAddress {
        /// The address, without the user that it may name.
        address: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The token cannot be sent in a header.
    #[error(
        "the token in {TOKEN} has a character that HTTP does not allow (a line break?); set it to the token only"
    )]
    BadToken,
    /// The server did not answer for longer than the patience, or not at all when asked once.
    #[error(
        "the teacher server at {address} {}: {reason}; check the address and the server's log, and restart \
         the server if it is down",
        silence(*.seconds)
    )]
    Away {
        /// The server's address.
        address: String,
        /// Seconds since the first failure; 0 after a single attempt.
        seconds: f64,
        /// The last failure.
        reason: String,
    },
    /// The server requires a token, or another one.
    #[error(
        "the teacher server at {address} requires a valid token (HTTP status {status}); set {TOKEN} to the \
         server's --api-key"
    )]
    Unauthorized {
        /// The server's address.
        address: String,
        /// 401 or 403.
        status: u16,
    },
    /// The server refused a request that it would refuse again.
    #[error(
        "the teacher server at {address} refused a request with HTTP status {status}: {message}; expected vLLM, \
         started with: {command}"
    )]
    Refused {
        /// The server's address.
        address: String,
        /// The HTTP status.
        status: u16,
        /// The server's message, up to 500 characters.
        message: String,
        /// The command that starts a server that DDK can use.
        command: String,
    },
    /// What answers is not vLLM, or cannot be trusted.
    #[error("DDK cannot use the server at {address} as the teacher: {reason}")]
    Unusable {
        /// The server's address.
        address: String,
        /// What it answered, or why TLS fails, and what to do.
        reason: String,
    },
    /// An answer is not the hidden states of the sequences that were sent.
    #[error("the teacher server at {address} answered with {came}; expected {expected}")]
    WrongShape {
        /// The server's address.
        address: String,
        /// What came.
        came: String,
        /// What DDK expected, and what to do.
        expected: String,
    },
    /// The rows have length 1, so the server normalizes them and the logits are lost.
    #[error(
        "the teacher server at {address} normalizes the hidden states (every row has length 1); \
         start it with use_activation false: {command}"
    )]
    Normalized {
        /// The server's address.
        address: String,
        /// The command that starts a server that DDK can use.
        command: String,
    },
    /// A sequence does not fit into the server's context with one position to spare.
    #[error(
        "the teacher server at {address} has a context of {context} tokens, expected at least {needed} (one more than \
         the longest sequence); start it with: {command}"
    )]
    ContextTooShort {
        /// The server's address.
        address: String,
        /// The server's `max_model_len`.
        context: usize,
        /// The context that the longest sequence needs: its length and one.
        needed: usize,
        /// The command that starts a server that DDK can use.
        command: String,
    },
    /// The server does not serve the model, or serves several and none was named.
    #[error("the teacher server at {address} serves {}; {}", list(.served), wanted(.asked.as_deref()))]
    NoModel {
        /// The server's address.
        address: String,
        /// The name of the served model in the settings.
        asked: Option<String>,
        /// The names of the models that the server lists.
        served: Vec<String>,
    },
}

fn silence(seconds: f64) -> String {
    match seconds {
        0.0..0.05 => "does not answer".to_owned(),
        _ => format!("has not answered for {seconds:.1} s"),
    }
}

fn list(served: &[String]) -> String {
    match served {
        [] => "no model".to_owned(),
        names => names.join(", "),
    }
}

fn wanted(asked: Option<&str>) -> String {
    match asked {
        Some(asked) => format!("expected {asked}: correct teacher.served_model"),
        None => "expected one model: name it in teacher.served_model".to_owned(),
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// May pass: the same request is worth another attempt.
    Passing(String),
    /// Would fail again.
    Final(ServingError),
}
