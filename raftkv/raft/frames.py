"""Frames on an authenticated connection: bounded, in order, impossible to forge. PURE (sans-IO).

    frame   = length u32 | mac 16 bytes | payload (length bytes)          little endian
    mac     = BLAKE2b-128, keyed with the connection's frame key, over sequence u64 | payload
    payload = kind u8 (0 control, 1 raft) | body

`sequence` counts the connection's frames from 0 and is not sent: both ends know it, so that a frame which
is dropped, repeated, moved or taken from another connection (each has a key of its own, see
`handshake.py`) fails its MAC. The length is checked against `frame_bytes_max` as soon as its four bytes
are there, before anything behind it is kept. After the first error a connection is over: nothing that
follows can be trusted to start where it seems to.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator

KIND_CONTROL = 0
KIND_RAFT = 1

MAC_BYTES = 16
HEADER_BYTES = 4 + MAC_BYTES

_LENGTH = struct.Struct("<I")
_SEQUENCE = struct.Struct("<Q")


class FrameError(Exception):
    """The bytes are not the next frame of this connection. Says what is wrong with them."""


class Sealer:
    """Makes the headers of one direction's frames, in order."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=MAC_BYTES)
        self._sequence = 0

    def seal(self, payload: bytes) -> bytes:
        """The header that goes before `payload`; the two must be sent next, together."""
        mac = self._keyed.copy()  # a third cheaper than keying anew for each frame
        mac.update(_SEQUENCE.pack(self._sequence))
        mac.update(payload)
        self._sequence += 1
        return _LENGTH.pack(len(payload)) + mac.digest()


class Opener:
    """Cuts one direction's byte stream into verified payloads."""

    def __init__(self, key: bytes, *, frame_bytes_max: int) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=MAC_BYTES)
        self._sequence = 0
        self._frame_bytes_max = frame_bytes_max
        self._partial = bytearray()
        self._wanted = HEADER_BYTES  # bytes from which `_partial` can be worth another look

    @property
    def buffered_bytes(self) -> int:
        return len(self._partial)

    def feed(self, data: bytes) -> Iterator[memoryview]:
        """Yields each payload completed by `data`. Raises FrameError at the first bad frame, after the
        good ones before it. Run it to its end before feeding again."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                self._check_length()
                return
            data = bytes(self._partial)
            self._partial.clear()
        view = memoryview(data)
        start, end = 0, len(data)
        while end - start >= HEADER_BYTES:
            length = self._length(view, start)
            body = start + HEADER_BYTES
            if end - body < length:
                break
            payload = view[body : body + length]
            self._verify(view[start + 4 : body], payload)
            start = body + length
            yield payload
        if start < end:
            self._partial += view[start:]
            self._check_length()

    def _check_length(self) -> None:
        """Refuses a length out of bounds as soon as it can be read, and learns how much is to come."""
        if len(self._partial) >= 4:
            self._wanted = HEADER_BYTES + self._length(self._partial, 0)

    def _length(self, data: memoryview | bytearray, offset: int) -> int:
        (length,) = _LENGTH.unpack_from(data, offset)
        if not 0 < length <= self._frame_bytes_max:
            raise FrameError(f"a frame of {length} bytes; 1 to {self._frame_bytes_max} are allowed")
        return int(length)

    def _verify(self, claimed: memoryview, payload: memoryview) -> None:
        mac = self._keyed.copy()
        mac.update(_SEQUENCE.pack(self._sequence))
        mac.update(payload)
        if not hmac.compare_digest(mac.digest(), claimed):
            raise FrameError(f"frame {self._sequence} was not made by the peer, or not in this place")
        self._sequence += 1
