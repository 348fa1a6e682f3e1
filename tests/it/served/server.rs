//! A server that answers like vLLM, from the teacher of a world.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use ddk_model::{Model, Placement};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::world::World;

/// What the server does wrong.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// Every fifth request: an error of the engine, a short body, or no answer in time.
    EveryFifth,
    /// Never answers this request and later ones.
    NeverFrom(u64),
    /// Scales rows to length 1.
    Normalizes,
    /// Has this context.
    Context(u64),
    /// Sends rows of this width.
    Width(i64),
}

pub struct Server {
    pub address: String,
    at: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    model: Mutex<Model>,
    fault: Fault,
    is_down: AtomicBool,
    pooled: AtomicU64,
    answered: AtomicU64,
    /// Whether a request got no answer.
    silence: (Mutex<bool>, Condvar),
}

impl Server {
    pub fn start(world: &World, fault: Fault) -> Self {
        let placement = Placement::on(Device::Cpu, Kind::Float);
        let folder = world.path().join("models/teacher");
        let model = Model::load(&folder, &placement).unwrap();
        let shared = Arc::new(Shared {
            model: Mutex::new(model),
            fault,
            is_down: AtomicBool::new(false),
            pooled: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            silence: Default::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&accepting);
                thread::spawn(move || shared.converse(stream.unwrap()));
            }
        });
        Self {
            address: format!("http://{at}"),
            at,
            shared,
        }
    }

    /// Breaks every connection from now on, like a process that is not there.
    pub fn stop(&self) {
        self.shared.is_down.store(true, Ordering::SeqCst);
    }

    pub fn restart(&self) {
        self.shared.is_down.store(false, Ordering::SeqCst);
    }

    /// Waits until a request gets no answer.
    pub fn wait_for_silence(&self) {
        let (is_silent, changed) = &self.shared.silence;
        let guard = is_silent.lock().unwrap();
        drop(changed.wait_while(guard, |is_silent| !*is_silent).unwrap());
    }

    /// Number of requests for hidden states that were answered.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let _ = TcpStream::connect(self.at);
    }
}

impl Shared {
    fn converse(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some((path, body)) = receive(&mut stream) {
            if self.is_down.load(Ordering::SeqCst) {
                return;
            }
            let answer = match &*path {
                "/version" => json_answer(&json!({ "version": "0.24.0" })),
                "/v1/models" => {
                    let context = match self.fault {
                        Fault::Context(context) => context,
                        _ => 33,
                    };
                    let model =
                        json!({ "id": "teacher", "object": "model", "max_model_len": context });
                    json_answer(&json!({ "object": "list", "data": [model] }))
                }
                "/pooling" => {
                    let number = self.pooled.fetch_add(1, Ordering::SeqCst);
                    match (self.fault, number % 15) {
                        (Fault::NeverFrom(first), _) if number >= first => {
                            return self.wait(stream);
                        }
                        (Fault::EveryFifth, 4) => {
                            b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
                                .to_vec()
                        }
                        (Fault::EveryFifth, 9) => {
                            let whole = self.pool(&body);
                            let _ = stream.get_mut().write_all(&whole[..whole.len() - 7]);
                            return;
                        }
                        (Fault::EveryFifth, 14) => return self.wait(stream),
                        _ => {
                            let answer = self.pool(&body);
                            self.answered.fetch_add(1, Ordering::SeqCst);
                            answer
                        }
                    }
                }
                _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            };
            if stream.get_mut().write_all(&answer).is_err() {
                return;
            }
        }
    }

    /// Waits until the client gives up.
    fn wait(&self, mut stream: BufReader<TcpStream>) {
        *self.silence.0.lock().unwrap() = true;
        self.silence.1.notify_all();
        let _ = stream.read(&mut [0]);
    }

    /// The hidden states of a request's sequences.
    fn pool(&self, body: &Value) -> Vec<u8> {
        let _no_grad = tch::no_grad_guard();
        assert_eq!(body["embed_dtype"], "float32");
        let sequences: Vec<Vec<i64>> = serde_json::from_value(body["input"].clone()).unwrap();
        let (mut data, mut bytes) = (Vec::new(), Vec::new());
        for (index, tokens) in sequences.iter().enumerate() {
            let tokens = Tensor::from_slice(tokens).unsqueeze(0);
            let hidden = self.model.lock().unwrap().hidden(&tokens, None).unwrap();
            let mut hidden = hidden.squeeze_dim(0);
            match self.fault {
                Fault::Normalizes => {
                    let length =
                        (&hidden * &hidden).sum_dim_intlist([1_i64].as_slice(), true, Kind::Float);
                    hidden /= length.sqrt();
                }
                Fault::Width(width) => hidden = hidden.narrow(1, 0, width).contiguous(),
                _ => {}
            }
            let start = bytes.len();
            bytes.resize(start + 4 * hidden.numel(), 0);
            hidden.copy_data_u8(&mut bytes[start..], hidden.numel());
            data.push(json!({
                "index": index, "embed_dtype": "float32", "endianness": "little",
                "start": start, "end": bytes.len(), "shape": hidden.size(),
            }));
        }
        let metadata = json!({ "id": "pooling-1", "model": "teacher", "data": data });
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nmetadata: {metadata}\r\ncontent-type: application/octet-stream\r\ncontent-length: {}\
             \r\n\r\n",
            bytes.len()
        )
        .into_bytes();
        answer.extend(bytes);
        answer
    }
}

fn json_answer(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Path and body of the next request.
fn receive(stream: &mut impl BufRead) -> Option<(String, Value)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((path, serde_json::from_slice(&body).unwrap_or_default()))
}
