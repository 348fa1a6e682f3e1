//! The run itself: its end, its guards, its telemetry.

use std::net::SocketAddr;

use super::{Checker, MANY};
use crate::{
    options::{GuardOptions, RunOptions, TelemetryOptions},
    settings::{Guard, Run, Telemetry},
};

impl Checker<'_> {
    pub(super) fn run(&mut self, run: RunOptions) -> Option<Run> {
        if let Some(name) = &run.name {
            let plain =
                |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                self.problem(
                    "run.name",
                    format!("`run.name` is \"{name}\", expected letters, digits, `.`, `_` and `-`"),
                );
            }
        }
        let max_steps = self.optional_count("run.max_steps", run.max_steps, MANY);
        let max_intervals = self.optional_count("run.max_intervals", run.max_intervals, MANY);
        let max_tokens = self.optional("run.max_tokens", run.max_tokens, 1.., "1 or more");
        let stop_ratio = self.optional("run.stop_ratio", run.stop_ratio, 1.0.., "1 or more");
        Some(Run {
            name: run.name,
            folder: self.need("run.folder", run.folder)?,
            seed: self.need("run.seed", run.seed)?,
            max_steps,
            max_intervals,
            max_tokens,
            stop_ratio,
            export: self.need("run.export", run.export)?,
            trace: self.need("run.trace", run.trace)?,
            take_turns: self.need("run.take_turns", run.take_turns)?,
            deterministic: self.need("run.deterministic", run.deterministic)?,
            threads: self.need("run.threads", run.threads)?,
        })
    }

    pub(super) fn guard(&mut self, guard: GuardOptions) -> Option<Guard> {
        let max_skipped = self.within("guard.max_skipped", guard.max_skipped, 1.., "1 or more");
        let sigmas = self.positive("guard.spike_sigmas", guard.spike_sigmas);
        let window = self.within("guard.spike_window", guard.spike_window, 2.., "2 or more");
        let from = self.within("guard.spike_from", guard.spike_from, 2.., "2 or more");
        if let (Some(window), Some(from)) = (window, from)
            && window < from
        {
            self.problem(
                "guard.spike_window",
                format!(
                    "`guard.spike_window` is {window}, expected at least `guard.spike_from`, {from}: nothing would ever be a spike"
                ),
            );
        }
        let grace = self.positive("guard.grace_seconds", guard.grace_seconds);
        let compute_limit =
            self.positive("guard.compute_limit_seconds", guard.compute_limit_seconds);
        self.not_too_long("guard.grace_seconds", grace);
        self.not_too_long("guard.compute_limit_seconds", compute_limit);
        Some(Guard {
            max_skipped: max_skipped?,
            max_rollbacks: self.need("guard.max_rollbacks", guard.max_rollbacks)?,
            spike: self.need("guard.spike", guard.spike)?,
            spike_sigmas: sigmas?,
            spike_window: window?,
            spike_from: from?,
            grace_seconds: grace?,
            compute_limit_seconds: compute_limit?,
        })
    }

    pub(super) fn telemetry(&mut self, telemetry: TelemetryOptions) -> Option<Telemetry> {
        let address = self.need("telemetry.address", telemetry.address)?;
        match address.parse::<SocketAddr>() {
            Ok(parsed) if parsed.ip().is_loopback() || telemetry.token.is_some() => {}
            Ok(_) => self.problem(
                "telemetry.address",
                format!("`telemetry.address` is \"{address}\", which other machines reach: that needs a `telemetry.token` (best DDK__TELEMETRY__TOKEN in the environment)"),
            ),
            Err(_) => self.problem(
                "telemetry.address",
                format!("`telemetry.address` is \"{address}\", expected an address and a port such as \"127.0.0.1:9469\""),
            ),
        }
        let prom = |file: &std::path::PathBuf| file.extension().is_some_and(|end| end == "prom");
        if let Some(file) = telemetry.file.as_ref().filter(|file| !prom(file)) {
            self.problem(
                "telemetry.file",
                format!(
                    "`telemetry.file` is \"{}\", expected a name that ends in `.prom`: the node exporter reads no other",
                    file.display()
                ),
            );
        }
        if telemetry
            .token
            .as_ref()
            .is_some_and(|token| !token.is_usable())
        {
            self.problem(
                "telemetry.token",
                "`telemetry.token` is not usable, expected 16 characters or more, of letters, digits, `-`, `.`, `_` and `~`".to_owned(),
            );
        }
        Some(Telemetry {
            file: telemetry.file,
            enabled: self.need("telemetry.enabled", telemetry.enabled)?,
            address,
            token: telemetry.token,
            required: self.need("telemetry.required", telemetry.required)?,
        })
    }
}
