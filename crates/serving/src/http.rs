//! One HTTP request: sends it, and tells a failure that may pass from one that stays.

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use rustls::crypto::ring;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::{
    Agent, Body, Error, Timeout,
    http::{HeaderValue, Response},
    tls::{RootCerts, TlsConfig, TlsProvider},
};

use crate::{ServerOptions, ServingError, command::any_command, error::Failure, options::checked};

/// Maximum time for a connection. A host that drops packets answers nothing at all.
const CONNECT: Duration = Duration::from_secs(10);
/// Maximum idle time of a connection. vLLM closes it after 5 s, and a request at that moment would be lost.
const IDLE: Duration = Duration::from_secs(4);
/// Maximum length of the headers. vLLM describes each sequence in one of them, in about 130 bytes.
const LONGEST_HEADER: usize = 1 << 20;
/// Maximum number of bytes of an error's body that are read.
const LONGEST_BODY: u64 = 1 << 16;
/// Maximum number of characters of a server's message.
const LONGEST_MESSAGE: usize = 500;

/// Connections to a server, which requests share.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    /// The address, without a slash at its end.
    pub(crate) base: String,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

impl Http {
    pub(crate) fn new(options: &ServerOptions) -> Result<Self, ServingError> {
        let bearer = |token: &String| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
            value.set_sensitive(true);
            Ok::<_, ureq::http::header::InvalidHeaderValue>(value)
        };
        let authorization = options.token.as_ref().map(bearer).transpose();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .root_certs(RootCerts::PlatformVerifier);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // The token must not go to any other server.
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(options.request_timeout))
            .timeout_connect(Some(options.request_timeout.min(CONNECT)))
            .max_idle_connections(options.requests_in_flight)
            .max_idle_connections_per_host(options.requests_in_flight)
            .max_idle_age(IDLE)
            .max_response_header_size(LONGEST_HEADER)
            // Headers must fit. If they do not, ureq says so only where there is more room.
            .input_buffer_size(LONGEST_HEADER + 1)
            .tls_config(tls.build())
            .build();
        Ok(Self {
            agent: agent.into(),
            base: checked(&options.address)?,
            authorization: authorization.map_err(|_| ServingError::BadToken)?,
            timeout: options.request_timeout,
        })
    }

    /// Gets the JSON at a path.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(token) = &self.authorization {
            request = request.header("Authorization", token);
        }
        let mut answer = self.accepted(request.call())?;
        let body = answer.body_mut().read_to_vec();
        let body = body.map_err(|error| self.failure(error))?;
        let parsed = serde_json::from_slice(&body);
        parsed.map_err(|error| self.unusable(format!("{path} is not as expected ({error})")))
    }

    /// Posts JSON to a path. The answer has status 200, and its body is not read yet.
    pub(crate) fn post(&self, path: &str, json: &[u8]) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        if let Some(token) = &self.authorization {
            request = request.header("Authorization", token);
        }
        self.accepted(
            request
                .header("Content-Type", "application/json")
                .send(json),
        )
    }

    fn accepted(&self, sent: Result<Response<Body>, Error>) -> Result<Response<Body>, Failure> {
        let mut response = sent.map_err(|error| self.failure(error))?;
        let (address, status) = (self.base.clone(), response.status().as_u16());
        if status == 200 {
            return Ok(response);
        }
        let mut body = Vec::new();
        // A part of the message is better than none.
        let _ = response
            .body_mut()
            .as_reader()
            .take(LONGEST_BODY)
            .read_to_end(&mut body);
        let mut message = message(&body);
        if let Some(target) = response.headers().get("Location") {
            message = format!(
                "it redirects to {}",
                String::from_utf8_lossy(target.as_bytes())
            );
        }
        Err(match status {
            401 | 403 => Failure::Final(ServingError::Unauthorized { address, status }),
            408 | 429 | 500 | 502 | 503 | 504 => {
                Failure::Passing(format!("HTTP status {status}: {message}"))
            }
            _ => Failure::Final(ServingError::Refused {
                address,
                status,
                message,
                command: any_command(),
            }),
        })
    }

    /// The failure behind an error while sending a request or reading its answer.
    pub(crate) fn failure(&self, error: Error) -> Failure {
        Failure::Passing(match error {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                format!("no connection within {:?}", self.timeout.min(CONNECT))
            }
            Error::Timeout(_) => format!("no answer within {:?}", self.timeout),
            Error::HostNotFound => "its host is not found".to_owned(),
            Error::ConnectionFailed | Error::BodyStalled => error.to_string(),
            Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the server closed the connection before the end of its answer".to_owned()
            }
            // TLS reports a certificate that nobody vouches for as invalid data.
            Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => error.to_string(),
            Error::Io(error) => return self.untrusted(error.to_string()),
            Error::Rustls(error) => return self.untrusted(error.to_string()),
            error => return self.unusable(error.to_string()),
        })
    }

    fn untrusted(&self, reason: String) -> Failure {
        let remedy = "to trust its CA, name the CA's file in SSL_CERT_FILE";
        Failure::Final(ServingError::Unusable {
            address: self.base.clone(),
            reason: format!("TLS fails ({reason}); {remedy}"),
        })
    }

    /// The failure of a server that does not speak as vLLM does.
    pub(crate) fn unusable(&self, reason: String) -> Failure {
        Failure::Final(ServingError::Unusable {
            address: self.base.clone(),
            reason: format!("{reason}; expected vLLM, started with: {}", any_command()),
        })
    }
}

/// The message of an error's body: vLLM's JSON in its forms, or else the text.
fn message(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let places = ["/error/message", "/message", "/error", "/detail"];
    let found = places.iter().find_map(|place| json.pointer(place));
    let text = match found {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
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
    fn a_message_is_found_in_every_form() {
        for (body, expected) in [
            (
                r#"{"error":{"message":"too long","type":"BadRequestError","code":400}}"#,
                "too long",
            ),
            (r#"{"object":"error","message":"too long"}"#, "too long"),
            (r#"{"error":"Unauthorized"}"#, "Unauthorized"),
            (r#"{"detail":[{"msg":"bad"}]}"#, r#"[{"msg":"bad"}]"#),
            ("<h1>Bad\n  gateway</h1>", "<h1>Bad gateway</h1>"),
            ("", "no message"),
        ] {
            assert_eq!(message(body.as_bytes()), expected);
        }
        assert_eq!(message("ä".repeat(501).as_bytes()), "ä".repeat(500));
    }
}
