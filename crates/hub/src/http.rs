//! Requests to the Hub. The token goes to the Hub alone, whatever address an answer redirects to.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::crypto::ring;
use serde_json::Value;
use ureq::{
    Agent, Body, Error, Timeout,
    http::{HeaderMap, HeaderValue, Method, Request, Response, Uri},
    tls::{RootCerts, TlsConfig, TlsProvider},
};

use crate::{
    HubError, Name, Options,
    download::Event,
    error::Failure,
    listing::{Content, is_etag},
    name::Kind,
};

/// Maximum number of redirects of a request.
const REDIRECTS: usize = 8;
/// Maximum number of attempts until a server first answers. Without any answer, this machine is probably offline.
const FIRST_ATTEMPTS: u32 = 2;
/// Maximum number of bytes of an answer of the API. The list of a repository with 100,000 files has 20 MB.
const LONGEST_ANSWER: u64 = 1 << 28;
/// Maximum number of bytes of an error's body that are read.
const LONGEST_ERROR: u64 = 1 << 16;
/// Maximum number of characters of the Hub's own words in an error.
const LONGEST_MESSAGE: usize = 300;

/// Connections to the Hub and to the servers that it redirects to.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    endpoint: String,
    authorization: Option<HeaderValue>,
    attempts: u32,
    backoff: Duration,
    /// Whether a server has answered yet.
    has_answered: AtomicBool,
}

impl Http {
    pub(crate) fn new(options: &Options) -> Result<Self, HubError> {
        let endpoint = &options.endpoint;
        if !["http://", "https://"]
            .iter()
            .any(|scheme| endpoint.starts_with(scheme))
        {
            let reason = "expected an address such as https://huggingface.co";
            return Err(HubError::not_a_hub(endpoint, reason));
        }
        let authorization = options.token.as_ref().map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.secret()))?;
            value.set_sensitive(true);
            Ok::<_, ureq::http::header::InvalidHeaderValue>(value)
        });
        let authorization = authorization.transpose().map_err(|_| HubError::BadToken)?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .root_certs(RootCerts::PlatformVerifier);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here, so that the token goes to no other server.
            .max_redirects(0)
            .user_agent(concat!("ddk/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(options.timeout))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout))
            .tls_config(tls.build())
            .build();
        Ok(Self {
            agent: agent.into(),
            endpoint: endpoint.clone(),
            authorization,
            attempts: options.attempts.max(1),
            backoff: options.backoff,
            has_answered: AtomicBool::new(false),
        })
    }

    /// The address of the API's answer about a revision.
    pub(crate) fn api(&self, name: &Name, revision: &str) -> String {
        let (kind, id) = (name.kind().plural(), name.id());
        let revision = encoded(revision, false);
        format!(
            "{}/api/{kind}/{id}/revision/{revision}?blobs=true",
            self.endpoint
        )
    }

    /// The address of a file of a commit.
    pub(crate) fn file(&self, name: &Name, commit: &str, path: &str) -> String {
        let kind = match name.kind() {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        };
        let path = encoded(path, true);
        format!(
            "{}/{kind}{}/resolve/{commit}/{path}",
            self.endpoint,
            name.id()
        )
    }

    /// Gets the JSON at an address.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        name: &Name,
        revision: &str,
        address: &str,
    ) -> Result<T, Failure> {
        let mut answer = self.send(Method::GET, name, revision, address, None)?;
        let body = answer
            .body_mut()
            .with_config()
            .limit(LONGEST_ANSWER)
            .read_to_vec();
        let body = body.map_err(|error| failure(address, error))?;
        let parsed = serde_json::from_slice(&body);
        parsed.map_err(|error| Failure::Final(HubError::not_a_hub(address, error.to_string())))
    }

    /// Gets the bytes of a file from `offset` on. The status of the answer is 200, 206 or 416.
    pub(crate) fn bytes(
        &self,
        name: &Name,
        commit: &str,
        address: &str,
        offset: u64,
    ) -> Result<Response<Body>, Failure> {
        self.send(
            Method::GET,
            name,
            commit,
            address,
            Some(offset).filter(|offset| *offset > 0),
        )
    }

    /// Asks for size and hash of a file.
    pub(crate) fn content(
        &self,
        name: &Name,
        commit: &str,
        address: &str,
    ) -> Result<Content, Failure> {
        let answer = self.send(Method::HEAD, name, commit, address, None)?;
        let header = |names: [&str; 2]| {
            let mut values = names.iter().filter_map(|name| answer.headers().get(*name));
            values.next().and_then(|value| value.to_str().ok())
        };
        let etag = header(["X-Linked-Etag", "ETag"]).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let size = header(["X-Linked-Size", "Content-Length"]).and_then(|size| size.parse().ok());
        match size.filter(|_| is_etag(&etag)) {
            Some(size) => Ok(Content { size, etag }),
            None => {
                let reason = "it names no size and no hash of the file";
                Err(Failure::Final(HubError::not_a_hub(address, reason)))
            }
        }
    }

    /// Sends a request and follows redirects. For the headers of a file alone (`HEAD`), stays on the Hub.
    fn send(
        &self,
        method: Method,
        name: &Name,
        revision: &str,
        address: &str,
        offset: Option<u64>,
    ) -> Result<Response<Body>, Failure> {
        let mut target = address.to_owned();
        for _ in 0..REDIRECTS {
            let own = origin(&target) == origin(&self.endpoint);
            let mut request = Request::builder().method(method.clone()).uri(&target);
            if let Some(token) = self.authorization.as_ref().filter(|_| own) {
                request = request.header("Authorization", token);
            }
            if let Some(offset) = offset {
                request = request.header("Range", format!("bytes={offset}-"));
            }
            let request = request.body(());
            let request =
                request.map_err(|error| HubError::not_a_hub(address, error.to_string()))?;
            let answer = self
                .agent
                .run(request)
                .map_err(|error| failure(&target, error))?;
            self.has_answered.store(true, Ordering::Relaxed);
            let status = answer.status().as_u16();
            match status {
                200 | 206 | 416 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => {
                    let next = redirected(&target, answer.headers());
                    let next = next
                        .ok_or_else(|| HubError::not_a_hub(&target, "it redirects to nowhere"))?;
                    if method == Method::HEAD && origin(&next) != origin(&self.endpoint) {
                        return Ok(answer);
                    }
                    target = next;
                }
                408 | 429 | 500 | 502 | 503 | 504 => {
                    return Err(Failure::Passing(format!(
                        "HTTP status {status} of {target}"
                    )));
                }
                _ if own => {
                    return Err(Failure::Final(
                        self.refusal(name, revision, address, answer),
                    ));
                }
                // A signed address of another server is valid for some minutes only.
                _ => {
                    return Err(Failure::Passing(format!(
                        "HTTP status {status} of {}",
                        origin(&target)
                    )));
                }
            }
        }
        Err(Failure::Final(HubError::not_a_hub(
            address,
            "it redirects without end",
        )))
    }

    /// The error behind an answer of the Hub that refuses a request.
    fn refusal(
        &self,
        name: &Name,
        revision: &str,
        address: &str,
        mut answer: Response<Body>,
    ) -> HubError {
        let status = answer.status().as_u16();
        let header = |header: &str| {
            let value = answer
                .headers()
                .get(header)
                .and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (code, mut reason) = (header("X-Error-Code"), header("X-Error-Message"));
        if reason.is_empty() {
            let mut body = Vec::new();
            // A part of the message is better than none.
            let _ = answer
                .body_mut()
                .as_reader()
                .take(LONGEST_ERROR)
                .read_to_end(&mut body);
            reason = message(&body);
        }
        let (shown, kind) = (name.to_string(), name.kind().word());
        let page = match name.kind() {
            Kind::Model => format!("{}/{}", self.endpoint, name.id()),
            Kind::Dataset => format!("{}/datasets/{}", self.endpoint, name.id()),
        };
        match (status, &*code) {
            // The Hub does not tell a private repository from one that does not exist.
            (401 | 404, "RepoNotFound") | (404, "") => HubError::NoRepository {
                name: name.id().to_owned(),
                kind,
                endpoint: self.endpoint.clone(),
            },
            (404, "RevisionNotFound") => HubError::NoRevision {
                name: name.id().to_owned(),
                kind,
                revision: revision.to_owned(),
            },
            (401 | 403, _) => HubError::NoAccess {
                name: shown,
                page,
                status,
                reason,
                with_token: self.authorization.is_some(),
            },
            _ => HubError::not_a_hub(address, format!("HTTP status {status}: {reason}")),
        }
    }

    /// Repeats a request until it succeeds or fails for good. `work` returns whether it got further than before, which
    /// begins the count of attempts again.
    pub(crate) fn persist<T>(
        &self,
        what: &str,
        tell: &mut dyn FnMut(Event<'_>),
        mut work: impl FnMut(&mut dyn FnMut(Event<'_>)) -> (bool, Result<T, Failure>),
    ) -> Result<T, HubError> {
        let mut failed = 0;
        loop {
            let (progressed, outcome) = work(tell);
            let reason = match outcome {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => reason,
            };
            let attempts = if self.has_answered.load(Ordering::Relaxed) {
                self.attempts
            } else {
                self.attempts.min(FIRST_ATTEMPTS)
            };
            failed = if progressed { 1 } else { failed + 1 };
            if failed >= attempts {
                return Err(HubError::Unreachable {
                    what: what.to_owned(),
                    address: self.endpoint.clone(),
                    attempts,
                    reason,
                });
            }
            let wait = self.backoff * 2_u32.saturating_pow(failed - 1);
            tell(Event::Retries {
                what,
                reason: &reason,
                wait,
            });
            std::thread::sleep(wait);
        }
    }
}

/// The failure behind an error while sending a request or reading its answer.
pub(crate) fn failure(address: &str, error: Error) -> Failure {
    let server = origin(address);
    Failure::Passing(match error {
        Error::Timeout(Timeout::Connect | Timeout::Resolve) => format!("no connection to {server}"),
        Error::Timeout(_) => format!("{server} does not answer"),
        Error::HostNotFound => format!("the host of {server} is not found"),
        // TLS reports a certificate that nobody vouches for as invalid data.
        Error::Io(ref cause) if cause.kind() != io::ErrorKind::InvalidData => {
            format!("{server}: {error}")
        }
        Error::ConnectionFailed | Error::BodyStalled | Error::Protocol(_) => {
            format!("{server}: {error}")
        }
        Error::Rustls(_) | Error::Io(_) => {
            let reason = format!(
                "TLS fails ({error}); to trust its CA, name the CA's file in SSL_CERT_FILE"
            );
            return Failure::Final(HubError::not_a_hub(&server, reason));
        }
        error => return Failure::Final(HubError::not_a_hub(&server, error.to_string())),
    })
}

/// Scheme, host and port of an address.
fn origin(address: &str) -> String {
    let parsed: Option<Uri> = address.parse().ok();
    let parts =
        parsed.and_then(|uri| Some((uri.scheme_str()?.to_owned(), uri.authority()?.to_string())));
    parts.map_or_else(String::new, |(scheme, host)| format!("{scheme}://{host}"))
}

/// The address that an answer redirects to.
fn redirected(from: &str, headers: &HeaderMap) -> Option<String> {
    let target = headers.get("Location")?.to_str().ok()?;
    if target.starts_with("http://") || target.starts_with("https://") {
        return Some(target.to_owned());
    }
    if target.starts_with("//") {
        let (scheme, _) = from.split_once("//")?;
        return Some(format!("{scheme}{target}"));
    }
    if target.starts_with('/') {
        return Some(format!("{}{target}", origin(from)));
    }
    let path = from.split(['?', '#']).next()?;
    let (folder, _) = path.rsplit_once('/')?;
    Some(format!("{folder}/{target}"))
}

/// Encodes text for an address. `slashes`: whether they stay.
fn encoded(text: &str, slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        let stays =
            byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || slashes && byte == b'/';
        if stays {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The message of an error's body: the Hub's JSON, or else the text.
fn message(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = match json.get("error").and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.join(" ") {
        text if text.is_empty() => "no message".to_owned(),
        text => text.chars().take(LONGEST_MESSAGE).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_encoded_and_redirects_resolved() {
        assert_eq!(
            encoded("data/a b+ü.jsonl", true),
            "data/a%20b%2B%C3%BC.jsonl"
        );
        assert_eq!(encoded("refs/pr/7", false), "refs%2Fpr%2F7");
        let to = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("Location", location.parse().unwrap());
            redirected("https://hub:8/a/b?x=1", &headers).unwrap()
        };
        assert_eq!(to("/c?y=2"), "https://hub:8/c?y=2");
        assert_eq!(to("c"), "https://hub:8/a/c");
        assert_eq!(to("//cdn/c"), "https://cdn/c");
        assert_eq!(to("http://cdn/c"), "http://cdn/c");
        assert_ne!(origin("http://hub/a"), origin("https://hub/a"));
        assert_ne!(origin("https://hub/a"), origin("https://hub:8/a"));
    }
}
