"""Inputs from valid samples, changed at random: the fuzzer that runs everywhere and repeats by its seed.

`scripts/fuzz.py` prefers atheris, which sees what an input reached in the code and goes on from there; this
one is for `scripts/test`, which must try the same inputs every time, and for machines without atheris.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random

CHANGES_MAX = 6
INPUT_BYTES_MAX = 8192
INTERESTING = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
FORMS = ("<B", "<H", "<I", "<Q", ">H", ">I", ">Q")


def inputs(samples: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Endless. Every sample itself comes first."""
    yield from samples
    rng = Random(seed)
    while True:
        data = bytearray(rng.choice(samples))
        for _ in range(rng.randint(1, CHANGES_MAX)):
            rng.choice(CHANGES)(rng, data, samples)
        yield bytes(data[:INPUT_BYTES_MAX])


def _flip(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _number(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    form = rng.choice(FORMS)
    size = struct.calcsize(form)
    if len(data) >= size:
        at = rng.randrange(len(data) - size + 1)
        (there,) = struct.unpack_from(form, data, at)
        value = rng.choice((*INTERESTING, there + 1, there - 1, len(data)))
        struct.pack_into(form, data, at, value % 256**size)


def _insert(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 8))


def _repeat(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    if len(data) < INPUT_BYTES_MAX:
        data[end:end] = data[start:end] * rng.choice((1, 1, 2, 30))


def _delete(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    del data[start:end]


def _cut(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[rng.randint(0, len(data)) :]


def _splice(rng: Random, data: bytearray, samples: Sequence[bytes]) -> None:
    other = rng.choice(samples)
    start, end = _span(rng, other)
    at, behind = _span(rng, data)
    data[at : rng.choice((at, behind))] = other[start:end]


def _digits(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Numbers in text: other lengths, other signs."""
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice(
            (b"-1", b"0", b"99999999999999999999", b"1e9", b"1.5", b"", b"18446744073709551616")
        )


def _nest(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Deep nesting, in JSON and in msgpack."""
    at = rng.randint(0, len(data))
    data[at:at] = rng.choice((b"[", b'{"a":', b"\x91", b"\x81\xa1a")) * rng.choice((3, 1500))


def _span(rng: Random, data: bytes | bytearray) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64, 256)))


CHANGES: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip,
    _flip,
    _set,
    _set,
    _number,
    _number,
    _number,
    _insert,
    _repeat,
    _delete,
    _delete,
    _cut,
    _splice,
    _splice,
    _digits,
    _nest,
)
