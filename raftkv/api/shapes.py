"""What bodies look like, with an example of each, for the OpenAPI document. PURE.

Whatever has a type in the code takes its schema from that type; the rest stands here. A test compares
what live nodes answer with these schemas, and each example with its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from raftkv.api.alarms import Alarm
from raftkv.api.bodies import LineBody, TransactionBody
from raftkv.api.members import MemberBody, TransferBody
from raftkv.api.tokens import CreateBody
from raftkv.raft.membership import Quorum
from raftkv.raft.status import NodeStatus, PeerStatus

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
WHOLE: Json = {"type": "integer", "format": "int64", "minimum": 0}
NUMBER: Json = {"type": "integer", "format": "int64"}
YES_OR_NO: Json = {"type": "boolean"}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Json) -> Json:
    return {"type": "array", "items": items}


def nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def record(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _of_types(*types: type) -> dict[str, Json]:
    _, made = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return made


REVISION = {"revision": WHOLE}
PREVIOUS = {"prev": {**nullable(ref("Item")), "description": "Where ?prev=true asked for it; null: absent."}}
SNAPSHOT = {
    "id": TEXT,
    "index": WHOLE,
    "term": WHOLE,
    "revision": WHOLE,
    "time": {"type": "string", "format": "date-time"},
    "bytes": {**WHOLE, "description": "As it is stored."},
    "keys": WHOLE,
    "sha256": TEXT,
    "state_hash": TEXT,
}

TIME: Json = {"type": "string", "format": "date-time"}
TOKEN = {
    "id": TEXT,
    "name": TEXT,
    "grants": listed(record({"role": {"enum": ["read", "write", "admin"]}, "prefix": TEXT})),
    "rate": {**WHOLE, "description": "Operations a second on each node; 0: no limit."},
    "created": TIME,
    "created_by": {**nullable(TEXT), "description": "The id of the token that asked for it."},
    "expires": nullable(TIME),
    "expired": YES_OR_NO,
}

SCHEMAS: dict[str, Json] = {
    "Item": record(
        {
            "key": TEXT,
            "content_type": TEXT,
            "create_revision": WHOLE,
            "mod_revision": WHOLE,
            "version": WHOLE,
        },
        {
            "value": {"type": "string", "description": "Where it is UTF-8."},
            "base64": {"type": "string", "description": "Where it is not."},
        },
    ),
    "Written": record(REVISION, PREVIOUS),
    "Deleted": record({**REVISION, "deleted": WHOLE}, PREVIOUS),
    "Appended": record({**REVISION, "length": {**WHOLE, "description": "Bytes of the whole value now."}}),
    "Incremented": record({**REVISION, "value": NUMBER}),
    "Snapshot": record(SNAPSHOT),
    "Token": record(TOKEN),
    "Operation": record(
        {
            "id": TEXT,
            "kind": TEXT,
            "state": {"type": "string", "enum": ["running", "done", "failed"]},
            "progress": {"type": "number", "minimum": 0, "maximum": 1},
            "result": {"description": "null until it is done."},
            "detail": {"type": "string", "description": "Why it failed."},
        }
    ),
    "Security": record(
        {
            "tls": {**YES_OR_NO, "description": "On the API's port."},
            "peer_tls": {**YES_OR_NO, "description": "Between members."},
            "auth": TEXT,
            "certificates": listed(
                record({"use": TEXT, "names": listed(TEXT), "not_after": TEXT, "seconds_left": NUMBER})
            ),
            "reload_problems": listed(TEXT),
        }
    ),
    "Health": record(
        {"status": {"const": "ok"}},
        {"checks": listed(record({"name": TEXT, "ok": YES_OR_NO, "detail": TEXT}))},
    ),
    **_of_types(NodeStatus, PeerStatus, Alarm, TransactionBody, LineBody),
    **_of_types(TransferBody, MemberBody, Quorum, CreateBody),
    "MembershipChange": record({"dry_run": YES_OR_NO, "before": ref("Quorum"), "after": ref("Quorum")}),
}


ITEM: Json = {
    "key": "hello",
    "value": "world",
    "content_type": "text/plain",
    "create_revision": 57,
    "mod_revision": 57,
    "version": 1,
}
TOKEN_EXAMPLE: Json = {
    "id": "5f0d4c7a91b2e836",
    "name": "ci",
    "grants": [{"role": "write", "prefix": "builds/"}],
    "rate": 100,
    "created": "2026-11-23T17:58:22Z",
    "created_by": "9b1f0c2a77e4d653",
    "expires": None,
    "expired": False,
}
SNAPSHOT_EXAMPLE: Json = {
    "id": "0000000000000637-00000001-r63666-20261123T175822.430Z-2f5d1edc",
    "index": 637,
    "term": 1,
    "revision": 63666,
    "time": "2026-11-23T17:58:22.430Z",
    "bytes": 13710546,
    "keys": 63666,
    "sha256": "34604461c843fdcb753f8c65cfc5e2d71d2005bd95dd3a914c2ae4e6127a5782",
    "state_hash": "f869b5f214d53aee65dede48bbfb90de",
}
OPERATION_EXAMPLE: Json = {
    "id": "snapshot-1",
    "kind": "snapshot",
    "state": "running",
    "progress": 0.0,
    "result": None,
    "detail": "",
}
STANDING: Json = {"voters": ["n1", "n2", "n3"], "learners": [], "quorum": 2, "reachable": 3, "tolerance": 1}
MEMBERSHIP_CHANGE_EXAMPLE: Json = {
    "dry_run": False,
    "before": STANDING,
    "after": STANDING | {"learners": ["n4"]},
}
MEMBER: Json = {
    "name": "n2",
    "peer": "10.0.0.2:8401",
    "client_url": "http://10.0.0.2:8400",
    "role": "follower",
    "match_index": 1206,
    "lag": 0,
    "reachable": True,
    "last_contact_ms": 41,
}
ROOM = record(
    {
        "refusing": {
            **listed({"enum": ["quota", "disk", "memory"]}),
            "description": "What there is too little of for writes that grow.",
        },
        "quota_bytes": {**WHOLE, "description": "What `bytes` may come to; 0: anything."},
        "disk_free_bytes": nullable(WHOLE),
        "disk_free_bytes_min": WHOLE,
        "memory_available_bytes": nullable(WHOLE),
        "memory_available_bytes_min": WHOLE,
        "memory_resident_bytes": nullable(WHOLE),
    }
)
STATUS: Json = {
    "name": "n1",
    "cluster_id": "a39f7368beda347861f1e7c072913d45",
    "role": "leader",
    "term": 3,
    "leader": "n1",
    "leader_url": "http://10.0.0.1:8400",
    "commit_index": 1206,
    "applied_index": 1206,
    "journal": {
        "first_index": 638,
        "last_index": 1206,
        "last_term": 3,
        "durable_index": 1206,
        "bytes": 16777216,
        "segments": 1,
        "sync_ms_last": 0.4,
    },
    "snapshot": {
        "id": "0000000000000637-00000001-r63666-20261123T175822.430Z-2f5d1edc",
        "index": 637,
        "term": 1,
        "bytes": 13710546,
        "state": "idle",
        "store": "/var/lib/raftkv/snapshots",
    },
    "peers": [MEMBER],
    "ready": True,
    "ready_reason": "",
    "started": True,
    "draining": False,
    "protocol_level": 1,
    "time": 1763920702.4,
    "alarms": [],
    "room": {
        "refusing": [],
        "quota_bytes": 0,
        "disk_free_bytes": 64424509440,
        "disk_free_bytes_min": 67108864,
        "memory_available_bytes": 8589934592,
        "memory_available_bytes_min": 67108864,
        "memory_resident_bytes": 157286400,
    },
    "security": {"tls": False, "peer_tls": False, "auth": "off", "certificates": [], "reload_problems": []},
    "revision": 64235,
    "keys": 63666,
    "bytes": 52000000,
    "version": "0.1.0",
    "acknowledged_means": "fsynced on a majority of the members, the leader among them",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A JSON body, or text where `schema` is `TEXT`."""

    schema: Json
    example: Any


# What a 2xx is, by the route's name: JSON, and where the route streams lines, those.
ANSWERS: dict[str, Shape] = {
    "get_key": Shape(ref("Item"), ITEM),
    "put_key": Shape(ref("Written"), {"revision": 57}),
    "delete_key": Shape(ref("Deleted"), {"revision": 58, "deleted": 1}),
    "change_key": Shape(
        {"oneOf": [ref("Appended"), ref("Incremented")]},
        {"revision": 59, "value": 42},
    ),
    "list_keys": Shape(
        record(
            {
                **REVISION,
                "items": listed(ref("Item")),
                "next_cursor": {
                    **nullable(TEXT),
                    "description": "For the next page; null: this is the last.",
                },
            },
            {"prefixes": {**listed(TEXT), "description": "With ?delimiter=."}},
        ),
        {"revision": 57, "items": [ITEM], "next_cursor": None},
    ),
    "delete_prefix": Shape(
        record({**REVISION, "deleted": WHOLE, "more": YES_OR_NO}),
        {"revision": 60, "deleted": 12, "more": False},
    ),
    "transact": Shape(
        record(
            {
                "succeeded": {**YES_OR_NO, "description": "Whether every comparison held."},
                **REVISION,
                "responses": {
                    **listed(nullable({"type": "object"})),
                    "description": "As single calls answer, in order; null: a get of an absent key.",
                },
            }
        ),
        {"succeeded": True, "revision": 61, "responses": [{"revision": 61}, {"revision": 61, "deleted": 1}]},
    ),
    "status": Shape(
        {
            "allOf": [
                ref("NodeStatus"),
                record(
                    {
                        "time": {"type": "number", "description": "This node's clock, in Unix seconds."},
                        "alarms": listed(ref("Alarm")),
                        "room": ROOM,
                        "security": ref("Security"),
                        "revision": WHOLE,
                        "keys": WHOLE,
                        "bytes": WHOLE,
                        "version": TEXT,
                        "acknowledged_means": TEXT,
                    }
                ),
            ]
        },
        STATUS,
    ),
    "limits": Shape(
        record(
            {
                "limits": listed(
                    record(
                        {
                            "name": TEXT,
                            "value": NUMBER,
                            "default": NUMBER,
                            "unit": TEXT,
                            "flag": TEXT,
                            "help": TEXT,
                        }
                    )
                )
            }
        ),
        {
            "limits": [
                {
                    "name": "value_bytes_max",
                    "value": 1048576,
                    "default": 1048576,
                    "unit": "bytes",
                    "flag": "--value-bytes-max",
                    "help": "Bytes of a value; more belongs in an object store.",
                }
            ]
        },
    ),
    "cluster": Shape(
        record(
            {
                "cluster_id": TEXT,
                "term": WHOLE,
                "leader": nullable(TEXT),
                "quorum": WHOLE,
                "voters": WHOLE,
                "reachable": WHOLE,
                "failures_tolerated": {**WHOLE, "description": "Members that may still go, as things are."},
                "members": listed(ref("PeerStatus")),
            }
        ),
        {
            "cluster_id": "a39f7368beda347861f1e7c072913d45",
            "term": 3,
            "leader": "n1",
            "quorum": 2,
            "voters": 3,
            "reachable": 3,
            "failures_tolerated": 1,
            "members": [MEMBER],
        },
    ),
    "add_member": Shape(ref("MembershipChange"), MEMBERSHIP_CHANGE_EXAMPLE),
    "remove_member": Shape(ref("MembershipChange"), MEMBERSHIP_CHANGE_EXAMPLE),
    "promote_member": Shape(ref("MembershipChange"), MEMBERSHIP_CHANGE_EXAMPLE),
    "transfer_leadership": Shape(
        record({"leader": nullable(TEXT), "term": WHOLE}),
        {"leader": "n2", "term": 4},
    ),
    "list_tokens": Shape(
        record({**REVISION, "tokens": listed(ref("Token"))}), {"revision": 57, "tokens": [TOKEN_EXAMPLE]}
    ),
    "create_token": Shape(
        record({**TOKEN, **REVISION, "token": {**TEXT, "description": "Here and nowhere else."}}),
        {
            **TOKEN_EXAMPLE,
            "token": f"rkv_{TOKEN_EXAMPLE['id']}_" + "0123456789abcdef" * 4,
            "revision": 57,
        },
    ),
    "revoke_token": Shape(
        record({**REVISION, "revoked": TEXT}), {"revision": 58, "revoked": TOKEN_EXAMPLE["id"]}
    ),
    "list_snapshots": Shape(
        record({"snapshots": listed(ref("Snapshot"))}), {"snapshots": [SNAPSHOT_EXAMPLE]}
    ),
    "create_snapshot": Shape(ref("Operation"), OPERATION_EXAMPLE),
    "get_snapshot": Shape(
        record(
            {
                **SNAPSHOT,
                "cluster": TEXT,
                "members": listed(TEXT),
                "data_bytes": WHOLE,
                "raw_bytes": WHOLE,
                "idempotency_records": WHOLE,
                "chunks": WHOLE,
            }
        ),
        {
            **SNAPSHOT_EXAMPLE,
            "cluster": "2f5d1edc0f5be9a6f8b7b0ce59a1dc6e",
            "members": ["n1", "n2", "n3"],
            "data_bytes": 50163761,
            "raw_bytes": 53902112,
            "idempotency_records": 0,
            "chunks": 7,
        },
    ),
    "delete_snapshot": Shape(record({"deleted": TEXT}), {"deleted": SNAPSHOT_EXAMPLE["id"]}),
    "verify_snapshot": Shape(
        ref("Operation"),
        OPERATION_EXAMPLE | {"id": "verify-" + SNAPSHOT_EXAMPLE["id"] + "-2", "kind": "verify"},
    ),
    "get_operation": Shape(
        ref("Operation"), OPERATION_EXAMPLE | {"state": "done", "progress": 1.0, "result": SNAPSHOT_EXAMPLE}
    ),
    "livez": Shape(ref("Health"), {"status": "ok"}),
    "readyz": Shape(
        ref("Health"),
        {"status": "ok", "checks": [{"name": "linearizable_read", "ok": True, "detail": "it succeeded"}]},
    ),
    "startupz": Shape(ref("Health"), {"status": "ok"}),
    "openapi": Shape({"type": "object"}, {"openapi": "3.1.0"}),
}

LINES: dict[str, str] = {
    "list_keys": msgspec.json.encode(ITEM).decode() + "\n",
    "batch": '{"status":201,"revision":57}\n{"status":200,"revision":58,"value":42}\n'
    '{"status":412,"code":"precondition_failed","outcome":"not_applied","retryable":false,'
    '"detail":"nothing was written: the condition on the key does not hold, '
    'its mod_revision is 57"}\n',
    "export": msgspec.json.encode(ITEM).decode() + '\n{"_end":true,"count":1,"revision":57,"sha256":'
    '"018c4fd58dd197d3f54cfd3c30970608cb3762047231bbc0ef926a50223ab782"}\n',
}

# What goes in.
BODIES: dict[str, Shape] = {
    "put_key": Shape(TEXT, "world"),
    "change_key": Shape(TEXT, "a line\n"),
    "transact": Shape(
        ref("TransactionBody"),
        {
            "compare": [{"key": "lock", "target": "value", "op": "==", "value": "me"}],
            "success": [{"put": {"key": "job/1", "value": "done"}}, {"delete": {"key": "lock"}}],
            "failure": [{"get": {"key": "lock"}}],
        },
    ),
    "batch": Shape(
        ref("LineBody"),
        '{"op":"put","key":"hello","value":"world"}\n{"op":"incr","key":"visits","by":1}\n'
        '{"op":"put","key":"hello","value":"moon","if_revision":56}\n',
    ),
    "add_member": Shape(
        ref("MemberBody"),
        {
            "name": "n4",
            "peer": "10.0.0.4:8401",
            "client_url": "http://10.0.0.4:8400",
            "auto_promote": True,
        },
    ),
    "transfer_leadership": Shape(ref("TransferBody"), {"to": "n2"}),
    "create_token": Shape(
        ref("CreateBody"),
        {"name": "ci", "grants": [{"role": "write", "prefix": "builds/"}], "rate": 100},
    ),
}

# What a problem says, by its code: sentences that nodes gave. A code without one says its title.
PROBLEM_DETAILS: dict[str, str] = {
    "bad_request": "query parameter consistency: 'sometimes' is not allowed; allowed is linearizable or "
    "stale",
    "body_too_large": "body: it has 5242880 bytes; at most 4194304 are allowed (--body-bytes-max)",
    "draining": "this node is shutting down and takes no more writes; try another node",
    "forbidden": "token 5f0d4c7a91b2e836:ci has no read for the key or prefix 'secrets/db'; it has read for "
    "the prefixes nothing",
    "headers_too_large": "the headers have more than 32768 bytes (--header-bytes-max)",
    "http_version": "HTTP/0.9 is not supported; allowed: HTTP/1.1, HTTP/1.0",
    "idempotency_mismatch": "this idempotency key came before with a different request; use a new key for a "
    "new request",
    "key_not_found": "no key 'hello' at revision 57",
    "key_too_large": "path: key: the key has 4097 bytes; at most 4096 are allowed (--key-bytes-max)",
    "method_not_allowed": "/v1/kv/{key} does not take PATCH; allowed: DELETE, GET, HEAD, POST, PUT",
    "change_in_flight": "the last change of membership is not committed yet; one at a time, so try again "
    "shortly",
    "member_exists": "n2 is a member of this cluster already. If its disk is lost, remove it and add it "
    "again",
    "quorum_at_risk": "n1 is the only voter: without it there is no cluster",
    "last_admin": "it is the last administrator of every key that never expires; make another one first",
    "no_leader": "no leader is known to this node; nothing was written, try again shortly",
    "no_such_member": "the cluster has no member n9; it has n1, n2, n3",
    "no_such_operation": "no operation 'snapshot-9' on this node; the last 100 are kept",
    "no_such_route": "there is nothing at '/v2'; keys are at /v1/kv/KEY, and /openapi.json and /docs say "
    "what else there is",
    "not_implemented": "method 'PROPFIND' is not implemented; allowed: DELETE, GET, HEAD, POST, PUT",
    "precondition_failed": "nothing was written: the condition on the key does not hold, its mod_revision is "
    "57",
    "quota_exceeded": "keys and values have 104857588 bytes; with this write they would have more than the "
    "quota of 104857600 (--quota-bytes): delete keys, which always passes, or raise it",
    "rate_limited": "this token may do 100 operations a second on a node; try again in 0.010 s",
    "token_not_found": "there is no token with the id '5f0d4c7a91b2e836'",
    "unauthenticated": "this cluster wants a token: send `Authorization: Bearer TOKEN`",
    "unsupported_media_type": "header Content-Encoding: 'gzip' is not supported; allowed is identity, or "
    "none",
    "value_too_large": "body: the value has 2097152 bytes; at most 1048576 are allowed (--value-bytes-max)",
}
