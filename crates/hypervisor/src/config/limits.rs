//! Bounds of what runs in a sandbox, of whole sandboxes and of whole users.

use std::time::Duration;

use types::{format_bytes, parse_bytes};

use super::ConfigError;
use super::raw::RawLimits;
use super::sandbox::Places;
use super::values::{DAY, HOUR, duration, within};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The most processes of anything, which is the kernel's own default for a large machine.
const MAX_PROCESSES: u64 = 4 << 20;

/// The word that stands for no limit.
const UNLIMITED: &str = "unlimited";

/// Bounds of what runs in a sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall time of a command that names none.
    pub command_wall: Duration,
    /// The longest wall time that a command may ask for.
    pub command_wall_max: Duration,
    /// Bytes of output passed on while a command runs, and kept of its end.
    pub output_bytes: u64,
    /// Processes and threads per command.
    pub processes: u32,
    /// Processes and threads of the guest itself.
    pub guest_processes: u32,
    /// Open files per process.
    pub open_files: u64,
    /// Commands that run at the same time in one sandbox.
    pub commands: u32,
    /// Sandboxes of one user that run at the same time.
    pub running_per_user: u32,
    /// Sandboxes that run at the same time.
    pub running_per_host: Places,
    /// Memory per command, in bytes.
    pub memory: Option<u64>,
    /// Processor time per command, in thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Size of one file, in bytes.
    pub file_bytes: Option<u64>,
    /// Memory of the guest, in bytes.
    pub guest_memory: Option<u64>,
    /// inotify instances of the guest, and of all commands of a sandbox together.
    pub inotify_instances: u64,
    /// inotify watches of the guest, and of all commands of a sandbox together.
    pub inotify_watches: u64,
    /// Guest and commands of a sandbox together.
    pub sandbox: Share,
    /// All sandboxes of a user together; on disk, those that do not run included.
    pub user: Share,
}

/// What a whole sandbox or a whole user may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: u64,
    /// Processor time in thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Bytes on disk.
    pub disk: Option<u64>,
    /// Files, directories and links on disk.
    pub disk_entries: Option<u64>,
}

impl Limits {
    pub(super) fn build(raw: &RawLimits) -> Result<Self, ConfigError> {
        let command_wall_max = duration(
            "sandbox.limits.command_wall_max",
            raw.command_wall_max.as_deref(),
            DAY,
        )?;
        let command_wall = duration(
            "sandbox.limits.command_wall",
            raw.command_wall.as_deref(),
            HOUR,
        )?;
        let number = |key, value: Option<u64>, default, least, most| {
            within(&named(key), value.unwrap_or(default), least, most)
        };
        let small = |key, value: Option<u32>, default, least, most| {
            within(&named(key), value.unwrap_or(default), least, most)
        };
        let bytes = |key, text: &Option<String>, default, least| {
            size(&named(key), text.as_deref(), Some(default), least)
        };
        Ok(Self {
            command_wall: command_wall.min(command_wall_max),
            command_wall_max,
            output_bytes: number("output_bytes", raw.output_bytes, 4 * MIB, 4 * KIB, GIB)?,
            processes: small("processes", raw.processes, 512, 8, 65_536)?,
            guest_processes: small("guest_processes", raw.guest_processes, 256, 8, 65_536)?,
            open_files: number("open_files", raw.open_files, 4096, 64, 1 << 20)?,
            commands: small("commands", raw.commands, 64, 1, 4096)?,
            running_per_user: small("running_per_user", raw.running_per_user, 2, 1, 1000)?,
            running_per_host: Places::build(raw.running_per_host.as_ref())?,
            memory: bytes("memory", &raw.memory, 4 * GIB, MIB)?,
            cpu_millis: cpu("cpu", raw.cpu)?,
            file_bytes: bytes("file_bytes", &raw.file_bytes, 8 * GIB, MIB)?,
            guest_memory: bytes("guest_memory", &raw.guest_memory, 2 * GIB, 16 * MIB)?,
            inotify_instances: number("inotify_instances", raw.inotify_instances, 48, 1, 65_536)?,
            inotify_watches: number(
                "inotify_watches",
                raw.inotify_watches,
                65_536,
                1,
                16_777_216,
            )?,
            sandbox: Share {
                memory: bytes("sandbox_memory", &raw.sandbox_memory, 6 * GIB, 32 * MIB)?,
                processes: number(
                    "sandbox_processes",
                    raw.sandbox_processes,
                    2048,
                    16,
                    MAX_PROCESSES,
                )?,
                cpu_millis: cpu("sandbox_cpu", raw.sandbox_cpu)?,
                disk: bytes("sandbox_disk", &raw.sandbox_disk, 20 * GIB, MIB)?,
                disk_entries: entries("sandbox_files", raw.sandbox_files, 1_000_000)?,
            },
            user: Share {
                memory: bytes("user_memory", &raw.user_memory, 12 * GIB, 32 * MIB)?,
                processes: number(
                    "user_processes",
                    raw.user_processes,
                    4096,
                    16,
                    MAX_PROCESSES,
                )?,
                cpu_millis: cpu("user_cpu", raw.user_cpu)?,
                disk: bytes("user_disk", &raw.user_disk, 40 * GIB, MIB)?,
                disk_entries: entries("user_files", raw.user_files, 2_000_000)?,
            },
        })
    }
}

fn named(key: &str) -> String {
    format!("sandbox.limits.{key}")
}

/// A size in bytes; `None` when the text says that there is no limit.
fn size(
    key: &str,
    text: Option<&str>,
    default: Option<u64>,
    least: u64,
) -> Result<Option<u64>, ConfigError> {
    match text {
        None => Ok(default),
        Some(UNLIMITED) => Ok(None),
        Some(text) => match parse_bytes(text) {
            Some(bytes) if bytes >= least => Ok(Some(bytes)),
            _ => Err(ConfigError::value(
                key,
                text,
                "it is no size, or too small",
                format!(
                    "a size such as 512 MiB or 4 GiB, at least {}, or {UNLIMITED}",
                    format_bytes(least)
                ),
            )),
        },
    }
}

/// Cores as a number, in thousandths. Absent: as many as there are, shared evenly.
fn cpu(key: &str, cores: Option<f64>) -> Result<Option<u32>, ConfigError> {
    let Some(cores) = cores else { return Ok(None) };
    if !(0.01..=1024.0).contains(&cores) {
        return Err(ConfigError::value(
            named(key),
            cores,
            "it is out of bounds",
            "a number of cores from 0.01 to 1024, such as 1.5; without it all cores are shared evenly",
        ));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 10 and 1,024,000"
    )]
    Ok(Some((cores * 1000.0).round() as u32))
}

fn entries(key: &str, value: Option<u64>, default: u64) -> Result<Option<u64>, ConfigError> {
    within(&named(key), value.unwrap_or(default), 1000, 1 << 40).map(Some)
}
