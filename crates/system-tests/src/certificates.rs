//! Certificates for tests over TLS, made with `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

/// A certificate authority of its own and one certificate for some names.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    /// Makes both; the certificate is good for these names for a day.
    ///
    /// # Panics
    /// `openssl` is missing or fails.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("choir-tls-")
            .tempdir()
            .expect("a directory");
        let made = Self { dir };
        made.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=ChoirOS tests",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        made.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=choir",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
        ]);
        let list: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let extensions = format!(
            "subjectAltName={}\nextendedKeyUsage=serverAuth\n",
            list.join(",")
        );
        fs::write(made.dir.path().join("extensions"), extensions).expect("a file");
        made.openssl(&[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "1",
            "-extfile",
            "extensions",
            "-out",
            "server.pem",
        ]);
        made
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("openssl starts");
        assert!(
            output.status.success(),
            "openssl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The authority, as PEM.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The certificate, as PEM.
    #[must_use]
    pub fn chain(&self) -> PathBuf {
        self.path("server.pem")
    }

    /// Its private key, as PEM.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.path("server.key")
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::join(self.dir.path(), name)
    }
}

/// What serves with a certificate and its key, each a PEM file.
///
/// # Panics
/// They are none, or not of each other.
#[must_use]
pub fn acceptor(chain: &Path, key: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(chain)
        .expect("a certificate")
        .collect::<Result<Vec<_>, _>>()
        .expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate for its key");
    TlsAcceptor::from(Arc::new(config))
}
