//! What a request tells about the page that made it: the generation that the page was loaded
//! with, and whether what it wants is there (ADR-0004, telemetry).

use std::time::Instant;

use gateway::Upstream;
use gateway::websocket::SocketTag;
use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode};
use types::{NoticeKind, Role, SandboxId};

use super::proxy::GENERATION;
use crate::error::Error;
use crate::services::sandboxes::Plane;
use crate::services::sandboxes::symptoms::Symptom;
use crate::store::RouteRow;

const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// The name of the generation in the query of a WebSocket, which has no headers of its own.
const PARAMETER: &str = "choir_generation";

/// Longest query that is searched for it, in bytes.
const MAX_QUERY: usize = 4096;

/// What is looked at after the request itself is gone.
pub(super) struct Contact {
    sandbox: SandboxId,
    route: RouteRow,
    role: Role,
    /// The path, for what may turn out to be missing: an asset or a socket.
    part: Option<String>,
    /// A page is being opened.
    document: bool,
}

impl Contact {
    /// Looks at a request that is about to be forwarded.
    ///
    /// # Errors
    /// A page of an older generation wants to change something, or to open a socket: what it
    /// talks to is not what it was loaded from. It is told so, and loads again.
    pub(super) fn new(
        plane: &Plane,
        route: &RouteRow,
        role: Role,
        head: &Parts,
        websocket: bool,
    ) -> Result<Self, Error> {
        let contact = Self {
            sandbox: route.sandbox(role),
            route: *route,
            role,
            part: is_part(head, websocket).then(|| head.uri.path().to_owned()),
            document: text(head, &SEC_FETCH_DEST) == Some("document"),
        };
        let known = generation(head, websocket);
        if known.is_some_and(|known| known < route.generation) {
            let since = plane.routes.since_swap(route.user_id, Instant::now());
            contact.tell(
                plane,
                plane.symptoms.stale(
                    contact.sandbox,
                    known.unwrap_or_default(),
                    since,
                    Instant::now(),
                ),
            );
            if websocket || !head.method.is_safe() {
                return Err(Error::StaleGeneration);
            }
        }
        Ok(contact)
    }

    /// Counts a WebSocket that is asked for.
    pub(super) fn socket(&self, plane: &Plane, upstream: &Upstream, tag: SocketTag) {
        let tags = upstream.websocket_tags();
        let own = tags.iter().filter(|one| one.session == tag.session).count();
        let symptom = plane.symptoms.socket_asked(
            self.sandbox,
            tag.session,
            (own, tags.len()),
            Instant::now(),
        );
        self.tell(plane, symptom);
    }

    /// Looks at the answer, and says in it whose it is: that is for the client to know, and
    /// not for the guest to say.
    pub(super) fn answered<B>(&self, plane: &Plane, response: &mut http::Response<B>) {
        if response.status() == StatusCode::NOT_FOUND
            && let Some(path) = &self.part
        {
            let symptom = plane.symptoms.missing(self.sandbox, path, Instant::now());
            self.tell(plane, symptom);
        }
        let headers = response.headers_mut();
        headers.insert(
            super::proxy::ROLE,
            HeaderValue::from_static(self.role.as_str()),
        );
        headers.insert(GENERATION, HeaderValue::from(self.route.generation));
        if self.document {
            // The one header of its own answer that a page can read.
            let timing = format!("choir;desc=\"generation={}\"", self.route.generation);
            if let Ok(timing) = HeaderValue::from_str(&timing) {
                headers.append(HeaderName::from_static("server-timing"), timing);
            }
        }
    }

    fn tell(&self, plane: &Plane, symptom: Option<Symptom>) {
        let Some(symptom) = symptom else { return };
        let role = self.role;
        let (kind, key, message, hint, times) = match symptom {
            Symptom::ClientStorm { times, open } => (
                NoticeKind::ReconnectStorm,
                "client".to_owned(),
                format!(
                    "One browser session opened {times} WebSockets in short order; {open} are open."
                ),
                "a page reconnects without waiting: close it, or mend its reconnect code",
                times,
            ),
            Symptom::SandboxStorm { times, open } => (
                NoticeKind::ReconnectStorm,
                "sandbox".to_owned(),
                format!(
                    "All pages together opened {times} WebSockets in short order; {open} are open."
                ),
                "see the log of the sandbox: does it close them as soon as they are open?",
                times,
            ),
            Symptom::Missing { path, times } => (
                NoticeKind::MismatchedRuntime,
                path.clone(),
                format!("{path} keeps answering 404 in {role}."),
                "a page of another build asks for it: reload the page, or build the app of this sandbox again",
                times,
            ),
            Symptom::Stale { generation, times } => (
                NoticeKind::MismatchedRuntime,
                "generation".to_owned(),
                format!(
                    "A page loaded before the last swap (generation {generation}, now {}) still talks to {role}.",
                    self.route.generation
                ),
                "reload that page",
                times,
            ),
        };
        plane
            .notices
            .note_times(self.sandbox, kind, &key, &message, Some(hint), times);
        plane.changed(self.route.user_id);
    }
}

/// The generation that the page says it was loaded with.
fn generation(head: &Parts, websocket: bool) -> Option<u64> {
    if let Some(value) = text(head, &GENERATION) {
        return value.parse().ok();
    }
    if !websocket {
        return None;
    }
    let query = head.uri.query().filter(|query| query.len() <= MAX_QUERY)?;
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(PARAMETER)?.strip_prefix('='))?
        .parse()
        .ok()
}

/// Whether it is a part of a page: a page whose parts are missing is of another build.
fn is_part(head: &Parts, websocket: bool) -> bool {
    if websocket {
        return true;
    }
    match text(head, &SEC_FETCH_DEST) {
        Some(dest) => matches!(
            dest,
            "script"
                | "style"
                | "font"
                | "worker"
                | "sharedworker"
                | "serviceworker"
                | "audioworklet"
        ),
        None => [".js", ".mjs", ".css", ".wasm", ".woff2"]
            .iter()
            .any(|end| head.uri.path().ends_with(end)),
    }
}

fn text<'a>(head: &'a Parts, name: &HeaderName) -> Option<&'a str> {
    head.headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::{generation, is_part};
    use http::Request;
    use http::request::Parts;

    fn head(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_page_says_its_generation_in_a_header_or_in_a_socket_s_query() {
        let header = head("/api/x", &[("x-choir-generation", "7")]);
        assert_eq!(generation(&header, false), Some(7));
        let query = head("/ws?a=b&choir_generation=8", &[]);
        assert_eq!(generation(&query, true), Some(8));
        assert_eq!(generation(&query, false), None, "pages have headers");
        for none in ["/ws", "/ws?choir_generation=x", "/ws?choir_generationx=1"] {
            assert_eq!(generation(&head(none, &[]), true), None, "{none}");
        }
    }

    #[test]
    fn scripts_styles_and_sockets_are_parts_and_answers_of_an_api_are_not() {
        assert!(is_part(&head("/x", &[("sec-fetch-dest", "script")]), false));
        assert!(is_part(&head("/assets/a-1.css", &[]), false));
        assert!(is_part(&head("/ws", &[]), true));
        assert!(!is_part(
            &head("/api/files/content", &[("sec-fetch-dest", "empty")]),
            false
        ));
        assert!(!is_part(
            &head("/missing", &[("sec-fetch-dest", "document")]),
            false
        ));
    }
}
