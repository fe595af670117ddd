"""A small certificate authority: for development, for trials, and for the tests.

One CA signs for everybody. A node's certificate is good for both of its ports and for both ends of a
connection: clients find the hosts in it, other members the member's name. A client's is good for calling
alone. Keys are ECDSA on P-256.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftkv.tls.credentials import PEER_SUFFIX

LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
DAYS = 365
SKEW = timedelta(hours=1)  # of clocks: a certificate is good a little before it was made


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """NAME.pem and NAME.key. Raises FileExistsError."""
        paths = (directory / f"{name}.pem", directory / f"{name}.key")
        for path, content in zip(paths, (self.certificate, self.key), strict=True):
            write_private(path, content)
        return paths


class Authority:
    """Signs. `made` makes one, `read` takes one that was written."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def made(cls, name: str = "raftkv development CA", *, days: float = 10 * DAYS) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name)
        builder = (
            _dated(_builder(subject, subject, key.public_key()), datetime.now(UTC), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Authority:
        """Raises OSError, ValueError."""
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key} is no ECDSA key")
        return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)

    @property
    def pair(self) -> Pair:
        return Pair(_pem(self._certificate), _key_pem(self._key))

    def node(self, name: str, hosts: Sequence[str] = LOCAL_HOSTS, *, days: float = DAYS) -> Pair:
        names = list(dict.fromkeys((f"{name}{PEER_SUFFIX}", name, *hosts)))
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self.sign(name, names, uses, days=days)

    def client(self, name: str = "client", *, days: float = DAYS) -> Pair:
        return self.sign(name, (), [ExtendedKeyUsageOID.CLIENT_AUTH], days=days)

    def sign(
        self, name: str, hosts: Iterable[str], uses: list[x509.ObjectIdentifier], *, days: float
    ) -> Pair:
        """`hosts` are DNS names and addresses; `days` below 0 make one that has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [_alternative(host) for host in hosts]
        builder = (
            _dated(
                _builder(_named(name), self._certificate.subject, key.public_key()), datetime.now(UTC), days
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return Pair(_pem(builder.sign(self._key, hashes.SHA256())), _key_pem(key))


def write_private(path: Path, content: bytes) -> None:
    """Only this user can read it, from its first byte on. Raises FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def make_all(
    directory: Path, members: Sequence[tuple[str, Sequence[str]]], *, days: float = DAYS
) -> list[Path]:
    """ca, a pair for each member and for a client, in a directory that is made where it is not there. A CA
    that is there already signs. Returns what was written.

    Raises FileExistsError before anything is written where a member's files are there.
    """
    for name, _ in members:
        for path in (directory / f"{name}.pem", directory / f"{name}.key"):
            if path.exists():
                raise FileExistsError(path)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    written: list[Path] = []
    ca = directory / "ca.pem", directory / "ca.key"
    if ca[0].exists() or ca[1].exists():
        authority = Authority.read(*ca)
    else:
        authority = Authority.made()
        written += authority.pair.write(directory, "ca")
    for name, hosts in members:
        written += authority.node(name, hosts or LOCAL_HOSTS, days=days).write(directory, name)
    if not (directory / "client.pem").exists() and not (directory / "client.key").exists():
        written += authority.client(days=days).write(directory, "client")
    return written


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _dated(builder: x509.CertificateBuilder, now: datetime, days: float) -> x509.CertificateBuilder:
    ends = now + timedelta(days=days)
    return builder.not_valid_before(min(now, ends) - SKEW).not_valid_after(ends)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
