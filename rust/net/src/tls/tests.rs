//! Handshakes with good and bad peers over memory, after the cases of badssl.com.

use std::io::{Read, Write};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConnection, PeerIncompatible, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};

use super::*;

const HOST: &str = "engine.test";

struct Ca(CertifiedIssuer<'static, KeyPair>);

struct Issued {
    chain: String,
    key: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn store(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add(self.0.der().clone()).unwrap();
        Arc::new(store)
    }

    fn issue(&self, params: &CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { chain: certificate.pem(), key: key.serialize_pem() }
    }

    fn issue_for(&self, name: &str) -> Issued {
        self.issue(&named(name))
    }
}

fn named(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_owned()]).unwrap()
}

fn self_signed(params: &CertificateParams) -> Issued {
    let key = KeyPair::generate().unwrap();
    Issued { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn pki(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes()).map(Result::unwrap);
    (chain.collect(), PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap())
}

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A server's configuration; with `clients`, one that demands a certificate issued by that CA.
fn server_of(
    issued: &Issued,
    clients: Option<&Ca>,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(ca.store(), provider).build().unwrap(),
        ),
    };
    let (chain, key) = pki(issued);
    builder.with_single_cert(chain, key).unwrap()
}

fn server(issued: &Issued) -> ServerConfig {
    server_of(issued, None, &BOTH)
}

fn trusting(ca: &Ca) -> TlsOptions {
    TlsOptions::default().replace_roots(ca.pem())
}

/// What a handshake came to: both ends, and the client's error with whether it came late.
struct Met {
    client: ClientConnection,
    server: ServerConnection,
    fault: Option<(Error, bool)>,
}

impl Met {
    fn run(options: &TlsOptions, server: ServerConfig, host: &str) -> Self {
        Self::run_config(client_config(options).unwrap(), Arc::new(server), host)
    }

    /// Carries bytes between both ends until neither has any more to say, or the client fails.
    fn run_config(client: Arc<ClientConfig>, server: Arc<ServerConfig>, host: &str) -> Self {
        let mut met = Self {
            client: ClientConnection::new(client, server_name(host).unwrap()).unwrap(),
            server: ServerConnection::new(server).unwrap(),
            fault: None,
        };
        let mut server_failed = false;
        loop {
            let mut sent = Vec::new();
            while met.client.wants_write() {
                met.client.write_tls(&mut sent).unwrap();
            }
            let mut rest = sent.as_slice();
            while !rest.is_empty() && !server_failed {
                met.server.read_tls(&mut rest).unwrap();
                server_failed = met.server.process_new_packets().is_err();
            }
            let mut answered = Vec::new();
            while met.server.wants_write() {
                met.server.write_tls(&mut answered).unwrap();
            }
            if answered.is_empty() {
                return met;
            }
            let mut rest = answered.as_slice();
            while !rest.is_empty() {
                met.client.read_tls(&mut rest).unwrap();
                let late = !met.client.is_handshaking();
                if let Err(error) = met.client.process_new_packets() {
                    met.fault = Some((error, late));
                    return met;
                }
            }
        }
    }

    fn works(&self) -> bool {
        self.fault.is_none() && !self.client.is_handshaking() && !self.server.is_handshaking()
    }

    #[track_caller]
    fn refused(self) -> CertificateError {
        let (error, _) = self.fault.expect("the handshake worked");
        assert_eq!(fault_detail(&error), Detail::TlsVerify);
        match error {
            Error::InvalidCertificate(error) => error,
            error => panic!("{error}"),
        }
    }
}

#[test]
fn a_good_server_is_met() {
    let ca = Ca::new("good");
    let met = Met::run(&trusting(&ca), server(&ca.issue_for(HOST)), HOST);
    assert!(met.works());
    assert_eq!(met.client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn a_server_that_ends_at_tls_1_2_is_met() {
    let ca = Ca::new("old");
    let peer = server_of(&ca.issue_for(HOST), None, &[&rustls::version::TLS12]);
    let met = Met::run(&trusting(&ca), peer, HOST);
    assert!(met.works());
    assert_eq!(met.client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_2));
}

#[test]
fn an_intermediate_completes_the_chain() {
    let root = Ca::new("root");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().unwrap();
    let intermediate = Ca(CertifiedIssuer::signed_by(params, key, &root.0).unwrap());
    let mut issued = intermediate.issue_for(HOST);
    let refused = Met::run(&trusting(&root), server(&issued), HOST).refused();
    assert_eq!(refused, CertificateError::UnknownIssuer);
    issued.chain.push_str(&intermediate.pem());
    assert!(Met::run(&trusting(&root), server(&issued), HOST).works());
}

#[test]
fn an_unknown_ca_is_refused() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let met = Met::run(&trusting(&ours), server(&theirs.issue_for(HOST)), HOST);
    let (error, _) = met.fault.as_ref().unwrap();
    assert!(fault_message(error).contains("added roots"));
    assert_eq!(met.refused(), CertificateError::UnknownIssuer);
}

#[test]
fn another_ca_of_the_same_name_is_refused() {
    let (ours, theirs) = (Ca::new("same"), Ca::new("same"));
    let refused = Met::run(&trusting(&ours), server(&theirs.issue_for(HOST)), HOST).refused();
    assert_eq!(refused, CertificateError::BadSignature);
}

#[test]
fn validity_is_checked() {
    let ca = Ca::new("validity");
    let mut expired = named(HOST);
    expired.not_before = date_time_ymd(2000, 1, 1);
    expired.not_after = date_time_ymd(2001, 1, 1);
    let refused = Met::run(&trusting(&ca), server(&ca.issue(&expired)), HOST).refused();
    assert!(matches!(refused, CertificateError::ExpiredContext { .. }), "{refused}");

    let mut early = named(HOST);
    early.not_before = date_time_ymd(3000, 1, 1);
    early.not_after = date_time_ymd(3001, 1, 1);
    let refused = Met::run(&trusting(&ca), server(&ca.issue(&early)), HOST).refused();
    assert!(matches!(refused, CertificateError::NotValidYetContext { .. }), "{refused}");
}

#[test]
fn the_name_is_checked() {
    let ca = Ca::new("names");
    let met = |name: &str, host: &str| Met::run(&trusting(&ca), server(&ca.issue_for(name)), host);
    for (name, host) in [
        (HOST, HOST),
        (HOST, "ENGINE.test"),
        (HOST, "engine.test."),
        ("*.engine.test", "a.engine.test"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("2001:db8::1", "2001:DB8:0::1"),
    ] {
        assert!(met(name, host).works(), "{name} {host}");
    }
    for (name, host) in [
        (HOST, "other.test"),
        (HOST, "a.engine.test"),
        ("*.engine.test", "engine.test"),
        ("*.engine.test", "a.b.engine.test"),
        ("127.0.0.1", "127.0.0.2"),
        ("::1", "127.0.0.1"),
        (HOST, "127.0.0.1"),
    ] {
        let refused = met(name, host).refused();
        let expected = matches!(refused, CertificateError::NotValidForNameContext { .. });
        assert!(expected, "{name} {host}: {refused}");
    }
}

#[test]
fn a_common_name_is_no_name() {
    let ca = Ca::new("common name");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, HOST);
    let refused = Met::run(&trusting(&ca), server(&ca.issue(&params)), HOST).refused();
    assert!(matches!(refused, CertificateError::NotValidForNameContext { .. }), "{refused}");
}

#[test]
fn a_certificate_for_another_purpose_is_refused() {
    let ca = Ca::new("purpose");
    let mut params = named(HOST);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let refused = Met::run(&trusting(&ca), server(&ca.issue(&params)), HOST).refused();
    assert!(matches!(refused, CertificateError::InvalidPurposeContext { .. }), "{refused}");
}

#[test]
fn a_self_signed_server_is_refused_unless_it_is_a_root() {
    let ca = Ca::new("other");
    let issued = self_signed(&named(HOST));
    let refused = Met::run(&trusting(&ca), server(&issued), HOST).refused();
    assert_eq!(refused, CertificateError::UnknownIssuer);
    let options = TlsOptions::default().replace_roots(issued.chain.clone());
    assert!(Met::run(&options, server(&issued), HOST).works());
    // One that calls itself a CA, as `openssl req -x509` makes it, is no server's certificate.
    let mut params = named(HOST);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issued = self_signed(&params);
    let options = TlsOptions::default().replace_roots(issued.chain.clone());
    let refused = Met::run(&options, server(&issued), HOST).refused();
    assert!(matches!(refused, CertificateError::Other(_)), "{refused}");
}

#[test]
fn a_certificate_without_its_key_is_refused() {
    let ca = Ca::new("stolen certificate");
    let (stolen, own) = (ca.issue_for(HOST), ca.issue_for(HOST));
    let key = ring::sign::any_supported_type(&pki(&own).1).unwrap();
    let certified = rustls::sign::CertifiedKey::new(pki(&stolen).0, key);
    for version in BOTH {
        let mut peer = server_of(&own, None, &[version]);
        peer.cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(Arc::new(certified.clone())));
        let refused = Met::run(&trusting(&ca), peer, HOST).refused();
        assert_eq!(refused, CertificateError::BadSignature);
    }
}

#[test]
fn roots_replace_or_add_to_the_machines() {
    let (machine, ours, third) = (Ca::new("machine"), Ca::new("ours"), Ca::new("third"));
    let meets = |options: &TlsOptions| {
        let config = configure(options, || vec![machine.0.der().clone()]).unwrap();
        [&machine, &ours, &third].map(|ca| {
            let peer = Arc::new(server(&ca.issue_for(HOST)));
            Met::run_config(Arc::clone(&config), peer, HOST).works()
        })
    };
    let default = TlsOptions::default;
    assert_eq!(meets(&default()), [true, false, false]);
    assert_eq!(meets(&default().replace_roots(ours.pem())), [false, true, false]);
    assert_eq!(meets(&default().replace_roots(ours.pem() + &third.pem())), [false, true, true]);
    assert_eq!(meets(&default().add_roots(ours.pem())), [true, true, false]);
    assert_eq!(meets(&default().add_roots(ours.pem()).add_roots(third.pem())), [true; 3]);
    let both = default().replace_roots(ours.pem()).add_roots(third.pem());
    assert_eq!(meets(&both), [false, true, true]);
}

#[test]
fn the_machines_roots_are_not_read_when_replaced() {
    let ca = Ca::new("only");
    configure(&trusting(&ca), || panic!("the machine was asked")).unwrap();
}

#[test]
fn a_demanded_client_certificate_is_shown() {
    let (ca, clients) = (Ca::new("servers"), Ca::new("clients"));
    let issued = clients.issue_for("orchestrator");
    let options = trusting(&ca).client_certificate(issued.chain, issued.key);
    for version in BOTH {
        let peer = server_of(&ca.issue_for(HOST), Some(&clients), &[version]);
        let met = Met::run(&options, peer, HOST);
        assert!(met.works());
        assert!(met.server.peer_certificates().is_some());
    }
}

#[test]
fn a_missing_or_unwelcome_client_certificate_is_told_by_the_server() {
    let (ca, clients) = (Ca::new("servers"), Ca::new("clients"));
    let unwelcome = ca.issue_for("orchestrator");
    let without = trusting(&ca);
    let with = trusting(&ca).client_certificate(unwelcome.chain, unwelcome.key);
    for options in [without, with] {
        for (version, after_handshake) in BOTH.into_iter().zip([true, false]) {
            let peer = server_of(&ca.issue_for(HOST), Some(&clients), &[version]);
            let (error, late) = Met::run(&options, peer, HOST).fault.unwrap();
            assert!(matches!(error, Error::AlertReceived(_)), "{error}");
            assert_eq!(late, after_handshake);
            assert_eq!(fault_detail(&error), Detail::Tls);
            assert_eq!(late_fault_detail(&error), Detail::Tls);
            assert!(fault_message(&error).contains("client certificate"), "{error}");
        }
    }
}

#[test]
fn the_server_chooses_among_the_protocols_offered() {
    let ca = Ca::new("alpn");
    let chosen = |http2: bool, protocols: &[&[u8]]| {
        let mut peer = server(&ca.issue_for(HOST));
        peer.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let met = Met::run(&trusting(&ca).http2(http2), peer, HOST);
        match met.fault {
            Some((error, _)) => Err(fault_detail(&error)),
            None => Ok(met.client.alpn_protocol().map(<[u8]>::to_vec)),
        }
    };
    assert_eq!(chosen(false, &[b"h2", b"http/1.1"]), Ok(Some(b"http/1.1".to_vec())));
    assert_eq!(chosen(true, &[b"h2", b"http/1.1"]), Ok(Some(b"h2".to_vec())));
    assert_eq!(chosen(true, &[b"http/1.1"]), Ok(Some(b"http/1.1".to_vec())));
    assert_eq!(chosen(true, &[]), Ok(None));
    assert_eq!(chosen(false, &[b"h2"]), Err(Detail::Tls));
}

#[test]
fn sessions_are_resumed_and_no_early_data_is_sent() {
    let ca = Ca::new("resumption");
    let mut peer = server(&ca.issue_for(HOST));
    peer.max_early_data_size = 1024;
    let (client, server) = (client_config(&trusting(&ca)).unwrap(), Arc::new(peer));
    let first = Met::run_config(Arc::clone(&client), Arc::clone(&server), HOST);
    assert_eq!(first.client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    let second = Met::run_config(Arc::clone(&client), server, HOST);
    assert_eq!(second.client.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    let mut third = ClientConnection::new(client, server_name(HOST).unwrap()).unwrap();
    assert!(third.early_data().is_none());
}

/// Carries what the server has to say to the client, `spoil`ed, and reads it there.
fn hear(met: &mut Met, spoil: impl Fn(&mut Vec<u8>)) -> Result<Vec<u8>, Error> {
    let mut sent = Vec::new();
    while met.server.wants_write() {
        met.server.write_tls(&mut sent).unwrap();
    }
    spoil(&mut sent);
    let (mut heard, mut rest) = (Vec::new(), sent.as_slice());
    while !rest.is_empty() {
        met.client.read_tls(&mut rest).unwrap();
        let plain = met.client.process_new_packets()?.plaintext_bytes_to_read();
        let start = heard.len();
        heard.resize(start + plain, 0);
        met.client.reader().read_exact(&mut heard[start..]).unwrap();
    }
    Ok(heard)
}

#[test]
fn a_spoiled_record_is_a_reset() {
    let ca = Ca::new("spoiled");
    for version in BOTH {
        let peer = server_of(&ca.issue_for(HOST), None, &[version]);
        let mut met = Met::run(&trusting(&ca), peer, HOST);
        met.server.writer().write_all(b"data: 1\n\n").unwrap();
        assert_eq!(hear(&mut met, |_| ()), Ok(b"data: 1\n\n".to_vec()));
        met.server.writer().write_all(b"data: 2\n\n").unwrap();
        let error = hear(&mut met, |sent| *sent.last_mut().unwrap() ^= 1).unwrap_err();
        assert_eq!(error, Error::DecryptError);
        assert_eq!(late_fault_detail(&error), Detail::Reset);
    }
}

#[test]
fn new_keys_and_many_tickets_do_no_harm() {
    let ca = Ca::new("long-lived");
    let mut peer = server(&ca.issue_for(HOST));
    // What comes in one flight, rustls reads up to 64 KiB of; these take half of that.
    peer.send_tls13_tickets = 128;
    let mut met = Met::run(&trusting(&ca), peer, HOST);
    assert!(met.works());
    for _ in 0..10 {
        met.server.refresh_traffic_keys().unwrap();
        met.server.writer().write_all(b"data: 1\n\n").unwrap();
        assert_eq!(hear(&mut met, |_| ()), Ok(b"data: 1\n\n".to_vec()));
    }
}

#[test]
fn what_is_no_tls_is_told_apart() {
    let ca = Ca::new("none");
    let config = client_config(&trusting(&ca)).unwrap();
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.9\r\n",
        &[0; 64],
    ] {
        let name = server_name(HOST).unwrap();
        let mut client = ClientConnection::new(Arc::clone(&config), name).unwrap();
        client.read_tls(&mut &*answer).unwrap();
        let error = client.process_new_packets().unwrap_err();
        assert_eq!(fault_detail(&error), Detail::Tls, "{error}");
        assert!(fault_message(&error).contains("does not speak TLS"), "{error}");
    }
}

#[test]
fn errors_have_their_words() {
    for error in [
        Error::NoCertificatesPresented,
        CertificateError::Revoked.into(),
        CertificateError::BadEncoding.into(),
        CertificateError::UnhandledCriticalExtension.into(),
    ] {
        assert_eq!(fault_detail(&error), Detail::TlsVerify, "{error}");
        assert_eq!(late_fault_detail(&error), Detail::Reset, "{error}");
    }
    for error in [
        Error::AlertReceived(AlertDescription::HandshakeFailure),
        Error::AlertReceived(AlertDescription::ProtocolVersion),
        Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13),
        Error::DecryptError,
        Error::PeerSentOversizedRecord,
    ] {
        assert_eq!(fault_detail(&error), Detail::Tls, "{error}");
        assert_eq!(late_fault_detail(&error), Detail::Reset, "{error}");
    }
}

#[test]
fn setup_errors_say_where_and_what_to_do() {
    let ca = Ca::new("setup");
    let (one, other) = (ca.issue_for("one"), ca.issue_for("other"));
    let with = |chain: &str, key: &str| trusting(&ca).client_certificate(chain, key);
    let broken = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
    let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let cut = one.key.replace("-----END PRIVATE KEY-----", "");
    let encrypted = one.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let hollow_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (options, says) in [
        (TlsOptions::default().replace_roots(""), "the roots: no PEM certificate"),
        (trusting(&ca).add_roots("x"), "the added roots: no PEM certificate"),
        (trusting(&ca).add_roots(ca.pem() + broken), "the added roots, certificate 2: not well-"),
        (trusting(&ca).replace_roots(ca.pem() + hollow), "the roots, certificate 2: not a valid"),
        (with("", &one.key), "the client certificate: no PEM certificate"),
        (with(hollow, &one.key), "the client certificate, certificate 1: not a valid"),
        (with(&one.chain, ""), "the client key: no PEM private key"),
        (with(&one.chain, &one.chain), "the client key: no PEM private key"),
        (with(&one.chain, &cut), "the client key: not well-formed PEM"),
        (with(&one.chain, &encrypted), "the client key: it is encrypted"),
        (with(&one.chain, hollow_key), "the client key: not a key of a supported kind"),
        (with(&one.chain, &other.key), "the client key: not the key of the client certificate"),
    ] {
        let error = client_config(&options).unwrap_err();
        assert!(error.to_string().starts_with(says), "{error}");
        assert_hides_key(&format!("{error} {error:?} {options:?}"), &one.key);
    }
    let error = configure(&TlsOptions::default(), Vec::new).unwrap_err();
    assert!(error.to_string().starts_with("the machine's roots: none was found"), "{error}");
}

#[test]
fn no_debug_shows_the_key() {
    let ca = Ca::new("debug");
    let issued = ca.issue_for("orchestrator");
    let options = trusting(&ca).client_certificate(issued.chain, issued.key.clone());
    let config = client_config(&options).unwrap();
    assert_hides_key(&format!("{options:?} {options:#?} {config:?}"), &issued.key);
}

/// Neither a line of the PEM text nor a run of its bytes is in `text`.
fn assert_hides_key(text: &str, pem: &str) {
    for line in pem.lines().filter(|line| !line.starts_with('-')) {
        assert!(!text.contains(line.get(..16).unwrap_or(line)));
    }
    let bytes = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    for run in bytes.secret_der().chunks_exact(8) {
        let listed = format!("{run:?}");
        assert!(!text.contains(listed.trim_matches(['[', ']'])));
    }
}

#[test]
fn a_host_that_is_no_name_is_refused() {
    for host in ["", "a b", "host:80", "[::1]", "-", "a..b", "h\u{f6}st"] {
        assert!(server_name(host).is_err(), "{host:?}");
    }
    assert!(matches!(server_name("::1"), Ok(ServerName::IpAddress(_))));
    assert!(matches!(server_name("10.0.0.1"), Ok(ServerName::IpAddress(_))));
    assert!(matches!(server_name("a_b.internal"), Ok(ServerName::DnsName(_))));
}
