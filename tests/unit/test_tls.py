"""TLS: whom an adapter trusts, who it is itself, and what failures are called on each transport."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.wire import LAST_CHUNK, PROPS, STREAM_HEAD, answer, final, frame
from worker_adapters import AdapterError, TlsOptions, WorkerIdentity
from worker_adapters.testing.wire import RawServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.wire import Connection
    from worker_adapters import Collected

pytestmark = both_transports

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def pem(ca: trustme.CA) -> bytes:
    return ca.cert_pem.bytes()


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def self_signed(tmp_path: Path) -> tuple[ssl.SSLContext, bytes]:
    """Return what a server with a certificate of its own making speaks, and that certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "engine")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    file = tmp_path / "own.pem"
    file.write_bytes(
        certificate
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, certificate


async def script(connection: Connection) -> None:
    while True:
        if (await connection.request()).path == "/props":
            await connection.send(answer(PROPS))
        else:
            await connection.send(STREAM_HEAD, frame("a", 1), final(1), LAST_CHUNK)


async def stream(url: str, *, known: bool = True, **options: Any) -> Collected:
    """Have a task done at ``url``: over the streams' transport alone, if the engine is known."""
    async with adapter(url, **options) as made:
        if known:
            made._identity = WorkerIdentity(engine_version="b1", ctx_max=1024)
        return await (await made.submit(task())).collect()


async def refused(url: str, **options: Any) -> AdapterError:
    """Have a task refused, and a call as well, for one and the same reason."""
    with pytest.raises(AdapterError) as caught:
        await stream(url, **options)
    with pytest.raises(AdapterError) as called:
        await stream(url, known=False, **options)
    for error in (caught.value, called.value):
        assert (error.retriable, error.processed) == (False, "no")
    assert caught.value.detail == called.value.detail
    return caught.value


# Whom to trust.


@pytest.mark.parametrize("given", ["data", "text", "file", "both"])
@pytest.mark.parametrize("replace", [False, True])
async def test_a_ca_of_one_s_own(ca: trustme.CA, tmp_path: Path, given: str, replace: bool) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(pem(ca))
    chosen: dict[str, dict[str, Any]] = {
        "data": {"ca_data": pem(ca)},
        "text": {"ca_data": pem(ca).decode()},
        "file": {"ca_file": file},
        "both": {"ca_file": str(file), "ca_data": pem(trustme.CA())},
    }
    tls = TlsOptions(replace_roots=replace, **chosen[given])
    async with RawServer(script, tls=serving(ca.issue_cert("127.0.0.1"))) as server:
        assert (await stream(server.url, tls=tls, known=False)).text == "a"


async def test_a_server_s_own_certificate(tmp_path: Path) -> None:
    context, certificate = self_signed(tmp_path)
    async with RawServer(script, tls=context) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        tls = TlsOptions(ca_data=certificate)
        assert (await stream(url, tls=tls, known=False)).text == "a"
        assert (await refused(url)).detail == "tls_verify"


@pytest.mark.parametrize("tls", [None, TlsOptions(), TlsOptions(ca_data=pem(trustme.CA()))])
async def test_a_ca_nobody_knows(ca: trustme.CA, tls: TlsOptions | None) -> None:
    async with RawServer(script, tls=serving(ca.issue_cert("127.0.0.1"))) as server:
        assert (await refused(server.url, tls=tls)).detail == "tls_verify"


async def test_a_certificate_that_has_expired(ca: trustme.CA) -> None:
    expired = ca.issue_cert("127.0.0.1", not_before=NOW - 3 * DAY, not_after=NOW - DAY)
    async with RawServer(script, tls=serving(expired)) as server:
        error = await refused(server.url, tls=TlsOptions(ca_data=pem(ca)))
        assert error.detail == "tls_verify"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.2", "*.example.org"])
async def test_a_certificate_of_somebody_else(ca: trustme.CA, name: str) -> None:
    async with RawServer(script, tls=serving(ca.issue_cert(name))) as server:
        error = await refused(server.url, tls=TlsOptions(ca_data=pem(ca)))
        assert error.detail == "tls_verify"


# Who we are.


def asking(ca: trustme.CA) -> ssl.SSLContext:
    """Return what a server speaks that knows its clients by their certificates."""
    context = serving(ca.issue_cert("127.0.0.1"))
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    return context


def own(client: trustme.LeafCert) -> tuple[bytes, bytes]:
    chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
    return chain, client.private_key_pem.bytes()


@pytest.mark.parametrize("given", ["bytes", "files"])
async def test_a_certificate_of_our_own(ca: trustme.CA, tmp_path: Path, given: str) -> None:
    cert, key = own(ca.issue_cert("client@example.org"))
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    files[0].write_bytes(cert)
    files[1].write_bytes(key)
    shown: Any = (cert, key) if given == "bytes" else (str(files[0]), files[1])
    tls = TlsOptions(ca_data=pem(ca), client_cert=shown[0], client_key=shown[1])
    async with RawServer(script, tls=asking(ca)) as server:
        assert (await stream(server.url, tls=tls, known=False)).text == "a"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["none", "of another CA"])
async def test_a_server_that_wants_another_certificate(
    ca: trustme.CA, version: ssl.TLSVersion, shown: str
) -> None:
    context = asking(ca)
    context.minimum_version = context.maximum_version = version
    cert, key = (None, None) if shown == "none" else own(trustme.CA().issue_cert("a@b.c"))
    tls = TlsOptions(ca_data=pem(ca), client_cert=cert, client_key=key)
    with refusing(context) as url:
        assert (await refused(url, tls=tls)).detail == "tls"


@contextmanager
def refusing(context: ssl.SSLContext) -> Iterator[str]:
    """Refuse every handshake with the alert that is due; asyncio's server closes without one."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    # A copy of its own: a handshake that fails closes it.
                    context.wrap_socket(connection.dup(), server_side=True).close()
                except OSError:
                    # What the client has sent meanwhile would have the alert lost in a reset.
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


# Who does not speak it.


async def test_plain_http_where_tls_is_meant(ca: trustme.CA) -> None:
    async def plain(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await connection.until_closed()

    async with RawServer(plain) as server:
        url = server.url.replace("http:", "https:")
        assert (await refused(url, tls=TlsOptions(ca_data=pem(ca)))).detail == "tls"


async def test_tls_where_plain_http_is_meant() -> None:
    async def alert(connection: Connection) -> None:
        await connection.request()
        # Fatal, unexpected_message: what rustls and Go's TLS say to "GET / HTTP/1.1".
        await connection.send(bytes([21, 3, 1, 0, 2, 2, 10]))
        connection.close()

    async with RawServer(alert) as server:
        error = await refused(server.url)
    assert error.detail == "tls"


async def test_versions_that_are_too_old(ca: trustme.CA) -> None:
    context = serving(ca.issue_cert("127.0.0.1"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with RawServer(script, tls=context) as server:
        assert (await refused(server.url, tls=TlsOptions(ca_data=pem(ca)))).detail == "tls"


# What is given.


def test_options_that_contradict_themselves(ca: trustme.CA) -> None:
    with pytest.raises(ValueError, match="would trust nobody"):
        TlsOptions(replace_roots=True)
    with pytest.raises(ValueError, match="go together"):
        TlsOptions(client_cert=b"x")
    with pytest.raises(ValueError, match="go together"):
        TlsOptions(client_key=b"x")
    tls = TlsOptions(ca_data=pem(ca))
    with pytest.raises(ValueError, match="without an https://"):
        adapter("http://127.0.0.1:1", tls=tls)


def encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"a password"),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda *_: {"ca_data": b"", "client_cert": None, "client_key": None}, "ca_data"),
        (lambda *_: {"ca_data": "no PEM"}, "ca_data holds no PEM certificate"),
        (lambda cert, _: {"ca_data": cert[:200]}, "ca_data holds no PEM certificate"),
        (lambda *_: {"ca_file": "/nonexistent"}, "ca_file cannot be read: No such file"),
        (lambda *_: {"client_key": "/nonexistent"}, "client_key cannot be read: No such file"),
        (lambda *_: {"client_cert": b"no PEM"}, "client_cert and client_key are not PEM"),
        (lambda *_: {"client_key": b"no PEM"}, "client_cert and client_key are not PEM"),
        (lambda _, key: {"client_key": encrypted(key)}, "client_key is encrypted"),
        (
            lambda *_: {"client_key": own(trustme.CA().issue_cert("a@b.c"))[1]},
            "client_cert and client_key are not PEM",
        ),
    ],
)
def test_what_cannot_be_used_is_said_at_once_and_not_shown(
    ca: trustme.CA, change: Callable[[bytes, bytes], dict[str, Any]], said: str
) -> None:
    cert, key = own(ca.issue_cert("a@b.c"))
    given: dict[str, Any] = {"ca_data": pem(ca), "client_cert": cert, "client_key": key}
    tls = TlsOptions(**given | change(cert, key))
    with pytest.raises(ValueError, match=said) as caught:
        adapter("https://127.0.0.1:1", tls=tls)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [frame for frame in shown.stack if "worker_adapters" in frame.filename]
    text = "".join(repr(frame.locals) for frame in frames) + str(caught.value)
    assert frames
    for line in key.decode().splitlines()[1:-1]:
        assert line not in text


def test_no_repr_shows_key_material(ca: trustme.CA) -> None:
    cert, key = own(ca.issue_cert("a@b.c"))
    tls = TlsOptions(ca_data=pem(ca), client_cert=cert, client_key=key)
    assert repr(tls) == "TlsOptions(trusted='public+own', client_cert=True)"
    assert repr(TlsOptions()) == "TlsOptions(trusted='public', client_cert=False)"
    assert "own'" in repr(TlsOptions(ca_data=pem(ca), replace_roots=True))
    assert repr(tls.client_key) == "****"
    made = adapter("https://127.0.0.1:1", tls=tls)
    assert "BEGIN" not in repr(vars(made)) + repr(vars(made._data_plane)) + repr(
        vars(made._transport)
    )


def test_there_is_no_way_to_trust_everybody() -> None:
    with pytest.raises(TypeError):
        TlsOptions(verify=False)  # type: ignore[call-arg]
