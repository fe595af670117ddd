"""How a member's name and addresses are written: in settings, and in requests that change the members. PURE.

Each raises ValueError, which says what is wrong; who asked says where it stood.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

Address = tuple[str, int]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def parse_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("not a node's name")
    return text


def parse_address(text: str) -> Address:
    """HOST:PORT, [IPv6]:PORT, or :PORT for every address of the machine."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("no port from 1 to 65535 after the last colon")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets: [::1]:8400")
    if any(character.isspace() or character in "/[]@" for character in host):
        raise ValueError(f"{host!r} is no host name or address")
    return host or "0.0.0.0", int(port)


def parse_peer(text: str) -> str:
    """The address of a raft port as the other members dial it."""
    if text.startswith(":"):
        raise ValueError("the raft address needs a host that the other members can dial")
    parse_address(text)
    return text


def parse_client_url(text: str) -> str:
    """http(s)://HOST[:PORT], without a path: what clients are sent to. A slash at the end is dropped."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r} is no http:// or https:// URL with a host")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{text!r} has more than scheme, host and port")
    if parts.port == 0:
        raise ValueError(f"{text!r} has port 0")
    return text.rstrip("/")
