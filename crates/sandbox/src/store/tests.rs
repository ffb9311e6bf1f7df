use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;
use types::RunId;

use super::{
    Delivery, EventStore, Fragment, LIVE_QUEUE, NewEvent, RunStatus, StoreError, system_clock,
};

async fn store() -> (TempDir, EventStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = EventStore::open(&dir.path().join("events.db"), system_clock())
        .await
        .unwrap();
    (dir, store)
}

fn numbered(n: usize) -> NewEvent {
    NewEvent::new("test.written", json!({"n": n}))
}

#[tokio::test]
async fn what_is_written_never_changes_nor_goes() {
    let (dir, store) = store().await;
    for n in 0..3 {
        store.append(numbered(n)).await.unwrap();
    }
    // Even somebody with the database open in another process.
    let url = format!("sqlite://{}", dir.path().join("events.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    for attempt in [
        "UPDATE events SET kind = 'x' WHERE seq = 2",
        "DELETE FROM events WHERE seq = 3",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events (seq, ts, kind, data) VALUES (2, '', 'x', '{}')",
    ] {
        let error = sqlx::query(attempt)
            .execute(&pool)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("append-only"), "{attempt}: {error}");
    }
    let events = store.page(0, 10, None, None).await.unwrap();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| (event.seq, event.kind.as_str()))
        .collect();
    assert_eq!(
        kinds,
        [
            (1, "test.written"),
            (2, "test.written"),
            (3, "test.written")
        ]
    );
}

#[tokio::test]
async fn a_reader_that_is_slower_than_the_relay_misses_nothing() {
    let (_dir, store) = store().await;
    let mut subscription = store.subscribe(0).await.unwrap();
    assert!(matches!(
        subscription.next().await,
        Ok(Some(Delivery::CaughtUp(0)))
    ));
    // More than the relay keeps, while the reader does not read.
    let count = LIVE_QUEUE * 2 + 17;
    let batch: Vec<_> = (0..count).map(numbered).collect();
    for events in batch.chunks(100) {
        store.append_all(events.to_vec()).await.unwrap();
    }
    store.relay(Fragment::Text {
        run_id: RunId::generate(),
        text: "x".into(),
    });
    for n in 0..count {
        match subscription.next().await.unwrap().unwrap() {
            Delivery::Event(event) => assert_eq!(event.data["n"], n),
            other => panic!("{other:?}"),
        }
    }
    // And it is live again.
    store.append(numbered(count)).await.unwrap();
    loop {
        match subscription.next().await.unwrap().unwrap() {
            Delivery::Event(event) => break assert_eq!(event.data["n"], count),
            Delivery::Fragment(_) => {}
            Delivery::CaughtUp(_) => panic!("announced twice"),
        }
    }
}

#[tokio::test]
async fn what_is_not_committed_is_not_relayed() {
    let (_dir, store) = store().await;
    let mut subscription = store.subscribe(0).await.unwrap();
    subscription.next().await.unwrap();
    let run_id = RunId::generate();
    let start = || NewEvent::of_run(run_id, "run.started", json!({"prompt": "x", "model": "m"}));
    store.append(start()).await.unwrap();
    // The second start of the same run breaks a constraint: the event goes with it.
    assert!(store.append_all(vec![numbered(0), start()]).await.is_err());
    let huge = NewEvent::new("test.written", json!("x".repeat(super::MAX_DATA_BYTES)));
    assert!(matches!(
        store.append(huge).await,
        Err(StoreError::TooLarge(_))
    ));
    store.append(numbered(1)).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        if let Delivery::Event(event) = subscription.next().await.unwrap().unwrap() {
            seen.push((event.seq, event.kind.clone()));
        }
    }
    assert_eq!(
        seen,
        [(1, "run.started".into()), (2, "test.written".into())]
    );
}

#[tokio::test]
async fn runs_add_up_and_survive_a_restart() {
    let (dir, store) = store().await;
    let run_id = RunId::generate();
    let of = |kind, data| NewEvent::of_run(run_id, kind, data);
    store
        .append_all(vec![
            of("run.started", json!({"prompt": "p", "model": "a/b"})),
            of("run.step", json!({"step": 1})),
            of("run.usage", json!({"input_tokens": 3, "output_tokens": 4})),
            of("run.step", json!({"step": 2})),
            of("run.usage", json!({"input_tokens": 5, "output_tokens": 6})),
        ])
        .await
        .unwrap();
    assert_eq!(store.unfinished_runs().await.unwrap(), [run_id]);
    drop(store);
    let store = EventStore::open(&dir.path().join("events.db"), system_clock())
        .await
        .unwrap();
    store
        .append(of(
            "run.finished",
            json!({"status": "done", "answer": "42"}),
        ))
        .await
        .unwrap();
    let run = store.run(run_id).await.unwrap().unwrap();
    assert_eq!(
        (run.status, run.steps, run.input_tokens, run.output_tokens),
        (RunStatus::Done, 2, 8, 10)
    );
    assert_eq!((run.answer.as_deref(), run.error), (Some("42"), None));
    assert!(run.ended_at.is_some() && store.unfinished_runs().await.unwrap().is_empty());
    assert_eq!(store.head().await.unwrap(), 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Writers write at once, in batches; readers come and go with their cursor. Each
    /// reader sees every position once and in order, and what it sees is what is stored.
    #[test]
    fn readers_neither_skip_nor_invent(
        writers in proptest::collection::vec(proptest::collection::vec(1usize..40, 1..6), 1..4),
        visits in proptest::collection::vec(1usize..60, 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = store().await;
            let total: usize = writers.iter().flatten().sum();
            for batches in writers {
                let store = store.clone();
                tokio::spawn(async move {
                    for size in batches {
                        store.append_all((0..size).map(numbered).collect()).await.unwrap();
                    }
                });
            }
            let readers: Vec<_> = (0..3).map(|reader| {
                let (store, visits) = (store.clone(), visits.clone());
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    let mut visits = visits.into_iter().cycle().skip(reader);
                    while seen.len() < total {
                        let cursor = i64::try_from(seen.len()).unwrap();
                        let mut subscription = store.subscribe(cursor).await.unwrap();
                        for _ in 0..visits.next().unwrap() {
                            if seen.len() == total {
                                break;
                            }
                            if let Delivery::Event(event) = subscription.next().await.unwrap().unwrap() {
                                seen.push(Arc::unwrap_or_clone(event));
                            }
                        }
                    }
                    seen
                })
            }).collect();
            let mut stored = Vec::new();
            for reader in readers {
                let seen = reader.await.unwrap();
                let order: Vec<_> = seen.iter().map(|event| event.seq).collect();
                assert_eq!(order, (1..=i64::try_from(total).unwrap()).collect::<Vec<_>>());
                stored = store.page(0, 1000, None, None).await.unwrap();
                assert_eq!(seen, stored);
            }
            assert_eq!(stored.len(), total);
        });
    }
}
