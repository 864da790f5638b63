//! Certificates: read from two files, read again when that is asked for, and refused while what is there cannot be used.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {cause}", path = path.display())]
pub struct TlsError {
    what: &'static str,
    path: PathBuf,
    cause: String,
}

/// A certificate with its key, and the files that they came from.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    now: RwLock<TlsAcceptor>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a chain of certificates and the key of the first one, both as PEM.
    ///
    /// # Errors
    /// When a file cannot be read or has nothing of the sort, or the key is another certificate's.
    pub fn load(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Arc<Self>, TlsError> {
        let (certificate, key) = (certificate.into(), key.into());
        let now = RwLock::new(read(&certificate, &key)?);
        Ok(Arc::new(Self { certificate, key, now }))
    }

    /// Reads the files again. Connections that there are go on; if it fails, so do new ones with what was read before.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = read(&self.certificate, &self.key)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// What new connections are taken with.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let wrong = |what, path: &Path, cause: String| TlsError { what, path: path.to_owned(), cause };
    let text = |what, path: &Path| fs::read(path).map_err(|e| wrong(what, path, e.to_string()));
    let chain_text = text("the certificate cannot be read from", certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain_text)
        .collect::<Result<_, _>>()
        .map_err(|e| wrong("no certificate as PEM is in", certificate, e.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("no certificate as PEM is in", certificate, "no such block in it".to_owned()));
    }
    let key_text = text("the key cannot be read from", key)?;
    let secret = PrivateKeyDer::from_pem_slice(&key_text)
        .map_err(|e| wrong("no private key as PEM is in", key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret));
    let mut config =
        config.map_err(|e| wrong("the key does not fit the certificate of", certificate, e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
