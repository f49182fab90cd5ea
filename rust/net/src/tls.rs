//! How TLS is spoken to an engine: whom to trust, who we are, and what a failure means.
//!
//! TLS 1.2 and 1.3 with the cipher suites of ring, certificates always verified, sessions resumed,
//! no early data. No process-wide provider is read or set: two libraries in one process cannot
//! decide over each other's.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, Error, InvalidMessage, RootCertStore};
use worker_adapters_core::error::Detail;

#[cfg(test)]
mod tests;

/// Whom to trust and who we are.
///
/// By default the machine's own roots are trusted, no client certificate is shown and HTTP/1.1 is
/// the one protocol offered. PEM is read by [`client_config`], which says what is wrong with it.
#[derive(Clone, Default)]
pub struct TlsOptions {
    roots: Option<Vec<u8>>,
    added_roots: Vec<Vec<u8>>,
    client: Option<Client>,
    http2: bool,
}

#[derive(Clone)]
struct Client {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl TlsOptions {
    /// Trusts the certificates in this PEM text *instead of* the machine's own roots: those of CAs,
    /// or a server's own if it is self-signed and does not call itself a CA.
    #[must_use]
    pub fn replace_roots(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Trusts the certificates in this PEM text *besides* the machine's own roots, or besides those
    /// that replace them.
    #[must_use]
    pub fn add_roots(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.added_roots.push(pem.into());
        self
    }

    /// Shows this certificate to a server that asks for one (mTLS): PEM text of the certificate
    /// followed by its intermediates, and of its private key, not encrypted, in PKCS#8, PKCS#1 or
    /// SEC1 form.
    #[must_use]
    pub fn client_certificate(
        mut self,
        chain: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.client = Some(Client { chain: chain.into(), key: key.into() });
        self
    }

    /// Whether HTTP/2 is offered before HTTP/1.1, for the server to choose (ALPN).
    #[must_use]
    pub fn http2(mut self, offered: bool) -> Self {
        self.http2 = offered;
        self
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("roots", &if self.roots.is_some() { "replaced" } else { "machine" })
            .field("added_roots", &self.added_roots.len())
            .field("client_certificate", &self.client.is_some())
            .field("http2", &self.http2)
            .finish()
    }
}

/// What was wrong with [`TlsOptions`], where, and what to do. Quotes none of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSetupError {
    place: Place,
    /// Which certificate of that place, counted from 1.
    certificate: Option<usize>,
    problem: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Machine,
    Roots,
    AddedRoots,
    ClientCertificate,
    ClientKey,
    Protocol,
}

impl Place {
    fn wrong(self, problem: &'static str) -> TlsSetupError {
        TlsSetupError { place: self, certificate: None, problem }
    }

    fn wrong_at(self, index: usize, problem: &'static str) -> TlsSetupError {
        TlsSetupError { place: self, certificate: Some(index + 1), problem }
    }
}

impl fmt::Display for TlsSetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.place {
            Place::Machine => "the machine's roots",
            Place::Roots => "the roots",
            Place::AddedRoots => "the added roots",
            Place::ClientCertificate => "the client certificate",
            Place::ClientKey => "the client key",
            Place::Protocol => "the TLS library",
        })?;
        if let Some(number) = self.certificate {
            write!(f, ", certificate {number}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for TlsSetupError {}

const NOT_PEM: &str = "not well-formed PEM; give the file as it was issued";
const NO_CERTIFICATE: &str = "no PEM certificate in it; give text with BEGIN CERTIFICATE lines \
    (openssl x509 -inform der turns DER into it)";
const NOT_X509: &str = "not a valid X.509 certificate; ask its issuer for a sound one";

/// The configuration for connections made under these options, to be shared by them all: sessions
/// are resumed among the connections of one configuration.
///
/// Reads the machine's roots from disk unless they are replaced: where OpenSSL keeps them, or where
/// `SSL_CERT_FILE` and `SSL_CERT_DIR` say. A root there that cannot be read is not trusted, without
/// a word; one that is given by the caller must be sound.
///
/// # Errors
///
/// [`TlsSetupError`] when PEM is malformed or empty, when the client's key is unusable or not that
/// of its certificate, or when nobody at all would be trusted.
pub fn client_config(options: &TlsOptions) -> Result<Arc<ClientConfig>, TlsSetupError> {
    configure(options, || rustls_native_certs::load_native_certs().certs)
}

fn configure(
    options: &TlsOptions,
    machine: impl FnOnce() -> Vec<CertificateDer<'static>>,
) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let verified = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|_| Place::Protocol.wrong("it lacks TLS 1.2 or 1.3; build it with both"))?
        .with_root_certificates(trusted(options, machine)?);
    let mut config = match &options.client {
        None => verified.with_no_client_auth(),
        Some(client) => {
            let chain = certificates(&client.chain, Place::ClientCertificate)?;
            verified.with_client_auth_cert(chain, private_key(&client.key)?).map_err(|error| {
                match error {
                    Error::InvalidCertificate(_) => Place::ClientCertificate.wrong_at(0, NOT_X509),
                    Error::InconsistentKeys(_) => {
                        Place::ClientKey.wrong("not the key of the client certificate")
                    }
                    _ => Place::ClientKey.wrong(
                        "not a key of a supported kind; use ECDSA P-256 or P-384, Ed25519, or RSA \
                         of at least 2048 bits",
                    ),
                }
            })?
        }
    };
    if options.http2 {
        config.alpn_protocols.push(b"h2".to_vec());
    }
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Arc::new(config))
}

fn trusted(
    options: &TlsOptions,
    machine: impl FnOnce() -> Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, TlsSetupError> {
    let mut store = RootCertStore::empty();
    let mut trust = |pem: &[u8], place: Place| {
        for (index, certificate) in certificates(pem, place)?.into_iter().enumerate() {
            store.add(certificate).map_err(|_| place.wrong_at(index, NOT_X509))?;
        }
        Ok(())
    };
    if let Some(pem) = &options.roots {
        trust(pem, Place::Roots)?;
    }
    for pem in &options.added_roots {
        trust(pem, Place::AddedRoots)?;
    }
    if options.roots.is_none() {
        store.add_parsable_certificates(machine());
    }
    if store.is_empty() {
        return Err(Place::Machine.wrong(
            "none was found; install the system's CA certificates, name a bundle by SSL_CERT_FILE, \
             or give roots",
        ));
    }
    Ok(store)
}

fn certificates(pem: &[u8], place: Place) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .enumerate()
        .map(|(index, certificate)| certificate.map_err(|_| place.wrong_at(index, NOT_PEM)))
        .collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err(place.wrong(NO_CERTIFICATE));
    }
    Ok(found)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    match PrivateKeyDer::pem_slice_iter(pem).next() {
        Some(Ok(key)) => Ok(key),
        Some(Err(_)) => Err(Place::ClientKey.wrong(NOT_PEM)),
        None if pem.windows(b"ENCRYPTED".len()).any(|word| word == b"ENCRYPTED") => {
            Err(Place::ClientKey.wrong("it is encrypted; decrypt it first (openssl pkey)"))
        }
        None => Err(Place::ClientKey
            .wrong("no PEM private key in it; give text with a BEGIN PRIVATE KEY line")),
    }
}

/// The name that the server's certificate must bear: `host` is a DNS name, or an IP address without
/// brackets.
///
/// # Errors
///
/// When it is neither.
pub fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(host.to_owned())
}

/// What an error *during the handshake* means: [`Detail::TlsVerify`] when the server's certificate
/// does not verify, [`Detail::Tls`] for all else, such as a server that speaks plain HTTP, has no
/// version or cipher in common with us, or refuses our certificate.
#[must_use]
pub fn fault_detail(error: &Error) -> Detail {
    match error {
        Error::InvalidCertificate(_)
        | Error::InvalidCertRevocationList(_)
        | Error::NoCertificatesPresented => Detail::TlsVerify,
        _ => Detail::Tls,
    }
}

/// What an error *after the handshake* means: [`Detail::Tls`] when the server refuses our
/// certificate, else [`Detail::Reset`].
///
/// In TLS 1.3 the client's handshake is over before the server has looked at the client's
/// certificate, so that its refusal comes in place of the answer
/// ([RFC 8446 §4.4.2.4](https://www.rfc-editor.org/rfc/rfc8446#section-4.4.2.4)).
#[must_use]
pub fn late_fault_detail(error: &Error) -> Detail {
    match error {
        Error::AlertReceived(alert) if refuses_certificate(*alert) => Detail::Tls,
        _ => Detail::Reset,
    }
}

fn refuses_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// What happened, for people, with what to do where that is known. May hold names that the server
/// chose: redact it like any text of the other side.
#[must_use]
pub fn fault_message(error: &Error) -> String {
    use rustls::CertificateError as Certificate;
    let advice = match error {
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => "the server does not speak TLS on this port; if it speaks plain HTTP, use http://",
        Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            "if the server is yours, give its CA as added roots"
        }
        Error::AlertReceived(alert) if refuses_certificate(*alert) => {
            "the server refuses our client certificate, or the lack of one"
        }
        _ => return error.to_string(),
    };
    format!("{error}: {advice}")
}
