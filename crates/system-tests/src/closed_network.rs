//! An internet of our own: two network namespaces with public addresses between them and
//! nobody else, so that the egress proxy is tested without any exception for tests.
//!
//! The test runs itself again inside the first one, where the hypervisor lives; servers live
//! in the second one, at addresses that are in no refused range.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::certificates::{self, Authority};
use crate::identity::caller_is_root;

/// Set inside: the file of the servers' network namespace.
const SERVERS: &str = "CHOIR_TEST_SERVERS_NETNS";

/// The servers' address.
pub const SERVER: &str = "11.22.33.44";

/// Makes the two namespaces and runs the rest of its arguments in the first one.
const SCRIPT: &str = r#"
set -e
ip link set lo up
unshare --net sleep 900 &
holder=$!
here=$(readlink /proc/self/ns/net)
tries=0
until there=$(readlink /proc/$holder/ns/net) && [ "$there" != "$here" ]; do
  tries=$((tries+1)); [ $tries -lt 500 ] || exit 99
  sleep 0.01
done
ip link add host0 type veth peer name net0 netns $holder
ip addr add 11.22.33.1/24 dev host0
ip link set host0 up
nsenter --net=/proc/$holder/ns/net ip link set lo up
nsenter --net=/proc/$holder/ns/net ip addr add 11.22.33.44/24 dev net0
nsenter --net=/proc/$holder/ns/net ip link set net0 up
mount --bind "$HOSTS_FILE" /etc/hosts
CHOIR_TEST_SERVERS_NETNS=/proc/$holder/ns/net
export CHOIR_TEST_SERVERS_NETNS
code=0
"$@" || code=$?
kill $holder
exit $code
"#;

/// Whether the caller runs inside the closed network already. Otherwise it is run there, by
/// its name, and what it found is passed on; then there is nothing left to do.
///
/// # Panics
/// The test failed inside.
#[must_use]
pub fn enclosed(test: &str, hosts: &[(&str, &str)]) -> bool {
    if std::env::var_os(SERVERS).is_some() {
        return true;
    }
    if !caller_is_root() {
        eprintln!("SKIPPED {test}: only root makes network namespaces that hold a hypervisor");
        return false;
    }
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let file = scratch.path().join("hosts");
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for (address, name) in hosts {
        text.push_str(&format!("{address} {name}\n"));
    }
    fs::write(&file, text).expect("a hosts file");
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env("HOSTS_FILE", &file)
        .status()
        .expect("unshare starts");
    assert!(
        status.success(),
        "{test} inside the closed network: {status}"
    );
    false
}

/// Web servers for any number of names, all of them the same program: a file per host and
/// path, over TLS at 443 and in clear at 80.
#[derive(Debug)]
pub struct Internet {
    /// What is served: `host/path`.
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
    /// Requests so far, as `host path`.
    asked: Arc<Mutex<Vec<String>>>,
    authority: Authority,
    content: tempfile::TempDir,
}

impl Internet {
    /// Starts them; the certificate is good for these names.
    ///
    /// # Panics
    /// It was not started inside [`enclosed`].
    #[must_use]
    pub fn start(names: &[&str]) -> Self {
        let authority = Authority::new(names);
        let internet = Self {
            files: Arc::default(),
            open: Arc::default(),
            asked: Arc::default(),
            authority,
            content: tempfile::tempdir().expect("a scratch directory"),
        };
        let tls = certificates::acceptor(&internet.authority.chain(), &internet.authority.key());
        let shared = Shared {
            files: Arc::clone(&internet.files),
            open: Arc::clone(&internet.open),
            asked: Arc::clone(&internet.asked),
        };
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || serve(shared, tls, &ready));
        is_ready.recv().expect("the servers listen");
        internet
    }

    /// The authority's certificate, for clients to trust.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.authority.authority()
    }

    /// A directory to make content in.
    #[must_use]
    pub fn workshop(&self) -> &Path {
        self.content.path()
    }

    /// Serves bytes at `host/path`.
    ///
    /// # Panics
    /// A thread panicked before.
    pub fn put(&self, location: &str, content: impl Into<Vec<u8>>) {
        let mut files = self.files.lock().expect("the files");
        files.insert(location.to_owned(), content.into());
    }

    /// Serves a directory at `host/path`.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn put_tree(&self, location: &str, dir: &Path) {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let name = entry.file_name().into_string().expect("a plain name");
            let inner = format!("{location}/{name}");
            if entry.path().is_dir() {
                self.put_tree(&inner, &entry.path());
            } else {
                self.put(&inner, fs::read(entry.path()).expect("a file"));
            }
        }
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Requests so far, as `host path`.
    ///
    /// # Panics
    /// A thread panicked before.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("the requests").clone()
    }
}

#[derive(Clone)]
struct Shared {
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    open: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<String>>>,
}

/// Counts a connection while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A thread of its own, because a thread is what moves to another namespace.
fn serve(shared: Shared, tls: TlsAcceptor, ready: &mpsc::Sender<()>) {
    let namespace = std::env::var_os(SERVERS).expect("inside the closed network");
    let namespace = File::open(namespace).expect("the servers' namespace");
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("the servers' namespace takes us in");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async move {
        let mut tasks = Vec::new();
        for (port, secure) in [(443, true), (8443, true), (80, false)] {
            let address = SocketAddr::new(SERVER.parse().expect("an address"), port);
            let listener = TcpListener::bind(address).await.expect("a listener");
            let (shared, tls) = (shared.clone(), secure.then(|| tls.clone()));
            tasks.push(tokio::spawn(accept(listener, shared, tls)));
        }
        ready.send(()).expect("somebody waits");
        for task in tasks {
            let _ = task.await;
        }
    });
}

async fn accept(listener: TcpListener, shared: Shared, tls: Option<TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&shared.open));
        let (shared, tls) = (shared.clone(), tls.clone());
        tokio::spawn(async move {
            let _open = open;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&shared, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            match tls {
                None => {
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                }
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    }
                }
            }
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Body> {
    let host = request
        .headers()
        .get("host")
        .and_then(|host| host.to_str().ok())
        .and_then(|host| host.split(':').next())
        .unwrap_or_default();
    let path = request.uri().path();
    shared
        .asked
        .lock()
        .expect("the requests")
        .push(format!("{host} {path}"));
    if path == "/endless" {
        let ticks = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Some((Ok(Frame::data(Bytes::from_static(b"tick\n"))), ()))
        });
        return Response::new(BodyExt::boxed(StreamBody::new(ticks)));
    }
    let location = format!("{host}{}", path.trim_end_matches('/'));
    let found = shared
        .files
        .lock()
        .expect("the files")
        .get(&location)
        .cloned();
    let kind = match location.rsplit('.').next() {
        _ if location.contains("/simple/") => "text/html",
        Some("json") => "application/json",
        _ => "application/octet-stream",
    };
    let (status, content) =
        found.map_or((404, b"nothing here\n".to_vec()), |content| (200, content));
    Response::builder()
        .status(status)
        .header("content-type", kind)
        .body(Full::from(content).boxed())
        .expect("a response")
}
