use std::io::{Read, Write};
use std::net::TcpStream;

use isolation::protocol::{Message, Reply, Request};
use types::ListeningPort;

use crate::harness::{Client, Sandbox, runner};

const IDLE: &[&str] = &["/bin/sh", "-c", "sleep 1000"];

/// A server that answers every connection with a line and says when it listens.
fn server(address: &str, port: u16) -> String {
    let family = if address.contains(':') {
        "socket.AF_INET6"
    } else {
        "socket.AF_INET"
    };
    format!(
        "import socket\ns=socket.create_server(('{address}',{port}),family={family})\nprint('up',flush=True)\n\
         while True:\n c,_=s.accept()\n c.sendall(b'served {port}')\n c.close()"
    )
}

fn listening(client: &mut Client) -> Vec<ListeningPort> {
    match client.ask(&Request::Ports {}) {
        Message::Reply(Reply::Ports { ports }) => ports,
        other => panic!("{other:?}"),
    }
}

fn refusal(client: &mut Client, port: u16) -> String {
    match client.ask(&Request::Connect { port }) {
        Message::Refusal(refusal) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_port_is_reached_from_outside_and_listed_with_its_command() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    assert_eq!(listening(&mut client), []);
    assert_eq!(refusal(&mut client, 3000), "nothing_listens");
    let mut followers = Vec::new();
    let mut started = Vec::new();
    for (address, port) in [("127.0.0.1", 3000), ("::1", 3001), ("0.0.0.0", 3002)] {
        let id = client.spawn(runner(&["python3", "-c", &server(address, port)]));
        let mut follower = sandbox.connect();
        follower.attach(id, 0);
        follower.await_output("up");
        followers.push(follower);
        started.push(ListeningPort {
            port,
            address: address.to_owned(),
            command_id: Some(id),
        });
    }
    assert_eq!(listening(&mut client), started);
    for port in [3000, 3001, 3002] {
        let reply = client.ask(&Request::Connect { port });
        assert_eq!(reply, Message::Reply(Reply::Connected), "{port}");
        let mut stream = TcpStream::from(client.rider());
        stream.set_nonblocking(false).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("served {port}"));
    }
    // Gone with its command.
    let reply = client.ask(&Request::Signal {
        command_id: started[0].command_id.unwrap(),
        signal: isolation::protocol::Signal::Kill,
    });
    assert_eq!(reply, Message::Reply(Reply::Done));
    followers[0].collect();
    assert_eq!(refusal(&mut client, 3000), "nothing_listens");
    assert_eq!(listening(&mut client), started[1..]);
    assert_eq!(refusal(&mut client, 0), "bad_request");
}

#[test]
fn a_port_of_the_host_is_not_a_port_of_the_workbench() {
    let sandbox = Sandbox::start(IDLE);
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    assert_eq!(refusal(&mut sandbox.connect(), port), "nothing_listens");
}

#[test]
fn a_listener_that_never_accepts_delays_nobody_else() {
    let sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let hostile = "import socket,time\ns=socket.socket()\ns.bind(('127.0.0.1',3000))\ns.listen(0)\nprint('up',flush=True)\ntime.sleep(1000)";
    let id = client.spawn(runner(&["python3", "-c", hostile]));
    let mut follower = sandbox.connect();
    follower.attach(id, 0);
    follower.await_output("up");
    // Fill its backlog, then leave connections hanging.
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut asking = sandbox.connect();
        asking.send(&Request::Connect { port: 3000 });
        waiting.push(asking);
    }
    let began = std::time::Instant::now();
    assert_eq!(sandbox.sh("echo quick").stdout, "quick\n");
    assert!(
        began.elapsed() < std::time::Duration::from_millis(1500),
        "a runner waited for a stranger's listener: {:?}",
        began.elapsed()
    );
    let answers: Vec<Message> = waiting.iter_mut().map(Client::message).collect();
    assert!(
        answers
            .iter()
            .any(|answer| matches!(answer, Message::Refusal(refusal) if refusal.code == "timeout")),
        "{answers:?}"
    );
}

#[test]
fn a_relay_is_no_port() {
    let sandbox = Sandbox::start(IDLE);
    let mut spec = runner(&["/bin/sh", "-c", "echo $RELAY; sleep 1000"]);
    spec.channel = true;
    spec.relay_env = vec![("RELAY".into(), "port={port}.".into())];
    let mut client = sandbox.connect();
    let id = client.spawn(spec);
    let mut follower = sandbox.connect();
    follower.attach(id, 0);
    let said = follower.await_output(".");
    let port: u16 = said
        .trim_start_matches("port=")
        .trim_end_matches('.')
        .parse()
        .unwrap();
    assert_eq!(refusal(&mut client, port), "reserved_port");
    assert_eq!(listening(&mut client), []);
}

#[test]
fn bytes_go_both_ways_and_the_connection_dies_with_the_sandbox() {
    let mut sandbox = Sandbox::start(IDLE);
    let mut client = sandbox.connect();
    let echo = "import socket\ns=socket.create_server(('127.0.0.1',8080))\nprint('up',flush=True)\nc,_=s.accept()\n\
                while True:\n b=c.recv(99)\n if not b: break\n c.sendall(b.upper())";
    let id = client.spawn(runner(&["python3", "-c", echo]));
    let mut follower = sandbox.connect();
    follower.attach(id, 0);
    follower.await_output("up");
    assert_eq!(
        client.ask(&Request::Connect { port: 8080 }),
        Message::Reply(Reply::Connected)
    );
    let mut stream = TcpStream::from(client.rider());
    stream.set_nonblocking(false).unwrap();
    stream.write_all(b"shout").unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"SHOUT");
    sandbox.stop(0);
    let mut rest = Vec::new();
    assert!(
        matches!(stream.read_to_end(&mut rest), Ok(0) | Err(_)),
        "the other end is gone"
    );
}
