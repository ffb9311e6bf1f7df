use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{MAX_TEXT, MemoryError, forget, match_expression, recall, remember};
use crate::store::EventStore;

const DAY: i64 = 86_400_000;

/// A store whose clock stands where the test puts it, in milliseconds.
async fn store() -> (TempDir, EventStore, Arc<AtomicI64>) {
    let dir = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(1_700_000_000_000));
    let clock = time.clone();
    let clock =
        Arc::new(move || Timestamp::from_millisecond(clock.load(Ordering::Relaxed)).unwrap());
    let store = EventStore::open(&dir.path().join("events.db"), clock)
        .await
        .unwrap();
    (dir, store, time)
}

async fn texts(store: &EventStore, query: &str, tag: Option<&str>) -> Vec<String> {
    let memories = recall(store, query, tag, 10).await.unwrap();
    memories.into_iter().map(|memory| memory.text).collect()
}

#[tokio::test]
async fn the_better_match_comes_first_and_of_equal_ones_the_newer() {
    let (_dir, store, time) = store().await;
    for text in [
        "deploy with make ship",
        "the cat is called Mia",
        "deploy, deploy and deploy again",
    ] {
        remember(&store, text, &[], None).await.unwrap();
        time.fetch_add(1000, Ordering::Relaxed);
    }
    assert_eq!(texts(&store, "cats", None).await, ["the cat is called Mia"]);
    assert_eq!(
        texts(&store, "how to deploy?", None).await[0],
        "deploy, deploy and deploy again"
    );
    time.fetch_add(90 * DAY, Ordering::Relaxed);
    remember(&store, "deploy with just ship", &[], None)
        .await
        .unwrap();
    let found = texts(&store, "ship", None).await;
    assert_eq!(found, ["deploy with just ship", "deploy with make ship"]);
    // Without words the latest come first.
    assert_eq!(texts(&store, "?!", None).await[0], "deploy with just ship");
}

#[tokio::test]
async fn tags_find_and_filter() {
    let (_dir, store, _) = store().await;
    let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    remember(&store, "one", &tags(&["Build", " build "]), None)
        .await
        .unwrap();
    let memory = remember(&store, "two", &tags(&["test"]), None)
        .await
        .unwrap();
    assert_eq!(memory.tags, ["test"]);
    assert_eq!(texts(&store, "", Some("BUILD")).await, ["one"]);
    assert_eq!(texts(&store, "build", None).await, ["one"]);
    assert!(texts(&store, "two", Some("build")).await.is_empty());
}

#[tokio::test]
async fn what_is_forgotten_is_nowhere() {
    let (dir, store, _) = store().await;
    let secret = remember(&store, "the canary sings xyzzyplugh", &[], None)
        .await
        .unwrap();
    forget(&store, &secret.id).await.unwrap();
    assert!(texts(&store, "xyzzyplugh", None).await.is_empty());
    assert!(matches!(
        forget(&store, &secret.id).await,
        Err(MemoryError::NotFound)
    ));
    let events = store.page(0, 10, None, None).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["memory.remembered", "memory.forgotten"]);
    // Not in the database's pages either, once the log of writes was taken over.
    let url = format!("sqlite://{}", dir.path().join("events.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&pool)
        .await
        .unwrap();
    let bytes = std::fs::read(dir.path().join("events.db")).unwrap();
    assert!(!bytes.windows(10).any(|window| window == b"xyzzyplugh"));
}

#[tokio::test]
async fn memories_are_bounded() {
    let (_dir, store, _) = store().await;
    assert!(matches!(
        remember(&store, " \n", &[], None).await,
        Err(MemoryError::Empty)
    ));
    let long = "x".repeat(MAX_TEXT + 1);
    assert!(matches!(
        remember(&store, &long, &[], None).await,
        Err(MemoryError::TooLong(_))
    ));
    for tags in [
        vec![String::new()],
        vec!["x".repeat(65)],
        (0..17).map(|n| n.to_string()).collect(),
    ] {
        assert!(matches!(
            remember(&store, "x", &tags, None).await,
            Err(MemoryError::Tags)
        ));
    }
}

#[test]
fn a_query_is_words_and_nothing_else() {
    let expression = match_expression("Foo AND \"bar\" NEAR(x) text:* -- foo").unwrap();
    assert_eq!(expression, r#""foo" OR "bar" OR "near" OR "x" OR "text""#);
    assert_eq!(
        match_expression("What is it?").unwrap(),
        r#""what" OR "is" OR "it""#
    );
    assert_eq!(match_expression("\"* ()"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_query_breaks_the_search(query in "\\PC{0,60}|[\"'*():^ A-Z{}\\-]{0,40}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, store, _) = store().await;
            remember(&store, "something", &[], None).await.unwrap();
            recall(&store, &query, Some(&query), 10).await.unwrap();
            recall(&store, &query, None, 10).await.unwrap();
        });
    }
}
