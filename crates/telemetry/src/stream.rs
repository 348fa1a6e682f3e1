//! `/api/stream`: server-sent events, a client's own news once a second.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::response::sse::{Event, Sse};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{series::Told, site::Source};

const EVERY: Duration = Duration::from_secs(1);

/// What a client has been told.
struct Client {
    source: Arc<Source>,
    /// Whether the run has ended.
    ended: watch::Receiver<bool>,
    /// The end has been told.
    is_done: bool,
    steps: Told,
    next_sample: u64,
    mixture: Option<u64>,
    events: Option<u64>,
}

/// Everything at first, then what is new, until the client goes or the run has ended: that is the last news.
pub(crate) fn stream(
    source: Arc<Source>,
    ended: watch::Receiver<bool>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let client = Client {
        source,
        ended,
        is_done: false,
        steps: Told::default(),
        next_sample: 0,
        mixture: None,
        events: None,
    };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let news = stream::unfold((client, ticks), |(client, ticks)| next(client, ticks));
    Sse::new(news.flat_map(stream::iter).map(Ok))
}

/// Files are read on a thread that may wait for the disk.
async fn next(mut client: Client, mut ticks: Interval) -> Option<(Vec<Event>, (Client, Interval))> {
    if client.is_done {
        return None;
    }
    tokio::select! {
        _ = ticks.tick() => {}
        // A site that is gone has nothing more to tell.
        _ = client.ended.wait_for(|ended| *ended) => client.is_done = true,
    }
    let looked = tokio::task::spawn_blocking(move || {
        let news = client.news();
        (news, client)
    });
    let (news, client) = looked.await.ok()?;
    Some((news, (client, ticks)))
}

impl Client {
    fn news(&mut self) -> Vec<Event> {
        let mut news = vec![event("status", &self.source.status())];
        let (steps, mixture, events) = self.source.look(|history, _| {
            let mixture = history.mixture_revision();
            let is_new = self.mixture.replace(mixture) != Some(mixture);
            let mixture = is_new.then(|| history.mixture());
            let events = history.event_count();
            let is_new = self.events.replace(events) != Some(events);
            let events = is_new.then(|| history.events());
            (history.news(&mut self.steps), mixture, events)
        });
        news.extend(steps.map(|steps| event("steps", &steps)));
        news.extend(mixture.map(|mixture| event("mixture", &mixture)));
        news.extend(events.map(|events| event("events", &events)));
        let next_sample = self.source.next_sample();
        if next_sample > self.next_sample {
            let lanes = self.source.lanes(self.next_sample);
            news.extend(lanes.map(|lanes| event("lanes", &lanes)));
            self.next_sample = next_sample;
        }
        news.into_iter().flatten().collect()
    }
}

/// `None` where it cannot be written as JSON, which no type of the API is.
fn event(name: &str, data: &impl Serialize) -> Option<Event> {
    let event = Event::default().event(name).json_data(data);
    event
        .inspect_err(|error| tracing::error!(%error, name, "an event could not be written"))
        .ok()
}
