//! Signs that pages and runtimes do not fit together (ADR-0004): clients that open WebSockets
//! again and again, asset and socket paths that keep answering 404, and pages of an older
//! generation that go on talking.
//!
//! Ordinary requests never come here: only WebSocket handshakes, 404s of assets and requests
//! of an older generation do. Each sandbox has a lock of its own; what is kept about one is
//! bounded. Time is a parameter.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use types::SandboxId;

/// Clients (sessions) told apart per sandbox; the quietest gives way to a new one.
const MAX_CLIENTS: usize = 32;

/// Missing paths told apart per sandbox; the one that was asked for least gives way.
const MAX_PATHS: usize = 16;

/// Longest path that is kept, in bytes.
const MAX_PATH: usize = 200;

/// Handshakes a second that a client may make for ever: a reconnect with back-off makes less.
const OPENS_PER_SECOND: f64 = 0.5;

/// Handshakes beyond that which are no storm yet: a page with ten sockets may be loaded twice
/// in a row.
const OPENS_BURST: f64 = 20.0;

/// The same for all clients of a sandbox together.
const ALL_OPENS_BURST: f64 = 60.0;

/// Sockets that are open, or were lately, explain this many handshakes each: a page that is
/// loaded again closes all of them first.
const OPENS_PER_SOCKET: f64 = 4.0;

/// How long sockets that are closed still explain handshakes.
const LATELY: Duration = Duration::from_secs(60);

/// A missing path is forgotten at this rate.
const MISSING_PER_SECOND: f64 = 1.0 / 20.0;

/// So often one path has to be missing, in short order, to be worth a word.
const MISSING_BURST: f64 = 4.0;

/// After a swap the pages of the older generation have this long to go: the window in which
/// their sockets close, the time over which they reload, and as much again.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(15);

/// Requests of an older generation are forgotten at this rate.
const STALE_PER_SECOND: f64 = 1.0 / 30.0;

/// So often an older generation has to be heard, in short order, to be worth a word.
const STALE_BURST: f64 = 2.0;

/// The same sign is told again after this long, with how often it was seen meanwhile.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// A sign that is worth a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Symptom {
    /// One client opens WebSockets again and again.
    ClientStorm {
        /// Handshakes since it was last told.
        times: u64,
        /// Sockets of it that are open.
        open: usize,
    },
    /// All clients together do.
    SandboxStorm {
        /// Handshakes since it was last told.
        times: u64,
        /// Sockets that are open.
        open: usize,
    },
    /// A path keeps answering 404.
    Missing {
        /// The path, cut to a bound.
        path: String,
        /// How often since it was last told.
        times: u64,
    },
    /// A page of an older generation goes on talking.
    Stale {
        /// The generation that it was loaded with.
        generation: u64,
        /// How often since it was last told.
        times: u64,
    },
}

/// What is known about every sandbox that ever showed a sign.
#[derive(Default)]
pub(crate) struct Symptoms {
    /// Read for a look-up when there is a sign, written when a sandbox shows its first one.
    /// Grows with the sandboxes that exist.
    of: RwLock<HashMap<SandboxId, Arc<Mutex<Seen>>>>,
}

impl fmt::Debug for Symptoms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symptoms").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Seen {
    clients: HashMap<u128, Gauge>,
    all: Gauge,
    paths: HashMap<String, Gauge>,
    stale: Gauge,
}

/// A level that each event raises by one and that sinks with time.
#[derive(Debug, Clone, Copy, Default)]
struct Gauge {
    level: f64,
    at: Option<Instant>,
    told: Option<Instant>,
    /// Events since it was last told.
    untold: u64,
    /// Most sockets that were open lately, and when.
    peak: Option<(usize, Instant)>,
}

impl Gauge {
    fn raise(&mut self, now: Instant, per_second: f64) {
        self.sink(now, per_second);
        self.level += 1.0;
        self.untold = self.untold.saturating_add(1);
    }

    fn sink(&mut self, now: Instant, per_second: f64) {
        if let Some(at) = self.at {
            let passed = now.saturating_duration_since(at).as_secs_f64();
            self.level = (self.level - passed * per_second).max(0.0);
        }
        self.at = Some(now);
    }

    /// How many handshakes are explained by a burst, or by the sockets that are open now or
    /// were lately.
    fn explained(&mut self, open: usize, now: Instant, burst: f64) -> f64 {
        let peak = match self.peak {
            Some((peak, at)) if peak > open && now.saturating_duration_since(at) < LATELY => peak,
            _ => {
                self.peak = Some((open, now));
                open
            }
        };
        let sockets = f64::from(u32::try_from(peak).unwrap_or(u32::MAX));
        (sockets * OPENS_PER_SOCKET).max(burst)
    }

    /// How often it happened, when it is above `most` and was not told of lately.
    fn tell(&mut self, now: Instant, most: f64) -> Option<u64> {
        let lately = self
            .told
            .is_some_and(|told| now.saturating_duration_since(told) < TELL_AGAIN);
        if self.level <= most || lately {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl Symptoms {
    /// A client asks for a WebSocket; `open` are its sockets that are open already, `open_all`
    /// those of all clients.
    pub(crate) fn socket_asked(
        &self,
        sandbox: SandboxId,
        client: u128,
        (open, open_all): (usize, usize),
        now: Instant,
    ) -> Option<Symptom> {
        let seen = self.entry(sandbox);
        let mut seen = lock(&seen);
        let seen = &mut *seen;
        seen.all.raise(now, OPENS_PER_SECOND);
        let most_of_all = seen.all.explained(open_all, now, ALL_OPENS_BURST);
        let of_client = place(&mut seen.clients, client, MAX_CLIENTS);
        of_client.raise(now, OPENS_PER_SECOND);
        let most = of_client.explained(open, now, OPENS_BURST);
        if of_client.level > most {
            // One client explains it; the sandbox is not told of a second time.
            let times = of_client.tell(now, most)?;
            return Some(Symptom::ClientStorm { times, open });
        }
        let times = seen.all.tell(now, most_of_all)?;
        Some(Symptom::SandboxStorm {
            times,
            open: open_all,
        })
    }

    /// We closed sockets of these clients ourselves: that they come back is no sign.
    pub(crate) fn sockets_closed(&self, sandbox: SandboxId, clients: impl Iterator<Item = u128>) {
        let seen = self.entry(sandbox);
        let mut seen = lock(&seen);
        for client in clients {
            if let Some(gauge) = seen.clients.get_mut(&client) {
                gauge.level = (gauge.level - 1.0).max(0.0);
            }
            seen.all.level = (seen.all.level - 1.0).max(0.0);
        }
    }

    /// An asset or a socket is not there.
    pub(crate) fn missing(&self, sandbox: SandboxId, path: &str, now: Instant) -> Option<Symptom> {
        let path = path.get(..path.floor_char_boundary(MAX_PATH))?.to_owned();
        let seen = self.entry(sandbox);
        let mut seen = lock(&seen);
        let gauge = place(&mut seen.paths, path.clone(), MAX_PATHS);
        gauge.raise(now, MISSING_PER_SECOND);
        let times = gauge.tell(now, MISSING_BURST)?;
        Some(Symptom::Missing { path, times })
    }

    /// A page of an older generation talks, this long after the swap that made it so.
    pub(crate) fn stale(
        &self,
        sandbox: SandboxId,
        generation: u64,
        since_swap: Duration,
        now: Instant,
    ) -> Option<Symptom> {
        if since_swap < STALE_AFTER {
            return None;
        }
        let seen = self.entry(sandbox);
        let mut seen = lock(&seen);
        seen.stale.raise(now, STALE_PER_SECOND);
        let times = seen.stale.tell(now, STALE_BURST)?;
        Some(Symptom::Stale { generation, times })
    }

    fn entry(&self, sandbox: SandboxId) -> Arc<Mutex<Seen>> {
        let known = {
            let of = self.of.read().unwrap_or_else(PoisonError::into_inner);
            of.get(&sandbox).map(Arc::clone)
        };
        known.unwrap_or_else(|| {
            let mut of = self.of.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(of.entry(sandbox).or_default())
        })
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The gauge of a key; when there are too many, the lowest of the others goes.
fn place<K: Clone + Eq + std::hash::Hash>(
    gauges: &mut HashMap<K, Gauge>,
    key: K,
    most: usize,
) -> &mut Gauge {
    if gauges.len() >= most && !gauges.contains_key(&key) {
        let lowest = gauges
            .iter()
            .min_by(|(_, a), (_, b)| a.level.total_cmp(&b.level))
            .map(|(key, _)| key.clone());
        if let Some(lowest) = lowest {
            gauges.remove(&lowest);
        }
    }
    gauges.entry(key).or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{MAX_CLIENTS, MAX_PATHS, STALE_AFTER, Symptom, Symptoms, lock};
    use types::SandboxId;

    const ALICE: u128 = 7;

    struct Bed {
        symptoms: Symptoms,
        sandbox: SandboxId,
        now: Instant,
    }

    impl Bed {
        fn new() -> Self {
            Self {
                symptoms: Symptoms::default(),
                sandbox: SandboxId::generate(),
                now: Instant::now(),
            }
        }

        fn after(&mut self, pause: Duration) {
            self.now += pause;
        }

        fn open(&mut self, client: u128, open: usize) -> Option<Symptom> {
            self.symptoms
                .socket_asked(self.sandbox, client, (open, open), self.now)
        }

        /// A page with so many sockets is loaded.
        fn load(&mut self, sockets: usize) -> Option<Symptom> {
            (0..sockets).find_map(|open| {
                self.after(Duration::from_millis(5));
                self.open(ALICE, open)
            })
        }
    }

    #[test]
    fn a_client_that_does_not_wait_is_a_storm_and_one_with_back_off_is_none() {
        let mut bed = Bed::new();
        let mut first = None;
        for attempt in 1..=40 {
            bed.after(Duration::from_millis(200));
            if bed.open(ALICE, 0).is_some() {
                first = Some(attempt);
                break;
            }
        }
        // At five a second the burst of twenty is used up after about twenty-three.
        assert!(matches!(first, Some(20..=30)), "{first:?}");

        let mut bed = Bed::new();
        // The desktop's own back-off at its fastest: half a second, doubling to fifteen.
        let mut pause = 250;
        for _ in 0..200 {
            bed.after(Duration::from_millis(pause));
            assert_eq!(bed.open(ALICE, 0), None);
            pause = (pause * 2).min(7_500);
        }
    }

    #[test]
    fn reloads_are_no_storm() {
        for sockets in [1, 11, 50] {
            let mut bed = Bed::new();
            for _ in 0..3 {
                assert_eq!(bed.load(sockets), None, "{sockets} sockets");
                bed.after(Duration::from_secs(2));
            }
        }
    }

    #[test]
    fn a_swap_with_fifty_sockets_is_no_storm_however_often() {
        let mut bed = Bed::new();
        assert_eq!(bed.load(50), None);
        for _ in 0..100 {
            let closed = std::iter::repeat_n(ALICE, 50);
            bed.symptoms.sockets_closed(bed.sandbox, closed);
            bed.after(Duration::from_millis(300));
            assert_eq!(bed.load(50), None);
        }
        // The same reconnects that nobody ordered are one.
        let stormy = (0..8).any(|_| bed.load(50).is_some());
        assert!(stormy);
    }

    #[test]
    fn many_clients_together_are_a_storm_of_the_sandbox() {
        let mut bed = Bed::new();
        let seen: Vec<_> = (0..10 * 20)
            .filter_map(|number| bed.open(number % 10, 0))
            .collect();
        assert!(
            seen.iter()
                .any(|symptom| matches!(symptom, Symptom::SandboxStorm { .. })),
            "{seen:?}"
        );
    }

    #[test]
    fn a_storm_is_told_once_in_a_while_with_its_count() {
        let mut bed = Bed::new();
        let mut told = Vec::new();
        for _ in 0..600 {
            bed.after(Duration::from_millis(50));
            told.extend(bed.open(ALICE, 0));
        }
        // Thirty seconds of it.
        assert!((2..=4).contains(&told.len()), "{told:?}");
        let Some(Symptom::ClientStorm { times, .. }) = told.last() else {
            panic!("{told:?}");
        };
        assert!(*times > 100, "{told:?}");
    }

    #[test]
    fn a_path_that_stays_away_is_told_and_one_miss_per_page_is_not() {
        let mut bed = Bed::new();
        let miss = |bed: &mut Bed, path: &str| {
            bed.after(Duration::from_millis(300));
            bed.symptoms.missing(bed.sandbox, path, bed.now)
        };
        let told: Vec<_> = (0..8)
            .filter_map(|_| miss(&mut bed, "/assets/old-1234.js"))
            .collect();
        assert_eq!(
            told,
            [Symptom::Missing {
                path: "/assets/old-1234.js".into(),
                times: 5
            }]
        );
        let mut bed = Bed::new();
        for _ in 0..50 {
            bed.after(Duration::from_secs(30));
            assert_eq!(miss(&mut bed, "/favicon.js"), None);
        }
    }

    #[test]
    fn an_older_generation_may_finish_and_not_stay() {
        let mut bed = Bed::new();
        for _ in 0..50 {
            let early = STALE_AFTER - Duration::from_secs(1);
            assert_eq!(bed.symptoms.stale(bed.sandbox, 3, early, bed.now), None);
        }
        let late: Vec<_> = (0..5)
            .filter_map(|_| bed.symptoms.stale(bed.sandbox, 3, STALE_AFTER, bed.now))
            .collect();
        assert_eq!(
            late,
            [Symptom::Stale {
                generation: 3,
                times: 3
            }]
        );
        bed.after(Duration::from_secs(3600));
        assert_eq!(
            bed.symptoms.stale(bed.sandbox, 3, STALE_AFTER, bed.now),
            None
        );
    }

    #[test]
    fn memory_is_bounded_and_the_loudest_stay() {
        let mut bed = Bed::new();
        for _ in 0..10 {
            bed.symptoms.missing(bed.sandbox, "/loud.js", bed.now);
            bed.open(ALICE, 0);
        }
        for number in 0..10_000_u32 {
            let path = format!("/{}{number}.js", "x".repeat(5_000));
            bed.symptoms.missing(bed.sandbox, &path, bed.now);
            bed.open(u128::from(number) + 100, 0);
        }
        let entry = bed.symptoms.entry(bed.sandbox);
        let seen = lock(&entry);
        assert!(seen.paths.len() <= MAX_PATHS && seen.clients.len() <= MAX_CLIENTS);
        assert!(seen.paths.keys().all(|path| path.len() <= super::MAX_PATH));
        assert!(seen.paths.contains_key("/loud.js") && seen.clients.contains_key(&ALICE));
    }
}
