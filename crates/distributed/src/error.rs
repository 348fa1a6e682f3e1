//! What can fail between processes, and what to do about it.

use std::time::Duration;

use ddk_torch::TorchError;

/// A failure of the store, of a group, or of the environment that describes them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DistributedError {
    /// A variable that torchrun sets is missing, or its value makes no sense.
    #[error(
        "{variable} is {}, expected {expected}: start the program with torchrun, or set all of RANK, WORLD_SIZE, \
         MASTER_ADDR and MASTER_PORT",
        value.as_ref().map_or_else(|| "not set".to_owned(), |value| format!("\"{value}\""))
    )]
    Environment {
        /// The variable's name.
        variable: &'static str,
        /// Its value. `None`: it is not set.
        value: Option<String>,
        /// What it must be.
        expected: String,
    },
    /// The key-value store cannot be reached or served, or stopped answering.
    #[error("cannot {operation} the store at {address}: {reason}: {advice}")]
    Store {
        /// What failed: `connect to`, `serve`, `read from`, ….
        operation: String,
        /// Host and port.
        address: String,
        /// The cause.
        reason: String,
        /// What to do.
        advice: String,
    },
    /// Another process ended or closed its connections. The group can no longer be used.
    #[error("{operation} failed because another process is gone: {reason}: its log says why")]
    Lost {
        /// The operation, and the group's name.
        operation: String,
        /// The first line of the cause.
        reason: String,
    },
    /// Another process took too long. The group can no longer be used.
    #[error(
        "{operation} did not finish in {seconds} s: {reason}: see whether a process hangs, or allow more time"
    )]
    TimedOut {
        /// The operation, and the group's name.
        operation: String,
        /// The group's timeout.
        seconds: f64,
        /// The first line of the cause, or the ranks that are missing.
        reason: String,
    },
    /// The caller's tensors do not fit the operation, or a name, rank, device or interface is not usable. Nothing was
    /// sent.
    #[error("{0}")]
    Invalid(String),
    /// NCCL, the library that connects GPUs, is missing or failed. The group can no longer be used.
    #[error("NCCL: {operation} failed: {reason}")]
    Nccl {
        /// The operation.
        operation: String,
        /// NCCL's message, and what to do.
        reason: String,
    },
    /// libtorch failed in this process.
    #[error("{0}")]
    Torch(String),
}

impl DistributedError {
    /// Sorts what an operation of a group reports: it took too long, or a process is gone.
    pub(crate) fn of_transfer(operation: String, timeout: Duration, text: &str) -> Self {
        let reason = useful(text);
        if says_timeout(&reason) {
            let seconds = timeout.as_secs_f64();
            Self::TimedOut {
                operation,
                seconds,
                reason,
            }
        } else {
            Self::Lost { operation, reason }
        }
    }
}

impl From<TorchError> for DistributedError {
    fn from(error: TorchError) -> Self {
        Self::Torch(error.to_string())
    }
}

/// The useful part of an exception of c10d or Gloo: its first line, without the places in their sources.
pub(crate) fn useful(text: &str) -> String {
    let mut rest = text.lines().next().unwrap_or_default();
    let mut kept = String::new();
    while let Some(start) = rest.find('[') {
        let Some(length) = rest[start..].find(']') else {
            break;
        };
        let end = start + length + 1;
        kept.push_str(&rest[..start]);
        let inside = &rest[start + 1..end - 1];
        let is_place = [".cc:", ".cpp:", ".h:", ".hpp:"]
            .iter()
            .any(|suffix| inside.contains(suffix));
        if !is_place {
            kept.push_str(&rest[start..end]);
        }
        rest = if is_place {
            rest[end..].trim_start()
        } else {
            &rest[end..]
        };
    }
    kept.push_str(rest);
    kept.trim().trim_end_matches('.').to_owned()
}

fn says_timeout(reason: &str) -> bool {
    let lower = reason.to_lowercase();
    ["timed out", "timeout"]
        .iter()
        .any(|form| lower.contains(form))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(text: &str) -> DistributedError {
        DistributedError::of_transfer("all_gather".to_owned(), Duration::from_secs(2), text)
    }

    /// The texts are those of libtorch 2.11.
    #[test]
    fn an_exception_is_sorted_by_its_cause_and_shortened() {
        let timed_out = [
            "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 2000ms for recv \
             operation to complete",
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:446] Application timeout caused pair closure",
        ];
        for text in timed_out {
            let error = sorted(text);
            assert!(
                matches!(error, DistributedError::TimedOut { .. }),
                "{error}"
            );
        }
        assert_eq!(
            sorted(timed_out[0]).to_string(),
            "all_gather did not finish in 2 s: Timed out waiting 2000ms for recv operation to complete: see whether a \
             process hangs, or allow more time"
        );
        let lost = [
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:41234",
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error [127.0.0.1]:5: Connection reset by \
             peer\nException raised from",
            "Gloo connectFullMesh failed with [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:144] no error",
        ];
        let reasons = [
            "Connection closed by peer [127.0.0.1]:41234",
            "Read error [127.0.0.1]:5: Connection reset by peer",
            "Gloo connectFullMesh failed with no error",
        ];
        for (text, expected) in lost.into_iter().zip(reasons) {
            match sorted(text) {
                DistributedError::Lost { reason, .. } => assert_eq!(reason, expected),
                error => panic!("{error}"),
            }
        }
    }

    #[test]
    fn texts_without_places_stay_as_they_are() {
        assert_eq!(useful(""), "");
        assert_eq!(useful("a [b.\n c"), "a [b");
        assert_eq!(useful("ranks [1, 2] are late."), "ranks [1, 2] are late");
    }
}
