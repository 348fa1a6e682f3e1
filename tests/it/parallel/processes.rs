//! Processes of one run, started without `torchrun`.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::JoinHandle,
    time::Duration,
};

use crate::world::World;

/// Settings of every run here.
pub const SLOTS: &[&str] = &[
    "parallel.slots=4",
    "parallel.timeout_seconds=60",
    "training.micro_batch_size=2",
];

/// How long a test waits for a line.
const PATIENCE: Duration = Duration::from_secs(120);

/// The processes of a run, by rank. Dropping them kills them.
pub struct Processes(Vec<Process>);

struct Process {
    child: Child,
    lines: Receiver<String>,
    /// Returns everything that the process has said.
    reader: Option<JoinHandle<String>>,
}

impl Processes {
    /// Starts `size` processes that train with these settings.
    pub fn start(world: &World, size: usize, more: &[&str]) -> Self {
        Self::start_each(world, size, |_| more.to_vec())
    }

    /// Starts processes with settings of their own.
    pub fn start_each<'a>(
        world: &World,
        size: usize,
        more: impl Fn(usize) -> Vec<&'a str>,
    ) -> Self {
        // Free until rank 0 takes it, unless another program is very quick.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let port = port.unwrap().port().to_string();
        let start = |rank: usize| {
            let mut arguments = vec!["train", "config.toml"];
            let sets = SLOTS.iter().copied().chain(more(rank));
            arguments.extend(sets.flat_map(|set| ["--set", set]));
            let numbers = [rank, size, rank, size].map(|number| number.to_string());
            let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];
            let mut command = world.command(&arguments);
            command.envs(names.into_iter().zip(numbers));
            command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]);
            Process::start(command)
        };
        Self((0..size).map(start).collect())
    }

    /// Waits until a rank prints a line like this.
    pub fn wait_for(&self, rank: usize, is_awaited: impl Fn(&str) -> bool) {
        loop {
            let line = self.0[rank].lines.recv_timeout(PATIENCE);
            if is_awaited(&line.unwrap_or_else(|error| panic!("rank {rank}: {error}"))) {
                return;
            }
        }
    }

    pub fn signal(&self, rank: usize, name: &str) {
        let id = self.0[rank].child.id().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status();
        assert!(status.unwrap().success());
    }

    pub fn signal_all(&self, name: &str) {
        (0..self.0.len()).for_each(|rank| self.signal(rank, name));
    }

    /// Waits for all processes, and expects success.
    pub fn succeed(self) {
        let (codes, said) = self.end();
        let is_good = codes.iter().all(|code| *code == Some(0));
        assert!(is_good, "{codes:?}: {}", said.join("\n"));
    }

    /// Waits for all processes. Returns their exit codes, and what they said on standard error.
    pub fn end(mut self) -> (Vec<Option<i32>>, Vec<String>) {
        let end = |process: &mut Process| {
            let code = process.child.wait().unwrap().code();
            (code, process.reader.take().unwrap().join().unwrap())
        };
        self.0.iter_mut().map(end).unzip()
    }
}

impl Process {
    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        let read = move || {
            let mut said = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                said.push_str(&line);
                said.push('\n');
                // The test may have stopped listening.
                let _ = send.send(line);
            }
            said
        };
        Self {
            child,
            lines,
            reader: Some(std::thread::spawn(read)),
        }
    }
}

/// Kills the processes, so that a failing test leaves none behind.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
