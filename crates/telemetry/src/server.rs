//! The HTTP server.

use std::{fmt::Write, io, net::SocketAddr};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::Recorder;

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program has the port.
    #[error("the port of {0} is in use by another program")]
    PortInUse(SocketAddr),
    /// Anything else.
    #[error("cannot serve on {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves `/metrics` (Prometheus' text format), `/livez` (503 where a worker has computed beyond its limit) and `/readyz` (503
/// until training goes on).
pub async fn serve(address: SocketAddr, recorder: Recorder) -> Result<Server, ServeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::PortInUse(address),
            _ => ServeError::Bind { address, source },
        })?;
    let address = listener
        .local_addr()
        .map_err(|source| ServeError::Bind { address, source })?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(recorder);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(Server { address, task })
}

async fn metrics(State(recorder): State<Recorder>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        recorder.render(),
    )
}

async fn live(State(recorder): State<Recorder>) -> impl IntoResponse {
    let unhealthy = recorder.board().unhealthy();
    if unhealthy.is_empty() {
        return (StatusCode::OK, "live\n".to_owned());
    }
    let text = unhealthy
        .iter()
        .fold(String::new(), |mut text, (worker, computing)| {
            let _ = writeln!(
                text,
                "{worker} has computed for {:.0} s",
                computing.as_secs_f64()
            );
            text
        });
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn ready(State(recorder): State<Recorder>) -> impl IntoResponse {
    if recorder.board().is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n")
    }
}
