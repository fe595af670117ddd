"""The Python client, asynchronous (`Client`) and synchronous (`SyncClient`).

    async with Client("http://127.0.0.1:8400,http://127.0.0.1:8410") as client:
        await client.put("hello", b"world")
        print((await client.get("hello")).value)

Over TLS: `Client("https://10.0.0.1:8400", tls=tls_context(Path("ca.pem")))`.

It finds the leader and follows redirects itself. It tries again what certainly was not applied, and what
may have been applied only where that is harmless: reads, and writes under an idempotency key, which every
write carries unless told otherwise. So an error's `outcome` can be believed.

    answers.py       results and errors                             PURE
    cache.py         values read, how old they are, own writes      PURE
    retry.py         the course of a request over its attempts      PURE
    asynchronous.py  connections, clock, the calls
    bulk.py          batch and export streams
    synchronous.py   the same calls for code without a loop
"""

from raftkv.client.answers import (
    Appended,
    BadRequest,
    ClientError,
    Deleted,
    Incremented,
    Item,
    NotARaftkv,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    Problem,
    StreamCut,
    TransactionResult,
    Unavailable,
    Value,
    Written,
)
from raftkv.client.asynchronous import DEFAULT_ENDPOINTS, Client, parse_endpoints
from raftkv.client.bulk import LineResult
from raftkv.client.synchronous import SyncClient
from raftkv.tls.credentials import client_context as tls_context

__all__ = [
    "DEFAULT_ENDPOINTS",
    "Appended",
    "BadRequest",
    "Client",
    "ClientError",
    "Deleted",
    "Incremented",
    "Item",
    "LineResult",
    "NotARaftkv",
    "NotFound",
    "OutcomeUnknown",
    "PreconditionFailed",
    "Problem",
    "StreamCut",
    "SyncClient",
    "TransactionResult",
    "Unavailable",
    "Value",
    "Written",
    "parse_endpoints",
    "tls_context",
]
