//! What outlived an earlier hypervisor (arch §4).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::remains::Remains;
use super::{Fleet, State};
use crate::driver::Adopted;

impl Fleet {
    /// Finds the sandboxes that outlived an earlier hypervisor and takes them over.
    /// Returns how many there were.
    pub async fn adopt(&self) -> usize {
        let mut found = self.inner.driver.adopt().await;
        // The latest start of a sandbox is the one that counts; there should be no other.
        found.sort_by(|one, other| other.started_at.cmp(&one.started_at));
        let mut seen = HashSet::new();
        let mut looks = tokio::task::JoinSet::new();
        let mut count = 0;
        for adopted in found {
            let fleet = self.clone();
            if seen.insert(adopted.sandbox_id) {
                count += 1;
                looks.spawn(async move { fleet.take_over(adopted).await });
            } else {
                tracing::warn!(sandbox = %adopted.sandbox_id, start = %adopted.start_id, "ending a second start of one sandbox");
                looks.spawn(async move { fleet.end_second(adopted).await });
            }
        }
        looks.join_all().await;
        count
    }

    /// Takes one over. One that had no time to prove its health before the hypervisor
    /// died proves it now; an older one had.
    async fn take_over(&self, adopted: Adopted) {
        let Adopted {
            sandbox_id,
            start_id,
            started_at,
            control,
            started,
        } = adopted;
        let started = match started {
            Ok(started) => started,
            Err(why) => {
                let entry = self.entry(sandbox_id);
                let state = State::Failed(why.clone());
                *entry.remains() = Some(Remains::new(start_id, control, why));
                entry.state.send_replace(state);
                return;
            }
        };
        let age = started_at
            .parse::<jiff::Timestamp>()
            .ok()
            .and_then(|then| Duration::try_from(jiff::Timestamp::now().duration_since(then)).ok())
            .unwrap_or(Duration::MAX);
        let entry = self.entry(sandbox_id);
        let stops = *entry.stops.borrow();
        let crashes = self.inner.host.crashes(sandbox_id).await;
        let (instance, exited) = self.publish(sandbox_id, start_id, started_at, started, None);
        self.inner.host.adopted(Arc::clone(&instance)).await;
        let proved = age > self.inner.options.healthy_within
            || self.inner.host.healthy(Arc::clone(&instance)).await.is_ok();
        entry.state.send_replace(if proved {
            State::Running(Arc::clone(&instance))
        } else {
            State::Starting
        });
        let fleet = self.clone();
        tokio::spawn(async move {
            let running = if proved {
                Ok(Some((instance, exited)))
            } else {
                fleet.prove(&entry, stops, instance, exited).await
            };
            let born = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
            let Some(crash) = fleet
                .live(sandbox_id, &entry, stops, crashes, running, born)
                .await
            else {
                return;
            };
            fleet
                .keep_running(sandbox_id, entry, stops, crashes, Some(crash))
                .await;
        });
    }
}
