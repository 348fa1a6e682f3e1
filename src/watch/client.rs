//! The little of HTTP that asking `ddk`'s own server needs.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ddk_jobs::hint::{Hint, usage};
use serde::de::DeserializeOwned;

use crate::serve::TOKEN;

/// A server that does not answer by then is not there.
const PATIENCE: Duration = Duration::from_secs(5);
/// No answer of the API is nearly as long.
const LONGEST: u64 = 64 << 20;

/// A run's server.
pub struct Client {
    /// `host:port`.
    authority: String,
    /// What follows the path: `?name=…` of `ddk serve`.
    query: String,
    token: Option<String>,
}

impl Client {
    /// For an address such as `http://127.0.0.1:9469`, or that of a run's page in `ddk serve`.
    pub fn new(url: &str, token: Option<String>) -> Result<Self> {
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| anyhow!("{url} does not begin with http://"))
            .hint("for a run on another machine: ssh -L 9469:127.0.0.1:9469 MACHINE, then http://127.0.0.1:9469")
            .usage()?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = place.split('/').next().unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err(usage(anyhow!("{url} names no server")));
        }
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(Self {
            authority: if has_port {
                authority.to_owned()
            } else {
                format!("{authority}:80")
            },
            query: match query {
                "" => String::new(),
                query => format!("?{query}"),
            },
            token,
        })
    }

    /// Asks for a path of the API.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self
            .ask(path)
            .with_context(|| format!("no answer from http://{}", self.authority))?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or_else(|| anyhow!("http://{} does not speak HTTP", self.authority))?;
        match head.split_whitespace().nth(1) {
            Some("200") => serde_json::from_str(body)
                .with_context(|| format!("http://{}{path} is not the API of ddk", self.authority)),
            Some("401") => Err(anyhow!("http://{} asks for its token", self.authority))
                .hint(format!("put it into {TOKEN}")),
            status => Err(anyhow!(
                "http://{}{path} answers {}: {}",
                self.authority,
                status.unwrap_or("nothing"),
                body.trim()
            )),
        }
    }

    fn ask(&self, path: &str) -> Result<String> {
        let address = self
            .authority
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| anyhow!("the name stands for no address"))?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let token = self.token.as_ref().map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        write!(
            stream,
            "GET {path}{} HTTP/1.1\r\nHost: {}\r\n{token}Connection: close\r\n\r\n",
            self.query, self.authority
        )?;
        let mut answer = String::new();
        stream.take(LONGEST).read_to_string(&mut answer)?;
        Ok(answer)
    }
}
