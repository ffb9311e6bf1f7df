//! How runners come to be: orders to the workbench are answered with births.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::process::{Signal, WaitOptions, pidfd_send_signal, waitpid};
use types::CommandId;

use super::connection::Mode;
use super::serve::Supervisor;
use crate::namespaces::Done;
use crate::packet;
use crate::protocol::{Refusal, Reply};
use crate::walls::{WallError, hints};

impl Supervisor {
    /// Reads the workbench's answers to orders.
    pub(super) fn read_workbench(&mut self, now: Instant) {
        let Some(workbench) = &self.workbench else {
            return;
        };
        let (done, rider) = match packet::receive::<Done>(&workbench.control, false) {
            Ok(Some((done, fds))) => (done, fds.into_iter().next()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.lose_workbench(),
        };
        match done {
            Done::Born { command_id, error } => self.take_birth(command_id, error, rider, now),
            Done::Connected { id, error } => self.take_connection(id, error, rider),
            Done::Ports { id, ports } => self.take_ports(id, ports),
        }
    }

    fn take_birth(
        &mut self,
        id: CommandId,
        error: Option<WallError>,
        pidfd: Option<OwnedFd>,
        now: Instant,
    ) {
        let answer = match (error, pidfd) {
            (None, Some(pidfd)) => self.welcome(id, pidfd, now),
            (error, _) => {
                if let Some(mut runner) = self.runners.remove(&id) {
                    self.emptied.extend(runner.close(&self.dirs));
                }
                Err(error.map_or_else(workbench_gone, |error| hints::refusal(&error)))
            }
        };
        for connection in self
            .connections
            .values_mut()
            .filter(|c| c.mode == Mode::Spawning(id))
        {
            connection.mode = Mode::Requests;
            match &answer {
                Ok(channel) => {
                    let riders = channel.as_ref().and_then(|fd| fd.try_clone().ok());
                    connection.say(
                        &Reply::Spawned { command_id: id },
                        riders.into_iter().collect(),
                    );
                }
                Err(refusal) => connection.refuse(refusal),
            }
        }
    }

    fn welcome(
        &mut self,
        id: CommandId,
        pidfd: OwnedFd,
        now: Instant,
    ) -> Result<Option<OwnedFd>, Refusal> {
        let stopping = self.is_stopping();
        let Some(runner) = self.runners.get_mut(&id) else {
            return Err(workbench_gone());
        };
        runner.task.set_process(pidfd);
        if stopping {
            runner.task.kill();
        }
        runner.task.enforce_deadline(now);
        runner
            .channel()
            .map_err(|e| Refusal::new("internal", e.to_string()))
    }

    /// The workbench is gone, and with it every runner. There is no second one: root's right to
    /// build it was given up at the start. A sandbox that can run no commands is none, so the
    /// guest is ended too, with the reason; whoever watches it starts the sandbox anew.
    pub(super) fn lose_workbench(&mut self) {
        let Some(workbench) = self.workbench.take() else {
            return;
        };
        let _ = pidfd_send_signal(&workbench.process, Signal::KILL);
        let _ = waitpid(Some(workbench.pid), WaitOptions::NOHANG);
        self.note(WORKBENCH_GONE);
        if !self.is_stopping() {
            self.guest.end_because(WORKBENCH_GONE);
        }
        let refusal = workbench_gone();
        for connection in self.connections.values_mut() {
            if let Mode::Spawning(id) = connection.mode {
                connection.mode = Mode::Requests;
                connection.refuse(&refusal);
                if let Some(mut runner) = self.runners.remove(&id) {
                    self.emptied.extend(runner.close(&self.dirs));
                }
            } else if let Mode::Asking(_) = connection.mode {
                connection.mode = Mode::Requests;
                connection.refuse(&refusal);
            }
        }
        // Those whose client went away before they were born.
        self.runners.retain(|_, runner| runner.task.is_born());
    }
}

/// Why a guest is ended that did nothing wrong.
const WORKBENCH_GONE: &str = "its workbench was ended from outside, perhaps for want of memory, \
                              so that it could run no more commands";

pub(crate) fn workbench_gone() -> Refusal {
    Refusal::new(
        "workbench_gone",
        "this sandbox can run no more commands: its workbench ended",
    )
    .with_hint("restart the sandbox; if memory ran out, give it more")
}
