"""What is kept of one key, as one bytes object. PURE.

    record = create_revision u64 | mod_revision u64 | version u64 | content_type_length u32
           | content_type (UTF-8; empty stands for application/octet-stream) | value        little endian

One object a key, and one that Python's garbage collector does not track: an `Item` for each of a million
keys would be a million objects to walk in every full collection. `Item` exists only on the way out.
"""

from __future__ import annotations

import struct

from raftkv.model import DEFAULT_CONTENT_TYPE, Item

Key = bytes
Record = bytes

HEAD_BYTES = 28
_HEAD = struct.Struct("<QQQI")
_MOD = struct.Struct("<Q")
_pack_head = _HEAD.pack
_unpack_head = _HEAD.unpack_from
_unpack_mod = _MOD.unpack_from
_NO_TYPE = bytes(4)
assert _HEAD.size == HEAD_BYTES


def pack(create_revision: int, mod_revision: int, version: int, content_type: str, value: bytes) -> Record:
    if content_type == DEFAULT_CONTENT_TYPE:
        return _pack_head(create_revision, mod_revision, version, 0) + value
    encoded = content_type.encode()
    return _pack_head(create_revision, mod_revision, version, len(encoded)) + encoded + value


def revisions(record: Record) -> tuple[int, int, int]:
    """`(create_revision, mod_revision, version)`."""
    create_revision, mod_revision, version, _ = _unpack_head(record)
    return create_revision, mod_revision, version


def mod_revision(record: Record) -> int:
    revision: int = _unpack_mod(record, 8)[0]
    return revision


def content_type(record: Record) -> str:
    length = _unpack_head(record)[3]
    return str(record[HEAD_BYTES : HEAD_BYTES + length], "utf-8") if length else DEFAULT_CONTENT_TYPE


def has_default_type(record: Record) -> bool:
    return record[24:HEAD_BYTES] == _NO_TYPE


def revision_and_value(record: Record) -> tuple[int, bytes] | None:
    """`(mod_revision, value)`, and None where the content type is not the default: one look at the head
    where a read would take three."""
    _, revision, _, length = _unpack_head(record)
    return None if length else (revision, record[HEAD_BYTES:])


def value(record: Record) -> bytes:
    return record[HEAD_BYTES + _unpack_head(record)[3] :]


def value_length(record: Record) -> int:
    length: int = len(record) - HEAD_BYTES - _unpack_head(record)[3]
    return length


def replaced(record: Record, mod_revision: int, value: bytes) -> Record:
    """The record's next version: created when it was, its content type kept."""
    create_revision, _, version, length = _unpack_head(record)
    head = _pack_head(create_revision, mod_revision, version + 1, length)
    return head + record[HEAD_BYTES : HEAD_BYTES + length] + value if length else head + value


def item(key: bytes, record: Record) -> Item:
    create_revision, mod_revision, version, length = _unpack_head(record)
    end = HEAD_BYTES + length
    kind = str(record[HEAD_BYTES:end], "utf-8") if length else DEFAULT_CONTENT_TYPE
    return Item(key, record[end:], kind, create_revision, mod_revision, version)
