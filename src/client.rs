//! HTTP client of a run's server: reads parts of the run and sends commands.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ddk_jobs::hint::{Hint, usage};
use ddk_run::control::{Answer, Command};
use serde::de::DeserializeOwned;
use ureq::{Agent, http::Uri};

use crate::serve::TOKEN;

/// Timeout after which a server counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum length of an answer, far above any answer of the API.
const LONGEST: u64 = 64 << 20;

/// A client of a run's server.
pub struct Client {
    agent: Agent,
    /// `http://host:port`.
    base: String,
    /// The query that follows the path: `?name=…` for `ddk serve`.
    query: String,
    token: Option<String>,
}

impl Client {
    /// Creates a client for an address such as `http://127.0.0.1:9469`, or for the address of a run's page in
    /// `ddk serve`.
    ///
    /// # Errors
    /// If `url` does not begin with `http://` or names no server.
    pub fn new(url: &str, token: Option<String>) -> Result<Self> {
        if !url.starts_with("http://") {
            return Err(anyhow!("{url} does not start with http://"))
                .hint("for a run on another machine: ssh -L 9469:127.0.0.1:9469 MACHINE, then http://127.0.0.1:9469")
                .usage();
        }
        let uri = url.parse::<Uri>();
        let uri = uri.with_context(|| format!("{url} is not a valid URL"));
        let uri = uri.usage()?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.is_empty() || authority.contains('@') {
            return Err(usage(anyhow!(
                "{url} does not name a server, expected http://HOST:PORT"
            )));
        }
        let agent = Agent::config_builder()
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_recv_body(Some(6 * PATIENCE))
            .http_status_as_error(false)
            // The token must not go to any other server.
            .max_redirects(0)
            .proxy(None)
            .build();
        let query = uri.query().map(|query| format!("?{query}"));
        Ok(Self {
            agent: agent.into(),
            base: format!("http://{authority}"),
            query: query.unwrap_or_default(),
            token,
        })
    }

    /// Sends a command and returns the answer.
    ///
    /// # Errors
    /// If the server does not answer, requires a token, reports an error, or is not a server of ddk. A refused command
    /// is an answer, not an error.
    pub fn command(&self, command: &Command) -> Result<Answer> {
        let base = &self.base;
        let mut request = self.agent.post(format!("{base}/api/control{}", self.query));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        // A checkpoint or an evaluation may take any amount of time.
        let request = request.config().timeout_recv_response(None).build();
        let answer = request.send_json(command);
        let mut answer = answer.with_context(|| format!("no answer from {base}"))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LONGEST);
        match status {
            200 | 400 | 409 => body.read_json().with_context(|| {
                format!("the answer of {base}/api/control is not from the ddk API")
            }),
            401 | 403 if self.token.is_none() => {
                Err(anyhow!("{base} accepts commands only with its token"))
                    .hint(format!("set {TOKEN} to it"))
            }
            status => {
                let said = body.read_to_string().unwrap_or_default();
                Err(anyhow!(
                    "{base}/api/control answers {status}: {}",
                    said.trim()
                ))
            }
        }
    }

    /// Gets a path of the API. Adds `query` to the query of the client's address.
    ///
    /// # Errors
    /// If the server does not answer, requires a token, reports an error, or is not a server of ddk.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T> {
        let base = &self.base;
        let mut request = self.agent.get(format!("{base}{path}{}", self.query));
        request = request.query_pairs(query.iter().copied());
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = request.call();
        let mut answer = answer.with_context(|| format!("no answer from {base}"))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LONGEST);
        match status {
            200 => body
                .read_json()
                .with_context(|| format!("the answer of {base}{path} is not from the ddk API")),
            401 => Err(anyhow!("{base} requires its token")).hint(format!("set {TOKEN} to it")),
            status => {
                let said = body.read_to_string().unwrap_or_default();
                Err(anyhow!("{base}{path} answers {status}: {}", said.trim()))
            }
        }
    }
}
