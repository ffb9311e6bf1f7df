//! Runs the copier (`isolation::copying`), one process a job.

use std::io;
use std::path::Path;
use std::process::Stdio;

use isolation::copying::{CopyEvent, CopyJob, FINISH, MAX_LINE};
use isolation::protocol::Refusal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A job under way. Dropping it cancels it.
#[derive(Debug)]
pub struct Copier {
    orders: ChildStdin,
    events: BufReader<ChildStdout>,
    _child: Child,
}

impl Copier {
    /// Starts a job with the `supervisor` binary.
    ///
    /// # Errors
    /// It cannot be run.
    pub async fn start(supervisor: &Path, job: &CopyJob) -> io::Result<Self> {
        let mut line = serde_json::to_vec(job)?;
        line.push(b'\n');
        let mut child = Command::new(supervisor)
            .arg0("copier")
            .arg("copy")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            // Reaped in any case; it ends by itself when its standard input does.
            .kill_on_drop(true)
            .spawn()?;
        let missing = || io::Error::other("the copier has no pipes");
        let mut orders = child.stdin.take().ok_or_else(missing)?;
        let events = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        orders.write_all(&line).await?;
        Ok(Self {
            orders,
            events,
            _child: child,
        })
    }

    /// What the copier says next. Cancel safe as long as the copier is dropped afterwards.
    ///
    /// # Errors
    /// Why the job failed; or that the copier went away.
    pub async fn next(&mut self) -> Result<CopyEvent, Refusal> {
        let gone = |why: String| Refusal::new("internal", format!("the copier {why}"));
        let mut line = Vec::new();
        let read = (&mut self.events)
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut line)
            .await;
        match read {
            Ok(0) => Err(gone("ended without a word".to_owned())),
            Err(error) => Err(gone(format!("cannot be heard: {error}"))),
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(CopyEvent::Failed { refusal }) => Err(refusal),
                Ok(event) => Ok(event),
                Err(error) => Err(gone(format!("says what nobody understands: {error}"))),
            },
        }
    }

    /// Tells it that the source stands still.
    ///
    /// # Errors
    /// It is gone.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.orders.write_all(FINISH.as_bytes()).await?;
        self.orders.write_all(b"\n").await
    }
}
