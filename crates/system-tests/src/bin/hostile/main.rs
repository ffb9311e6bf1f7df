//! A guest that means harm. It takes the place of `sandbox` in tests of the proxy: it
//! listens on the same socket, answers as it likes, and does to its own directories what a
//! hostile program could.
//!
//! What it does is chosen by the path: `/hostile/NAME`. `/`, `/health` and `/ws` answer as
//! a healthy guest would, so that it can be started and swapped.

mod page;
mod socket;

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// RFC 6455 §1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the load bench asks for, in one write.
const BENCH: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 63\r\n\r\n{\"status\":\"ok\",\"message\":\"a small fixed body for the bench!!!\"}";

/// Longest body that is read, in bytes.
const MAX_BODY: u64 = 16 << 20;

/// While its owner keeps this file it dies before anybody can ask for its health.
const STILLBORN: &str = "/workspace/stillborn";

/// While its owner keeps this file it does not end when it is told to (SIGTERM).
const DEAF: &str = "/workspace/deaf";

/// Set once it has become deaf.
const IS_DEAF: &str = "HOSTILE_IS_DEAF";

fn main() -> io::Result<()> {
    if std::path::Path::new(DEAF).exists() && std::env::var_os(IS_DEAF).is_none() {
        // What a shell ignores stays ignored in the program that takes its place.
        return Err(Command::new("sh")
            .args(["-c", "trap '' TERM; exec \"$0\""])
            .arg(std::env::current_exe()?)
            .env(IS_DEAF, "1")
            .exec());
    }
    if std::path::Path::new(STILLBORN).exists() {
        eprintln!("reading the settings");
        eprintln!("line 3 of the settings makes no sense");
        std::process::exit(7);
    }
    let listener = socket::listen()?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // The proxy may go away at any time; that is not our problem.
            let _ = serve(stream);
        });
    }
    Ok(())
}

struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn path(&self) -> &str {
        self.target.split(['?', '#']).next().unwrap_or_default()
    }

    fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }
}

fn serve(stream: UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    while let Some(request) = read(&mut reader)? {
        if request.path() == "/ws" {
            return websocket(&mut reader, &mut out, &request);
        }
        if !answer(&mut out, &request)? {
            return Ok(());
        }
    }
    Ok(())
}

fn read(reader: &mut BufReader<UnixStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let mut request = Request {
        method,
        target,
        headers,
        body: Vec::new(),
    };
    if request.header("transfer-encoding").is_some() {
        request.body = read_chunks(reader)?;
    } else if let Some(length) = request
        .header("content-length")
        .and_then(|text| text.parse().ok())
    {
        let mut body = Vec::new();
        reader.take(MAX_BODY.min(length)).read_to_end(&mut body)?;
        request.body = body;
    }
    Ok(Some(request))
}

fn read_chunks(reader: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length =
            u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16).unwrap_or(0);
        reader.take(length).read_to_end(&mut body)?;
        let mut end = String::new();
        reader.read_line(&mut end)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// Answers one request; false: the connection is of no more use.
fn answer(out: &mut UnixStream, request: &Request) -> io::Result<bool> {
    let role = request
        .header("x-choir-role")
        .unwrap_or("unknown")
        .to_owned();
    match request.path() {
        "/health" => reply(
            out,
            200,
            &[("content-type", "application/json")],
            br#"{"status":"ok"}"#,
        ),
        "/" => reply(
            out,
            200,
            &[("content-type", "text/html")],
            page::html(&role).as_bytes(),
        ),
        "/bench" => out.write_all(BENCH).map(|()| true),
        "/hostile/attack.js" => reply(
            out,
            200,
            &[("content-type", "text/javascript")],
            page::SCRIPT.as_bytes(),
        ),
        "/hostile/sw.js" => reply(
            out,
            200,
            &[
                ("content-type", "text/javascript"),
                ("service-worker-allowed", "/"),
            ],
            b"self.addEventListener('fetch', () => {});",
        ),
        "/hostile/cookies" => reply(
            out,
            200,
            &[
                ("set-cookie", "choir_runtime=evil; Path=/"),
                ("set-cookie", "choir_session=evil; Path=/"),
                ("set-cookie", "wide=evil; Domain=localhost; Path=/"),
                ("set-cookie", "own=fine; Path=/app"),
            ],
            b"cookies",
        ),
        // Who this is, on a connection that ends here.
        "/hostile/close" => {
            let own = std::env::var("CHOIR_SANDBOX_ID").unwrap_or_default();
            reply(out, 200, &[("connection", "close")], own.as_bytes()).map(|_| false)
        }
        "/hostile/location" => reply(out, 302, &[("location", "/elsewhere")], b""),
        "/hostile/event-stream" => event_stream(out),
        "/hostile/informational-flood" => flood(out),
        "/hostile/unasked-upgrade" => {
            out.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nfree bytes")?;
            Ok(false)
        }
        "/hostile/length-and-chunks" => {
            out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled")?;
            Ok(true)
        }
        "/hostile/two-lengths" => {
            out.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
            )?;
            Ok(true)
        }
        "/hostile/huge-header" => {
            write!(
                out,
                "HTTP/1.1 200 OK\r\nx-huge: {}\r\ncontent-length: 0\r\n\r\n",
                "a".repeat(4 << 20)
            )?;
            Ok(true)
        }
        "/hostile/two-answers" => {
            out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond")?;
            Ok(true)
        }
        "/hostile/socket" => {
            let done = socket::become_something(request.query());
            reply(out, 200, &[], format!("{done:?}").as_bytes())
        }
        "/hostile/listing" => {
            let done = socket::listing(request.query());
            reply(
                out,
                200,
                &[("content-type", "application/json")],
                done.to_string().as_bytes(),
            )
        }
        "/hostile/program" => {
            let said = program(&request.body)?;
            reply(out, 200, &[("content-type", "text/plain")], &said)
        }
        _ => echo(out, request, &role),
    }
}

/// Runs a program, given as a JSON list of its arguments, as a child of the guest, with what the
/// guest itself inherited; returns what it wrote.
fn program(argv: &[u8]) -> io::Result<Vec<u8>> {
    let argv: Vec<String> = serde_json::from_slice(argv)?;
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::other("no program"))?;
    let done = Command::new(program).args(arguments).output()?;
    Ok([done.stdout, done.stderr].concat())
}

/// Says what came in, as JSON.
fn echo(out: &mut UnixStream, request: &Request, role: &str) -> io::Result<bool> {
    let body = json!({
        "method": request.method,
        "target": request.target,
        "role": role,
        "headers": request.headers,
        "body": String::from_utf8_lossy(&request.body),
    });
    reply(
        out,
        200,
        &[("content-type", "application/json")],
        body.to_string().as_bytes(),
    )
}

fn reply(
    out: &mut UnixStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<bool> {
    let mut head = format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    out.write_all(head.as_bytes())?;
    out.write_all(body)?;
    Ok(true)
}

fn event_stream(out: &mut UnixStream) -> io::Result<bool> {
    out.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    // One event a second until the reader has gone; a proxy that buffers shows none.
    loop {
        out.write_all(b"9\r\ndata: x\n\n\r\n")?;
        thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn flood(out: &mut UnixStream) -> io::Result<bool> {
    loop {
        out.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")?;
    }
}

/// Accepts any WebSocket, says which role it was asked as, and echoes nothing.
fn websocket(
    reader: &mut BufReader<UnixStream>,
    out: &mut UnixStream,
    request: &Request,
) -> io::Result<()> {
    let key = format!(
        "{}{WEBSOCKET_GUID}",
        request.header("sec-websocket-key").unwrap_or_default()
    );
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()).as_ref());
    write!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    )?;
    let text = json!({ "role": request.header("x-choir-role"), "sandbox": std::env::var("CHOIR_SANDBOX_ID").ok() }).to_string();
    out.write_all(&[0x81, u8::try_from(text.len().min(125)).unwrap_or(125)])?;
    out.write_all(text.as_bytes())?;
    // Held open until the other side ends it.
    io::copy(reader, &mut io::sink())?;
    Ok(())
}
