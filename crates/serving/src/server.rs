//! The teacher's server as its caller sees it: sequences in, hidden states out.

use std::{sync::Arc, time::Duration};

use crate::{
    Description, ServerOptions, ServingError, Watch,
    client::Client,
    command_line,
    coordinator::{Task, perform},
    error::Failure,
};

/// A connection to a vLLM server that holds the teacher.
pub struct TeacherServer {
    client: Arc<Client>,
    requests_in_flight: usize,
    patience: Duration,
    /// What the server said before the first request.
    served: Option<Arc<Description>>,
}

impl TeacherServer {
    /// Prepares the use of a server, without contacting it.
    ///
    /// # Errors
    /// If the address does not name a server, or the token cannot be sent.
    pub fn new(options: ServerOptions) -> Result<Self, ServingError> {
        let requests_in_flight = options.requests_in_flight.max(1);
        Ok(Self {
            requests_in_flight,
            patience: options.patience,
            client: Arc::new(Client::new(ServerOptions {
                requests_in_flight,
                ..options
            })?),
            served: None,
        })
    }

    /// The server's address.
    pub fn address(&self) -> &str {
        &self.client.http.base
    }

    /// Asks the server once what it serves.
    ///
    /// # Errors
    /// If the server does not answer, does not serve the model, or is not vLLM.
    pub fn describe(&self) -> Result<Description, ServingError> {
        self.client.describe().map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Passing(reason) => ServingError::Away {
                address: self.address().to_owned(),
                seconds: 0.0,
                reason,
            },
        })
    }

    /// The hidden states after the final norm of each sequence: rows `[tokens, hidden_size]`, little-endian.
    ///
    /// Sends up to `requests_in_flight` requests at once, and repeats those that fail for a reason that may pass.
    /// Returns `None` once the watch is over. It then leaves the requests in flight to end by themselves.
    ///
    /// # Errors
    /// If an outage lasts longer than the patience, a sequence is too long for the server, or the server refuses a
    /// request or answers with anything but the hidden states.
    pub fn hidden_states(
        &mut self,
        sequences: &[&[u32]],
        watch: &dyn Watch,
    ) -> Result<Option<Vec<Vec<u8>>>, ServingError> {
        let sent: Vec<&[u32]> = sequences
            .iter()
            .copied()
            .filter(|tokens| !tokens.is_empty())
            .collect();
        let Some(longest) = sent.iter().map(|tokens| tokens.len()).max() else {
            return Ok(Some(vec![Vec::new(); sequences.len()]));
        };
        let Some(served) = self.wait(watch)? else {
            return Ok(None);
        };
        if longest >= served.context {
            return Err(ServingError::ContextTooShort {
                address: self.address().to_owned(),
                context: served.context,
                needed: longest + 1,
                command: command_line(&served.model, longest),
            });
        }
        let task = |group: &[&[u32]]| -> Task<Vec<Vec<u8>>> {
            let request = self.client.request(&served, group);
            Arc::new(move |client| client.hidden_states(&request))
        };
        let groups = groups(&sent, self.requests_in_flight);
        let tasks: Vec<_> = groups.into_iter().map(task).collect();
        let answered = |rows: &Vec<Vec<u8>>, seconds| {
            watch.on_response(seconds, rows.iter().map(|rows| rows.len() as u64).sum());
        };
        let answers = perform(&self.client, &tasks, self.patience, watch, answered)?;
        Ok(answers.map(|answers| {
            let mut rows = answers.into_iter().flatten();
            let of = |tokens: &&[u32]| match tokens {
                [] => Vec::new(),
                _ => rows.next().unwrap_or_default(),
            };
            sequences.iter().map(of).collect()
        }))
    }

    /// What the server serves. Asks it the first time, and waits for a server that is away. Returns `None` once the
    /// watch is over.
    ///
    /// # Errors
    /// As for [`Self::describe`], or if the outage lasts longer than the patience.
    pub fn wait(&mut self, watch: &dyn Watch) -> Result<Option<Arc<Description>>, ServingError> {
        if self.served.is_none() {
            let describe: Task<Description> = Arc::new(Client::describe);
            let answers = perform(&self.client, &[describe], self.patience, watch, |_, _| ())?;
            self.served = answers.into_iter().flatten().next().map(Arc::new);
        }
        Ok(self.served.clone())
    }
}

/// Splits sequences, in order, into at most `count` groups with about the same number of tokens.
fn groups<'a, 'b>(sequences: &'a [&'b [u32]], count: usize) -> Vec<&'a [&'b [u32]]> {
    let total: usize = sequences.iter().map(|tokens| tokens.len()).sum();
    // A sequence belongs to the group in whose share of the tokens its middle is. All numbers are doubled, so that
    // the middle is whole.
    let mut before = 0;
    let mut group = |tokens: &&[u32]| {
        let middle = 2 * before + tokens.len();
        before += tokens.len();
        middle * count / (2 * total).max(1)
    };
    let numbers: Vec<usize> = sequences.iter().map(&mut group).collect();
    let mut start = 0;
    let chunks = numbers.chunk_by(|one, next| one == next);
    chunks
        .map(|chunk| {
            start += chunk.len();
            &sequences[start - chunk.len()..start]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_the_order_and_are_balanced() {
        let tokens = vec![7; 1000];
        // Lengths from a multiplicative generator.
        let mut state = 1_u64;
        for case in 0..500 {
            let mut random = |below: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let (count, number) = (1 + random(9) as usize, 1 + random(20));
            let lengths: Vec<usize> = (0..number).map(|_| 1 + random(900) as usize).collect();
            let sequences: Vec<&[u32]> = lengths.iter().map(|length| &tokens[..*length]).collect();
            let groups = groups(&sequences, count);
            assert_eq!(groups.concat(), sequences, "case {case}");
            assert!(groups.len() <= count && groups.iter().all(|group| !group.is_empty()));
            let total: usize = lengths.iter().sum();
            let bound = total / count + 1 + lengths.iter().max().unwrap();
            let size = |group: &&[&[u32]]| group.iter().map(|tokens| tokens.len()).sum::<usize>();
            assert!(
                groups.iter().map(size).all(|size| size <= bound),
                "case {case}"
            );
        }
    }

    #[test]
    fn equal_sequences_are_dealt_evenly() {
        let sequences = [&[1_u32, 2, 3][..]; 8];
        for (count, sizes) in [
            (1, vec![8]),
            (2, vec![4, 4]),
            (4, vec![2; 4]),
            (8, vec![1; 8]),
            (16, vec![1; 8]),
        ] {
            let groups = groups(&sequences, count);
            assert_eq!(
                groups.iter().map(|group| group.len()).collect::<Vec<_>>(),
                sizes
            );
        }
    }
}
