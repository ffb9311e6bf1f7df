//! Ports of a sandbox's workbench: listed, proxied to preview origins, and tunnelled for
//! `choir port forward`.

use std::collections::HashMap;
use std::net::TcpStream as StdTcpStream;
use std::sync::{Arc, Mutex, PoisonError};

use gateway::{Limits, PortConnector, PortError, Upstream};
use policy::Action;
use runtime::protocol::Refusal;
use runtime::{ControlError, Instance};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use types::{CommandId, PortView, PortsView, Role, SandboxId, UserName};

use crate::actor::Actor;
use crate::error::Error;
use crate::services::audit::Entry;
use crate::services::authorize;
use crate::services::commands::refused;
use crate::services::sandboxes::Plane;

/// Tunnels that a sandbox may have open at once.
const MAX_TUNNELS: usize = 64;

/// Tunnels that are open, by sandbox.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    places: Mutex<HashMap<SandboxId, Arc<Semaphore>>>,
}

impl Tunnels {
    fn place(&self, sandbox: SandboxId) -> Option<OwnedSemaphorePermit> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let of_sandbox = places
            .entry(sandbox)
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_TUNNELS)));
        Arc::clone(of_sandbox).try_acquire_owned().ok()
    }
}

/// A tunnel to a port; it has one of the sandbox's places as long as it lives.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) stream: TcpStream,
    pub(crate) place: OwnedSemaphorePermit,
}

/// The ports of one start.
pub(crate) struct Ports<'a> {
    plane: &'a Arc<Plane>,
    instance: &'a Arc<Instance>,
}

impl<'a> Ports<'a> {
    pub(crate) const fn new(plane: &'a Arc<Plane>, instance: &'a Arc<Instance>) -> Self {
        Self { plane, instance }
    }

    /// The ports on which commands listen.
    ///
    /// # Errors
    /// The actor may not, or the supervisor cannot be reached.
    pub(crate) async fn list(&self, actor: &Actor) -> Result<PortsView, Error> {
        let (owner, role) = self.may_use(actor).await?;
        self.view(&owner, role).await
    }

    /// The same without asking whether somebody may see it: they have been let in already.
    pub(crate) async fn view(&self, owner: &UserName, role: Role) -> Result<PortsView, Error> {
        let listening = self.instance.ports().await.map_err(refused)?;
        let runners = self.instance.runners().await.map_err(refused)?;
        let names: HashMap<CommandId, String> = runners
            .into_iter()
            .map(|runner| {
                let program = runner.view.argv.join(" ");
                (runner.view.id, runner.view.label.unwrap_or(program))
            })
            .collect();
        let origins = &self.plane.config.origins;
        let ports = listening
            .into_iter()
            .map(|listening| PortView {
                command: listening
                    .command_id
                    .and_then(|id| names.get(&id).cloned())
                    .map(|name| name.chars().take(MAX_NAME).collect()),
                url: origins
                    .preview_origin(owner, role, listening.port)
                    .map(|origin| format!("{origin}/")),
                listening,
            })
            .collect();
        Ok(PortsView {
            ports,
            no_preview: origins.why_no_preview().map(str::to_owned),
        })
    }

    /// A connection to a port, for a tunnel.
    ///
    /// # Errors
    /// The actor may not, the ledger cannot take the record, nothing listens, or too many
    /// tunnels are open.
    pub(crate) async fn tunnel(&self, actor: &Actor, port: u16) -> Result<Tunnel, Error> {
        let (_, role) = self.may_use(actor).await?;
        let sandbox = self.instance.sandbox_id;
        let place = self.plane.tunnels.place(sandbox).ok_or_else(|| {
            Error::Unavailable(format!(
                "{MAX_TUNNELS} connections to ports of this sandbox are open already; close some"
            ))
        })?;
        let entry = Entry::allowed("port.connect", sandbox.to_string())
            .in_sandbox(sandbox, Some(role))
            .with("port", port.to_string());
        self.plane.audit.record(actor, entry).await?;
        let socket = self.instance.connect(port).await.map_err(|error| {
            let error = port_error(error);
            match error {
                PortError::NothingListens => Error::Conflict(nothing_listens(port, role)),
                PortError::NotAccepted => Error::GatewayTimeout(format!("port {port}: {error}")),
                PortError::Busy => Error::Unavailable(error.to_string()),
                PortError::Reserved => Error::forbidden(format!("port {port}: {error}")),
                PortError::Failed(_) => Error::BadGateway(error.to_string()),
            }
        })?;
        let stream = StdTcpStream::from(socket);
        stream.set_nonblocking(true).map_err(Error::internal)?;
        let stream = TcpStream::from_std(stream).map_err(Error::internal)?;
        Ok(Tunnel { stream, place })
    }

    /// The upstream of a port; every request to it within a start shares one.
    ///
    /// # Errors
    /// No descriptor is left, or the start has ended.
    pub(crate) fn upstream(&self, port: u16) -> Result<Upstream, Error> {
        let app = self.plane.upstream(self.instance)?;
        // Not held: an upstream must not keep what belongs to an ended start.
        let instance = Arc::downgrade(self.instance);
        let connector: PortConnector = Arc::new(move || {
            let instance = instance.upgrade();
            Box::pin(async move {
                let ended = || PortError::Failed("the sandbox has ended".to_owned());
                let instance = instance.ok_or_else(ended)?;
                instance.connect(port).await.map_err(port_error)
            })
        });
        self.plane
            .upstreams
            .port_or_insert(self.instance.start_id, port, || {
                Upstream::port(&app, port, connector, Limits::port())
            })
            .ok_or(Error::SandboxNotRunning)
    }

    async fn may_use(&self, actor: &Actor) -> Result<(UserName, Role), Error> {
        let sandbox = self.instance.sandbox_id;
        let (owner, role) = self.plane.owner(sandbox).await?;
        authorize::on_sandbox(actor, Action::UsePort, sandbox, owner.id)?;
        Ok((owner.name, role))
    }
}

/// Longest name of a command in a listing, in characters.
const MAX_NAME: usize = 200;

/// What is said when nobody listens, with what to do.
pub(crate) fn nothing_listens(port: u16, role: Role) -> String {
    format!(
        "nothing listens on port {port} of {role}; start a server there, for example: \
         choir service start --role {role} -- python3 -m http.server {port}"
    )
}

fn port_error(error: ControlError) -> PortError {
    match error {
        ControlError::Refused(Refusal { code, message, .. }) => match code.as_str() {
            "nothing_listens" => PortError::NothingListens,
            "timeout" => PortError::NotAccepted,
            "busy" => PortError::Busy,
            "reserved_port" => PortError::Reserved,
            _ => PortError::Failed(message),
        },
        other => PortError::Failed(other.to_string()),
    }
}
