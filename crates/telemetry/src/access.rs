//! Decides who has access to what, before any answer is computed.
//!
//! On a loopback address without a token, anyone on this machine has access. A page of another site whose name was made
//! to resolve to this machine (DNS rebinding) does not: the `Host` must name this machine. With a token, a client
//! without it gets only the health checks. A client sends the token as `Authorization: Bearer`. A browser may send it
//! once as `/?token=…`, and the server turns it into a cookie.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use ddk_run::control::LONGEST_COMMAND;
use tokio::time::timeout;

use crate::places::Place;

/// Accepts commands, only from clients with the token.
pub(crate) const CONTROL: &str = "/api/control";
/// Maximum time to carry out a command. A large checkpoint takes minutes.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(600);

/// Open to everyone: the health checks, which reveal nothing about the run.
const OPEN: [&str; 2] = ["/livez", "/readyz"];

/// Only our own files, nothing inline, no frames, no forms.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The access rules of a server.
#[derive(Debug)]
pub(crate) struct Access {
    /// A hash, because hashes compare in constant time and have the same length whatever the client sent.
    token: Option<blake3::Hash>,
    /// The name of the cookie. Browsers send a host's cookies to all of its ports, so each server has its own name.
    cookie: String,
    answer_timeout: Duration,
}

impl Access {
    pub(crate) fn new(address: SocketAddr, token: Option<&str>, answer_timeout: Duration) -> Self {
        Self {
            token: token.map(|token| blake3::hash(token.as_bytes())),
            cookie: format!("ddk_token_{}", address.port()),
            answer_timeout,
        }
    }

    /// Why the request is refused, or where its client has to go instead; `None` if it may proceed.
    fn refusal(&self, request: &Request) -> Option<Response> {
        if is_command(request) {
            return self.refusal_of_command(request.headers());
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let allow = [(header::ALLOW, "GET, HEAD")];
            let text = "only GET and HEAD are allowed here\n";
            return Some((StatusCode::METHOD_NOT_ALLOWED, allow, text).into_response());
        }
        let headers = request.headers();
        let length = headers.get(header::CONTENT_LENGTH);
        if headers.contains_key(header::TRANSFER_ENCODING)
            || length.is_some_and(|length| length != "0")
        {
            let text = "this request must not have a body\n";
            return Some((StatusCode::PAYLOAD_TOO_LARGE, text).into_response());
        }
        if self.token.is_none() {
            return (!is_this_machine(headers)).then(|| {
                let text = "this address does not name this machine: use http://127.0.0.1 or http://localhost\n";
                (StatusCode::MISDIRECTED_REQUEST, text).into_response()
            });
        }
        if is_open(request) {
            return None;
        }
        match sent_in_query(request) {
            Some(sent) if self.knows(sent) => Some(self.sign_in(sent)),
            None if self.has_bearer(headers) || self.has_cookie(headers) => None,
            _ => Some(unauthorized()),
        }
    }

    /// A command changes the run, so it needs a token even on this machine. A cookie is accepted only in requests from
    /// the server's own page.
    fn refusal_of_command(&self, headers: &HeaderMap) -> Option<Response> {
        let refused = |text: &'static str| Some((StatusCode::FORBIDDEN, text).into_response());
        if self.token.is_none() {
            let text =
                "commands need a token: set telemetry.token, and send it with each command\n";
            return refused(text);
        }
        let length = value_of(headers, header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.parse::<usize>().ok());
        if length.is_none_or(|length| length > LONGEST_COMMAND) {
            let text =
                format!("a command needs a Content-Length of at most {LONGEST_COMMAND} bytes\n");
            return Some((StatusCode::PAYLOAD_TOO_LARGE, text).into_response());
        }
        let has_cookie = self.has_cookie(headers);
        if self.has_bearer(headers) || (has_cookie && is_own_page(headers)) {
            None
        } else if has_cookie {
            refused("a command with a cookie must come from this server's own page\n")
        } else {
            Some(unauthorized())
        }
    }

    /// Whether this is the server's token.
    fn knows(&self, sent: &str) -> bool {
        self.token == Some(blake3::hash(sent.as_bytes()))
    }

    /// Sets a cookie that scripts cannot read and other sites cannot send. Then redirects to the page, without the
    /// token in its address.
    fn sign_in(&self, token: &str) -> Response {
        let cookie = format!("{}={token}; Path=/; HttpOnly; SameSite=Strict", self.cookie);
        let headers = [
            (header::LOCATION, "/".to_owned()),
            (header::SET_COOKIE, cookie),
        ];
        (StatusCode::SEE_OTHER, headers).into_response()
    }

    fn has_bearer(&self, headers: &HeaderMap) -> bool {
        let sent = value_of(headers, header::AUTHORIZATION).and_then(|sent| sent.split_once(' '));
        sent.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case("bearer") && self.knows(token.trim())
        })
    }

    fn has_cookie(&self, headers: &HeaderMap) -> bool {
        let lines = headers.get_all(header::COOKIE).into_iter();
        lines
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .any(|(name, value)| name == self.cookie && self.knows(value))
    }
}

/// Headers of every answer.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Applies the access rules before a request is handled, and adds security headers to the answer.
pub(crate) async fn guard(
    State(access): State<Arc<Access>>,
    Extension(place): Extension<Arc<Place>>,
    request: Request,
    next: Next,
) -> Response {
    let patience = access.answer_timeout;
    let unavailable = |text: &'static str| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    let is_known = access.token.is_none() || !is_open(&request);
    let mut response = if let Some(mut refusal) = access.refusal(&request) {
        // A client without access has no reason to keep its connection.
        let close = HeaderValue::from_static("close");
        refusal.headers_mut().insert(header::CONNECTION, close);
        refusal
    } else if is_known && !place.is_known(patience).await {
        unavailable("too many connections\n")
    } else {
        let longest = is_command(&request).then_some(CONTROL_TIMEOUT);
        let allowance = longest.unwrap_or(patience).max(patience);
        let answer = timeout(allowance, next.run(request)).await;
        answer.unwrap_or_else(|_| unavailable("the answer took too long\n"))
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Whether the request is open to everyone.
fn is_open(request: &Request) -> bool {
    OPEN.contains(&request.uri().path())
}

fn is_command(request: &Request) -> bool {
    *request.method() == Method::POST && request.uri().path() == CONTROL
}

/// Whether the browser says that the request comes from a page of this server.
fn is_own_page(headers: &HeaderMap) -> bool {
    let host = value_of(headers, header::HOST);
    let origin = value_of(headers, header::ORIGIN).and_then(|origin| origin.split_once("://"));
    origin.zip(host).is_some_and(|((scheme, origin), host)| {
        matches!(scheme, "http" | "https") && origin.eq_ignore_ascii_case(host)
    })
}

/// The value of a header, if it is text.
fn value_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn unauthorized() -> Response {
    let headers = [(header::WWW_AUTHENTICATE, "Bearer")];
    let text =
        "a token is required: send Authorization: Bearer …, or open /?token=… once in a browser\n";
    (StatusCode::UNAUTHORIZED, headers, text).into_response()
}

/// Returns the token in `/?token=…`. A token has only characters that a URL needs no escapes for.
fn sent_in_query(request: &Request) -> Option<&str> {
    let uri = request.uri();
    let query = uri.query().filter(|_| uri.path() == "/")?;
    query
        .split('&')
        .find_map(|part| part.strip_prefix("token="))
}

/// Whether the `Host` header names this machine. The port does not matter, because it may be a tunnel's.
fn is_this_machine(headers: &HeaderMap) -> bool {
    let host = value_of(headers, header::HOST).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_taken() {
        let is_ours = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            is_this_machine(&headers)
        };
        for host in [
            "localhost",
            "localhost:1234",
            "127.0.0.1:9469",
            "127.0.0.2",
            "[::1]:9469",
            "[::1]",
        ] {
            assert!(is_ours(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9469",
            "localhost.evil.example",
            "10.0.0.1:9469",
            "127.0.0.1.evil.example",
            "[::2]:80",
        ] {
            assert!(!is_ours(host), "{host}");
        }
        assert!(!is_this_machine(&HeaderMap::new()));
    }
}
