//! The store's promises.

use types::{InviteId, PasskeyId, SandboxId, SessionId, SwapOutcome, TokenId, UserId};
use uuid::Uuid;

use super::*;

const NOW: i64 = 1_000_000;

async fn store() -> (Store, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("hypervisor.db"))
        .await
        .unwrap();
    (store, dir)
}

fn session(user: UserId, kind: SessionKind, parent: Option<SessionId>) -> NewSession {
    let id = SessionId::generate();
    NewSession {
        id,
        user_id: user,
        kind,
        parent,
        token_hash: id.to_string(),
        host: "localhost".to_owned(),
        user_agent: String::new(),
        address: String::new(),
        now: NOW,
        expires_at: NOW + 1000,
    }
}

fn passkey() -> NewPasskey {
    let id = PasskeyId::generate();
    NewPasskey {
        id,
        name: "Laptop".to_owned(),
        credential_id: id.to_string(),
        credential: "{}".to_owned(),
    }
}

fn registration(name: &str, entitlement: Entitlement) -> Registration {
    let user = UserId::generate();
    Registration {
        user: NewUser {
            id: user,
            name: name.parse().unwrap(),
            is_admin: false,
            live: SandboxId::generate(),
            dev: SandboxId::generate(),
            host_uid_base: 5000,
            now: NOW,
        },
        passkey: passkey(),
        codes: vec![NewRecoveryCode {
            id: Uuid::now_v7(),
            code_hash: "x".to_owned(),
        }],
        session: session(user, SessionKind::Control, None),
        entitlement,
    }
}

#[tokio::test]
async fn a_registration_makes_two_sandboxes_with_uids_of_their_own() {
    let (store, _dir) = store().await;
    for name in ["alice", "bob"] {
        assert!(
            store
                .register(&registration(name, Entitlement::Open))
                .await
                .unwrap()
        );
    }
    let uids: Vec<u32> = store
        .sandboxes()
        .await
        .unwrap()
        .iter()
        .map(|row| row.host_uid)
        .collect();
    assert_eq!(uids, [5000, 5001, 5002, 5003]);
    assert_eq!(store.routes().await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_invitation_makes_one_account_and_a_refused_registration_leaves_nothing() {
    let (store, _dir) = store().await;
    let first = registration("alice", Entitlement::Open);
    store.register(&first).await.unwrap();
    let invite = NewInvite {
        id: InviteId::generate(),
        token_hash: "hash".to_owned(),
        note: String::new(),
        makes_admin: true,
        created_by: first.user.id,
        now: NOW,
        expires_at: NOW + 1000,
    };
    store.add_invite(&invite).await.unwrap();
    let entitlement = Entitlement::Invite("hash".to_owned());
    assert_eq!(store.entitled(&entitlement, NOW).await.unwrap(), Some(true));
    assert_eq!(
        store.entitled(&entitlement, NOW + 1000).await.unwrap(),
        None
    );
    assert!(
        store
            .register(&registration("bob", entitlement.clone()))
            .await
            .unwrap()
    );
    assert!(
        !store
            .register(&registration("carol", entitlement))
            .await
            .unwrap()
    );
    assert!(
        store
            .user_by_name(&"carol".parse().unwrap())
            .await
            .unwrap()
            .is_none()
    );
    let taken = store
        .register(&registration("bob", Entitlement::Open))
        .await;
    assert!(matches!(taken, Err(StoreError::Duplicate { what: "user" })));
    assert!(!store.remove_invite(invite.id).await.unwrap());
}

#[tokio::test]
async fn a_swap_happens_once_per_generation() {
    let (store, _dir) = store().await;
    let alice = registration("alice", Entitlement::Open);
    store.register(&alice).await.unwrap();
    let seen = store.route(alice.user.id).await.unwrap().unwrap();
    let swapped = store.swap_route(&seen, NOW, None).await.unwrap().unwrap();
    assert_eq!(
        (swapped.live, swapped.dev, swapped.generation),
        (seen.dev, seen.live, 1)
    );
    assert_eq!(store.swap_route(&seen, NOW, None).await.unwrap(), None);
    let back = store
        .swap_route(&swapped, NOW, None)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((back.live, back.generation), (seen.live, 2));
}

#[tokio::test]
async fn a_swap_on_trial_is_taken_back_once() {
    let (store, _dir) = store().await;
    let alice = registration("alice", Entitlement::Open);
    store.register(&alice).await.unwrap();
    let seen = store.route(alice.user.id).await.unwrap().unwrap();
    let swapped = store
        .swap_route(&seen, NOW, Some(NOW + 30_000))
        .await
        .unwrap()
        .unwrap();
    let on_trial = store.swaps_on_trial().await.unwrap();
    assert_eq!(on_trial.len(), 1);
    assert_eq!(on_trial[0].grace_until, Some(NOW + 30_000));
    let back = store
        .take_back_swap(&swapped, NOW, "it crashed")
        .await
        .unwrap()
        .unwrap();
    assert_eq!((back.live, back.generation), (seen.live, 2));
    // The second time there is nothing left to take back, and nothing changes.
    let again = store.take_back_swap(&back, NOW, "x").await.unwrap();
    assert_eq!(again, None);
    assert!(
        !store
            .settle_swap(&swapped, SwapOutcome::Kept, None)
            .await
            .unwrap()
    );
    let row = store.swap(alice.user.id).await.unwrap().unwrap();
    assert_eq!(row.outcome, SwapOutcome::RolledBack);
    assert_eq!(row.reason.as_deref(), Some("it crashed"));
    assert_eq!(store.route(alice.user.id).await.unwrap(), Some(back));
}

#[tokio::test]
async fn a_trial_does_not_outlast_the_next_swap() {
    let (store, _dir) = store().await;
    let alice = registration("alice", Entitlement::Open);
    store.register(&alice).await.unwrap();
    let seen = store.route(alice.user.id).await.unwrap().unwrap();
    let first = store
        .swap_route(&seen, NOW, Some(NOW + 30_000))
        .await
        .unwrap()
        .unwrap();
    let second = store.swap_route(&first, NOW, None).await.unwrap().unwrap();
    assert!(store.swaps_on_trial().await.unwrap().is_empty());
    assert_eq!(store.take_back_swap(&first, NOW, "x").await.unwrap(), None);
    assert_eq!(store.route(alice.user.id).await.unwrap(), Some(second));
}

#[tokio::test]
async fn a_recovery_code_works_once_and_ends_everything_else() {
    let (store, _dir) = store().await;
    let alice = registration("alice", Entitlement::Open);
    store.register(&alice).await.unwrap();
    let (user, code) = (alice.user.id, alice.codes[0].id);
    let recovery = session(user, SessionKind::Recovery, None);
    assert!(store.recover(user, code, &recovery).await.unwrap());
    assert!(
        !store
            .recover(user, code, &session(user, SessionKind::Recovery, None))
            .await
            .unwrap()
    );
    let left = store.sessions(user, NOW).await.unwrap();
    assert_eq!(
        left.iter().map(|row| row.id).collect::<Vec<_>>(),
        [recovery.id]
    );
    let new = passkey();
    let full = session(user, SessionKind::Control, None);
    assert!(
        store
            .finish_recovery(recovery.id, &new, &[alice.passkey.id], &full)
            .await
            .unwrap()
    );
    assert!(
        !store
            .finish_recovery(
                recovery.id,
                &passkey(),
                &[],
                &session(user, SessionKind::Control, None)
            )
            .await
            .unwrap()
    );
    let passkeys = store.passkeys(user).await.unwrap();
    assert_eq!(
        passkeys.iter().map(|row| row.id).collect::<Vec<_>>(),
        [new.id]
    );
}

#[tokio::test]
async fn a_runtime_session_ends_with_the_session_it_came_from() {
    let (store, _dir) = store().await;
    let alice = registration("alice", Entitlement::Open);
    store.register(&alice).await.unwrap();
    let runtime = session(alice.user.id, SessionKind::Runtime, Some(alice.session.id));
    store.add_session(&runtime).await.unwrap();
    assert!(store.session_lives(runtime.id, NOW).await.unwrap());
    assert!(
        store
            .remove_session(alice.user.id, alice.session.id)
            .await
            .unwrap()
    );
    assert!(!store.session_lives(runtime.id, NOW).await.unwrap());
}

#[tokio::test]
async fn a_handover_code_is_redeemed_once_by_the_browser_and_host_it_was_made_for() {
    let (store, _dir) = store().await;
    let alice = registration("alice", Entitlement::Open);
    store.register(&alice).await.unwrap();
    let code = |hash: &str| NewHandover {
        code_hash: hash.to_owned(),
        session: alice.session.id,
        user: alice.user.id,
        host: "alice.localhost".to_owned(),
        binding_hash: "browser".to_owned(),
        return_to: "/".to_owned(),
        now: NOW,
        expires_at: NOW + 1000,
    };
    for hash in ["a", "b", "c", "d"] {
        store.add_handover(&code(hash)).await.unwrap();
    }
    let take = |hash: &'static str, host: &'static str, binding: &'static str, now| {
        store.take_handover(hash, host, binding, now)
    };
    assert!(
        take("a", "alice.localhost", "browser", NOW)
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        take("a", "alice.localhost", "browser", NOW)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        take("b", "bob.localhost", "browser", NOW)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        take("b", "alice.localhost", "browser", NOW)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        take("c", "alice.localhost", "another", NOW)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        take("d", "alice.localhost", "browser", NOW + 1000)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn what_was_written_survives_a_reopening() {
    let (store, dir) = store().await;
    store
        .register(&registration("alice", Entitlement::Open))
        .await
        .unwrap();
    let key = store
        .installation_value("key", || "one".to_owned())
        .await
        .unwrap();
    store.close().await;
    let store = Store::open(&dir.path().join("hypervisor.db"))
        .await
        .unwrap();
    assert_eq!(store.users().await.unwrap().len(), 1);
    assert_eq!(
        store
            .installation_value("key", || "two".to_owned())
            .await
            .unwrap(),
        key
    );
}

#[tokio::test]
async fn a_disabled_account_has_nothing_to_get_in_with() {
    let (store, _dir) = store().await;
    let setup = |name| Registration {
        user: NewUser {
            is_admin: true,
            ..registration(name, Entitlement::Open).user
        },
        ..registration(name, Entitlement::Open)
    };
    let mut admins = Vec::new();
    for name in ["alice", "bob"] {
        let mut one = setup(name);
        one.session.user_id = one.user.id;
        assert!(store.register(&one).await.unwrap());
        admins.push(one);
    }
    let (alice, bob) = (admins[0].user.id, &admins[1]);
    let token = NewToken {
        id: TokenId::generate(),
        user_id: bob.user.id,
        name: "script".to_owned(),
        token_hash: "hash".to_owned(),
        scopes: "account".to_owned(),
        now: NOW,
        expires_at: NOW + 1000,
    };
    store.add_token(&token).await.unwrap();
    let done = store.disable_user(bob.user.id, "why", NOW).await.unwrap();
    assert_eq!(done, Disabling::Done);
    // Whoever was about to get in when that was decided comes too late.
    let late = session(bob.user.id, SessionKind::Control, None);
    store.add_session(&late).await.unwrap();
    let again = NewToken {
        id: TokenId::generate(),
        token_hash: "late".to_owned(),
        ..token.clone()
    };
    store.add_token(&again).await.unwrap();
    for hash in [&bob.session.token_hash, &late.token_hash] {
        assert!(store.session(hash).await.unwrap().is_none());
    }
    for hash in ["hash", "late"] {
        assert!(store.token(hash).await.unwrap().is_none());
    }
    assert!(!store.session_lives(late.id, NOW).await.unwrap());
    assert!(!store.token_lives(again.id, NOW).await.unwrap());
    assert!(store.sessions(bob.user.id, NOW).await.unwrap().is_empty());
    // Somebody has to be left who can undo it.
    let last = store.disable_user(alice, "", NOW).await.unwrap();
    assert_eq!(last, Disabling::LastAdmin);
    let again = store.disable_user(bob.user.id, "", NOW).await.unwrap();
    assert_eq!(again, Disabling::Already);
    let row = store.user(bob.user.id).await.unwrap().unwrap();
    assert_eq!(row.disabled.unwrap().note, "why");
    assert!(store.enable_user(bob.user.id).await.unwrap());
    assert!(!store.enable_user(bob.user.id).await.unwrap());
    assert!(store.session(&late.token_hash).await.unwrap().is_none());
    assert!(store.token("late").await.unwrap().is_none());
}

#[tokio::test]
async fn a_database_of_a_newer_release_is_left_as_it_is() {
    let (store, dir) = store().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'of tomorrow', TRUE, x'00', 0)",
    )
    .execute(&store.write)
    .await
    .unwrap();
    store.close().await;
    let refused = Store::open(&dir.path().join("hypervisor.db")).await;
    let error = crate::error::Error::from(refused.unwrap_err()).to_string();
    assert!(error.contains("by a newer release"), "{error}");
    assert!(error.contains("restore a backup"), "{error}");
}

#[tokio::test]
async fn calls_of_an_older_release_are_kept_when_their_table_is_exchanged() {
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect("sqlite::memory:")
        .await
        .unwrap();
    let run = async |sql: &'static str| sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    run(include_str!("../../migrations/0010_provider_usage.sql")).await;
    run(
        "INSERT INTO provider_calls VALUES ('01a22479-31bb-765a-9ccf-053560747985', 86400005, \
         '01a22479-31bb-765a-9ccf-000000000001', '01a22479-31bb-765a-9ccf-000000000002', \
         'openai', 'some-model', 200, 'complete', 7, NULL, 1, 2, 0, FALSE, 9); \
         INSERT INTO provider_days VALUES (1, '01a22479-31bb-765a-9ccf-000000000002', \
         '01a22479-31bb-765a-9ccf-000000000001', 'openai', 'some-model', 1, 0, 1, 2, 0, 9)",
    )
    .await;
    run(include_str!("../../migrations/0012_usage_in_one_tree.sql")).await;
    // One whose day is missing, all bits of whose id are set.
    run(
        "INSERT INTO provider_calls SELECT unhex('ffffffffffffffffffffffffffffffff'), at, \
         sandbox_id, user_id, provider, 'other-model', status, 'cut', latency_ms, 3, input_tokens, \
         output_tokens, cached_tokens, TRUE, 11 FROM provider_calls",
    )
    .await;
    run(include_str!("../../migrations/0014_usage_by_numbers.sql")).await;
    let rows = sqlx::query(
        "SELECT concat_ws(' ', request_id, at, sandbox_id, user_id, provider, model, status, \
         outcome, latency_ms, first_byte_ms, input_tokens, output_tokens, cached_tokens, \
         estimated, cost) AS call FROM provider_calls ORDER BY cost",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let calls: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, "call")).collect();
    let of = "01a22479-31bb-765a-9ccf-000000000001 01a22479-31bb-765a-9ccf-000000000002 openai";
    assert_eq!(
        calls,
        [
            format!(
                "01a22479-31bb-765a-9ccf-053560747985 86400005 {of} some-model 200 complete 7 1 2 0 0 9"
            ),
            format!(
                "ffffffff-ffff-ffff-ffff-ffffffffffff 86400005 {of} other-model 200 cut 7 3 1 2 0 1 11"
            ),
        ]
    );
    let spent = "SELECT sum(calls) FROM provider_days WHERE day = 1 AND cost = 9";
    let spent: i64 = sqlx::query_scalar(spent).fetch_one(&pool).await.unwrap();
    assert_eq!(spent, 1);
}
