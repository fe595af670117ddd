"""Certificates for the TLS tests: one authority, and everything that can be wrong with what it signs."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from cluster.certs import LOCAL_HOSTS, Authority, Pair, write_private
from raftkv.tls.credentials import PEER_SUFFIX, ApiFiles, Credentials, PeerFiles


class Certificates:
    """Files in a directory, each made when it is asked for."""

    def __init__(self, directory: Path, authority: Authority | None = None) -> None:
        self._directory = directory
        self.authority = authority or Authority.made()
        self.stranger = Authority.made("another CA")
        self.ca = directory / "test-ca.pem"
        write_private(self.ca, self.authority.pair.certificate)

    def write(self, name: str, pair: Pair) -> tuple[Path, Path]:
        return pair.write(self._directory, name)

    def node(self, name: str) -> tuple[Path, Path]:
        return self.write(f"node-{name}", self.authority.node(name))

    def peer(self, name: str) -> Credentials:
        """Of a member's raft port."""
        cert, key = self.node(name)
        return Credentials("peer", PeerFiles(name, cert, key, self.ca))

    def api(self, name: str = "api", *, clients: bool = False) -> Credentials:
        """Of a node's API port; `clients`: they must show a certificate."""
        cert, key = self.node(name)
        return Credentials("api", ApiFiles(cert, key, self.ca if clients else None, self.ca))

    def pairs(self) -> dict[str, Pair]:
        """What a caller of a raft port may show, by what is wrong with it for a call under the name n2."""
        return {
            "expired": self.authority.node("n2", days=-1),
            "wrong CA": self.stranger.node("n2"),
            "a client's": self.authority.client(),
            "a non-member's": self.authority.node("n9"),
            "another member's": self.authority.node("n3"),
            "for servers alone": self.servers_alone("n2"),
        }

    def servers_alone(self, name: str) -> Pair:
        hosts = (f"{name}{PEER_SUFFIX}", *LOCAL_HOSTS)
        return self.authority.sign(name, hosts, [ExtendedKeyUsageOID.SERVER_AUTH], days=1)

    def caller(self, name: str, pair: Pair | None) -> ssl.SSLContext:
        """A caller's context that shows the pair, and looks at nothing of what it is shown."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if pair is not None:
            context.load_cert_chain(*self.write(f"caller-{name.replace(' ', '-')}", pair))
        return context


def old_tls() -> ssl.SSLContext:
    """Speaks TLS 1.1 and nothing newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context
