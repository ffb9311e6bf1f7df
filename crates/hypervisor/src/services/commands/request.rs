//! From what was asked to what a runner is told: every field of a request has its bound.

use isolation_spec::{MAX_STDIN_BYTES, RunnerSpec, WORKSPACE};
use runtime::spec as isolation_spec;
use types::{CommandId, CommandLimits, CommandRequest, NetworkMode};

use crate::config::Limits;
use crate::error::Error;
use crate::services::sandboxes::limits::most;

/// The only capability that can be asked for yet.
pub(crate) const PROVIDER_CALL: &str = "provider:call";

/// Arguments, and bytes of all of them together.
const MAX_ARGUMENTS: usize = 1024;
const MAX_ARGUMENT_BYTES: usize = 128 << 10;

/// Variables, and bytes of all of them together.
const MAX_VARIABLES: usize = 128;
const MAX_VARIABLE_BYTES: usize = 128 << 10;

/// Bytes of a path.
const MAX_PATH: usize = 4096;

/// Characters of a label.
const MAX_LABEL: usize = 64;

/// Columns or rows of a terminal.
const MAX_CELLS: u16 = 1000;

/// The least memory that a command can be held to, in bytes: its walls are built in it.
const LEAST_MEMORY: u64 = 8 << 20;

/// The least processor time, in thousandths of a core, that the kernel can keep.
const LEAST_CPU_MILLIS: u32 = 10;

/// Capabilities of one command.
const MAX_CAPABILITIES: usize = 8;

/// Checks a request and makes the runner's description, whose environment is still empty.
///
/// # Errors
/// The first field that is out of its bounds, by name.
pub(crate) fn runner_spec(
    request: &CommandRequest,
    limits: &Limits,
    id: CommandId,
) -> Result<RunnerSpec, Error> {
    check_argv(&request.argv)?;
    check_env(&request.env)?;
    if request
        .stdin
        .as_ref()
        .is_some_and(|text| text.len() > MAX_STDIN_BYTES)
    {
        return Err(Error::TooLarge(format!(
            "stdin has at most {MAX_STDIN_BYTES} bytes"
        )));
    }
    if let Some(size) = request.terminal
        && ![size.cols, size.rows]
            .iter()
            .all(|cells| (1..=MAX_CELLS).contains(cells))
    {
        return Err(Error::bad_request(format!(
            "a terminal has 1 to {MAX_CELLS} columns and rows"
        )));
    }
    if let Some(label) = &request.label
        && (label.chars().count() > MAX_LABEL || label.chars().any(char::is_control))
    {
        return Err(Error::bad_request(format!(
            "label has at most {MAX_LABEL} characters, none of them control characters"
        )));
    }
    check_capabilities(&request.capabilities)?;
    Ok(RunnerSpec {
        command_id: id,
        argv: request.argv.clone(),
        cwd: request.cwd.as_deref().map(working_directory).transpose()?,
        env: Vec::new(),
        relay_env: Vec::new(),
        stdin: request.stdin.clone(),
        stdin_open: false,
        terminal: request.terminal,
        detach: request.detach,
        channel: false,
        network: NetworkMode::None,
        limits: bounded(request, limits)?,
        label: request.label.clone(),
    })
}

fn check_argv(argv: &[String]) -> Result<(), Error> {
    let program = argv.first().map(String::as_str).unwrap_or_default();
    if program.is_empty() {
        return Err(Error::bad_request("argv names no program"));
    }
    let bytes: usize = argv.iter().map(String::len).sum();
    if argv.len() > MAX_ARGUMENTS || bytes > MAX_ARGUMENT_BYTES {
        return Err(Error::TooLarge(format!(
            "argv has at most {MAX_ARGUMENTS} entries and {MAX_ARGUMENT_BYTES} bytes"
        )));
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(Error::bad_request("argv contains a NUL byte"));
    }
    Ok(())
}

fn check_env(env: &[(String, String)]) -> Result<(), Error> {
    let bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if env.len() > MAX_VARIABLES || bytes > MAX_VARIABLE_BYTES {
        return Err(Error::TooLarge(format!(
            "env has at most {MAX_VARIABLES} variables and {MAX_VARIABLE_BYTES} bytes"
        )));
    }
    for (name, value) in env {
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            || value.contains('\0')
        {
            return Err(Error::bad_request(
                "env has a name that is no variable name, or a NUL byte in a value",
            ));
        }
        // What a program reads there has to come from the hypervisor.
        if name.starts_with("CHOIR_") || name == "CODEX_SANDBOX_NETWORK_DISABLED" {
            return Err(Error::bad_request(format!(
                "env cannot set {name}; the hypervisor does"
            )));
        }
    }
    Ok(())
}

fn check_capabilities(capabilities: &[String]) -> Result<(), Error> {
    if capabilities.len() > MAX_CAPABILITIES {
        return Err(Error::TooLarge(format!(
            "at most {MAX_CAPABILITIES} capabilities"
        )));
    }
    match capabilities
        .iter()
        .find(|capability| *capability != PROVIDER_CALL)
    {
        None => Ok(()),
        Some(other) if other.len() <= MAX_LABEL && other.chars().all(|c| c.is_ascii_graphic()) => {
            Err(Error::bad_request(format!(
                "there is no capability {other}; there is {PROVIDER_CALL}"
            )))
        }
        Some(_) => Err(Error::bad_request(format!(
            "there is no such capability; there is {PROVIDER_CALL}"
        ))),
    }
}

/// The absolute directory. A link beneath the workspace may still lead elsewhere; the
/// runner enters it inside its own walls, so it leads nowhere that is not the sandbox's.
fn working_directory(cwd: &str) -> Result<String, Error> {
    if cwd.len() > MAX_PATH || cwd.contains('\0') {
        return Err(Error::bad_request(format!(
            "cwd has at most {MAX_PATH} bytes and no NUL byte"
        )));
    }
    let path = if cwd.starts_with('/') {
        cwd.to_owned()
    } else {
        format!("{WORKSPACE}/{cwd}")
    };
    let beneath = path
        .strip_prefix(WORKSPACE)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !beneath || path.split('/').any(|segment| segment == "..") {
        return Err(Error::bad_request(
            "cwd is not a directory beneath /workspace",
        ));
    }
    Ok(path)
}

fn bounded(request: &CommandRequest, limits: &Limits) -> Result<CommandLimits, Error> {
    let most_wall = u64::try_from(limits.command_wall_max.as_millis()).unwrap_or(u64::MAX);
    let usual_wall = u64::try_from(limits.command_wall.as_millis()).unwrap_or(u64::MAX);
    // People leave terminals and services open; only the maximum ends those.
    let lasting = request.detach || request.terminal.is_some();
    let asked = request.limits;
    let (memory, cpu, file) = most(limits);
    Ok(CommandLimits {
        wall_ms: Some(within(
            "wall_ms",
            asked.wall_ms,
            if lasting { most_wall } else { usual_wall },
            most_wall,
        )?),
        output_bytes: Some(within(
            "output_bytes",
            asked.output_bytes,
            limits.output_bytes,
            limits.output_bytes,
        )?),
        processes: Some(within(
            "processes",
            asked.processes,
            limits.processes,
            limits.processes,
        )?),
        memory_bytes: at_most("memory_bytes", asked.memory_bytes, LEAST_MEMORY, memory)?,
        cpu_millis: at_most("cpu_millis", asked.cpu_millis, LEAST_CPU_MILLIS, cpu)?,
        file_bytes: at_most("file_bytes", asked.file_bytes, 0, file)?,
    })
}

/// What was asked for, or the maximum, where there is one.
fn at_most<T: PartialOrd + Copy + std::fmt::Display>(
    name: &str,
    asked: Option<T>,
    least: T,
    most: Option<T>,
) -> Result<Option<T>, Error> {
    match (asked, most) {
        (Some(asked), most) if asked < least || most.is_some_and(|most| asked > most) => {
            let valid = most.map_or_else(
                || format!("at least {least}"),
                |most| format!("{least} to {most}"),
            );
            Err(Error::bad_request(format!("limits.{name} is {valid}")))
        }
        (asked, most) => Ok(asked.or(most)),
    }
}

fn within<T: PartialOrd + From<u8> + std::fmt::Display>(
    name: &str,
    asked: Option<T>,
    usual: T,
    most: T,
) -> Result<T, Error> {
    let value = asked.unwrap_or(usual);
    if value < T::from(1) || value > most {
        return Err(Error::bad_request(format!("limits.{name} is 1 to {most}")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::runner_spec;
    use crate::config::{Config, RawConfig};
    use types::{CommandId, CommandRequest};

    fn ask(json: &str) -> Result<runtime::spec::RunnerSpec, String> {
        let request: CommandRequest = serde_json::from_str(json).unwrap();
        let config = Config::build(RawConfig::read(None, Vec::new()).unwrap()).unwrap();
        runner_spec(&request, &config.sandbox.limits, CommandId::generate())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_bounded() {
        let spec = ask(r#"{"argv":["ls"]}"#).unwrap();
        assert_eq!(spec.limits.wall_ms, Some(3_600_000));
        assert!(spec.limits.processes.is_some() && spec.limits.output_bytes.is_some());
        assert!(!spec.channel && spec.env.is_empty());
        let shell = ask(r#"{"argv":["bash"],"terminal":{"cols":80,"rows":24}}"#).unwrap();
        assert_eq!(shell.limits.wall_ms, Some(24 * 3_600_000));
    }

    #[test]
    fn a_working_directory_stays_beneath_the_workspace() {
        assert_eq!(
            ask(r#"{"argv":["ls"],"cwd":"a/b"}"#).unwrap().cwd.unwrap(),
            "/workspace/a/b"
        );
        assert_eq!(
            ask(r#"{"argv":["ls"],"cwd":"/workspace"}"#)
                .unwrap()
                .cwd
                .unwrap(),
            "/workspace"
        );
        for cwd in [
            "/etc",
            "/workspacex",
            "..",
            "a/../../b",
            "/workspace/../etc",
        ] {
            assert!(
                ask(&format!(r#"{{"argv":["ls"],"cwd":"{cwd}"}}"#)).is_err(),
                "{cwd}"
            );
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        let refused = |json: &str, word: &str| {
            let text = ask(json).unwrap_err();
            assert!(text.contains(word), "{json}: {text}");
        };
        refused(r#"{"argv":[]}"#, "argv");
        refused(r#"{"argv":["a\u0000b"]}"#, "NUL");
        refused(r#"{"argv":["a"],"env":[["1A","x"]]}"#, "env");
        refused(
            r#"{"argv":["a"],"env":[["CHOIR_SANDBOX_ROLE","live"]]}"#,
            "CHOIR_SANDBOX_ROLE",
        );
        refused(
            r#"{"argv":["a"],"terminal":{"cols":0,"rows":24}}"#,
            "terminal",
        );
        refused(r#"{"argv":["a"],"capabilities":["root"]}"#, "provider:call");
        refused(r#"{"argv":["a"],"limits":{"wall_ms":0}}"#, "wall_ms");
        refused(
            r#"{"argv":["a"],"limits":{"memory_bytes":1024}}"#,
            "memory_bytes",
        );
        refused(
            r#"{"argv":["a"],"limits":{"memory_bytes":1099511627776}}"#,
            "memory_bytes",
        );
        refused(
            r#"{"argv":["a"],"limits":{"processes":1000000}}"#,
            "processes",
        );
        refused(
            &format!(r#"{{"argv":["a"],"label":"{}"}}"#, "x".repeat(65)),
            "label",
        );
        refused(
            &format!(
                r#"{{"argv":["a"],"stdin":"{}"}}"#,
                "x".repeat((1 << 20) + 1)
            ),
            "stdin",
        );
    }
}
