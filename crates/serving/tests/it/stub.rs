//! A server that answers each request as a test says.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

/// Numbers per row.
pub const WIDTH: usize = 8;
/// The stub's `max_model_len`.
pub const CONTEXT: usize = 100;

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    /// By lowercase names.
    pub headers: BTreeMap<String, String>,
    pub body: Value,
}

impl Request {
    pub fn sequences(&self) -> Vec<Vec<u32>> {
        serde_json::from_value(self.body["input"].clone()).unwrap()
    }
}

/// What the server does.
pub enum Reply {
    /// Sends these bytes, and waits for the next request.
    Send(Vec<u8>),
    /// Sends these bytes, which may be none, and closes the connection.
    Close(Vec<u8>),
    /// Waits until the client closes the connection.
    Never,
}

pub type Answer = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// A server that runs until the tests end.
pub struct Stub {
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl Stub {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    pub fn on(
        listener: TcpListener,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let log = requests.clone();
        let answer: Answer = Arc::new(move |request| {
            log.lock().unwrap().push(request.clone());
            answer(request)
        });
        let address = format!("http://{}", listener.local_addr().unwrap());
        let opened = connections.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                opened.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                thread::spawn(move || converse(stream.unwrap(), &answer));
            }
        });
        Self {
            address,
            requests,
            connections,
        }
    }

    /// The requests to `/pooling` so far.
    pub fn pooled(&self) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        let pooled = requests.iter().filter(|request| request.path == "/pooling");
        pooled.cloned().collect()
    }

    /// The connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Answers the requests of a connection.
pub fn converse(stream: impl Read + Write, answer: &Answer) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = receive(&mut stream) {
        let (bytes, closes) = match answer(&request) {
            Reply::Send(bytes) => (bytes, false),
            Reply::Close(bytes) => (bytes, true),
            Reply::Never => {
                let _ = stream.read(&mut [0]);
                return;
            }
        };
        if stream
            .get_mut()
            .write_all(&bytes)
            .and_then(|()| stream.get_mut().flush())
            .is_err()
            || closes
        {
            return;
        }
    }
}

fn receive(stream: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Request {
        path,
        headers,
        body,
    })
}

/// The hidden states that the stub gives a sequence: fp32, other ones for each token and position.
pub fn rows(tokens: &[u32]) -> Vec<u8> {
    let numbers = tokens.iter().enumerate().flat_map(|(position, token)| {
        (0..WIDTH)
            .map(move |column| *token as f32 + position as f32 / 128.0 + column as f32 / 1024.0)
    });
    numbers.flat_map(f32::to_le_bytes).collect()
}

/// vLLM's metadata for sequences of these lengths.
pub fn metadata(lengths: &[usize]) -> Value {
    let mut end = 0;
    let item = |(index, length): (usize, &usize)| {
        let start = end;
        end += length * WIDTH * 4;
        json!({"index": index, "embed_dtype": "float32", "endianness": "little", "start": start, "end": end,
            "shape": [length, WIDTH]})
    };
    let data: Vec<Value> = lengths.iter().enumerate().map(item).collect();
    json!({"id": "pooling-1", "created": 1, "model": "tiny", "data": data, "usage": {}})
}

/// A response with a body of known length.
pub fn respond(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = body.as_ref().len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body.as_ref()].concat()
}

pub fn respond_json(status: &str, body: &Value) -> Vec<u8> {
    respond(
        status,
        "content-type: application/json\r\n",
        body.to_string(),
    )
}

/// A response in chunks, as vLLM sends it.
pub fn respond_chunked(metadata: &Value, chunks: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 200 OK\r\nmetadata: {metadata}\r\ncontent-type: application/octet-stream\r\n\
         transfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for chunk in chunks.iter().map(AsRef::as_ref) {
        response.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        response.extend_from_slice(chunk);
        response.extend_from_slice(b"\r\n");
    }
    response.extend_from_slice(b"0\r\n\r\n");
    response
}

/// The answer of a server that works.
pub fn pooled(request: &Request) -> Vec<u8> {
    let sequences = request.sequences();
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let chunks: Vec<Vec<u8>> = sequences.iter().map(|tokens| rows(tokens)).collect();
    respond_chunked(&metadata(&lengths), &chunks)
}

/// Answers everything but `/pooling`.
pub fn about(request: &Request) -> Reply {
    Reply::Send(match request.path.as_str() {
        "/v1/models" => respond_json(
            "200 OK",
            &json!({"data": [{"id": "tiny", "max_model_len": CONTEXT}]}),
        ),
        "/version" => respond_json("200 OK", &json!({"version": "0.24.0"})),
        _ => respond_json("404 Not Found", &json!({"detail": "Not Found"})),
    })
}

/// A server that works, but for what `pooling` does instead of answering.
pub fn standard(
    pooling: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| match request.path.as_str() {
        "/pooling" => pooling(request).unwrap_or_else(|| Reply::Send(pooled(request))),
        _ => about(request),
    }
}

/// A function for [`standard`] that does this to the first requests, `count` of them.
pub fn first(
    count: usize,
    reply: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    move |request| (seen.fetch_add(1, Ordering::SeqCst) < count).then(|| reply(request))
}
