"""Certificates and keys from files: what is refused at start, and what is taken when they change."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from cluster.certs import Pair
from raftkv.errors import ConfigError
from raftkv.tls.credentials import ApiFiles, Credentials, Loaded, PeerFiles, Watcher, names_member
from tests.certificates import Certificates

NAME = "n1"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def files(certificates: Certificates) -> PeerFiles:
    return PeerFiles(NAME, *certificates.node(NAME), certificates.ca)


def look(credentials: Credentials) -> Loaded | ConfigError | None:
    """The two looks that a change needs."""
    first = credentials.look()
    assert first is None
    return credentials.look()


# --- at start ---------------------------------------------------------------------------------------------


def broken(what: str, files: PeerFiles, certificates: Certificates) -> None:
    """Makes the files wrong in one way."""
    match what:
        case "no certificate":
            files.cert.unlink()
        case "no key":
            files.key.unlink()
        case "no CA":
            files.ca.unlink()
        case "a directory":
            files.cert.unlink()
            files.cert.mkdir()
        case "text for a certificate":
            files.cert.write_text("certificate")
        case "text for a CA":
            files.ca.write_text("CA")
        case "half a key":
            files.key.write_bytes(files.key.read_bytes()[:100])
        case "another's key":
            files.key.write_bytes(certificates.authority.node(NAME).key)
        case "another's certificate":
            put(files, certificates.authority.node("n3"))
        case "a client's certificate":
            put(files, certificates.authority.client())
        case "a certificate of another CA":
            put(files, certificates.stranger.node(NAME))
        case "a certificate for servers alone":
            put(files, certificates.servers_alone(NAME))
        case "an encrypted key":
            openssl = shutil.which("openssl")
            if openssl is None:
                pytest.skip("encrypts a key with openssl")
            command = f"{openssl} pkcs8 -topk8 -in {files.key} -out {files.key}.new -passout pass:secret"
            subprocess.run(command.split(), check=True)
            os.replace(f"{files.key}.new", files.key)


def put(files: PeerFiles, pair: Pair) -> None:
    files.cert.write_bytes(pair.certificate)
    files.key.write_bytes(pair.key)


BROKEN = {
    "no certificate": "cannot be read",
    "no key": "cannot be read",
    "no CA": "cannot be read",
    "a directory": "cannot be read",
    "text for a certificate": "not a certificate and its key",
    "text for a CA": "no certificates in PEM",
    "half a key": "not a certificate and its key",
    "another's key": "is not the key of the certificate",
    "another's certificate": "has n1.raftkv or n1 as a DNS name",
    "a client's certificate": "names nobody",
    "a certificate of another CA": "would be refused by a peer",
    "a certificate for servers alone": "would be refused by a peer",
    "an encrypted key": "the key is encrypted",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_node_does_not_start_with(what: str, files: PeerFiles, certificates: Certificates) -> None:
    broken(what, files, certificates)
    with pytest.raises(ConfigError, match=BROKEN[what]):
        Credentials("peer", files)


@pytest.mark.parametrize("what", BROKEN)
def test_the_old_files_serve_while_the_new_ones_are(
    what: str, files: PeerFiles, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = Credentials("peer", files)
    server, client = credentials.server, credentials.client
    broken(what, files, certificates)
    outcome = look(credentials)
    assert isinstance(outcome, ConfigError)
    credentials.take(outcome)
    assert (credentials.server, credentials.client) == (server, client)
    assert BROKEN[what] in credentials.problem
    assert any(
        record.levelname == "ERROR" and "tls_reload_failed" in record.message for record in caplog.records
    )
    assert credentials.look() is None  # said once, not each second


def test_an_expired_certificate_starts_and_is_complained_of(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock may be what is wrong."""
    cert, key = certificates.write("old", certificates.authority.node(NAME, days=-1))
    credentials = Credentials("peer", PeerFiles(NAME, cert, key, certificates.ca))
    credentials.remind(0.0)
    credentials.remind(1.0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "certificate_expired" in caplog.text


def test_one_that_ends_soon_is_said_once_a_day(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = certificates.write("short", certificates.authority.node(NAME, days=3))
    credentials = Credentials("api", ApiFiles(cert, key))
    for now_s in (0.0, 1.0, 86_399.0, 86_401.0):
        credentials.remind(now_s)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


# --- when they change -------------------------------------------------------------------------------------


def test_a_new_pair_is_taken_into_fresh_contexts(files: PeerFiles, certificates: Certificates) -> None:
    credentials = Credentials("peer", files)
    server, client = credentials.server, credentials.client
    pair = certificates.authority.node(NAME, days=10)
    files.cert.write_bytes(pair.certificate)
    assert credentials.look() is None
    files.key.write_bytes(pair.key)
    outcome = look(credentials)
    assert isinstance(outcome, Loaded)
    credentials.take(outcome)
    assert credentials.server is not server
    assert credentials.client is not client
    assert 9 * 86_400 < credentials.certificates[0].seconds_left() < 10 * 86_400
    assert credentials.look() is None


def test_what_has_expired_is_not_taken_for_what_has_not(files: PeerFiles, certificates: Certificates) -> None:
    credentials = Credentials("peer", files)
    put(files, certificates.authority.node(NAME, days=-1))
    outcome = look(credentials)
    assert isinstance(outcome, ConfigError)
    assert "expired" in str(outcome)


def test_a_repaired_file_is_taken_and_the_problem_forgotten(
    files: PeerFiles, certificates: Certificates
) -> None:
    credentials = Credentials("peer", files)
    good = files.key.read_bytes()
    files.key.write_text("")
    outcome = look(credentials)
    assert isinstance(outcome, ConfigError)
    credentials.take(outcome)
    files.key.write_bytes(good)
    repaired = look(credentials)
    assert isinstance(repaired, Loaded)
    credentials.take(repaired)
    assert (credentials.problem, credentials.reloads, credentials.failures) == ("", 1, 1)


def test_a_replaced_link_is_a_change(tmp_path: Path, certificates: Certificates) -> None:
    """As Kubernetes renews what it mounts: a link to a directory is replaced."""
    for number in (1, 2):
        directory = tmp_path / f"data{number}"
        directory.mkdir()
        certificates.authority.node(NAME).write(directory, "tls")
    link = tmp_path / "data"
    link.symlink_to("data1")
    credentials = Credentials("api", ApiFiles(link / "tls.pem", link / "tls.key"))
    (tmp_path / "new").symlink_to("data2")
    os.replace(tmp_path / "new", link)
    assert isinstance(look(credentials), Loaded)


def test_the_watcher_takes_what_changed_and_looks_at_once_when_told(
    files: PeerFiles, certificates: Certificates
) -> None:
    async def main() -> None:
        credentials = Credentials("peer", files)
        watcher = Watcher([credentials], look_seconds=3600)  # so that only being told can be what it was
        watcher.start()
        try:
            put(files, certificates.authority.node(NAME))
            watcher.look_now()
            async with asyncio.timeout(10):
                while not credentials.reloads:  # noqa: ASYNC110 a thread's doing
                    await asyncio.sleep(0.005)
        finally:
            watcher.stop()

    asyncio.run(main())


# --- whose it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (("n1",), True),
        (("n1.raftkv",), True),
        (("x", "n1.raftkv"), True),
        (("n2",), False),
        (("*.raftkv",), False),
        (("*",), False),
        (("N1",), False),
        (("n1.raftkv.example.org",), False),
        (("n11",), False),
        ((), False),
    ],
)
def test_a_member_is_named_exactly(names: tuple[str, ...], right: bool) -> None:
    assert names_member(names, "n1") is right


def test_contexts_speak_nothing_below_tls_1_2(files: PeerFiles) -> None:
    credentials = Credentials("peer", files)
    for context in (credentials.server, credentials.client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED
