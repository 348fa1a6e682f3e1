//! Measures how fast the client reads hidden states over loopback, and compares every byte with what was sent.
//!
//! usage: cargo run --release -p ddk-serving --example loopback -- [SECONDS [IN_FLIGHT]]

#![allow(clippy::unwrap_used)]

use std::{
    error::Error,
    io::{self, BufRead, BufReader, Read, Write, stdout},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ddk_serving::{HiddenDtype, ServerOptions, TeacherServer, Watch};

/// As a teacher of 14 billion parameters.
const WIDTH: usize = 5120;
const TOKENS: usize = 4096;
/// Bytes per sequence, in bf16.
const BYTES: usize = TOKENS * WIDTH * 2;

/// A caller that waits.
struct Patient;

impl Watch for Patient {
    fn is_over(&self) -> bool {
        false
    }
    fn on_response(&self, _seconds: f64, _bytes: u64) {}
    fn on_retry(&self) {}
    fn on_away(&self, _reason: &str) {}
    fn on_back(&self, _seconds: f64) {}
}

/// The rows of a sequence that begins with this token: another part of the numbers for each.
fn rows(numbers: &[u8], token: usize) -> &[u8] {
    &numbers[2 * token..2 * token + BYTES]
}

/// Answers the requests of a connection as vLLM does. Each asks for one sequence.
fn serve(stream: TcpStream, numbers: &[u8]) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        stream.read_line(&mut first)?;
        let mut line = first.clone();
        while line.trim() != "" {
            line.clear();
            stream.read_line(&mut line)?;
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let out = stream.get_mut();
        if first.starts_with("POST /pooling") {
            let body = String::from_utf8_lossy(&body);
            let token = body.split("[[").nth(1).unwrap().split(',').next().unwrap();
            write!(
                out,
                "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\
                 metadata: {{\"data\": [{{\"index\": 0, \"embed_dtype\": \"bfloat16\", \"endianness\": \"little\", \
                 \"start\": 0, \"end\": {BYTES}, \"shape\": [{TOKENS}, {WIDTH}]}}]}}\r\n\r\n{BYTES:x}\r\n"
            )?;
            out.write_all(rows(numbers, token.parse().unwrap()))?;
            out.write_all(b"\r\n0\r\n\r\n")?;
        } else if first.is_empty() {
            return Ok(());
        } else {
            let json =
                r#"{"data": [{"id": "teacher", "max_model_len": 8192}], "version": "0.24.0"}"#;
            write!(
                out,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}",
                json.len()
            )?;
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments.next().map_or(Ok(5.0), |text| text.parse())?;
    let requests_in_flight: usize = arguments.next().map_or(Ok(1), |text| text.parse())?;

    // Numbers between 1 and 2, from a multiplicative generator.
    let mut state = 1_u32;
    let number = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (0x3f80 | (state >> 25) as u16).to_le_bytes()
    };
    let numbers: Arc<Vec<u8>> = Arc::new((0..BYTES).flat_map(number).collect());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    let served = numbers.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let numbers = served.clone();
            thread::spawn(move || serve(stream, &numbers));
        }
    });

    let mut server = TeacherServer::new(ServerOptions {
        address,
        served_model: None,
        hidden_size: WIDTH,
        dtype: HiddenDtype::Bf16,
        requests_in_flight,
        request_timeout: Duration::from_secs(60),
        patience: Duration::ZERO,
        token: None,
    })?;
    let (start, mut reading, mut bytes) = (Instant::now(), Duration::ZERO, 0);
    for call in 0.. {
        let tokens = (0..requests_in_flight).map(|index| 10 * call + index);
        let sequences: Vec<Vec<u32>> = tokens.map(|token| vec![token as u32; TOKENS]).collect();
        let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let asked = Instant::now();
        let answer = server
            .hidden_states(&borrowed, &Patient)?
            .ok_or("no answer")?;
        reading += asked.elapsed();
        for (sequence, answer) in sequences.iter().zip(answer) {
            if answer != rows(&numbers, sequence[0] as usize) {
                return Err(format!("call {call}: the rows are not those that were sent").into());
            }
            bytes += answer.len();
        }
        if start.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    let rate = bytes as f64 / 1e6 / reading.as_secs_f64();
    writeln!(
        stdout(),
        "{} MB with {requests_in_flight} in flight: {rate:.0} MB/s",
        bytes / 1_000_000
    )?;
    Ok(())
}
