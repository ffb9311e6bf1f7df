//! Single values, each refused by key, value and what would be valid.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::ConfigError;

pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn socket_address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        ConfigError::value(
            key,
            text,
            "it is no address with a port",
            "an address such as 127.0.0.1:9090 or [::]:443",
        )
    })
}

pub(super) fn existing_file(key: &str, path: &Path) -> Result<(), ConfigError> {
    if path.is_file() {
        Ok(())
    } else {
        Err(ConfigError::value(
            key,
            path.display(),
            "there is no such file",
            "the path of a readable file",
        ))
    }
}

pub(super) fn within<T: PartialOrd + ToString + Debug + Copy>(
    key: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, ConfigError> {
    // So that what is no number is out of bounds, too.
    if !(least..=most).contains(&value) {
        let valid = format!("{} to {}", least.to_string(), most.to_string());
        // A number of three hundred digits is told in its short form.
        let value = format!("{value:?}");
        return Err(ConfigError::value(key, value, "it is out of bounds", valid));
    }
    Ok(value)
}

pub(super) fn duration(
    key: &str,
    text: Option<&str>,
    default: Duration,
) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    parse_duration(text)
        .filter(|duration| !duration.is_zero() && *duration <= 3650 * DAY)
        .ok_or_else(|| {
            ConfigError::value(
                key,
                text,
                "it is no length of time",
                "a number and a unit, such as 90s, 15m, 12h or 30d",
            )
        })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(split)?;
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(seconds)
        .map(Duration::from_secs)
}
