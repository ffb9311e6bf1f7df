//! The proxy against a network of our own: a resolver that may lie, and a record of every
//! address that is connected to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

/// Every public address leads to one local listener.
#[derive(Debug)]
struct Bed {
    names: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    lookups: AtomicUsize,
    connected: Mutex<Vec<SocketAddr>>,
    dead: Mutex<Vec<IpAddr>>,
    server: SocketAddr,
}

impl Bed {
    async fn new() -> (Arc<Self>, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bed = Arc::new(Self {
            names: Mutex::default(),
            lookups: AtomicUsize::new(0),
            connected: Mutex::default(),
            dead: Mutex::default(),
            server: listener.local_addr().unwrap(),
        });
        (bed, listener)
    }

    /// A name and its answers, one per look-up; the last one stays.
    fn name(&self, name: &str, answers: &[&[&str]]) {
        let answers = answers
            .iter()
            .map(|answer| answer.iter().map(|text| text.parse().unwrap()).collect())
            .collect();
        self.names.lock().unwrap().insert(name.into(), answers);
    }

    fn connected(&self) -> Vec<String> {
        let connected = self.connected.lock().unwrap();
        connected.iter().map(ToString::to_string).collect()
    }
}

impl Network for Bed {
    fn resolve(
        &self,
        name: &DomainName,
        turn: OwnedSemaphorePermit,
    ) -> BoxFuture<io::Result<Vec<IpAddr>>> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let answer = self
            .names
            .lock()
            .unwrap()
            .get_mut(name.as_str())
            .map(|answers| {
                if answers.len() > 1 {
                    answers.remove(0)
                } else {
                    answers[0].clone()
                }
            });
        drop(turn);
        Box::pin(async move { answer.ok_or_else(|| io::Error::other("no such name")) })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<io::Result<TcpStream>> {
        self.connected.lock().unwrap().push(address);
        let dead = self.dead.lock().unwrap().contains(&address.ip());
        let server = self.server;
        Box::pin(async move {
            if dead {
                std::future::pending::<()>().await;
            }
            TcpStream::connect(server).await
        })
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address == "99.99.99.99".parse::<IpAddr>().unwrap()
    }
}

fn limits() -> EgressLimits {
    EgressLimits {
        stagger: Duration::from_millis(20),
        hello: Duration::from_millis(300),
        idle: Duration::from_millis(400),
        connect: Duration::from_secs(2),
        ..EgressLimits::default()
    }
}

fn egress(bed: &Arc<Bed>, rules: &[&str]) -> Egress {
    let own = OwnNames::default()
        .with("choir.example.com")
        .with_beneath("run.example.com");
    let egress = Egress::new(Arc::clone(bed) as Arc<dyn Network>, own, limits());
    egress.set_rules(Rules::new(rules.iter().map(|rule| rule.parse().unwrap())));
    egress
}

fn caller(access: Access) -> Caller {
    Caller {
        access,
        cancel: CancellationToken::new(),
        lookups: Arc::new(Semaphore::new(4)),
    }
}

fn check(egress: &Egress, access: Access, target: &str) -> Result<Permit, Denial> {
    egress.check(caller(access), Target::parse(target, None).unwrap())
}

async fn open(egress: &Egress, access: Access, target: &str) -> Result<TcpStream, String> {
    let mut permit = check(egress, access, target).map_err(|denial| denial.code().to_owned())?;
    egress.open(&mut permit).await.map_err(|error| match error {
        OpenError::Denied(denial) => format!("{} ({denial})", denial.code()),
        error => error.to_string(),
    })
}

fn client_hello(name: &str) -> Vec<u8> {
    // Enough of one: version, random, no session, one suite, one compression, SNI.
    let sni = {
        let mut list = vec![0];
        list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        list.extend(name.as_bytes());
        let mut body = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
        body.extend(list);
        let mut extension = vec![0, 0];
        extension.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        extension.extend(body);
        extension
    };
    let mut body = vec![3, 3];
    body.extend([1; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(u16::try_from(sni.len()).unwrap().to_be_bytes());
    body.extend(sni);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

/// A tunnel whose client end is in the test's hands.
async fn tunnel(
    egress: &Arc<Egress>,
    access: Access,
    target: &str,
) -> (DuplexStream, JoinHandle<Ended>, CancellationToken) {
    let caller = caller(access);
    let cancel = caller.cancel.clone();
    let mut permit = egress
        .check(caller, Target::parse(target, None).unwrap())
        .unwrap();
    let stream = egress.open(&mut permit).await.unwrap();
    let (near, far) = duplex(64 * 1024);
    let egress = Arc::clone(egress);
    let ended = tokio::spawn(async move { egress.tunnel(far, stream, permit).await });
    (near, ended, cancel)
}

/// Takes one connection and answers each piece with itself.
fn echo(listener: TcpListener) -> JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let mut seen = Vec::new();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            seen.extend(&buffer[..length]);
            if stream.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        seen
    })
}

#[tokio::test]
async fn the_allowlist_is_about_names_and_ports() {
    let (bed, _listener) = Bed::new().await;
    bed.name("crates.io", &[&["11.22.33.44"]]);
    bed.name("static.crates.io", &[&["11.22.33.45"]]);
    let egress = egress(&bed, &["crates.io", "*.crates.io:8443"]);
    open(&egress, Access::Allowlist, "crates.io:443")
        .await
        .unwrap();
    open(&egress, Access::Allowlist, "CRATES.IO.:80")
        .await
        .unwrap();
    open(&egress, Access::Allowlist, "static.crates.io:8443")
        .await
        .unwrap();
    for (target, code) in [
        ("crates.io:22", "not_allowed"),
        ("crates.io:8443", "not_allowed"),
        ("static.crates.io:443", "not_allowed"),
        ("evil.net:443", "not_allowed"),
        ("crates.io.evil.net:443", "not_allowed"),
        ("11.22.33.44:443", "address_literal"),
        ("0x0b162c21:443", "address_literal"),
        ("[2606:4700::1]:443", "address_literal"),
        ("127.1:443", "address_literal"),
    ] {
        let refused = open(&egress, Access::Allowlist, target).await.unwrap_err();
        assert_eq!(refused, code, "{target}");
    }
    assert_eq!(
        bed.connected(),
        ["11.22.33.44:443", "11.22.33.44:80", "11.22.33.45:8443"]
    );
}

#[tokio::test]
async fn no_mode_leads_to_private_addresses_or_to_ourselves() {
    let (bed, _listener) = Bed::new().await;
    for (name, address) in [
        ("metadata.example.net", "169.254.169.254"),
        ("v6.example.net", "fd00:ec2::254"),
        ("loop.example.net", "127.0.0.1"),
        ("mapped.example.net", "::ffff:10.0.0.1"),
        ("nat64.example.net", "64:ff9b::a9fe:a9fe"),
        ("sixtofour.example.net", "2002:7f00:1::1"),
        ("host.example.net", "99.99.99.99"),
    ] {
        bed.name(name, &[&[address]]);
    }
    let egress = egress(
        &bed,
        &["*.example.net", "*.example.com", "choir.example.com"],
    );
    for access in [Access::Allowlist, Access::Open] {
        for name in [
            "metadata",
            "v6",
            "loop",
            "mapped",
            "nat64",
            "sixtofour",
            "host",
        ] {
            let target = format!("{name}.example.net:443");
            let refused = open(&egress, access, &target).await.unwrap_err();
            assert!(refused.starts_with("not_public"), "{target}: {refused}");
        }
        for target in [
            "choir.example.com:443",
            "Choir.Example.com.:443",
            "alice.run.example.com:443",
            "3000--alice.run.example.com:80",
            "localhost:9090",
            "alice.localhost:9090",
        ] {
            let refused = open(&egress, access, target).await.unwrap_err();
            assert_eq!(refused, "own_name", "{target}");
        }
    }
    for target in [
        "127.0.0.1:9090",
        "2130706433:80",
        "0177.1:80",
        "0x7f.1:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "169.254.169.254:80",
        "[fd00:ec2::254]:80",
        "99.99.99.99:9090",
        "10.1:22",
    ] {
        let refused = open(&egress, Access::Open, target).await.unwrap_err();
        assert_eq!(refused, "not_public", "{target}");
    }
    assert_eq!(bed.connected(), Vec::<String>::new());
}

#[tokio::test]
async fn a_name_that_changes_between_check_and_connect_gains_nothing() {
    let (bed, _listener) = Bed::new().await;
    bed.name("rebind.example.net", &[&["11.22.33.44"], &["127.0.0.1"]]);
    bed.name(
        "both.example.net",
        &[&["10.0.0.1", "11.22.33.44", "127.0.0.1"]],
    );
    let egress = egress(&bed, &["*.example.net"]);
    open(&egress, Access::Allowlist, "rebind.example.net:443")
        .await
        .unwrap();
    assert_eq!(bed.lookups.load(Ordering::SeqCst), 1, "looked up once");
    let second = open(&egress, Access::Allowlist, "rebind.example.net:443").await;
    assert!(second.unwrap_err().starts_with("not_public"));
    // Of several addresses only those are tried that were found right.
    open(&egress, Access::Allowlist, "both.example.net:443")
        .await
        .unwrap();
    assert_eq!(bed.connected(), ["11.22.33.44:443", "11.22.33.44:443"]);
}

#[tokio::test]
async fn open_reaches_public_names_addresses_and_ports() {
    let (bed, listener) = Bed::new().await;
    bed.name("git.example.net", &[&["11.22.33.44"]]);
    let egress = Arc::new(egress(&bed, &[]));
    open(&egress, Access::Open, "11.22.33.44:22").await.unwrap();
    open(&egress, Access::Open, "[2606:4700::1]:443")
        .await
        .unwrap();
    drop((
        listener.accept().await.unwrap(),
        listener.accept().await.unwrap(),
    ));
    let seen = echo(listener);
    let (mut client, ended, _) = tunnel(&egress, Access::Open, "git.example.net:9418").await;
    client.write_all(b"no TLS at all").await.unwrap();
    let mut back = [0; 13];
    client.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"no TLS at all");
    drop(client);
    let ended = ended.await.unwrap();
    assert_eq!(
        (ended.end, ended.sent, ended.received),
        (End::Closed, 13, 13)
    );
    assert_eq!(seen.await.unwrap(), b"no TLS at all");
}

#[tokio::test]
async fn a_dead_address_does_not_hold_up_a_living_one() {
    let (bed, _listener) = Bed::new().await;
    bed.name(
        "a.example.net",
        &[&["11.22.33.44", "2606::1", "11.22.33.45"]],
    );
    bed.dead
        .lock()
        .unwrap()
        .push("11.22.33.44".parse().unwrap());
    let one = egress(&bed, &["a.example.net"]);
    open(&one, Access::Allowlist, "a.example.net:443")
        .await
        .unwrap();
    assert_eq!(bed.connected(), ["11.22.33.44:443", "[2606::1]:443"]);
    let many: Vec<String> = (0..50).map(|n| format!("11.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    bed.name("many.example.net", &[&many]);
    bed.dead
        .lock()
        .unwrap()
        .extend(many.iter().map(|text| text.parse::<IpAddr>().unwrap()));
    bed.connected.lock().unwrap().clear();
    let egress = egress(&bed, &["many.example.net"]);
    let late = open(&egress, Access::Allowlist, "many.example.net:443").await;
    assert!(late.unwrap_err().contains("did not answer"));
    assert_eq!(bed.connected().len(), egress.limits().addresses);
}

#[tokio::test]
async fn a_tunnel_of_the_allowlist_carries_tls_for_its_name() {
    let (bed, listener) = Bed::new().await;
    bed.name("a.example.net", &[&["11.22.33.44"]]);
    let egress = Arc::new(egress(&bed, &["a.example.net"]));
    let seen = echo(listener);
    let (mut client, ended, _) = tunnel(&egress, Access::Allowlist, "a.example.net:443").await;
    let hello = client_hello("A.example.net");
    // Byte by byte, as a hostile or a slow client might.
    for byte in &hello {
        client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    client.write_all(b"more").await.unwrap();
    let mut back = vec![0; hello.len() + 4];
    client.read_exact(&mut back).await.unwrap();
    drop(client);
    assert_eq!(ended.await.unwrap().end, End::Closed);
    assert_eq!(seen.await.unwrap(), [hello, b"more".to_vec()].concat());
}

#[tokio::test]
async fn nothing_of_a_tunnel_with_other_first_bytes_goes_either_way() {
    for (first, code) in [
        (client_hello("b.example.net"), "other_sni"),
        (client_hello("example.net"), "other_sni"),
        (
            b"GET / HTTP/1.1\r\nHost: a.example.net\r\n\r\n".to_vec(),
            "not_tls",
        ),
        (
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".to_vec(),
            "malformed_hello",
        ),
    ] {
        let (bed, listener) = Bed::new().await;
        bed.name("a.example.net", &[&["11.22.33.44"]]);
        let egress = Arc::new(egress(&bed, &["a.example.net"]));
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A server that speaks first is not heard either.
            let _ = stream.write_all(b"220 hello").await;
            let mut seen = Vec::new();
            let _ = stream.read_to_end(&mut seen).await;
            seen
        });
        let (mut client, ended, _) = tunnel(&egress, Access::Allowlist, "a.example.net:443").await;
        client.write_all(&first).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(
            answer,
            [21, 3, 3, 0, 2, 2, 49],
            "a fatal alert and nothing else"
        );
        let End::Denied(denial) = ended.await.unwrap().end else {
            panic!("{code}");
        };
        assert_eq!(denial.code(), code);
        assert_eq!(server.await.unwrap(), b"", "{code}");
    }
}

/// An upload that is refused in the middle, say: the refusal is there to be read.
#[tokio::test]
async fn what_a_server_says_last_arrives_although_it_takes_no_more() {
    for _ in 0..50 {
        let (bed, listener) = Bed::new().await;
        bed.name("a.example.net", &[&["11.22.33.44"]]);
        let egress = Arc::new(egress(&bed, &[]));
        let (client, ended, _) = tunnel(&egress, Access::Open, "a.example.net:443").await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 1024]).await.unwrap();
            // Closed with unread bytes, and while more come.
            stream.write_all(b"last words").await.unwrap();
        };
        let (mut read, mut write) = tokio::io::split(client);
        let typing =
            tokio::spawn(async move { while write.write_all(&[0; 1024]).await.is_ok() {} });
        let mut heard = Vec::new();
        let (_, read_all) = tokio::join!(server, read.read_to_end(&mut heard));
        read_all.unwrap();
        assert_eq!(heard, b"last words");
        typing.abort();
        let _ = typing.await;
        drop(read);
        assert_eq!(ended.await.unwrap().end, End::Closed);
    }
}

#[tokio::test]
async fn a_slow_hello_and_a_silent_tunnel_are_closed() {
    let (bed, listener) = Bed::new().await;
    bed.name("a.example.net", &[&["11.22.33.44"]]);
    let egress = Arc::new(egress(&bed, &["a.example.net"]));
    let (mut client, ended, _) = tunnel(&egress, Access::Allowlist, "a.example.net:443").await;
    let drip = tokio::spawn(async move {
        for byte in client_hello("a.example.net") {
            if client.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let ended = tokio::time::timeout(Duration::from_secs(2), ended)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((ended.end, ended.sent), (End::Idle, 0));
    drip.abort();
    drop(listener.accept().await.unwrap());

    let _seen = echo(listener);
    let (mut client, ended, _) = tunnel(&egress, Access::Allowlist, "a.example.net:443").await;
    client
        .write_all(&client_hello("a.example.net"))
        .await
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(3), ended)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.end, End::Idle);
    assert!(ended.sent > 0);
}

#[tokio::test]
async fn a_shorter_list_closes_what_it_no_longer_allows_and_nothing_else() {
    let (bed, _listener) = Bed::new().await;
    bed.name("a.example.net", &[&["11.22.33.44"]]);
    bed.name("b.example.net", &[&["11.22.33.45"]]);
    let egress = Arc::new(egress(&bed, &["a.example.net", "b.example.net"]));
    // One that has shown its name, one that has not, one that is still being opened.
    let (mut shown, shown_ended, _) = tunnel(&egress, Access::Allowlist, "a.example.net:443").await;
    shown
        .write_all(&client_hello("a.example.net"))
        .await
        .unwrap();
    let (_silent, silent_ended, _) = tunnel(&egress, Access::Allowlist, "a.example.net:443").await;
    let mut early = check(&egress, Access::Allowlist, "a.example.net:443").unwrap();
    let (mut other, other_ended, _) = tunnel(&egress, Access::Allowlist, "b.example.net:443").await;
    other
        .write_all(&client_hello("b.example.net"))
        .await
        .unwrap();
    let (_open, open_ended, cancel) = tunnel(&egress, Access::Open, "a.example.net:443").await;

    // Another list that allows the same closes nothing.
    egress.set_rules(Rules::new(
        ["*.example.net"].map(|rule| rule.parse().unwrap()),
    ));
    tokio::task::yield_now().await;
    assert!(!shown_ended.is_finished() && !other_ended.is_finished());

    egress.set_rules(Rules::new(
        ["b.example.net"].map(|rule| rule.parse().unwrap()),
    ));
    assert_eq!(shown_ended.await.unwrap().end, End::Revoked);
    assert_eq!(silent_ended.await.unwrap().end, End::Revoked);
    assert!(matches!(
        egress.open(&mut early).await,
        Err(OpenError::Revoked)
    ));
    assert!(!other_ended.is_finished() && !open_ended.is_finished());
    cancel.cancel();
    assert_eq!(open_ended.await.unwrap().end, End::Cancelled);
    other_ended.abort();
}

#[tokio::test]
async fn a_plain_request_is_made_anew() {
    let (bed, listener) = Bed::new().await;
    bed.name("a.example.net", &[&["11.22.33.44"]]);
    let egress = egress(&bed, &["a.example.net"]);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !seen.ends_with(b"body") {
            let length = stream.read(&mut buffer).await.unwrap();
            seen.extend(&buffer[..length]);
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-gone\r\nX-Gone: 1\r\nProxy-Authenticate: Basic\r\nX-Kept: 1\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        String::from_utf8(seen).unwrap()
    });
    let mut permit = check(&egress, Access::Allowlist, "a.example.net:80").unwrap();
    let stream = egress.open(&mut permit).await.unwrap();
    let request = Request::post("http://a.example.net/path?query=1")
        .header("Host", "control.example.com")
        .header("Connection", "keep-alive, X-Listed")
        .header("X-Listed", "1")
        .header("Proxy-Authorization", "Basic c2VjcmV0")
        .header("Proxy-Connection", "keep-alive")
        .header("Upgrade", "websocket")
        .header("TE", "trailers")
        .header("Expect", "100-continue")
        .header("X-Kept", "1")
        .body(Full::new(Bytes::from_static(b"body")))
        .unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let response = egress
        .exchange(request, stream, permit, move |ended| {
            let _ = tell.send(ended);
        })
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert!(headers.contains_key("x-kept"));
    assert!(!headers.contains_key("x-gone") && !headers.contains_key("proxy-authenticate"));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "ok");
    let seen = server.await.unwrap().to_ascii_lowercase();
    assert!(
        seen.starts_with("post /path?query=1 http/1.1\r\n"),
        "{seen}"
    );
    assert!(seen.contains("\r\nhost: a.example.net\r\n"), "{seen}");
    assert!(seen.contains("\r\nx-kept: 1\r\n"), "{seen}");
    for gone in [
        "control.example",
        "x-listed",
        "proxy-",
        "upgrade",
        "\r\nte:",
        "expect",
    ] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    let ended = told.await.unwrap();
    assert!(ended.sent > 0 && ended.received > 0);
}

#[tokio::test]
async fn a_plain_request_that_two_servers_could_read_differently_is_refused() {
    let (bed, _listener) = Bed::new().await;
    bed.name("a.example.net", &[&["11.22.33.44"]]);
    let egress = egress(&bed, &["a.example.net"]);
    for fields in [
        &[("content-length", "4"), ("transfer-encoding", "chunked")][..],
        &[("content-length", "4"), ("content-length", "5")],
        &[("transfer-encoding", "gzip, chunked")],
        &[("connection", "content-length")],
        &[("connection", "host")],
    ] {
        let mut permit = check(&egress, Access::Allowlist, "a.example.net:80").unwrap();
        let stream = egress.open(&mut permit).await.unwrap();
        let mut request = Request::post("http://a.example.net/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from_static(b"body")))
            .unwrap();
        let refused = egress.exchange(request, stream, permit, |_| {}).await;
        assert!(matches!(refused, Err(PlainError::Request(_))), "{fields:?}");
    }
}

#[tokio::test]
async fn a_response_whose_rule_is_taken_back_breaks_off() {
    let (bed, listener) = Bed::new().await;
    bed.name("a.example.net", &[&["11.22.33.44"]]);
    let egress = egress(&bed, &["a.example.net"]);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin";
        stream.write_all(head).await.unwrap();
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen).await;
    });
    let mut permit = check(&egress, Access::Allowlist, "a.example.net:80").unwrap();
    let stream = egress.open(&mut permit).await.unwrap();
    let request = Request::get("http://a.example.net/")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let response = egress
        .exchange(request, stream, permit, |_| {})
        .await
        .unwrap();
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "begin");
    egress.set_rules(Rules::default());
    assert!(body.frame().await.unwrap().is_err(), "never looks whole");
    server.await.unwrap();
}
