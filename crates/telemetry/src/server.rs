//! The HTTP server: a thread of its own, so that neither reading a long run's files nor a slow client is felt
//! by training.

use std::{
    fmt::Write,
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, timeout_at},
};

use crate::{
    Limits, Recorder, Site,
    access::guard,
    api::RunEntry,
    pages,
    places::Places,
    site::{Runs, Source},
    stream::stream,
    timeline::SAMPLE,
};

/// What was answered may take so long to reach a client.
const FLUSH: Duration = Duration::from_millis(250);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program has the port.
    #[error("the port of {0} is in use by another program")]
    PortInUse(SocketAddr),
    /// Others than this machine would reach it, and could ask for anything.
    #[error("{0} is reached by other machines, and there is no token to ask them for")]
    NeedsToken(SocketAddr),
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
    orders: mpsc::UnboundedSender<Finish>,
    /// Dropped to end it at once.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// To be finished with.
#[derive(Debug)]
struct Finish {
    patience: Duration,
    /// Dropped when it is done.
    done: std::sync::mpsc::Sender<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells everybody who watches how the run has ended, which the board has to say by now, and ends. Open
    /// streams get a last status, and whoever asks now and then one more answer, all within `patience`; where
    /// nobody watches, this returns at once.
    pub fn finish(&self, patience: Duration) {
        let (done, finished) = std::sync::mpsc::channel();
        if self.orders.send(Finish { patience, done }).is_ok() {
            // Nothing is ever sent: the other end goes.
            let _ = finished.recv_timeout(patience + FLUSH);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves a site: the pages, `/api/…`, `/metrics` (Prometheus' text format), `/livez` (503 where a worker has
/// computed beyond its limit) and `/readyz` (503 until training goes on). See `docs/api.md`.
pub fn serve(address: SocketAddr, site: impl Into<Site>) -> Result<Server, ServeError> {
    let site = site.into();
    if !address.ip().is_loopback() && site.token.is_none() {
        return Err(ServeError::NeedsToken(address));
    }
    let bind = |source| ServeError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::PortInUse(address),
        _ => bind(source),
    })?;
    let bound = listener.local_addr().map_err(bind)?;
    listener.set_nonblocking(true).map_err(bind)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(bind)?;
    let (running, stopped) = oneshot::channel();
    let (orders, finish) = mpsc::unbounded_channel();
    let thread = thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            let ended = runtime.block_on(async {
                tokio::select! {
                    // Also where the other end is gone.
                    _ = stopped => Ok(()),
                    ended = work(listener, bound, site, finish) => ended,
                }
            });
            if let Err(error) = ended {
                tracing::error!(%error, "the HTTP server ended");
            }
            // A read of files that goes on is not waited for.
            runtime.shutdown_timeout(Duration::from_millis(100));
        })
        .map_err(bind)?;
    Ok(Server {
        address: bound,
        orders,
        running: Some(running),
        thread: Some(thread),
    })
}

async fn work(
    listener: TcpListener,
    address: SocketAddr,
    site: Site,
    mut orders: mpsc::UnboundedReceiver<Finish>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let limits = site.limits;
    let access = Arc::new(site.access(address));
    let site = Arc::new(site);
    let router = router(Arc::clone(&site)).layer(middleware::from_fn_with_state(access, guard));
    tokio::spawn(sampling(Arc::clone(&site)));
    let (places, connections) = (Places::new(&limits), GracefulShutdown::new());
    let (until, done) = {
        let mut accepting = pin!(accept(listener, router, limits, &places, &connections));
        let Finish { patience, done } = tokio::select! {
            ended = &mut accepting => return ended,
            Some(order) = orders.recv() => order,
        };
        let until = Instant::now() + patience;
        tokio::select! {
            ended = &mut accepting => return ended,
            _ = timeout_at(until, site.farewell()) => {}
        }
        (until, done)
    };
    // Silent clients have nothing to wait for; the others still read their answers.
    places.send_strangers_away();
    let _ = timeout_at(until + FLUSH, connections.shutdown()).await;
    drop(done);
    Ok(())
}

/// Takes down what the workers do, whether or not somebody looks.
async fn sampling(site: Arc<Site>) {
    let Runs::One(source) = &site.runs else {
        return;
    };
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        source.sample();
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    router: Router,
    limits: Limits,
    places: &Arc<Places>,
    connections: &GracefulShutdown,
) -> io::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(64)
        .max_buf_size(limits.request_bytes.max(8 << 10));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a client that was gone already.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = places.enter(peer.ip());
        let (service, of_request) = (router.clone(), Arc::clone(&place));
        let service = TowerToHyperService::new(service);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Arc::clone(&of_request));
            service.call(request)
        });
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = connections.watcher().watch(connection);
        tokio::spawn(async move {
            tokio::select! {
                // How a client ends its connection is its own matter.
                _ = connection => {}
                () = place.has_to_leave() => {}
            }
        });
    }
}

fn router(site: Arc<Site>) -> Router {
    let router = match &site.runs {
        Runs::None => Router::new(),
        Runs::One(_) => Router::new().route("/", get(|| pages::page(pages::RUN))),
        Runs::Many(_) => Router::new()
            .route("/", get(|| pages::page(pages::RUNS)))
            .route("/run", get(|| pages::page(pages::RUN)))
            .route("/api/runs", get(runs)),
    };
    let router = match site.runs {
        Runs::None => router,
        _ => router
            .merge(pages::files())
            .route("/api/run", get(run))
            .route("/api/mixture", get(mixture))
            .route("/api/events", get(events))
            .route("/api/stream", get(news)),
    };
    router
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(site)
}

/// Which run is asked for, where there are several.
#[derive(Deserialize)]
struct Which {
    name: Option<String>,
}

async fn run(site: State<Arc<Site>>, which: Query<Which>) -> Response {
    answer(site, which, Source::asked_for_reply).await
}

async fn mixture(site: State<Arc<Site>>, which: Query<Which>) -> Response {
    answer(site, which, |source| {
        source.look(|history, _| history.mixture())
    })
    .await
}

async fn events(site: State<Arc<Site>>, which: Query<Which>) -> Response {
    answer(site, which, |source| {
        source.look(|history, _| history.events())
    })
    .await
}

async fn news(State(site): State<Arc<Site>>, Query(which): Query<Which>) -> Response {
    let ended = site.ended.subscribe();
    match blocking(move || site.runs.find(which.name.as_deref())).await {
        Some(source) => stream(source, ended).into_response(),
        None => no_such_run(),
    }
}

async fn runs(State(site): State<Arc<Site>>) -> Response {
    let entries = blocking(move || {
        let Runs::Many(folder) = &site.runs else {
            return None;
        };
        let entry = |(name, source): (String, Arc<Source>)| RunEntry {
            name,
            status: source.status(),
        };
        Some(folder.all().into_iter().map(entry).collect::<Vec<_>>())
    });
    entries
        .await
        .map_or_else(no_such_run, |entries| Json(entries).into_response())
}

async fn answer<T: serde::Serialize + Send + 'static>(
    State(site): State<Arc<Site>>,
    Query(which): Query<Which>,
    ask: impl FnOnce(&Source) -> T + Send + 'static,
) -> Response {
    let asked = blocking(move || {
        let source = site.runs.find(which.name.as_deref())?;
        Some(ask(&source))
    });
    asked
        .await
        .map_or_else(no_such_run, |answer| Json(answer).into_response())
}

/// Reads files on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    let asked = tokio::task::spawn_blocking(ask).await;
    asked
        .inspect_err(|error| tracing::error!(%error, "a question could not be answered"))
        .ok()
        .flatten()
}

fn no_such_run() -> Response {
    (StatusCode::NOT_FOUND, "there is no such run\n").into_response()
}

async fn metrics(State(site): State<Arc<Site>>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    match &site.recorder {
        Some(recorder) => (kind, recorder.render()).into_response(),
        None => (
            StatusCode::NOT_FOUND,
            "no run of this process has metrics\n",
        )
            .into_response(),
    }
}

async fn live(State(site): State<Arc<Site>>) -> impl IntoResponse {
    let unhealthy = site
        .recorder
        .as_ref()
        .map_or_else(Vec::new, |recorder| recorder.board().unhealthy());
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

async fn ready(State(site): State<Arc<Site>>) -> impl IntoResponse {
    let is_ready = |recorder: &Recorder| recorder.board().is_ready();
    if site.recorder.as_ref().is_none_or(is_ready) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n")
    }
}
