//! The HTTP server. It has its own thread, so that neither reading a long run's files nor a slow client slows down
//! training.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use ddk_run::{
    RunView, Source as Asker,
    control::{Answer, Command, Refusal},
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
use serde::Serialize;
use strum::VariantNames;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, timeout_at},
};

use crate::{
    Limits, Recorder, Site,
    access::{Access, CONTROL, guard},
    api::{Event, Lanes, Status},
    chart, files, pages,
    places::Places,
    site::{Runs, Source},
    timeline::SAMPLE,
};

/// Extra time for the last answers to reach their clients.
const FLUSH: Duration = Duration::from_millis(250);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program has the port.
    #[error("the port of {0} is in use by another program")]
    PortInUse(SocketAddr),
    /// Other machines could reach the server and request anything.
    #[error("other machines can reach {0}, but no token is set")]
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

/// A running server. Dropping it ends the server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// Dropped to end the server at once.
    orders: Option<mpsc::UnboundedSender<Finish>>,
    thread: Option<JoinHandle<()>>,
}

/// An order to finish.
#[derive(Debug)]
struct Finish {
    patience: Duration,
    /// Dropped when it is done.
    done: std::sync::mpsc::Sender<()>,
}

impl Server {
    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells all watchers how the run has ended, then ends the server. The board must already have the final state.
    /// Every client that recently requested the status can request it once more, within `patience`. Returns at once if
    /// there are no watchers.
    pub fn finish(&self, patience: Duration) {
        let (done, finished) = std::sync::mpsc::channel();
        let order = Finish { patience, done };
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        if let Some(Ok(())) = sent {
            // The server never sends anything here. It drops its end when it is done.
            let _ = finished.recv_timeout(patience + FLUSH);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves a site: the pages, `/api/…`, `/metrics` (Prometheus' text format), `/livez` (503 if a worker has computed
/// beyond its limit) and `/readyz` (503 until the run trains). See `docs/api.md`. A rank other than 0 answers only the
/// last two.
///
/// # Errors
/// If other machines can reach `address` and there is no token, if the port is in use, or if the server cannot start.
pub fn serve(address: SocketAddr, site: Site) -> Result<Server, ServeError> {
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
    let (orders, finish) = mpsc::unbounded_channel();
    let thread = thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            if let Err(error) = runtime.block_on(work(listener, bound, site, finish)) {
                tracing::error!(%error, "the HTTP server ended");
            }
            // Do not wait for file reads in progress.
            runtime.shutdown_timeout(Duration::from_millis(100));
        })
        .map_err(bind)?;
    Ok(Server {
        address: bound,
        orders: Some(orders),
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
    let access = Access::new(address, site.token.as_deref(), limits.answer_timeout);
    let site = Arc::new(site);
    let router =
        router(Arc::clone(&site)).layer(middleware::from_fn_with_state(Arc::new(access), guard));
    tokio::spawn(sampling(Arc::clone(&site)));
    let (places, connections) = (Places::new(&limits), GracefulShutdown::new());
    let (until, done) = {
        let mut accepting = pin!(accept(listener, router, limits, &places, &connections));
        let order = tokio::select! {
            ended = &mut accepting => return ended,
            order = orders.recv() => order,
        };
        let Some(Finish { patience, done }) = order else {
            return Ok(());
        };
        let until = Instant::now() + patience;
        tokio::select! {
            ended = &mut accepting => return ended,
            _ = timeout_at(until, site.farewell()) => {}
        }
        (until, done)
    };
    // Silent clients wait for nothing. The others still read their answers.
    places.send_strangers_away();
    let _ = timeout_at(until + FLUSH, connections.shutdown()).await;
    drop(done);
    Ok(())
}

/// Samples what the workers do, whether or not a client is watching.
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
                // Out of file descriptors, or the client is already gone.
                tracing::warn!(%error, "cannot accept a connection");
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
                // It does not matter how a client ends its connection.
                _ = connection => {}
                () = place.has_to_leave() => {}
            }
        });
    }
}

fn router(site: Arc<Site>) -> Router {
    let health = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready));
    let router = match &site.runs {
        Runs::Elsewhere => return health.with_state(site),
        Runs::One(_) => Router::new().route("/", get(|| pages::page(pages::RUN))),
        Runs::Many(_) => Router::new()
            .route("/", get(|| pages::page(pages::RUNS)))
            .route("/run", get(|| pages::page(pages::RUN)))
            .route("/api/runs", get(runs)),
    };
    router
        .merge(pages::files())
        .route("/api/status", about(status))
        .route("/api/steps", about(|run, _| run.look(RunView::steps)))
        .route("/api/mixture", about(|run, _| run.look(RunView::mixture)))
        .route("/api/events", about(|run, _| run.look(Event::all)))
        .route("/api/texts", about(|run, _| run.look(RunView::texts)))
        .route("/api/workers", about(workers))
        .route("/api/chart/{name}", get(chart::chart))
        .route("/api/files", about(|run, _| run.look(files::list)))
        .route("/api/file/{name}", get(files::file))
        .route("/report", get(files::report))
        .route(CONTROL, get(commands).post(control))
        .route("/metrics", get(metrics))
        .merge(health)
        .with_state(site)
}

/// The keys and values of a query `?name=NAME&…`.
pub(crate) type Pairs = [(String, String)];
/// A request to the API, with its query.
pub(crate) type Asked = (State<Arc<Site>>, Query<Vec<(String, String)>>);

/// Answers with what `ask` returns for the run that the query names, and for the query itself.
fn about<T: Serialize + Send + 'static>(ask: fn(&Source, &Pairs) -> T) -> MethodRouter<Arc<Site>> {
    get(move |(State(site), Query(query)): Asked| {
        answer(move || {
            let source = site.runs.find(values(&query, "name").next())?;
            Some(ask(&source, &query))
        })
    })
}

fn status(run: &Source, query: &Pairs) -> Status {
    run.watched_status(values(query, "watcher").next().unwrap_or_default())
}

fn workers(run: &Source, query: &Pairs) -> Lanes {
    let from = values(query, "from").find_map(|from| from.parse().ok());
    run.lanes(from.unwrap_or(0))
}

/// Lists the commands that [`control`] accepts.
async fn commands(State(site): State<Arc<Site>>) -> Json<&'static [&'static str]> {
    let takes_commands = site.control.is_some() && site.token.is_some();
    let commands = takes_commands.then_some(Command::VARIANTS);
    Json(commands.unwrap_or_default())
}

/// Passes a command to the run and answers with the outcome.
async fn control(State(site): State<Arc<Site>>, body: Bytes) -> Response {
    let Some(control) = &site.control else {
        return (StatusCode::NOT_FOUND, "no run here accepts commands\n").into_response();
    };
    let (status, outcome) = match serde_json::from_slice(&body) {
        Ok(command) => match Arc::clone(control).ask(command, Asker::Http).await {
            Ok(reply) => (StatusCode::OK, Ok(reply)),
            Err(refusal) => (StatusCode::CONFLICT, Err(refusal)),
        },
        Err(error) => {
            let refusal = Refusal(format!("not a command: {error}"));
            (StatusCode::BAD_REQUEST, Err(refusal))
        }
    };
    (status, Json(Answer::from(outcome))).into_response()
}

/// The values of a key in a query.
pub(crate) fn values<'a>(query: &'a Pairs, key: &'static str) -> impl Iterator<Item = &'a str> {
    let pairs = query.iter().filter(move |(name, _)| name == key);
    pairs.map(|(_, value)| value.as_str())
}

async fn runs(State(site): State<Arc<Site>>) -> Response {
    let all = move || match &site.runs {
        Runs::Many(folder) => Some(folder.all()),
        Runs::One(_) | Runs::Elsewhere => None,
    };
    answer(all).await
}

async fn answer<T: Serialize + Send + 'static>(
    ask: impl FnOnce() -> Option<T> + Send + 'static,
) -> Response {
    let answer = blocking(ask).await;
    answer.map_or_else(no_such_run, |answer| Json(answer).into_response())
}

/// Runs `ask` on a thread that may wait for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    let asked = tokio::task::spawn_blocking(ask).await;
    asked
        .inspect_err(|error| tracing::error!(%error, "cannot answer a request"))
        .ok()
        .flatten()
}

pub(crate) fn no_such_run() -> Response {
    (StatusCode::NOT_FOUND, "no such run, chart or file\n").into_response()
}

async fn metrics(State(site): State<Arc<Site>>) -> Response {
    let Some(recorder) = &site.recorder else {
        let text = "no run of this process has metrics\n";
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], recorder.render()).into_response()
}

async fn live(State(site): State<Arc<Site>>) -> impl IntoResponse {
    let recorder = site.recorder.iter();
    let unhealthy = recorder.flat_map(|recorder| recorder.board.unhealthy());
    let lines = unhealthy.map(|(worker, computing)| {
        let seconds = computing.as_secs_f64();
        format!("{worker} has computed for {seconds:.0} s\n")
    });
    match lines.collect::<String>() {
        text if text.is_empty() => (StatusCode::OK, "live\n".to_owned()),
        text => (StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

async fn ready(State(site): State<Arc<Site>>) -> impl IntoResponse {
    let is_ready = |recorder: &Recorder| recorder.board.is_ready();
    if site.recorder.as_ref().is_none_or(is_ready) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n")
    }
}
