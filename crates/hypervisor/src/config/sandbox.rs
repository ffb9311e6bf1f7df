//! What sandboxes get.

use std::path::PathBuf;

use runtime::spec::OptionalWall;

use super::ConfigError;
use super::limits::Limits;
use super::raw::RawSandbox;
use super::values::within;

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
    /// Walls that may be missing (arch §8: only when the configuration says so by name).
    pub accept_missing: Vec<OptionalWall>,
    /// Bounds.
    pub limits: Limits,
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
            accept_missing: raw.accept_missing.clone(),
            limits: Limits::build(&raw.limits)?,
        })
    }
}
