//! TLS towards providers.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Handle;
use url::Host;

use super::path::Base;
use super::{ProviderConfigError, TrustRoots};
use crate::upstream::ProviderAddress;

/// Most certificates in a file of trust roots.
const MAX_ROOTS: usize = 1000;

pub(super) fn address(
    base: &Base,
    roots: &TrustRoots,
    private: bool,
) -> Result<ProviderAddress, ProviderConfigError> {
    let (host, name) = match &base.host {
        Host::Domain(name) => (name.clone(), ServerName::try_from(name.clone()).ok()),
        Host::Ipv4(address) => (address.to_string(), Some(ServerName::from(*address))),
        Host::Ipv6(address) => (address.to_string(), Some(ServerName::from(*address))),
    };
    let tls = if base.tls {
        let name = name.ok_or_else(|| ProviderConfigError::BaseUrl {
            url: host.clone(),
            problem: "the host cannot stand in a certificate",
        })?;
        Some((name, client_config(roots)?))
    } else {
        None
    };
    Ok(ProviderAddress {
        host,
        port: base.port,
        private,
        home: Handle::current(),
        tls,
    })
}

fn client_config(roots: &TrustRoots) -> Result<Arc<ClientConfig>, ProviderConfigError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ProviderConfigError::Tls)?;
    let builder = match roots {
        TrustRoots::WebPki => builder.with_webpki_roots(),
        TrustRoots::File(path) => builder.with_root_certificates(read_roots(path)?),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read_roots(path: &Path) -> Result<RootCertStore, ProviderConfigError> {
    let problem = |problem: String| ProviderConfigError::Roots {
        path: path.to_owned(),
        problem,
    };
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| problem(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| problem(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| problem(error.to_string()))?;
        if roots.len() > MAX_ROOTS {
            return Err(problem("more certificates than is plausible".to_owned()));
        }
    }
    if roots.is_empty() {
        return Err(problem("no certificate in it".to_owned()));
    }
    Ok(roots)
}
