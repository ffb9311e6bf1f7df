//! nginx, which is measured beside ours.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use system_tests::processes::Process;

/// A program that ends with the measurement.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM, so that nginx ends its workers too.
        if let Some(process) = Process::of(self.0.id()) {
            process.signal(Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// A directory below `scratch` for one of them.
pub(crate) fn directory(scratch: &Path, name: &str) -> PathBuf {
    let dir = scratch.join(name);
    fs::create_dir(&dir).expect("a directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

/// Writes a configuration whose `http` block holds `http`: as many workers as cores, everything
/// below `dir`, and an access log, because the hypervisor writes a line for each request too.
pub(crate) fn configure(dir: &Path, http: &str) {
    // The socket's directory is only its sandbox's and root's.
    let user = if system_tests::identity::caller_is_root() {
        "user root;"
    } else {
        ""
    };
    let text = format!(
        "{user} daemon off; worker_processes auto; pid {dir}/pid; error_log {dir}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           access_log {dir}/access.log;\n\
           client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
           uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi; keepalive_requests 1000000000;\n\
           {http}\n\
         }}\n",
        dir = dir.display(),
    );
    fs::write(dir.join("nginx.conf"), text).expect("a file");
}

/// Starts the one that was configured in `dir`; `None` where it is not installed.
pub(crate) fn start(dir: &Path) -> Option<Running> {
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"]
        .iter()
        .map(Path::new)
        .find(|path| path.exists())?;
    let child = Command::new(program)
        .arg("-c")
        .arg(dir.join("nginx.conf"))
        .arg("-p")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx starts");
    Some(Running(child))
}
