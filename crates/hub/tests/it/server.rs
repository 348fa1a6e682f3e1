//! A server that speaks the Hub's API, with a second one for large files, to which it redirects.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

type Files = BTreeMap<String, Vec<u8>>;

/// A request, as a server received it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Whether the second server received it.
    pub is_storage: bool,
    pub method: String,
    pub path: String,
    /// The first byte that it asked for.
    pub from: Option<u64>,
    pub authorization: Option<String>,
    /// Bytes of the file that were sent.
    pub sent: u64,
}

#[derive(Debug, Default)]
struct Repository {
    branches: BTreeMap<String, String>,
    commits: BTreeMap<String, Files>,
    /// The token that may read it.
    gate: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    seen: Vec<Seen>,
    /// After how many bytes of the file the connection breaks, once each.
    breaks: Vec<(String, usize)>,
    /// Statuses of the next answers.
    statuses: Vec<u16>,
    /// Contents that are sent in place of others, by path.
    damage: BTreeMap<String, Vec<u8>>,
    ignores_ranges: bool,
    hides_hashes: bool,
}

/// The Hub.
#[derive(Debug, Clone)]
pub struct Server {
    own: SocketAddr,
    storage: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [own, storage] = [0, 1].map(|index| listeners[index].local_addr().unwrap());
        let server = Self {
            own,
            storage,
            state: Arc::default(),
        };
        for (index, listener) in listeners.into_iter().enumerate() {
            let server = server.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let server = server.clone();
                    thread::spawn(move || server.answer(&stream.unwrap(), index == 1));
                }
            });
        }
        server
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.own)
    }

    /// Adds a commit to a branch, and returns it.
    pub fn commit(&self, kind: &str, name: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let files = files
            .iter()
            .map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()));
        let files: Files = files.collect();
        let mut hasher = Sha1::new();
        for (path, bytes) in &files {
            hasher.update(format!("{path} {}\n", git_hash(bytes)));
        }
        let commit = hex(&hasher.finalize());
        let mut state = self.state();
        let repository = state
            .repositories
            .entry(format!("{kind}/{name}"))
            .or_default();
        repository
            .branches
            .insert(branch.to_owned(), commit.clone());
        repository.commits.insert(commit.clone(), files);
        commit
    }

    /// Lets only the owner of a token read a repository.
    pub fn gate(&self, key: &str, token: &str) {
        self.state().repositories.get_mut(key).unwrap().gate = Some(token.to_owned());
    }

    /// Breaks the next connection that sends the file after this many bytes of it.
    pub fn break_after(&self, file: &str, bytes: usize) {
        self.state().breaks.push((file.to_owned(), bytes));
    }

    /// Sends other contents for a file from now on.
    pub fn damage(&self, file: &str, bytes: &[u8]) {
        self.state().damage.insert(file.to_owned(), bytes.to_vec());
    }

    /// Answers the next request with this status.
    pub fn fail_next(&self, status: u16) {
        self.state().statuses.push(status);
    }

    /// Sends whole files, whatever part is asked for.
    pub fn ignore_ranges(&self) {
        self.state().ignores_ranges = true;
    }

    /// Lists files without their hashes, as some mirrors do.
    pub fn hide_hashes(&self) {
        self.state().hides_hashes = true;
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn answer(&self, stream: &TcpStream, is_storage: bool) {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let Some(first) = lines.next() else {
            return;
        };
        let mut headers = BTreeMap::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let mut words = first.split(' ');
        let [method, path] = [words.next().unwrap(), words.next().unwrap()].map(str::to_owned);
        let range = headers.get("range").map(|range| {
            let from = range
                .strip_prefix("bytes=")
                .and_then(|range| range.strip_suffix('-'));
            from.unwrap().parse().unwrap()
        });
        let mut state = self.state();
        let at = state.seen.len();
        state.seen.push(Seen {
            is_storage,
            method: method.clone(),
            path: path.clone(),
            from: range,
            authorization: headers.get("authorization").cloned(),
            sent: 0,
        });
        let reply = self.reply(&mut state, &path, is_storage);
        let Reply {
            status,
            headers,
            file,
            body,
        } = reply;
        let from = range.filter(|_| !state.ignores_ranges && file.is_some() && status == 200);
        let (status, start) = match from {
            Some(from) if from >= body.len() as u64 => (416, body.len()),
            Some(from) => (206, from as usize),
            None => (status, 0),
        };
        let part = if method == "HEAD" {
            &[][..]
        } else {
            &body[start..]
        };
        let breaks = state
            .breaks
            .iter()
            .position(|(name, _)| Some(name) == file.as_ref());
        let breaks = breaks
            .filter(|_| method == "GET")
            .map(|at| state.breaks.remove(at).1);
        let sent = breaks.map_or(part, |bytes| &part[..bytes.min(part.len())]);
        if let Some(seen) = state.seen.get_mut(at) {
            seen.sent = sent.len() as u64;
        }
        drop(state);
        let mut head = format!("HTTP/1.1 {status} -\r\nConnection: close\r\n");
        head.push_str(&format!("Content-Length: {}\r\n", body.len() - start));
        if status == 206 {
            let last = body.len() - 1;
            head.push_str(&format!(
                "Content-Range: bytes {start}-{last}/{}\r\n",
                body.len()
            ));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        // A client may go away.
        let mut stream = stream;
        let _ = stream.write_all(format!("{head}\r\n").as_bytes());
        let _ = stream.write_all(sent);
    }

    fn reply(&self, state: &mut State, path: &str, is_storage: bool) -> Reply {
        if let Some(status) = state.statuses.pop() {
            return Reply::of(status, json!({ "error": "later" }));
        }
        if is_storage {
            let name = path.rsplit_once("name=").unwrap().1.to_owned();
            let hash = path.trim_start_matches('/').split('?').next().unwrap();
            let commits = state
                .repositories
                .values()
                .flat_map(|one| one.commits.values());
            let mut found = commits.flat_map(|files| files.values());
            let body = found.find(|bytes| sha256(bytes) == hash).unwrap().clone();
            let body = state.damage.get(&name).cloned().unwrap_or(body);
            return Reply {
                file: Some(name),
                ..Reply::bytes(body)
            };
        }
        let path = path
            .split('?')
            .next()
            .unwrap()
            .replace("%2F", "/")
            .replace("%20", " ");
        if let Some(rest) = path.strip_prefix("/api/") {
            return match rest.split_once("/revision/") {
                Some((key, revision)) => self.revision(state, key, revision),
                None => Reply::of(404, json!({ "error": "no such part of the API" })),
            };
        }
        let (name, rest) = path
            .trim_start_matches('/')
            .split_once("/resolve/")
            .unwrap();
        let key = if name.starts_with("datasets/") {
            name.to_owned()
        } else {
            format!("models/{name}")
        };
        let (commit, file) = rest.split_once('/').unwrap();
        if let Some(refused) = refusal(state, &key, None) {
            return refused;
        }
        let repository = &state.repositories[&key];
        let commit = repository
            .branches
            .get(commit)
            .map_or(commit, |commit| commit);
        let Some(body) = repository
            .commits
            .get(commit)
            .and_then(|files| files.get(file))
        else {
            return Reply::of(404, json!({ "error": "Entry not found" }))
                .with("X-Error-Code", "EntryNotFound");
        };
        if !is_large(file) {
            let body = state.damage.get(file).unwrap_or(body).clone();
            let etag = format!("\"{}\"", git_hash(&repository.commits[commit][file]));
            let reply = Reply {
                file: Some(file.to_owned()),
                ..Reply::bytes(body)
            };
            return reply.with("ETag", etag).with("X-Repo-Commit", commit);
        }
        let hash = sha256(body);
        let target = format!("http://{}/{hash}?name={file}", self.storage);
        let reply = Reply::of(302, Value::Null).with("Location", target);
        let reply = reply
            .with("X-Linked-Etag", format!("\"{hash}\""))
            .with("X-Linked-Size", body.len().to_string());
        reply.with("X-Repo-Commit", commit)
    }

    fn revision(&self, state: &State, key: &str, revision: &str) -> Reply {
        if let Some(refused) = refusal(state, key, Some(revision)) {
            return refused;
        }
        let repository = &state.repositories[key];
        let commit = repository
            .branches
            .get(revision)
            .map_or(revision, |commit| commit);
        let sibling = |(path, bytes): (&String, &Vec<u8>)| {
            if state.hides_hashes {
                return json!({ "rfilename": path });
            }
            let mut sibling =
                json!({ "rfilename": path, "size": bytes.len(), "blobId": git_hash(bytes) });
            if is_large(path) {
                sibling["lfs"] =
                    json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
            }
            sibling
        };
        let siblings: Vec<Value> = repository.commits[commit].iter().map(sibling).collect();
        Reply::of(
            200,
            json!({ "id": key, "sha": commit, "siblings": siblings }),
        )
    }
}

/// Refuses what the last request may not see.
fn refusal(state: &State, key: &str, revision: Option<&str>) -> Option<Reply> {
    let error = |status, code: &str, text: &str| {
        let reply = Reply::of(status, json!({ "error": text })).with("X-Error-Code", code);
        Some(reply.with("X-Error-Message", text))
    };
    let token = state
        .seen
        .last()
        .and_then(|seen| seen.authorization.clone());
    let Some(repository) = state.repositories.get(key) else {
        return match token {
            None => error(401, "RepoNotFound", "Invalid username or password."),
            Some(_) => error(404, "RepoNotFound", "Repository not found"),
        };
    };
    if let Some(gate) = &repository.gate
        && token != Some(format!("Bearer {gate}"))
    {
        let status = if token.is_some() { 403 } else { 401 };
        return error(status, "GatedRepo", "Access to this model is restricted");
    }
    let revision = revision?;
    let known =
        repository.branches.contains_key(revision) || repository.commits.contains_key(revision);
    if known {
        None
    } else {
        error(404, "RevisionNotFound", "Invalid rev id")
    }
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    file: Option<String>,
    body: Vec<u8>,
}

impl Reply {
    fn bytes(body: Vec<u8>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            file: None,
            body,
        }
    }

    fn of(status: u16, body: Value) -> Self {
        Self {
            status,
            ..Self::bytes(body.to_string().into_bytes())
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Whether the Hub keeps a file in the large file storage.
fn is_large(path: &str) -> bool {
    [".safetensors", ".bin", ".gguf", ".parquet"]
        .iter()
        .any(|end| path.ends_with(end))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The hash that git gives a file.
pub fn git_hash(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
