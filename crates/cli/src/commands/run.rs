//! `choir run`: a command in a sandbox, its output as it comes, its exit code.

mod terminal;

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use types::{CommandEvent, CommandExit, CommandId, CommandLimits, CommandRequest, OutputStream};

use super::Target;
use crate::client::Client;
use crate::context::Context;
use crate::{Error, args};

/// Most standard input in bytes, as the control plane takes it.
const MAX_STDIN: usize = 1024 * 1024;
/// Exit code when its time ran out, as `timeout(1)` has it.
const TIMED_OUT: u8 = 124;

#[derive(Serialize)]
struct Signal {
    signal: &'static str,
}

pub(super) async fn run(
    target: &Target,
    command: args::Run,
    context: &mut Context,
) -> Result<u8, Error> {
    let client = target.client(context)?;
    let commands = format!("/me/sandboxes/{}/commands", command.role);
    let silent =
        command.tty || command.no_stdin || context.io.stdin_is_terminal || target.takes_stdin();
    let stdin = if silent {
        None
    } else {
        Some(read_stdin(context.io.stdin.as_mut())?)
    };
    let request = CommandRequest {
        id: None,
        rejoin: false,
        argv: command.argv,
        cwd: command.cwd,
        env: command.env,
        stdin: stdin.filter(|text| !text.is_empty()),
        terminal: None,
        detach: false,
        capabilities: command.capabilities,
        network: command.network,
        limits: CommandLimits {
            wall_ms: command.timeout.map(|seconds| seconds * 1000),
            memory_bytes: command.memory,
            cpu_millis: command.cpus,
            processes: command.processes,
            ..CommandLimits::default()
        },
        label: Some("cli".to_owned()),
    };
    let exit = if command.tty {
        terminal::follow(&client, &commands, request, context).await?
    } else {
        follow(&client, &commands, &request, context).await?
    };
    if exit.dropped_bytes > 0 {
        let text = format!(
            "choir: {} bytes of output were dropped\n",
            exit.dropped_bytes
        );
        context.io.complain(&text)?;
    }
    if let Some(limit) = &exit.limit {
        context.io.complain(&format!("choir: {limit}\n"))?;
    }
    if let Some(why) = exit.error {
        return Err(Error::NotStarted(why));
    }
    if exit.timed_out {
        context.io.complain(&format!(
            "choir: its time ran out after {} ms\n",
            exit.wall_ms
        ))?;
        return Ok(TIMED_OUT);
    }
    Ok(code(&exit))
}

/// Passes output on until the command ended.
async fn follow(
    client: &Client,
    commands: &str,
    request: &CommandRequest,
    context: &mut Context,
) -> Result<CommandExit, Error> {
    let mut presses = (context.interrupts)();
    let mut events = client.post_stream(commands, request).await?;
    let mut id: Option<CommandId> = None;
    let mut interrupts = 0_u32;
    loop {
        tokio::select! {
            event = events.line::<CommandEvent>() => match event? {
                Some(CommandEvent::Started { id: started }) => id = Some(started),
                Some(CommandEvent::Output { stream, data }) => {
                    let bytes = STANDARD
                        .decode(&data)
                        .map_err(|_| client.unexpected("output that is no base64".to_owned()))?;
                    match stream {
                        OutputStream::Stdout => context.io.print_bytes(&bytes)?,
                        OutputStream::Stderr => context.io.complain_bytes(&bytes)?,
                    }
                }
                Some(CommandEvent::Exited(exit)) => return Ok(exit),
                None => return Err(Error::CutOff(client.server().clone())),
            },
            Some(()) = presses.recv() => {
                interrupts += 1;
                // The control plane kills a command whose caller has gone.
                let gone = |signal| CommandExit { signal: Some(signal), ..CommandExit::default() };
                let Some(id) = id else { return Ok(gone(2)) };
                let signal = match interrupts {
                    1 => "int",
                    2 => "kill",
                    _ => return Ok(gone(9)),
                };
                match client.tell(&format!("{commands}/{id}/signal"), &Signal { signal }).await {
                    // It may have ended by itself meanwhile; its last event is on the way.
                    Ok(()) | Err(Error::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// The shell's convention: 128 and the signal's number.
fn code(exit: &CommandExit) -> u8 {
    let code = exit
        .code
        .or(exit.signal.map(|signal| signal.saturating_add(128)))
        .unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

fn read_stdin(stdin: &mut dyn Read) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let limit = MAX_STDIN as u64 + 1;
    stdin
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|_| Error::Stdin("it cannot be read"))?;
    if bytes.len() > MAX_STDIN {
        return Err(Error::Stdin("it is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| Error::Stdin("it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use types::CommandExit;

    use super::code;

    #[test]
    fn exit_codes_follow_the_shell() {
        let exit = |code, signal| CommandExit {
            code,
            signal,
            ..CommandExit::default()
        };
        assert_eq!(code(&exit(Some(0), None)), 0);
        assert_eq!(code(&exit(Some(42), None)), 42);
        assert_eq!(code(&exit(None, Some(9))), 137);
        assert_eq!(code(&exit(None, None)), 1);
    }
}
