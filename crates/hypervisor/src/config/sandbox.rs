//! What sandboxes get.

use std::path::PathBuf;
use std::time::Duration;

use runtime::spec::OptionalWall;

use super::ConfigError;
use super::limits::Limits;
use super::raw::{RawPlaces, RawSandbox, RawSnapshots, RawSwap};
use super::values::{HOUR, MINUTE, duration, within};

/// What sandboxes get.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// First host uid given to a sandbox when the hypervisor is root; slot `n` gets `base + n`.
    pub host_uid_base: u32,
    /// Tools of the host that sandboxes may read, beyond `/usr`.
    pub mounts: Vec<Mount>,
    /// `PATH` inside.
    pub path: String,
    /// Point stock SDKs at the gateway through their own variables.
    pub sdk_env: bool,
    /// Directory of `supervisor` and `sandbox`; next to this program when absent.
    pub binaries_dir: Option<PathBuf>,
    /// When a sandbox that nobody uses is stopped.
    pub idle_stop: IdleStop,
    /// Walls that may be missing (arch §8: only when the configuration says so by name).
    pub accept_missing: Vec<OptionalWall>,
    /// Bounds.
    pub limits: Limits,
    /// Swaps.
    pub swap: Swap,
    /// Snapshots, clone and restore.
    pub snapshots: Snapshots,
}

/// Bounds of snapshots, clone and restore (arch §4).
#[derive(Debug, Clone, Copy)]
pub struct Snapshots {
    /// Snapshots kept per sandbox.
    pub max_count: u32,
    /// Bytes of data in all snapshots of a sandbox.
    pub max_bytes: u64,
    /// Files, directories and links in one copy.
    pub max_files: u64,
    /// Bytes that copying leaves free on the disk.
    pub keep_free: u64,
}

/// How a swap goes on after the pointer has changed (arch §4).
#[derive(Debug, Clone, Copy)]
pub struct Swap {
    /// How long the new `live` is on trial: when it fails within this time and the old one is
    /// healthy, the swap is taken back.
    pub grace: Duration,
    /// Pause between two looks at it.
    pub probe_interval: Duration,
}

/// When a sandbox that nobody uses is stopped (arch §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleStop {
    /// It is not.
    Never,
    /// After this long without activity.
    After(Duration),
}

impl IdleStop {
    fn build(text: Option<&str>) -> Result<Self, ConfigError> {
        // A word, because a zero could mean either extreme.
        if text == Some("never") {
            return Ok(Self::Never);
        }
        duration("sandbox.idle_stop", text, 30 * MINUTE).map(Self::After)
    }
}

/// How many sandboxes may run at the same time on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// One for each 128 MiB of the host's memory, at least eight.
    Auto,
    /// This many.
    Number(u32),
}

impl Places {
    pub(super) fn build(raw: Option<&RawPlaces>) -> Result<Self, ConfigError> {
        let key = "sandbox.limits.running_per_host";
        match raw {
            None => Ok(Self::Auto),
            Some(RawPlaces::Word(word)) if word == "auto" => Ok(Self::Auto),
            Some(RawPlaces::Word(word)) => Err(ConfigError::value(
                key,
                word,
                "it is no number",
                "auto, or 1 to 100000",
            )),
            Some(RawPlaces::Number(number)) => within(key, *number, 1, 100_000).map(Self::Number),
        }
    }
}

/// A read-only mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Of the host; absolute.
    pub source: PathBuf,
    /// Inside; absolute.
    pub target: PathBuf,
}

impl Sandbox {
    pub(super) fn build(raw: &RawSandbox) -> Result<Self, ConfigError> {
        let mounts = raw
            .mounts
            .iter()
            .map(|mount| {
                let target = mount.target.clone().unwrap_or_else(|| mount.source.clone());
                for (key, path) in [
                    ("sandbox.mounts.source", &mount.source),
                    ("sandbox.mounts.target", &target),
                ] {
                    if !path.is_absolute()
                        || path
                            .components()
                            .any(|c| c == std::path::Component::ParentDir)
                    {
                        return Err(ConfigError::value(
                            key,
                            path.display(),
                            "it is not absolute, or contains ..",
                            "an absolute path such as /opt/tools",
                        ));
                    }
                }
                if !mount.source.exists() {
                    return Err(ConfigError::value(
                        "sandbox.mounts.source",
                        mount.source.display(),
                        "there is nothing there",
                        "an existing directory or file",
                    ));
                }
                Ok(Mount {
                    source: mount.source.clone(),
                    target,
                })
            })
            .collect::<Result<_, _>>()?;
        if let Some(dir) = &raw.binaries_dir
            && !dir.is_dir()
        {
            return Err(ConfigError::value(
                "sandbox.binaries_dir",
                dir.display(),
                "it is no directory",
                "the directory that holds supervisor and sandbox",
            ));
        }
        Ok(Self {
            // systemd leaves 1879048192 to 2147483647 unused ("Users, Groups, UIDs and
            // GIDs on systemd Systems"), so nothing else on the host has these.
            host_uid_base: within(
                "sandbox.host_uid_base",
                raw.host_uid_base.unwrap_or(2_000_000_000),
                1000,
                2_146_000_000,
            )?,
            mounts,
            path: raw.path.clone().unwrap_or_else(|| {
                "/choir/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin".to_owned()
            }),
            sdk_env: raw.sdk_env,
            binaries_dir: raw.binaries_dir.clone(),
            idle_stop: IdleStop::build(raw.idle_stop.as_deref())?,
            accept_missing: raw.accept_missing.clone(),
            limits: Limits::build(&raw.limits)?,
            swap: Swap::build(&raw.swap)?,
            snapshots: Snapshots::build(&raw.snapshots)?,
        })
    }
}

impl Swap {
    fn build(raw: &RawSwap) -> Result<Self, ConfigError> {
        let grace = duration(
            "sandbox.swap.grace",
            raw.grace.as_deref(),
            Duration::from_secs(30),
        )?;
        let probe_interval = duration(
            "sandbox.swap.probe_interval",
            raw.probe_interval.as_deref(),
            Duration::from_secs(2),
        )?;
        if grace > HOUR {
            return Err(ConfigError::value(
                "sandbox.swap.grace",
                format!("{}s", grace.as_secs()),
                "it is out of bounds",
                "1s to 1h",
            ));
        }
        Ok(Self {
            grace,
            probe_interval: probe_interval.min(grace),
        })
    }
}

impl Snapshots {
    fn build(raw: &RawSnapshots) -> Result<Self, ConfigError> {
        Ok(Self {
            max_count: within(
                "sandbox.snapshots.max_count",
                raw.max_count.unwrap_or(16),
                1,
                1000,
            )?,
            max_bytes: within(
                "sandbox.snapshots.max_bytes",
                raw.max_bytes.unwrap_or(20 << 30),
                1 << 20,
                1 << 50,
            )?,
            max_files: within(
                "sandbox.snapshots.max_files",
                raw.max_files.unwrap_or(1_000_000),
                100,
                50_000_000,
            )?,
            keep_free: within(
                "sandbox.snapshots.keep_free",
                raw.keep_free.unwrap_or(1 << 30),
                0,
                1 << 50,
            )?,
        })
    }
}
