//! Ports of the workbench: what clients ask, what the workbench answers.

use std::os::fd::OwnedFd;

use types::ListeningPort;

use super::births::workbench_gone;
use super::connection::{Connection, Mode};
use super::serve::Supervisor;
use crate::namespaces::Order;
use crate::packet;
use crate::ports::DialFailure;
use crate::protocol::{Refusal, Reply};

/// Questions to the workbench that are not answered yet.
const MAX_QUESTIONS: usize = 96;

/// Asks the workbench to connect.
pub(super) fn connect(
    supervisor: &mut Supervisor,
    connection: &mut Connection,
    port: u16,
) -> Result<(), Refusal> {
    if port == 0 {
        return Err(Refusal::new("bad_request", "a port is 1 to 65535"));
    }
    if relays(supervisor).any(|relay| relay == port) {
        return Err(Refusal::new(
            "reserved_port",
            format!("port {port} is a command's own way to the model gateway"),
        )
        .with_hint("it closes with its command; use another port"));
    }
    ask(supervisor, connection, |id| Order::Connect { id, port })
}

/// Asks the workbench for its ports.
pub(super) fn list(
    supervisor: &mut Supervisor,
    connection: &mut Connection,
) -> Result<(), Refusal> {
    ask(supervisor, connection, |id| Order::Ports { id })
}

fn ask(
    supervisor: &mut Supervisor,
    connection: &mut Connection,
    order: impl FnOnce(u64) -> Order,
) -> Result<(), Refusal> {
    let open = supervisor
        .connections
        .values()
        .filter(|connection| matches!(connection.mode, Mode::Asking(_)))
        .count();
    if open >= MAX_QUESTIONS {
        return Err(busy());
    }
    let workbench = supervisor.workbench.as_ref().ok_or_else(workbench_gone)?;
    let id = supervisor.next_question;
    packet::send(&workbench.control, &order(id), &[])
        .map_err(|error| Refusal::new("internal", error.to_string()))?;
    supervisor.next_question += 1;
    connection.mode = Mode::Asking(id);
    Ok(())
}

fn busy() -> Refusal {
    Refusal::new("busy", "too many connections to ports are under way")
        .with_hint("try again in a moment")
}

/// Where the relays of running commands listen.
fn relays(supervisor: &Supervisor) -> impl Iterator<Item = u16> {
    supervisor
        .runners
        .values()
        .filter(|runner| runner.task.exit.is_none())
        .filter_map(|runner| runner.task.relay_port)
}

impl Supervisor {
    /// Passes a connection on to whoever asked for it, if they still wait.
    pub(super) fn take_connection(
        &mut self,
        id: u64,
        failure: Option<DialFailure>,
        socket: Option<OwnedFd>,
    ) {
        let Some(connection) = self.asking(id) else {
            return;
        };
        let refusal = match (failure, socket) {
            (None, Some(socket)) => return connection.say(&Reply::Connected, vec![socket]),
            (Some(DialFailure::Busy), _) => busy(),
            (Some(DialFailure::TimedOut), _) => Refusal::new(
                "timeout",
                "somebody listens on the port and does not accept connections",
            ),
            (Some(DialFailure::NothingListens), _) => {
                Refusal::new("nothing_listens", "nothing listens on the port")
            }
            (Some(DialFailure::Failed(why)), _) => Refusal::new("unavailable", why),
            (None, None) => Refusal::new("internal", "no socket came along"),
        };
        connection.refuse(&refusal);
    }

    /// Passes a listing on, without the relays.
    pub(super) fn take_ports(&mut self, id: u64, mut ports: Vec<ListeningPort>) {
        let relays: Vec<u16> = relays(self).collect();
        ports.retain(|port| !relays.contains(&port.port));
        if let Some(connection) = self.asking(id) {
            connection.say(&Reply::Ports { ports }, Vec::new());
        }
    }

    /// The client whose question this was; from here on it may ask again.
    fn asking(&mut self, id: u64) -> Option<&mut Connection> {
        let connection = self
            .connections
            .values_mut()
            .find(|connection| connection.mode == Mode::Asking(id))?;
        connection.mode = Mode::Requests;
        Some(connection)
    }
}
