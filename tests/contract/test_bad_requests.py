"""Broken requests: each gets the right status and a problem that says what is wrong and what is allowed,
and the node goes on.

A case is what a client sends, the status and code of the answer, and words that its detail must hold. Where
the bytes themselves are broken, the case is the bytes.
"""

# ruff: noqa: E501  # tables: one case a line where it fits

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.contract.plain import Http, request

MIB = 1 << 20
JSON = ("Content-Type", "application/json")


@dataclass(frozen=True)
class Bad:
    what: str
    raw: bytes = field(repr=False)
    status: int = 400
    code: str = "bad_request"
    says: Sequence[str] = ()
    half_close: bool = False
    method: str = "GET"


def bad(
    what: str,
    method: str,
    target: str | bytes,
    *says: str,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    status: int = 400,
    code: str = "bad_request",
) -> Bad:
    return Bad(what, request(method, target, headers, body), status, code, says, method=method)


def raw(
    what: str, data: bytes, *says: str, status: int = 400, code: str = "bad_request", half: bool = False
) -> Bad:
    return Bad(what, data, status, code, says, half)


def txn(what: str, body: str | bytes, *says: str, status: int = 400, code: str = "bad_request") -> Bad:
    encoded = body.encode() if isinstance(body, str) else body
    return bad(
        "txn: " + what, "POST", "/v1/txn", *says, headers=[JSON], body=encoded, status=status, code=code
    )


def header(what: str, method: str, name: str, value: str, *says: str) -> Bad:
    body = b"v" if method in ("PUT", "POST") else None
    return bad(what, method, "/v1/kv/a", name, *says, headers=[(name, value)], body=body)


HOST = b"Host: test\r\n"
LONG_KEY = "k" * 4097

PATHS_AND_KEYS = [
    bad("no such route", "GET", "/nothing/here", "/v1/kv/KEY", status=404, code="no_such_route"),
    bad("no such route below /v1", "POST", "/v1/nothing", "/openapi.json", status=404, code="no_such_route"),
    bad("a version to come", "GET", "/v2/kv/a", "/v1/kv/KEY", status=404, code="no_such_route"),
    bad(
        "a route with a slash too many", "GET", "/v1/status/", "/v1/status/", status=404, code="no_such_route"
    ),
    bad(
        "a route's path percent-encoded",
        "GET",
        "/v1/%73tatus",
        "nothing at",
        status=404,
        code="no_such_route",
    ),
    bad("a route's name in capitals", "GET", "/V1/status", "nothing at", status=404, code="no_such_route"),
    bad("an id with a slash", "GET", "/v1/operations/a/b", "nothing at", status=404, code="no_such_route"),
    bad("no such operation", "GET", "/v1/operations/zap-1", "zap-1", status=404, code="no_such_operation"),
    bad("a chunk that is no number", "GET", "/v1/snapshots/s1/chunks/one", "'one'", "0, 1, 2"),
    bad("a chunk below 0", "GET", "/v1/snapshots/s1/chunks/-1", "'-1'", "0, 1, 2"),
    bad("empty key", "GET", "/v1/kv/", "empty", "1 to 4096"),
    bad("empty key on a write", "PUT", "/v1/kv/", "empty", "1 to 4096", body=b"v"),
    bad("empty key in the query", "GET", "/v1/kv?key=", "query parameter key", "empty"),
    bad("a write without a key", "PUT", "/v1/kv", "/v1/kv?key=KEY", body=b"v"),
    bad("an append without a key", "POST", "/v1/kv?op=append", "/v1/kv?key=KEY", body=b"v"),
    bad("half a percent sign", "GET", "/v1/kv/a%", "percent-encoding", "two hexadecimal digits"),
    bad("half a percent-encoding", "GET", "/v1/kv/a%4", "percent-encoding", "'%4'"),
    bad("no hexadecimal digits", "GET", "/v1/kv/a%zz", "'%zz'", "two hexadecimal digits", "byte 1"),
    bad("bad percent-encoding on a write", "PUT", "/v1/kv/%G0", "percent-encoding", body=b"v"),
    bad("a key that is not UTF-8", "GET", "/v1/kv/%ff", "UTF-8", "byte 0"),
    bad("an overlong encoding", "GET", "/v1/kv/%c0%af", "UTF-8"),
    bad("half a surrogate pair", "GET", "/v1/kv/a%ed%a0%80", "UTF-8", "byte 1"),
    bad("half a character", "PUT", "/v1/kv/%e2%82", "UTF-8", body=b"v"),
    bad("raw bytes that are not UTF-8", "GET", b"/v1/kv/\xff\xfe", "UTF-8"),
    bad("a fragment", "GET", "/v1/kv/a#b", "%23"),
    bad(
        "long key",
        "GET",
        "/v1/kv/" + LONG_KEY,
        "4097",
        "4096",
        "--key-bytes-max",
        status=414,
        code="key_too_large",
    ),
    bad(
        "long key on a write",
        "PUT",
        "/v1/kv/" + LONG_KEY,
        "4096",
        body=b"v",
        status=414,
        code="key_too_large",
    ),
    bad("long key, encoded", "DELETE", "/v1/kv/" + "%C3%A9" * 2049, "4098", status=414, code="key_too_large"),
    bad("long key in the query", "GET", "/v1/kv?key=" + LONG_KEY, "4096", status=414, code="key_too_large"),
    bad(
        "long prefix", "GET", "/v1/kv?prefix=" + LONG_KEY, "prefix", "4096", status=414, code="key_too_large"
    ),
]

METHODS = [
    bad(
        "method not allowed on a key",
        "PATCH",
        "/v1/kv/a",
        "PATCH",
        "PUT",
        status=405,
        code="method_not_allowed",
    ),
    bad("OPTIONS", "OPTIONS", "/v1/kv/a", "OPTIONS", "GET", status=405, code="method_not_allowed"),
    bad("TRACE", "TRACE", "/v1/kv/a", "TRACE", status=405, code="method_not_allowed"),
    bad(
        "PUT of the status", "PUT", "/v1/status", "GET, HEAD", status=405, code="method_not_allowed", body=b""
    ),
    bad(
        "POST of an export",
        "POST",
        "/v1/export",
        "GET, HEAD",
        status=405,
        code="method_not_allowed",
        body=b"",
    ),
    bad("GET of a transaction", "GET", "/v1/txn", "POST", status=405, code="method_not_allowed"),
    bad("GET of a batch", "GET", "/v1/batch", "POST", status=405, code="method_not_allowed"),
    bad("PATCH of the store", "PATCH", "/v1/kv", "DELETE", "PUT", status=405, code="method_not_allowed"),
    bad("a method of WebDAV", "PROPFIND", "/v1/kv/a", "PROPFIND", "GET", status=501, code="not_implemented"),
    bad(
        "a method that nobody knows", "FETCH", "/v1/kv/a", "FETCH", "GET", status=501, code="not_implemented"
    ),
    bad(
        "a member without addresses",
        "POST",
        "/v1/cluster/members",
        "body",
        "peer",
        '{"name": NAME',
        headers=[JSON],
        body=b'{"name": "n4"}',
    ),
    bad(
        "a member with a bad name",
        "POST",
        "/v1/cluster/members",
        "body.name",
        "'n 4'",
        "A-Z a-z 0-9",
        headers=[JSON],
        body=b'{"name": "n 4", "peer": "h:1", "client_url": "http://h:2"}',
    ),
    bad(
        "a member without a raft port",
        "POST",
        "/v1/cluster/members",
        "body.peer",
        "'h'",
        "HOST:PORT",
        headers=[JSON],
        body=b'{"name": "n4", "peer": "h", "client_url": "http://h:2"}',
    ),
    bad(
        "a member with a URL with a path",
        "POST",
        "/v1/cluster/members",
        "body.client_url",
        "'http://h/p'",
        headers=[JSON],
        body=b'{"name": "n4", "peer": "h:1", "client_url": "http://h/p"}',
    ),
    bad(
        "a member that is one",
        "POST",
        "/v1/cluster/members",
        "n2",
        status=409,
        code="member_exists",
        headers=[JSON],
        body=b'{"name": "n2", "peer": "h:1", "client_url": "http://h:2"}',
    ),
    bad(
        "a member at another's address",
        "POST",
        "/v1/cluster/members",
        "10.0.0.2:1",
        "n2",
        headers=[JSON],
        body=b'{"name": "n4", "peer": "10.0.0.2:1", "client_url": "http://h:2"}',
    ),
    bad(
        "promotion of a stranger",
        "POST",
        "/v1/cluster/members/n4/promote",
        "n4",
        "n1, n2, n3",
        status=404,
        code="no_such_member",
    ),
    bad("promotion of a voter", "POST", "/v1/cluster/members/n2/promote", "n2", "voter already"),
    bad(
        "removal of a stranger",
        "DELETE",
        "/v1/cluster/members/n9?dry_run=true",
        "n9",
        status=404,
        code="no_such_member",
    ),
    bad(
        "removal of who is needed",
        "DELETE",
        "/v1/cluster/members/n2",
        "n3",
        status=409,
        code="quorum_at_risk",
    ),
    bad(
        "transfer to nobody",
        "POST",
        "/v1/cluster/leader",
        "n9",
        "n1",
        status=404,
        code="no_such_member",
        body=b'{"to": "n9"}',
        headers=[JSON],
    ),
    bad(
        "transfer that is no object",
        "POST",
        "/v1/cluster/leader",
        "body",
        '{"to": NAME}',
        body=b"[]",
        headers=[JSON],
    ),
    bad(
        "transfer with another field",
        "POST",
        "/v1/cluster/leader",
        "body",
        "from",
        body=b'{"from": "n1"}',
        headers=[JSON],
    ),
    bad(
        "transfer as a form",
        "POST",
        "/v1/cluster/leader",
        "application/json",
        status=415,
        code="unsupported_media_type",
        body=b"to=n1",
        headers=[("Content-Type", "text/plain")],
    ),
]

QUERIES = [
    bad("unknown parameter", "GET", "/v1/kv/a?zap=1", "'zap'", "consistency", "min_revision"),
    bad("unknown parameter on a write", "PUT", "/v1/kv/a?ttl=5", "'ttl'", "if_revision", body=b"v"),
    bad("unknown parameter of the list", "GET", "/v1/kv?perfix=a", "'perfix'", "prefix"),
    bad("a parameter where none is taken", "GET", "/v1/status?all=1", "'all'", "allowed: none"),
    bad("a list's parameter beside key", "GET", "/v1/kv?key=a&prefix=b", "'prefix'", "consistency"),
    bad("repeated parameter", "GET", "/v1/kv/a?consistency=stale&consistency=stale", "more than once"),
    bad("repeated key", "GET", "/v1/kv?key=a&key=b", "key", "more than once"),
    bad(
        "consistency that there is not",
        "GET",
        "/v1/kv/a?consistency=eventual",
        "'eventual'",
        "linearizable or stale",
    ),
    bad("empty consistency", "GET", "/v1/kv/a?consistency=", "linearizable or stale"),
    bad("consistency in capitals", "GET", "/v1/kv/a?consistency=STALE", "linearizable or stale"),
    bad("consistency without a value", "GET", "/v1/kv/a?consistency", "no value", "linearizable or stale"),
    bad("min_revision is no number", "GET", "/v1/kv/a?min_revision=x", "'x'", "whole number from 0"),
    bad("negative min_revision", "GET", "/v1/kv/a?min_revision=-1", "'-1'", "whole number from 0"),
    bad("min_revision beyond 64 bits", "GET", "/v1/kv/a?min_revision=9999999999999999999", "whole number"),
    bad("staleness of a linearizable read", "GET", "/v1/kv/a?max_staleness_ms=5", "consistency=stale"),
    bad("format that there is not", "GET", "/v1/kv/a?format=xml", "'xml'", "raw or json"),
    bad("timeout of zero", "PUT", "/v1/kv/a?timeout=0", "timeout", "seconds above 0", body=b"v"),
    bad("timeout beyond the limit", "PUT", "/v1/kv/a?timeout=1h", "timeout", "up to 60", body=b"v"),
    bad("timeout without end", "GET", "/v1/kv/a?timeout=inf", "'inf'", "seconds above 0"),
    bad("if_revision is no number", "PUT", "/v1/kv/a?if_revision=new", "'new'", "whole number", body=b"v"),
    bad("empty if_revision", "PUT", "/v1/kv/a?if_revision=", "if_revision", "whole number", body=b"v"),
    bad("prev is no boolean", "PUT", "/v1/kv/a?prev=maybe", "'maybe'", "true or false", body=b"v"),
    bad("bad percent-encoding in a value", "GET", "/v1/kv?prefix=%2", "prefix", "percent-encoding"),
    bad("bad UTF-8 in a value", "GET", "/v1/kv?prefix=%ff", "prefix", "UTF-8"),
    bad("bad percent-encoding in a name", "GET", "/v1/kv?%zz=1", "name", "percent-encoding"),
    bad("limit of zero", "GET", "/v1/kv?limit=0", "limit", "whole number from 1"),
    bad("limit above the limit", "GET", "/v1/kv?limit=1000000", "1 to 1000", "--list-items-max"),
    bad("limit is no number", "GET", "/v1/kv?limit=many", "'many'", "whole number"),
    bad("a cursor made up", "GET", "/v1/kv?cursor=abc", "cursor", "next_cursor"),
    bad("a cursor that is not base64", "GET", "/v1/kv?cursor=!!!", "cursor", "next_cursor"),
    bad("keys_only is no boolean", "GET", "/v1/kv?keys_only=yes", "'yes'", "true or false"),
    bad("delete of everything", "DELETE", "/v1/kv", "prefix", "all=true"),
    bad("delete of an empty prefix", "DELETE", "/v1/kv?prefix=", "prefix", "all=true"),
    bad("delete of all with a prefix", "DELETE", "/v1/kv?prefix=a&all=true", "all", "one of them"),
    bad("delete of too many", "DELETE", "/v1/kv?prefix=a&limit=10001", "10001", "--delete-keys-max"),
    bad("POST without an operation", "POST", "/v1/kv/a", "op", "append", body=b"v"),
    bad("unknown operation", "POST", "/v1/kv/a?op=zap", "'zap'", "append or incr", body=b"v"),
    bad("by is no number", "POST", "/v1/kv/a?op=incr&by=much", "'much'", "whole number"),
    bad("by beyond 64 bits", "POST", "/v1/kv/a?op=incr&by=9223372036854775808", "by", "whole number"),
    bad("by of an append", "POST", "/v1/kv/a?op=append&by=1", "by", "op=incr", body=b"v"),
    bad("dry_run is no boolean", "POST", "/v1/cluster/members?dry_run=2", "'2'", "true or false", body=b""),
]

HEADERS = [
    header("unquoted If-Match", "PUT", "If-Match", "57", "57", '"57"'),
    header("If-Match that is no revision", "PUT", "If-Match", '"abc"', '"57"'),
    header("weak If-Match", "PUT", "If-Match", 'W/"57"', "if_revision"),
    header("If-Match with half a quote", "DELETE", "If-Match", '"57', "entity tags"),
    header("empty If-Match", "DELETE", "If-Match", "", "entity tags"),
    header("If-None-Match of a revision on a write", "PUT", "If-None-Match", '"57"', "*"),
    header("unquoted If-None-Match on a read", "GET", "If-None-Match", "57", "entity tags"),
    header("long Idempotency-Key", "PUT", "Idempotency-Key", "k" * 129, "129", "1 to 128"),
    header("Idempotency-Key that is not ASCII", "PUT", "Idempotency-Key", "caf\xe9", "ASCII"),
    header("a route that there is not", "PUT", "Raftkv-Route", "nearest", "redirect, forward or local"),
    header("long Request-Id", "GET", "Request-Id", "r" * 129, "1 to 128"),
    header("Request-Id with a space", "GET", "Request-Id", "a b", "without spaces"),
    header("an expectation that nobody can meet", "PUT", "Expect", "200-ok", "100-continue"),
    header("Content-Type that is none", "PUT", "Content-Type", "text", "type/subtype"),
    header("Content-Type without an end", "PUT", "Content-Type", "a/" + "b" * 300, "type/subtype", "256"),
    bad("If-Match and If-None-Match", "PUT", "/v1/kv/a", "together", body=b"v",
        headers=[("If-Match", '"1"'), ("If-None-Match", "*")]),
    bad("If-Match against if_revision", "PUT", "/v1/kv/a?if_revision=3", "differ", body=b"v",
        headers=[("If-Match", '"4"')]),
    *(
        bad(f"{name} twice", "PUT", "/v1/kv/a", name, "once", body=b"v", headers=[(name, value), (name, value)])
        for name, value in [
            ("If-Match", '"1"'),
            ("If-None-Match", "*"),
            ("Idempotency-Key", "k"),
            ("Raftkv-Route", "local"),
            ("Request-Id", "r"),
            ("Expect", "100-continue"),
        ]
    ),
    bad("Content-Type twice", "PUT", "/v1/kv/a", "Content-Type", body=b"v", headers=[JSON, JSON]),
    bad("a compressed value", "PUT", "/v1/kv/a", "Content-Encoding", "identity", body=b"v",
        headers=[("Content-Encoding", "gzip")], status=415, code="unsupported_media_type"),
    bad("a transaction in XML", "POST", "/v1/txn", "application/xml", "application/json", body=b"<a/>",
        headers=[("Content-Type", "application/xml")], status=415, code="unsupported_media_type"),
    bad("a batch in XML", "POST", "/v1/batch", "application/x-ndjson", body=b"<a/>",
        headers=[("Content-Type", "application/xml")], status=415, code="unsupported_media_type"),
]  # fmt: skip

BODIES = [
    bad("2 MiB value", "PUT", "/v1/kv/a", "2097152", "1048576", "--value-bytes-max", body=b"v" * 2 * MIB,
        status=413, code="value_too_large"),
    bad("a byte too much", "PUT", "/v1/kv/a", "1048577", "1048576", body=b"v" * (MIB + 1),
        status=413, code="value_too_large"),
    bad("2 MiB to append", "POST", "/v1/kv/a?op=append", "1048576", body=b"v" * 2 * MIB,
        status=413, code="value_too_large"),
    bad("a value that says it is huge", "PUT", "/v1/kv/a", "99999999999", "--value-bytes-max",
        headers=[("Content-Length", "99999999999")], status=413, code="value_too_large"),
    raw("2 MiB value in chunks",
        request("PUT", "/v1/kv/a", [("Transfer-Encoding", "chunked")]) + (b"10000\r\n" + b"v" * 65536 + b"\r\n") * 32,
        "more than 1048576", "--value-bytes-max", status=413, code="value_too_large"),
    bad("a transaction of 5 MiB", "POST", "/v1/txn", "4194304", "--body-bytes-max", headers=[JSON],
        body=b" " * 5 * MIB, status=413, code="body_too_large"),
    bad("a body to a read", "GET", "/v1/kv/a", "no body", body=b"v"),
    bad("a body to a delete", "DELETE", "/v1/kv/a", "no body", body=b"v"),
    bad("a body to incr", "POST", "/v1/kv/a?op=incr", "no body", "by=1", body=b"5"),
    raw("half a body", request("PUT", "/v1/kv/a", [("Content-Length", "10")]) + b"five.",
        "5 bytes", "all of its 10 bytes", half=True),
    raw("half a transaction", request("POST", "/v1/txn", [JSON, ("Content-Length", "100")]) + b'{"compare": [',
        "100 bytes", half=True),
    raw("half a chunked body",
        request("PUT", "/v1/kv/a", [("Transfer-Encoding", "chunked")]) + b"5\r\nfive.\r\n5\r\nfi",
        "before the chunk that ends it", half=True),
    raw("a chunk without a size", request("PUT", "/v1/kv/a", [("Transfer-Encoding", "chunked")]) + b"zz\r\nxx\r\n",
        "chunked encoding"),
    raw("a chunk longer than it says",
        request("PUT", "/v1/kv/a", [("Transfer-Encoding", "chunked")]) + b"2\r\nfive.\r\n0\r\n\r\n",
        "chunked encoding"),
    raw("a chunk with a negative size",
        request("PUT", "/v1/kv/a", [("Transfer-Encoding", "chunked")]) + b"-5\r\nfive.\r\n", "chunked encoding"),
]  # fmt: skip

TRANSACTIONS = [
    txn("empty body", "", "empty", "compare, success, failure"),
    txn("not JSON", "put a 1", "JSON is malformed"),
    txn("nested too deeply", '{"success": [{"put": {"key": "a", "json": ' + "[" * 5000, "nested too deeply"),
    txn("half of it", '{"success": [', "body:"),
    txn("two documents", '{"success": []} {}', "trailing"),
    txn("not UTF-8", b'{"success": [{"get": {"key": "\xff"}}]}', "UTF-8"),
    txn("a list", "[]", "expected `object`"),
    txn("a number", "5", "expected `object`"),
    txn("no operations at all", "{}", "empty"),
    txn("unknown member", '{"then": []}', "`then`", "compare, success, failure"),
    txn("success is no list", '{"success": {}}', ".success", "`array`"),
    txn("an operation is text", '{"success": ["put"]}', "success[0]", "expected `object`"),
    txn("unknown operation", '{"success": [{"zap": {"key": "a"}}]}', "`zap`", "put, delete, get, append, incr"),
    txn("two operations in one", '{"success": [{"get": {"key": "a"}, "delete": {"key": "a"}}]}', "success[0]", "2"),
    txn("no operation in one", '{"success": [{}]}', "success[0]", "0 operations"),
    txn("a put without a key", '{"success": [{"put": {"value": "1"}}]}', ".put", "`key`"),
    txn("a put without a value", '{"success": [{"put": {"key": "a"}}]}', "success[0].put", "value and base64"),
    txn("a put with two values", '{"success": [{"put": {"key": "a", "value": "1", "base64": "MQ=="}}]}', "twice"),
    txn("a put with a document and a value", '{"success": [{"put": {"key": "a", "value": "1", "json": 1}}]}', "twice"),
    txn("a misspelt member of put", '{"success": [{"put": {"key": "a", "vlaue": "1"}}]}', "`vlaue`", "content_type"),
    txn("a key that is a number", '{"success": [{"get": {"key": 5}}]}', ".get.key", "`str`"),
    txn("a value that is a number", '{"success": [{"put": {"key": "a", "value": 5}}]}', ".put.value", "`str`"),
    txn("an empty key", '{"failure": [{"get": {"key": ""}}]}', "failure[0].get.key", "empty"),
    txn("a long key", '{"success": [{"get": {"key": "' + LONG_KEY + '"}}]}', "4096", status=414, code="key_too_large"),
    txn("half a surrogate pair", '{"success": [{"get": {"key": "\\ud800"}}]}', "body"),
    txn("bad base64", '{"success": [{"put": {"key": "a", "base64": "*"}}]}', "base64", "alphabet"),
    txn("a large value", '{"success": [{"put": {"key": "a", "value": "%s"}}]}' % ("v" * 2 * MIB), "success[0].put",
        "--value-bytes-max", status=413, code="value_too_large"),
    txn("by is text", '{"success": [{"incr": {"key": "a", "by": "1"}}]}', ".incr.by", "`int`"),
    txn("by beyond 64 bits", '{"success": [{"incr": {"key": "a", "by": 99999999999999999999}}]}', "by"),
    txn("a content type that is none", '{"success": [{"put": {"key": "a", "value": "1", "content_type": "x"}}]}',
        "content_type", "type/subtype"),
    txn("unknown target", '{"compare": [{"key": "a", "target": "age", "op": "==", "value": 1}]}', "'age'",
        "mod_revision"),
    txn("unknown comparison", '{"compare": [{"key": "a", "target": "version", "op": "=>", "value": 1}]}', "'=>'", "!="),
    txn("no target", '{"compare": [{"key": "a", "op": "==", "value": 1}]}', "compare[0]", "`target`"),
    txn("no value", '{"compare": [{"key": "a", "target": "value", "op": "=="}]}', "compare[0].value", "nothing"),
    txn("text for a revision", '{"compare": [{"key": "a", "target": "mod_revision", "op": "==", "value": "1"}]}',
        "compare[0].value", "whole number"),
    txn("true for a revision", '{"compare": [{"key": "a", "target": "version", "op": "==", "value": true}]}',
        "compare[0].value", "true", "whole number"),
    txn("a negative revision", '{"compare": [{"key": "a", "target": "version", "op": "==", "value": -1}]}', "-1"),
    txn("a number for a value", '{"compare": [{"key": "a", "target": "value", "op": "==", "value": 1}]}',
        "compare[0].value", "text, or base64"),
    txn("a number for exists", '{"compare": [{"key": "a", "target": "exists", "op": "==", "value": 1}]}',
        "true or false"),
    txn("an order of exists", '{"compare": [{"key": "a", "target": "exists", "op": "<", "value": true}]}',
        "compare[0].op", "== or !="),
    txn("129 operations", '{"success": [' + ", ".join(['{"get": {"key": "a"}}'] * 129) + "]}", "129", "128",
        "--transaction-operations-max", status=413, code="body_too_large"),
]  # fmt: skip

BYTES = [
    raw("no HTTP at all", b"hello\r\n\r\n", "HTTP/1.1"),
    raw("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS", "http://"),
    raw("zeros", b"\x00" * 64, "HTTP/1.1"),
    raw("an SSH client", b"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1"),
    raw("no version", b"GET /v1/status\r\n\r\n", "HTTP/1.1", status=505, code="http_version"),
    raw("HTTP/2 without upgrade", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2.0", "HTTP/1.1", status=505,
        code="http_version"),
    raw("an HTTP to come", b"GET /v1/status HTTP/3.0\r\n" + HOST + b"\r\n", "HTTP/3.0", status=505,
        code="http_version"),
    raw("a version long gone", b"GET /v1/status HTTP/0.9\r\n" + HOST + b"\r\n", "HTTP/0.9", status=505,
        code="http_version"),
    raw("a version that is none", b"GET /v1/status HTTP/x\r\n" + HOST + b"\r\n", "HTTP/1.1"),
    raw("another protocol", b"GET /v1/status ICY/1.0\r\n" + HOST + b"\r\n", "HTTP/1.1"),
    raw("no Host", b"GET /v1/status HTTP/1.1\r\n\r\n", "Host"),
    raw("Host twice", b"GET /v1/status HTTP/1.1\r\n" + HOST + HOST + b"\r\n", "Host"),
    raw("a target that is no path", b"GET v1/status HTTP/1.1\r\n" + HOST + b"\r\n", "HTTP/1.1"),
    raw("a space in the target", b"GET /v1/kv/a b HTTP/1.1\r\n" + HOST + b"\r\n", "HTTP/1.1"),
    raw("a control character in the target", b"GET /v1/kv/\x01 HTTP/1.1\r\n" + HOST + b"\r\n", "HTTP/1.1"),
    raw("a header without a colon", b"GET /v1/status HTTP/1.1\r\n" + HOST + b"nothing\r\n\r\n", "header"),
    raw("a header with a space in its name", b"GET /v1/status HTTP/1.1\r\n" + HOST + b"a b: c\r\n\r\n", "header"),
    raw("a space before the colon", b"GET /v1/status HTTP/1.1\r\n" + HOST + b"a : c\r\n\r\n", "header"),
    raw("a folded header", b"GET /v1/status HTTP/1.1\r\n" + HOST + b"a: b\r\n c\r\n\r\n", "header"),
    raw("a zero in a header", b"GET /v1/status HTTP/1.1\r\n" + HOST + b"a: b\x00c\r\n\r\n", "header"),
    raw("a lone line feed", b"GET /v1/status HTTP/1.1\n" + HOST + b"\r\n", "HTTP/1.1"),
    raw("Content-Length twice", b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n" * 2 + b"\r\nv",
        "Content-Length"),
    raw("a negative Content-Length", b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
        "Content-Length"),
    raw("a Content-Length that is no number", b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 5x\r\n\r\n",
        "Content-Length"),
    raw("a Content-Length beyond 64 bits",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999\r\n\r\n", "Content"),
    raw("Content-Length and Transfer-Encoding",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length"),
    raw("a transfer coding that nobody knows",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding", "chunked",
        status=501, code="not_implemented"),
    raw("half a head", b"GET /v1/status HTTP/1.1\r\nHos", "inside its headers", half=True),
    raw("half a request line", b"GET /v1/sta", "inside its headers", half=True),
    bad("request line of 17 KiB", "GET", "/v1/kv?prefix=" + "p" * 17_000, "16384", "--request-line-bytes-max",
        status=414, code="key_too_large"),
    raw("request line without an end", b"GET /v1/kv/" + b"k" * 20_000, "16384", status=414, code="key_too_large"),
    bad("headers of 33 KiB", "GET", "/v1/status", "32768", "--header-bytes-max",
        headers=[(f"X-{n}", "v" * 8_200) for n in range(4)], status=431, code="headers_too_large"),
    bad("one header of 40 KiB", "GET", "/v1/status", "32768", headers=[("Cookie", "v" * 40_000)], status=431,
        code="headers_too_large"),
    bad("65 headers", "GET", "/v1/status", "64", "--headers-max", headers=[(f"X-{n}", "v") for n in range(64)],
        status=431, code="headers_too_large"),
    bad("a tunnel", "CONNECT", "example.org:443", "allowed"),
]  # fmt: skip

ALL = [*PATHS_AND_KEYS, *METHODS, *QUERIES, *HEADERS, *BODIES, *TRANSACTIONS, *BYTES]


def test_there_are_a_hundred_kinds() -> None:
    assert len({case.what for case in ALL}) == len(ALL) >= 100


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.what)
async def test_a_broken_request_is_refused_with_a_helpful_problem(http: Http, case: Bad) -> None:
    raw = case.raw
    if b"Raftkv-Route" not in raw:  # a follower would send it on before it looked at its body
        raw = raw.replace(HOST, HOST + b"".join(f"{n}: {v}\r\n".encode() for n, v in http.headers), 1)
    reply = await http.raw(raw, method=case.method, half_close=case.half_close)
    problem = reply.json
    assert (reply.status, problem["code"]) == (case.status, case.code), problem
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["status"] == reply.status
    assert problem["type"]
    assert problem["title"]
    assert problem["request_id"] == reply.headers["request-id"]
    assert problem.get("outcome", "not_applied") == "not_applied"
    if case.status not in (404, 405):
        assert "outcome" in problem
    for word in case.says:
        assert word.lower() in problem["detail"].lower(), problem["detail"]
    if case.status == 405:
        assert reply.headers["allow"]
    if case.status in (413, 414, 431):
        assert problem["limit"] >= 0
        assert problem["flag"]
    for name in ("raftkv-revision", "raftkv-served-by", "raftkv-term"):
        assert name in reply.headers

    key = f"/v1/kv/contract-after-{abs(hash(case.what))}"
    assert (await http("PUT", key, b"still here")).status in (200, 201)
    assert (await http("GET", key)).body == b"still here"
