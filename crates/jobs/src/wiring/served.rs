//! A teacher that vLLM servers compute.

use std::{
    cell::RefCell,
    collections::HashMap,
    env,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use ddk_actors::{PortError, Work, ports::RunLink};
use ddk_corpus::Sequence;
use ddk_engine::EngineError;
use ddk_run::{records::EventKind, view::duration};
use ddk_serving::{HiddenDtype, ServerOptions, ServingError, TeacherServer, Watch};
use ddk_settings::{Dtype, Teacher};
use ddk_telemetry::{Meter, metrics};
use parking_lot::Mutex;

use super::{context::port_error, models::Models};

/// Connects to a server of the teacher. Sends nothing yet.
///
/// # Errors
/// If the address is not valid.
pub fn server(
    teacher: &Teacher,
    replica: usize,
    hidden_size: i64,
) -> Result<TeacherServer, ServingError> {
    let address = teacher.server_of(replica);
    TeacherServer::new(ServerOptions {
        address: address.cloned().unwrap_or_default(),
        served_model: teacher.served_model.clone(),
        hidden_size: hidden_size.unsigned_abs() as usize,
        dtype: match teacher.dtype {
            Dtype::Fp32 => HiddenDtype::Fp32,
            Dtype::Bf16 => HiddenDtype::Bf16,
        },
        requests_in_flight: teacher.requests_in_flight / teacher.workers_per_server(),
        request_timeout: Duration::from_secs_f64(teacher.request_timeout_seconds),
        patience: Duration::from_secs_f64(teacher.patience_seconds),
        token: env::var(ddk_serving::TOKEN).ok(),
    })
}

/// Counts the workers that wait for each server, so that an outage is one event, however many workers notice it.
#[derive(Debug, Default)]
pub struct Outages(Mutex<HashMap<String, usize>>);

impl Outages {
    /// A worker begins to wait. Returns whether it is the only one.
    fn begin(&self, address: &str) -> bool {
        let mut waiting = self.0.lock();
        let count = waiting.entry(address.to_owned()).or_default();
        *count += 1;
        *count == 1
    }

    /// A worker no longer waits. Returns whether it was the last one.
    fn end(&self, address: &str) -> bool {
        let mut waiting = self.0.lock();
        let count = waiting.entry(address.to_owned()).or_default();
        *count = count.saturating_sub(1);
        *count == 0
    }
}

/// The server of one replica.
pub(super) struct Served {
    server: TeacherServer,
    outages: Arc<Outages>,
    patience: Duration,
    /// A larger id would end vLLM's engine.
    vocabulary: i64,
    /// Seconds from each question to its answer, added up.
    pub(super) seconds: f64,
}

impl Served {
    pub(super) fn new(models: &Models, outages: &Arc<Outages>, replica: usize) -> Result<Self> {
        let teacher = &models.settings.teacher;
        let config = models.folders.teacher_config()?;
        Ok(Self {
            server: server(teacher, replica, config.hidden_size())?,
            outages: Arc::clone(outages),
            vocabulary: config.vocab_size(),
            patience: Duration::from_secs_f64(teacher.patience_seconds),
            seconds: 0.0,
        })
    }

    /// Returns the labels of sequences; `None` if the run ended first.
    pub(super) fn labels(
        &mut self,
        rows: &[&Sequence],
        run: &dyn RunLink,
    ) -> Result<Option<Vec<Vec<u8>>>, PortError> {
        let (began, vocabulary) = (Instant::now(), self.vocabulary);
        let mut tokens = rows.iter().flat_map(|row| &row.tokens);
        if let Some(&token) = tokens.find(|&&token| i64::from(token) >= vocabulary) {
            let error = EngineError::TokenPastVocabulary { token, vocabulary };
            return Err(port_error(error, Work::Label));
        }
        // A server knows no documents in a sequence, so each is a sequence of its own there.
        let sent: Vec<&[u32]> = rows.iter().flat_map(|row| documents(row)).collect();
        let address = self.server.address().to_owned();
        let wait = Wait {
            run,
            address: &address,
            outages: Arc::clone(&self.outages),
            patience: self.patience,
            since: RefCell::default(),
        };
        let hidden = self.server.hidden_states(&sent, &wait);
        self.seconds += began.elapsed().as_secs_f64();
        let hidden = hidden.map_err(|error| PortError::Other(error.to_string()))?;
        let Some(hidden) = hidden else {
            return Ok(None);
        };
        let mut hidden = hidden.into_iter();
        let joined = rows.iter().map(|row| {
            let mut own = hidden.by_ref().take(documents(row).count());
            let first = own.next().unwrap_or_default();
            own.fold(first, |mut label, document| {
                label.extend(document);
                label
            })
        });
        Ok(Some(joined.collect()))
    }
}

/// The documents of a sequence that do not attend to each other.
fn documents(row: &Sequence) -> impl Iterator<Item = &[u32]> {
    let mut rest = &row.tokens[..];
    let whole = row.document_lengths.is_empty().then_some(rest.len());
    let lengths = row.document_lengths.iter().map(|&length| length as usize);
    whole.into_iter().chain(lengths).map(move |length| {
        let (document, others) = rest.split_at(length.min(rest.len()));
        rest = others;
        document
    })
}

/// Follows a server's answers for the run: metrics, events, and the state of the worker.
struct Wait<'a> {
    run: &'a dyn RunLink,
    address: &'a str,
    outages: Arc<Outages>,
    patience: Duration,
    /// The wait for a server that is away.
    since: RefCell<Option<(Meter, Instant)>>,
}

impl Watch for Wait<'_> {
    fn is_over(&self) -> bool {
        if let Some((meter, since)) = &*self.since.borrow() {
            meter.at(since.elapsed().as_secs(), self.patience.as_secs());
        }
        self.run.is_over()
    }

    fn on_response(&self, seconds: f64, bytes: u64) {
        let server = [self.address];
        metrics::SERVER_SECONDS.with(&server).record(seconds);
        metrics::SERVER_BYTES.with(&server).increment(bytes);
    }

    fn on_retry(&self) {
        metrics::SERVER_RETRIES.with(&[self.address]).increment(1);
    }

    fn on_away(&self, reason: &str) {
        let (address, patience) = (self.address, duration(self.patience.as_secs_f64()));
        let phase = format!("waiting for teacher server {address}");
        *self.since.borrow_mut() = Some((self.run.waiting(&phase, "seconds"), Instant::now()));
        if self.outages.begin(address) {
            let text =
                format!("teacher server {address} is away, waiting up to {patience}: {reason}");
            self.run.note(EventKind::ServerAway, &text);
        }
    }

    fn on_back(&self, seconds: f64) {
        *self.since.borrow_mut() = None;
        self.run.computing();
        if self.outages.end(self.address) {
            let text = format!(
                "teacher server {} is back after {}",
                self.address,
                duration(seconds)
            );
            self.run.note(EventKind::ServerBack, &text);
        }
    }
}

/// A wait that ends with the run, or because the patience is over.
impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.since.borrow().is_some() {
            self.outages.end(self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_document_of_a_sequence_is_a_sequence_of_its_own() {
        let of = |lengths: &[u32]| {
            let row = Sequence {
                document_lengths: lengths.to_vec(),
                ..vec![1, 2, 3, 4, 5].into()
            };
            documents(&row).map(<[u32]>::to_vec).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [[1, 2, 3, 4, 5]]);
        assert_eq!(of(&[2, 1, 2]), [vec![1, 2], vec![3], vec![4, 5]]);
    }
}
