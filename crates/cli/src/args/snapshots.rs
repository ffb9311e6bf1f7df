//! `choir sandbox snapshot`, `snapshots`, `restore` and `clone`, as clap reads them.

use clap::{Args, Subcommand};
use types::{Role, UserName};

use super::{One, role, user};

/// `choir sandbox snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// Which sandbox.
    #[command(flatten)]
    pub one: One,
    /// What to call it.
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Marks it as one that works: it never goes by itself, and `restore` takes it by default.
    #[arg(long)]
    pub known_good: bool,
}

/// `choir sandbox snapshots …`.
#[derive(Debug, Subcommand)]
pub enum Snapshots {
    /// List a sandbox's snapshots, newest first.
    #[command(
        after_help = "Examples:\n  choir sandbox snapshots list\n  choir sandbox snapshots list dev --json"
    )]
    List(One),
    /// Mark a snapshot as known good: it never goes by itself.
    #[command(after_help = "Example:\n  choir sandbox snapshots mark 8f3c21aa90b1")]
    Mark(OneSnapshot),
    /// Take the mark away.
    #[command(after_help = "Example:\n  choir sandbox snapshots unmark 8f3c21aa90b1")]
    Unmark(OneSnapshot),
    /// Give a snapshot a name.
    #[command(
        after_help = "Example:\n  choir sandbox snapshots rename 8f3c21aa90b1 \"before the upgrade\""
    )]
    Rename {
        /// Which.
        #[command(flatten)]
        one: OneSnapshot,
        /// Its new name; an empty one takes the name away.
        #[arg(value_name = "TEXT")]
        name: String,
    },
    /// Delete a snapshot.
    #[command(
        after_help = "Examples:\n  choir sandbox snapshots delete 8f3c21aa90b1\n  \
choir sandbox snapshots delete 8f3c21aa90b1 --role dev --yes"
    )]
    Delete {
        /// Which.
        #[command(flatten)]
        one: OneSnapshot,
        /// Does not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

/// One snapshot.
#[derive(Debug, Args)]
pub struct OneSnapshot {
    /// Its id, the end of it, or its name.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Whose.
    #[command(flatten)]
    pub at: At,
}

/// The sandbox that a snapshot is of.
#[derive(Debug, Args)]
pub struct At {
    /// live or dev.
    #[arg(long, default_value = "live", value_parser = role, value_name = "ROLE")]
    pub role: Role,
    /// Somebody else's; for admins.
    #[arg(long, value_name = "NAME", value_parser = user)]
    pub user: Option<UserName>,
}

/// `choir sandbox restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The snapshot's id, the end of it, or its name; the latest known good one when absent.
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// Whose.
    #[command(flatten)]
    pub at: At,
    /// Does not ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}

/// `choir sandbox clone`.
#[derive(Debug, Args)]
pub struct Clone {
    /// Somebody else's; for admins.
    #[arg(long, value_name = "NAME", value_parser = user)]
    pub user: Option<UserName>,
    /// Does not ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Prints JSON.
    #[arg(long)]
    pub json: bool,
}
