"""What a benchmark asks, as the bytes that go over the wire. PURE.

Every system gets the same keys and the same values; only the dialect differs. A list of requests goes round
and round for as long as a case runs, so the first keys of the list are surely asked for, however slow a
system is: those are looked at afterwards.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

KEYS = 1000
MIX_WRITE_EVERY = 10  # one in ten requests of the mix is a PUT
BATCH_LINES_MAX = 1000
BATCH_BYTES_MAX = 1 << 20  # of values in one body

Operation = Literal["put", "get", "stale", "mix", "batch"]
Dialect = Literal["raftkv", "etcd", "plain"]

OPERATION_NAMES: dict[Operation, str] = {
    "put": "PUT",
    "get": "GET linearizable",
    "stale": "GET stale",
    "mix": "90/10 mix",
    "batch": "batch PUT",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load. `connections` is the number of requests under way at once."""

    operation: Operation
    value_bytes: int
    connections: int

    @property
    def writes(self) -> bool:
        return self.operation in ("put", "mix", "batch")

    def __str__(self) -> str:
        plural = "s" if self.connections > 1 else ""
        return (
            f"{OPERATION_NAMES[self.operation]}, {self.value_bytes} B, {self.connections} connection{plural}"
        )


def key(number: int) -> str:
    return f"bench/{number:05d}"


def value(number: int, tag: str, size: int) -> str:
    """Exactly `size` ASCII characters, another text for each key and tag (as far as they fit)."""
    text = f"{tag}:{number:05d}."
    return (text * (size // len(text) + 1))[:size]


def request(method: str, target: str, body: str = "", content_type: str = "") -> bytes:
    """One HTTP/1.1 request on a connection that stays open."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if body or method in ("PUT", "POST"):
        lines.append(f"Content-Length: {len(body.encode())}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def with_header(whole: bytes, name: str, value: str) -> bytes:
    """The same request with one header more."""
    head, end, body = whole.partition(b"\r\n\r\n")
    return head + f"\r\n{name}: {value}".encode() + end + body


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def put(dialect: Dialect, number: int, tag: str, size: int) -> bytes:
    content = value(number, tag, size)
    if dialect == "etcd":
        document = json.dumps({"key": encoded(key(number)), "value": encoded(content)})
        return request("POST", "/v3/kv/put", document, "application/json")
    target = f"/v1/kv/{key(number)}" if dialect == "raftkv" else f"/{key(number)}"
    return request("PUT" if dialect == "raftkv" else "POST", target, content)


def get(dialect: Dialect, number: int, *, stale: bool) -> bytes:
    if dialect == "etcd":
        document = json.dumps({"key": encoded(key(number)), **({"serializable": True} if stale else {})})
        return request("POST", "/v3/kv/range", document, "application/json")
    if dialect == "plain":
        return request("GET", f"/{key(number)}")
    return request("GET", f"/v1/kv/{key(number)}" + ("?consistency=stale" if stale else ""))


def batch_lines(size: int) -> int:
    return min(BATCH_LINES_MAX, BATCH_BYTES_MAX // size)


def batch(tag: str, size: int) -> bytes:
    """The first keys as puts of one NDJSON body; only raftkv has that."""
    lines = (
        json.dumps({"op": "put", "key": key(each), "value": value(each, tag, size)}) + "\n"
        for each in range(batch_lines(size))
    )
    return request("POST", "/v1/batch", "".join(lines), "application/x-ndjson")


def requests(dialect: Dialect, case: Case, tag: str) -> list[bytes]:
    """The list that goes round and round. `tag` makes this case's values differ from every other's."""
    size = case.value_bytes
    match case.operation:
        case "put":
            return [put(dialect, number, tag, size) for number in range(KEYS)]
        case "get" | "stale":
            stale = case.operation == "stale"
            return [get(dialect, number, stale=stale) for number in range(KEYS)]
        case "mix":
            return [
                get(dialect, number, stale=False)
                if number % MIX_WRITE_EVERY
                else put(dialect, number, tag, size)
                for number in range(KEYS)
            ]
        case "batch":
            return [batch(tag, size)]


def operations_a_request(case: Case) -> int:
    return batch_lines(case.value_bytes) if case.operation == "batch" else 1


def written(case: Case, requests_done: int) -> range:
    """Numbers of a few keys that the first `requests_done` requests of the list have surely written."""
    match case.operation:
        case "put":
            return range(min(5, requests_done, KEYS))
        case "mix":
            return range(0, min(5 * MIX_WRITE_EVERY, requests_done, KEYS), MIX_WRITE_EVERY)
        case "batch":
            return range(5 if requests_done else 0)
        case _:
            return range(0)


def writes_expected(case: Case, requests_done: int) -> int:
    """The least number of writes that a server has made when it answered so many requests."""
    match case.operation:
        case "put":
            return requests_done
        case "mix":
            return requests_done // MIX_WRITE_EVERY
        case "batch":
            return requests_done * operations_a_request(case)
        case _:
            return 0


def pack(items: Sequence[bytes]) -> bytes:
    """For wrk.lua: each as its length in ASCII, a newline, and its bytes."""
    return b"".join(b"%d\n%s" % (len(item), item) for item in items)
