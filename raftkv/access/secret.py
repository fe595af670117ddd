"""Tokens as text, and their hashes.

    token  = "rkv_" id "_" secret
    id     = 8 to 32 of 0-9 a-z: names the token, is no secret, and stands in logs
    secret = 32 to 256 of 0-9 A-Z a-z _ -

Those made here have an id of 16 and a secret of 64 hexadecimal digits, 256 bits of it. The secret is what
scrypt (RFC 7914) hashes, with a salt of its own. With so many bits nobody could guess a secret from a
faster hash either; scrypt is for the tokens that people bring, as the first one of a cluster may be.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final

from raftkv.kv.tokens import Token

TOKEN: Final = re.compile(r"rkv_([0-9a-z]{8,32})_([0-9A-Za-z_-]{32,256})", re.ASCII)
FORM: Final = "rkv_ID_SECRET, an id of 8 to 32 of 0-9 a-z and a secret of 32 to 256 of 0-9 A-Z a-z _ -"
COST: Final = (1 << 14, 8, 1)  # n, r, p: 16 MiB and some 40 ms, once a token and node
MEMORY_BYTES_MAX: Final = 128 << 20  # of one verification, whatever cost a record names


def new_token() -> tuple[str, str]:
    """`(id, the token's text)`."""
    name = secrets.token_hex(8)
    return name, f"rkv_{name}_{secrets.token_hex(32)}"


def split(text: str) -> tuple[str, bytes] | None:
    """`(id, secret)`; None where it is not a token's text."""
    match = TOKEN.fullmatch(text)
    return None if match is None else (match[1], match[2].encode())


def hashed(secret: bytes, salt: bytes, cost: tuple[int, int, int] = COST) -> bytes:
    """Takes tens of milliseconds: for a worker thread."""
    n, r, p = cost
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=MEMORY_BYTES_MAX, dklen=32)


def is_secret_of(secret: bytes, token: Token) -> bool:
    """As `hashed`. Compares in constant time."""
    try:
        return hmac.compare_digest(hashed(secret, token.salt, token.cost), token.hash)
    except (ValueError, TypeError, OverflowError):  # no cost, or one that needs more memory than is given
        return False
