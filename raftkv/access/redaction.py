"""What keeps secrets out of the log: every line is searched for them before it is written.

Nothing here logs a secret on purpose; this is for what others do, such as an exception whose text has a
header in it. Tokens are known by their form, other secrets (the cluster's, private keys) by their bytes.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable

REDACTED = "[redacted]"
SECRET_BYTES_MIN = 8  # of what is searched for: a shorter one would be found everywhere

_TOKEN = re.compile(r"rkv_([0-9a-z]{8,32})_[0-9A-Za-z_-]{8,}")
_BEARER = re.compile(r"(?i)(bearer +)[^\s'\",;\]})]+")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL
)


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The id of a token stays: it is what one looks for."""
    text = _BEARER.sub(rf"\1{REDACTED}", _TOKEN.sub(rf"rkv_\1_{REDACTED}", text))
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(REDACTED, text)
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, REDACTED)
    return text


def forms(secret: bytes) -> set[str]:
    """The texts that a secret would show as."""
    if len(secret) < SECRET_BYTES_MIN:
        return set()
    return {
        secret.decode(errors="backslashreplace"),
        repr(secret)[2:-1],
        secret.hex(),
        base64.b64encode(secret).decode(),
    }


class Redacting(logging.Formatter):
    """Another formatter's lines, without secrets. `secrets` are raw bytes."""

    def __init__(self, inner: logging.Formatter, secrets: Iterable[bytes] = ()) -> None:
        super().__init__()
        self._inner = inner
        self._secrets = sorted({form for each in secrets for form in forms(each)}, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        return redacted(self._inner.format(record), self._secrets)
