//! Who a runtime cookie stands for, without asking the database on every request, and what
//! goes on in its name.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crypto::{Token, TokenHash, TokenKind};
use http::HeaderValue;
use tokio_util::sync::CancellationToken;
use types::{Role, SessionId, UserId};

use crate::actor::User;
use crate::app::App;
use crate::clock::millis;
use crate::error::Error;
use crate::services::sessions;

/// After this time the database is asked again. An end that somebody ordered (logout,
/// revocation, recovery) does not wait for it: see [`RuntimeSessions::forget`].
const BELIEVED_FOR: Duration = Duration::from_secs(20);

/// Sessions in memory. When there are more, all are looked up again.
const MAX_SESSIONS: usize = 10_000;

/// A live session of a runtime origin.
#[derive(Debug)]
pub(crate) struct RuntimeSession {
    pub(crate) id: SessionId,
    pub(crate) user: User,
    host: String,
    believed_until: i64,
    /// What the sandbox is told with every request in its name.
    pub(super) told: Told,
    /// Cuts what goes on in its name.
    pub(crate) ended: CancellationToken,
}

/// Header values that depend on the user alone, so that they are made once.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) user: HeaderValue,
    pub(super) control_origin: HeaderValue,
    pub(super) live_origin: HeaderValue,
    pub(super) dev_origin: HeaderValue,
}

impl Told {
    fn new(app: &App, user: &User) -> Result<Self, Error> {
        let origins = &app.config.origins;
        let value = |text: &str| HeaderValue::from_str(text).map_err(Error::internal);
        // Without its last slash: an origin, or under a single host the place of `dev` in it.
        let origin = |role| value(origins.runtime_url(&user.name, role).trim_end_matches('/'));
        Ok(Self {
            user: value(user.name.as_str())?,
            control_origin: value(&origins.control.to_string())?,
            live_origin: origin(Role::Live)?,
            dev_origin: origin(Role::Dev)?,
        })
    }
}

/// The sessions that were seen lately.
#[derive(Default)]
pub struct RuntimeSessions {
    /// Held for one look-up, never across an await.
    seen: Mutex<HashMap<TokenHash, Arc<RuntimeSession>>>,
    /// How often sessions were forgotten: what was read from the database before is not
    /// believed after it.
    forgotten: AtomicU64,
}

impl fmt::Debug for RuntimeSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeSessions").finish_non_exhaustive()
    }
}

impl RuntimeSessions {
    /// The session of a cookie, if it is good for this host.
    ///
    /// # Errors
    /// The database failed.
    pub(crate) async fn find(
        &self,
        app: &App,
        cookie: &str,
        host: &str,
    ) -> Result<Option<Arc<RuntimeSession>>, Error> {
        let Ok(token) = Token::parse_kind(TokenKind::Runtime, cookie) else {
            return Ok(None);
        };
        let hash = token.hash();
        let now = app.clock.now_ms();
        if let Some(known) = self.known(&hash)
            && known.believed_until > now
            && known.host == host
        {
            return Ok(Some(known));
        }
        let (found, mut seen) = loop {
            let before = self.forgotten.load(Ordering::Acquire);
            let found = sessions::find(app, &token, host).await?;
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if self.forgotten.load(Ordering::Acquire) == before {
                break (found, seen);
            }
        };
        let Some(row) = found else {
            if let Some(gone) = seen.remove(&hash) {
                gone.ended.cancel();
            }
            return Ok(None);
        };
        let ended = seen
            .get(&hash)
            .map_or_else(CancellationToken::new, |known| known.ended.clone());
        let (id, host) = (row.id, row.host.clone());
        let user = sessions::identity(row).0;
        let session = Arc::new(RuntimeSession {
            id,
            host,
            told: Told::new(app, &user)?,
            user,
            believed_until: now.saturating_add(millis(BELIEVED_FOR)),
            ended,
        });
        if seen.len() >= MAX_SESSIONS {
            seen.clear();
        }
        seen.insert(hash, Arc::clone(&session));
        Ok(Some(session))
    }

    /// Forgets a user's sessions that have ended, and cuts what goes on in their names.
    pub(crate) fn forget(&self, user: UserId, ended: &dyn Fn(SessionId) -> bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        seen.retain(|_, session| {
            let gone = session.user.id == user && ended(session.id);
            if gone {
                session.ended.cancel();
            }
            !gone
        });
    }

    fn known(&self, hash: &TokenHash) -> Option<Arc<RuntimeSession>> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .cloned()
    }
}
