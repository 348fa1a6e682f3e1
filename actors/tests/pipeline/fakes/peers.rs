//! Several ranks in one process: each is a run in its own thread, and they exchange messages in memory.

use std::{
    sync::{Arc, Condvar, Mutex, mpsc},
    time::Duration,
};

use ddk_actors::{Outcome, Peers, PortError, RunError};

use super::World;

/// How long a test may take. More means that a rank waits for something that never comes.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Changes a message on its way: the rank and the text that it sends.
pub type Tamper = Arc<dyn Fn(usize, &str) -> Option<String> + Send + Sync>;

/// Where the messages of all ranks meet.
pub struct Hub {
    size: usize,
    tamper: Tamper,
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

#[derive(Default)]
struct Meeting {
    /// The messages of the exchange in progress, by rank.
    sent: Vec<Option<Vec<u8>>>,
    /// The messages of the exchange that is complete, for the ranks that have not taken them yet.
    complete: Option<Vec<Vec<u8>>>,
    taken: usize,
    /// In the order in which they were lost.
    lost: Vec<usize>,
    exchanges: u64,
}

impl Hub {
    fn new(size: usize, tamper: Tamper) -> Arc<Self> {
        Arc::new(Self {
            size,
            tamper,
            meeting: Mutex::new(Meeting {
                sent: vec![None; size],
                ..Meeting::default()
            }),
            changed: Condvar::new(),
        })
    }

    /// Takes a rank's connection away, as when its process ends.
    pub fn lose(&self, rank: usize) {
        self.meeting.lock().unwrap().lost.push(rank);
        self.changed.notify_all();
    }

    fn exchange(&self, rank: usize, message: &[u8]) -> Result<Vec<Vec<u8>>, PortError> {
        let lost = |meeting: &Meeting| {
            let rank = meeting.lost.first();
            rank.map(|rank| PortError::Other(format!("the connection to rank {rank} is lost")))
        };
        let mut meeting = self.meeting.lock().unwrap();
        // The exchange before this one must be over.
        while meeting.complete.is_some() && lost(&meeting).is_none() {
            meeting = self.changed.wait(meeting).unwrap();
        }
        if meeting.complete.is_some() || meeting.lost.contains(&rank) {
            return Err(lost(&meeting).unwrap());
        }
        let tampered = std::str::from_utf8(message).ok();
        let tampered = tampered.and_then(|text| (self.tamper)(rank, text));
        let message = tampered.map_or(message.to_vec(), String::into_bytes);
        assert!(meeting.sent[rank].replace(message).is_none());
        if meeting.sent.iter().all(Option::is_some) {
            let all = meeting.sent.iter_mut().map(|sent| sent.take().unwrap());
            meeting.complete = Some(all.collect());
            meeting.exchanges += 1;
            self.changed.notify_all();
        }
        loop {
            if let Some(complete) = &meeting.complete {
                let all = complete.clone();
                meeting.taken += 1;
                if meeting.taken == self.size {
                    (meeting.complete, meeting.taken) = (None, 0);
                    self.changed.notify_all();
                }
                return Ok(all);
            }
            if let Some(error) = lost(&meeting) {
                return Err(error);
            }
            meeting = self.changed.wait(meeting).unwrap();
        }
    }
}

/// A rank's connection to the others.
pub struct Link {
    rank: usize,
    hub: Arc<Hub>,
}

impl Peers for Link {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.hub.size
    }

    fn exchange(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, PortError> {
        self.hub.exchange(self.rank, message)
    }
}

/// How a rank's run ended.
pub type Ended = Result<Option<Outcome>, RunError>;

/// The ranks of a run.
pub struct Fleet {
    pub worlds: Vec<World>,
    pub tamper: Tamper,
    /// The number of exchanges of the last run.
    pub exchanges: u64,
    make: Box<dyn Fn() -> World>,
}

impl Fleet {
    pub fn new(ranks: usize, make: impl Fn() -> World + 'static) -> Self {
        let mut fleet = Self {
            worlds: Vec::new(),
            tamper: Arc::new(|_, _| None),
            exchanges: 0,
            make: Box::new(make),
        };
        fleet.resize(ranks);
        fleet
    }

    /// Continues with another number of ranks. The folder of rank 0 stays.
    pub fn resize(&mut self, ranks: usize) {
        self.worlds.truncate(ranks);
        while self.worlds.len() < ranks {
            let mut world = (self.make)();
            let first = self.worlds.first().map(|first| first.folder.path());
            world.shared = first.map(|path| path.to_owned());
            self.worlds.push(world);
        }
    }

    /// Rank 0.
    pub fn first(&self) -> &World {
        &self.worlds[0]
    }

    /// Runs all ranks until the run of each has ended, and returns how, by rank.
    pub fn run(&mut self) -> Vec<Ended> {
        self.run_with(|_| ())
    }

    /// Like [`Self::run`]. `with` gets the hub before the ranks start.
    pub fn run_with(&mut self, with: impl FnOnce(&Arc<Hub>)) -> Vec<Ended> {
        let worlds = std::mem::take(&mut self.worlds);
        let size = worlds.len();
        let hub = Hub::new(size, self.tamper.clone());
        with(&hub);
        let (done, ended) = mpsc::channel();
        for (rank, mut world) in worlds.into_iter().enumerate() {
            let (hub, done) = (hub.clone(), done.clone());
            std::thread::spawn(move || {
                let link = Link {
                    rank,
                    hub: hub.clone(),
                };
                world.peers = (size > 1).then(|| Arc::new(link) as Arc<dyn Peers>);
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().unwrap();
                let result = runtime.block_on(world.run());
                // As if the process had ended.
                hub.lose(rank);
                world.peers = None;
                done.send((rank, world, result)).unwrap();
            });
        }
        let mut all: Vec<Option<(World, Ended)>> = (0..size).map(|_| None).collect();
        for _ in 0..size {
            let (rank, world, result) = ended.recv_timeout(WATCHDOG).unwrap_or_else(|_| {
                let waiting: Vec<usize> = (0..size).filter(|rank| all[*rank].is_none()).collect();
                panic!("the ranks {waiting:?} hang")
            });
            all[rank] = Some((world, result));
        }
        self.exchanges = hub.meeting.lock().unwrap().exchanges;
        let (worlds, results) = all.into_iter().flatten().unzip();
        self.worlds = worlds;
        results
    }
}
