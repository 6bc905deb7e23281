//! TLS on the service's own port. The certificate is read again when its files change, so a renewed one needs no restart.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;

/// Why TLS cannot be served. Shows nothing of the key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path:?} holds no {wanted} in PEM: {problem}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
        /// What was found.
        problem: String,
    },
    /// Only one of the two is configured.
    #[error("--tls-cert and --tls-key must be given together")]
    Half,
    /// The two do not go together.
    #[error("certificate and key cannot be used: {0}")]
    Pair(#[from] rustls::Error),
}

/// The certificate as it is now.
pub(super) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Current>,
}

struct Current {
    /// What was in the files.
    pem: (Vec<u8>, Vec<u8>),
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads the files that are configured, if any.
    pub(super) async fn load(config: &Config) -> Result<Option<Arc<Self>>, TlsError> {
        let (cert, key) = (config.tls_cert.clone(), config.tls_key.clone());
        match (cert.as_os_str().is_empty(), key.as_os_str().is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            _ => return Err(TlsError::Half),
        }
        let current = RwLock::new(read(&cert, &key).await?);
        Ok(Some(Arc::new(Self { cert, key, current })))
    }

    /// Reads the files again; whether they changed.
    pub(super) async fn refresh(&self) -> Result<bool, TlsError> {
        let fresh = read(&self.cert, &self.key).await?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = fresh.pem != current.pem;
        if changed {
            *current = fresh;
        }
        Ok(changed)
    }

    /// What takes connections with it.
    pub(super) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let versions = [&version::TLS13, &version::TLS12];
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Certificate").field(&self.cert).finish()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).key))
    }
}

async fn read(cert: &PathBuf, key: &PathBuf) -> Result<Current, TlsError> {
    let bytes = async |path: &PathBuf| {
        tokio::fs::read(path).await.map_err(|source| TlsError::Read { path: path.clone(), source })
    };
    let (cert_pem, key_pem) = (bytes(cert).await?, bytes(key).await?);
    let wrong = |path: &PathBuf, wanted| {
        let path = path.clone();
        move |error: rustls::pki_types::pem::Error| TlsError::Pem { path, wanted, problem: error.to_string() }
    };
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&cert_pem).collect::<Result<_, _>>().map_err(wrong(cert, "certificate"))?;
    if chain.is_empty() {
        let problem = "there is none".to_owned();
        return Err(TlsError::Pem { path: cert.clone(), wanted: "certificate", problem });
    }
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(wrong(key, "private key"))?;
    let key = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
    Ok(Current { pem: (cert_pem, key_pem), key: Arc::new(key) })
}
