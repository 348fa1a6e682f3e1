//! Starts the processes of a run: this test program again, once per rank.

use std::{
    env,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use ddk_distributed::World;

/// What precedes a rank's lines. The test harness prints others.
pub(crate) const MARK: &str = "rank> ";

/// Names the program that a rank runs.
pub(crate) const PROGRAM: &str = "DDK_TEST_PROGRAM";

/// The processes of one run. They are killed when this is dropped, also when the test fails.
pub(crate) struct Ranks(Vec<Rank>);

pub(crate) struct Rank {
    child: Child,
    lines: BufReader<ChildStdout>,
    _input: ChildStdin,
}

/// A port for a store, below those that the kernel gives to connections.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id() as usize * 61 + next) % 12_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A rank's place, for stores and groups in the test's own process.
pub(crate) fn world(rank: usize, size: usize, port: u16) -> World {
    World {
        rank,
        size,
        local_rank: rank,
        local_size: size,
        host: "127.0.0.1".to_owned(),
        port,
        attempt: "0".to_owned(),
        agent_serves_store: false,
    }
}

impl Ranks {
    /// Starts a program with this many ranks, and more variables.
    pub(crate) fn start(program: &str, size: usize, variables: &[(&str, &str)]) -> Self {
        let port = free_port().to_string();
        let start = |rank: usize| {
            let mut command = Command::new(env::current_exe().unwrap());
            command
                .args(["--exact", "programs::program_of_a_rank", "--nocapture"])
                .env(PROGRAM, program)
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", &port)
                .env("OMP_NUM_THREADS", "1")
                .envs(variables.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            // SAFETY: prctl is a plain system call. It kills the child if the test's thread ends before it.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                });
            }
            let mut child = command.spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap());
            let input = child.stdin.take().unwrap();
            Rank {
                child,
                lines,
                _input: input,
            }
        };
        Self((0..size).map(start).collect())
    }

    pub(crate) fn rank(&mut self, rank: usize) -> &mut Rank {
        &mut self.0[rank]
    }

    /// Waits for the next line of each rank.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        self.0.iter_mut().map(Rank::line).collect()
    }

    /// Waits until all ranks have ended without an error.
    pub(crate) fn finish(mut self) {
        for (rank, process) in self.0.iter_mut().enumerate() {
            let status = process.child.wait().unwrap();
            let code = (status.code(), status.signal());
            assert_eq!(code, (Some(0), None), "how rank {rank} ended");
        }
    }
}

impl Rank {
    /// Waits for the next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let size = self.lines.read_line(&mut line).unwrap();
            assert!(size > 0, "the rank ended, without the expected line");
            // The harness may have begun the line with the test's name.
            if let Some((_, said)) = line.split_once(MARK) {
                return said.trim_end().to_owned();
            }
        }
    }

    pub(crate) fn signal(&mut self, signal: libc::c_int) {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}
