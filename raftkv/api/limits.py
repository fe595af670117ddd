"""Every bound of the HTTP side: its default, its unit, the flag that sets it, and the reason for it.

`Limits` is what the code reads; `LIMITS` is the same as a table, from which `/v1/limits`, the flags and the
documentation are made. An error that names a limit takes its flag from here. PURE.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

Unit = Literal["bytes", "seconds", "bytes_per_second", "count"]


@dataclass(frozen=True, slots=True)
class Limit:
    name: str
    default: int
    least: int
    most: int
    unit: Unit
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Limits:
    """The values in force. Every field has a row of the same name in `LIMITS`."""

    key_bytes_max: int = 4096
    value_bytes_max: int = 1 << 20
    content_type_bytes_max: int = 256
    body_bytes_max: int = 4 << 20
    batch_line_bytes_max: int = 4 << 20
    batch_in_flight_max: int = 256
    transaction_operations_max: int = 128
    list_items_max: int = 1000
    list_bytes_max: int = 8 << 20
    delete_keys_max: int = 10_000
    exports_max: int = 4
    request_line_bytes_max: int = 16 << 10
    header_bytes_max: int = 32 << 10
    headers_max: int = 64
    header_seconds_max: int = 10
    body_bytes_per_second_min: int = 1024
    idle_seconds_max: int = 75
    write_stall_seconds_max: int = 60
    connections_max: int = 10_000
    buffered_body_bytes_max: int = 256 << 20
    writes_in_flight_max: int = 10_000
    write_bytes_in_flight_max: int = 64 << 20
    reads_in_flight_max: int = 20_000
    timeout_seconds_max: int = 60
    timeout_seconds: int = 5
    idempotency_key_bytes_max: int = 128
    idempotency_bytes_max: int = 256 << 20
    quota_bytes: int = 0
    disk_free_bytes_min: int = 64 << 20
    memory_available_bytes_min: int = 64 << 20
    tls_handshake_seconds_max: int = 5
    raft_handshake_seconds_max: int = 5

    def flag(self, name: str) -> str:
        return LIMIT_BY_NAME[name].flag


LIMITS: tuple[Limit, ...] = (
    Limit("key_bytes_max", 4096, 1, 4096, "bytes", "Bytes of a key."),
    Limit(
        "value_bytes_max", 1 << 20, 1, 8 << 20, "bytes", "Bytes of a value; more belongs in an object store."
    ),
    Limit("content_type_bytes_max", 256, 32, 1024, "bytes", "Bytes of a stored Content-Type."),
    Limit("body_bytes_max", 4 << 20, 1024, 32 << 20, "bytes", "Bytes of a JSON body, such as a transaction."),
    Limit("batch_line_bytes_max", 4 << 20, 1024, 64 << 20, "bytes", "Bytes of one line of a batch."),
    Limit(
        "batch_in_flight_max", 256, 1, 10_000, "count", "Lines of one batch that are on their way at once."
    ),
    Limit(
        "transaction_operations_max", 128, 1, 1024, "count", "Operations of a transaction, all three lists."
    ),
    Limit("list_items_max", 1000, 1, 100_000, "count", "Items of one page; the rest follows by cursor."),
    Limit("list_bytes_max", 8 << 20, 1024, 256 << 20, "bytes", "Bytes of keys and values of one page."),
    Limit("delete_keys_max", 10_000, 1, 100_000, "count", "Keys that one prefix delete removes."),
    Limit("exports_max", 4, 1, 100, "count", "Exports at once; each keeps the image of a revision."),
    Limit("request_line_bytes_max", 16 << 10, 1024, 1 << 20, "bytes", "Bytes of a request line."),
    Limit("header_bytes_max", 32 << 10, 1024, 1 << 20, "bytes", "Bytes of all headers of a request."),
    Limit("headers_max", 64, 8, 1024, "count", "Headers of a request."),
    Limit(
        "header_seconds_max", 10, 1, 600, "seconds", "From a request's first byte to the end of its headers."
    ),
    Limit(
        "body_bytes_per_second_min",
        1024,
        1,
        1 << 30,
        "bytes_per_second",
        "A body that comes more slowly is cut off, after header_seconds_max of grace.",
    ),
    Limit("idle_seconds_max", 75, 1, 3600, "seconds", "A connection without a request is closed after this."),
    Limit(
        "write_stall_seconds_max",
        60,
        1,
        3600,
        "seconds",
        "A client that takes nothing of its answer for this long is cut off.",
    ),
    Limit("connections_max", 10_000, 10, 1_000_000, "count", "Client connections; no cap a peer address."),
    Limit("buffered_body_bytes_max", 256 << 20, 1 << 20, 1 << 40, "bytes", "Bytes of bodies held in memory."),
    Limit("writes_in_flight_max", 10_000, 1, 1_000_000, "count", "Writes that wait for their commit."),
    Limit("write_bytes_in_flight_max", 64 << 20, 1 << 20, 1 << 40, "bytes", "Bytes of those writes."),
    Limit("reads_in_flight_max", 20_000, 1, 1_000_000, "count", "Reads that wait for their read index."),
    Limit("timeout_seconds_max", 60, 1, 3600, "seconds", "The most that ?timeout= may ask for."),
    Limit("timeout_seconds", 5, 1, 600, "seconds", "How long a request waits where it has no ?timeout=."),
    Limit("idempotency_key_bytes_max", 128, 128, 128, "bytes", "Bytes of an idempotency key."),
    Limit(
        "idempotency_bytes_max",
        256 << 20,
        1 << 20,
        1 << 40,
        "bytes",
        "Bytes of kept outcomes; beyond, keyed writes get 429 rather than a shorter promise.",
    ),
    Limit(
        "quota_bytes",
        0,
        0,
        1 << 50,
        "bytes",
        "Bytes of all keys, values and content types; beyond, writes that grow get 507. 0: no quota.",
    ),
    Limit(
        "disk_free_bytes_min",
        64 << 20,
        0,
        1 << 50,
        "bytes",
        "With less left on the data directory's file system, a leader takes nothing that grows. 0: anything.",
    ),
    Limit(
        "memory_available_bytes_min",
        64 << 20,
        0,
        1 << 50,
        "bytes",
        "With less memory left, the system's or the container's, likewise. 0: anything.",
    ),
    Limit(
        "tls_handshake_seconds_max",
        5,
        1,
        60,
        "seconds",
        "For the TLS handshake on the API port, else closed.",
    ),
    Limit(
        "raft_handshake_seconds_max", 5, 1, 60, "seconds", "To authenticate on the raft port, else closed."
    ),
)
LIMIT_BY_NAME = {limit.name: limit for limit in LIMITS}


def limits_in_force(limits: Limits) -> list[dict[str, object]]:
    """The rows of `/v1/limits`."""
    return [
        {
            "name": limit.name,
            "value": getattr(limits, limit.name),
            "default": limit.default,
            "unit": limit.unit,
            "flag": limit.flag,
            "help": limit.help,
        }
        for limit in LIMITS
    ]


def check_limits(limits: Limits) -> list[str]:
    """What is wrong with these values, a sentence each; empty where they are all allowed."""
    return [
        f"{limit.flag} {getattr(limits, limit.name)}: allowed are {limit.least} to {limit.most} {limit.unit}"
        for limit in LIMITS
        if not limit.least <= getattr(limits, limit.name) <= limit.most
    ]


assert [limit.name for limit in LIMITS] == [field.name for field in fields(Limits)]
