"""Who is let in to what: every route, role and prefix, on both paths of the server, and passed on.

`CASES` says by hand what each request needs; `permits` says by hand what a token gives. Neither asks the code
under test. A route that no case is about fails `test_every_route_is_in_the_table`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from raftkv.access import guard as guard_module
from raftkv.api.limits import Limits
from raftkv.api.routes import BY_QUERY, ROUTES, match
from raftkv.tls.credentials import Security
from tests.contract.conftest import Node, start_node
from tests.contract.plain import Http, Reply, request
from tests.contract.tokens import Grants, Made, admit, make, revoke

LIMITS = Limits()
TOKENS_ON = Security(auth="tokens")
Need = tuple[str, bytes]  # role and key or prefix; or "token", "tokens", "cluster"

ANY: tuple[Need, ...] = (("token", b""),)
CLUSTER: tuple[Need, ...] = (("cluster", b""),)
TOKENS: tuple[Need, ...] = (("tokens", b""),)
OPEN: tuple[Need, ...] = ()


@dataclass(frozen=True)
class Case:
    """`inner`: the needs are those of the body's operations, found out when it is read."""

    method: str
    target: str
    needs: tuple[Need, ...]
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.target} {(self.body or b'').decode()}"[:100]


def reads(*keys: bytes) -> tuple[Need, ...]:
    return tuple(("read", key) for key in keys)


def writes(*keys: bytes) -> tuple[Need, ...]:
    return tuple(("write", key) for key in keys)


def txn(body: dict[str, Any], *needs: Need) -> Case:
    return Case("POST", "/v1/txn", (*ANY, *needs), json.dumps(body).encode())


KEYS = ("app/k", "other/k", "app", "ap")
OPERATIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"put": {"key": "KEY", "value": "1"}}, ("write",)),
    ({"put": {"key": "KEY", "value": "1", "prev": True}}, ("write", "read")),
    ({"delete": {"key": "KEY"}}, ("write",)),
    ({"delete": {"key": "KEY", "prev": True}}, ("write", "read")),
    ({"get": {"key": "KEY"}}, ("read",)),
    ({"append": {"key": "KEY", "value": "1"}}, ("write",)),
    ({"incr": {"key": "KEY"}}, ("write", "read")),
]


def with_key(operation: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: {**fields, "key": key} for name, fields in operation.items()}


ONE_KEY = [
    case
    for key in KEYS
    for raw in (key.encode(),)
    for at in (f"/v1/kv/{key}?", f"/v1/kv?key={key}&")
    for case in (
        Case("GET", at, reads(raw)),
        Case("HEAD", at, reads(raw)),
        Case("GET", at + "consistency=stale", reads(raw)),
        Case("GET", at + "format=json&min_revision=0", reads(raw)),
        Case("PUT", at, writes(raw), b"v"),
        Case("PUT", at + "prev=true", (*writes(raw), *reads(raw)), b"v"),
        Case("PUT", at + "prev=false", writes(raw), b"v"),
        Case("PUT", at, writes(raw), b"v", (("If-Match", '"57"'),)),
        Case("DELETE", at, writes(raw)),
        Case("DELETE", at + "prev=1", (*writes(raw), *reads(raw))),
        Case("POST", at + "op=append", writes(raw), b"v"),
        Case("POST", at + "op=incr", (*writes(raw), *reads(raw)), b""),
    )
]
RANGES = [
    case
    for prefix in ("", "a", "app/", "app/x", "other/")
    for raw in (prefix.encode(),)
    for case in (
        Case("GET", f"/v1/kv?prefix={prefix}", reads(raw)),
        Case("GET", f"/v1/kv?prefix={prefix}&consistency=stale&keys_only=true", reads(raw)),
        Case("GET", f"/v1/kv?prefix={prefix}&start=app/a&end=app/b&delimiter=/", reads(raw)),
        Case("GET", f"/v1/export?prefix={prefix}", reads(raw)),
        Case("GET", f"/v1/export?prefix={prefix}&consistency=stale", reads(raw)),
        Case("DELETE", f"/v1/kv?prefix={prefix}" + ("" if prefix else "&all=true"), writes(raw)),
    )
]
TRANSACTIONS = [
    txn(body, *((role, raw) for role in roles))
    for key in KEYS
    for raw in (key.encode(),)
    for operation, roles in OPERATIONS
    for branch in ("success", "failure")
    for body in ({branch: [with_key(operation, key)]},)
] + [
    txn(
        {
            "compare": [{"key": key, "target": target, "op": "==", "value": value}],
            "success": [],
            "failure": [],
        },
        ("read", key.encode()),
    )
    for key in KEYS
    for target, value in (("value", "v"), ("exists", True), ("version", 1), ("mod_revision", 1))
]
TRANSACTIONS += [
    # The branch that would not run counts, wherever the one bad operation stands among good ones.
    txn(
        {
            "compare": [{"key": "app/k", "target": "exists", "op": "==", "value": exists}],
            branch: [*before, {"put": {"key": "other/k", "value": "1"}}, *before],
            other: before,
        },
        ("read", b"app/k"),
        ("write", b"app/k"),
        ("write", b"other/k"),
    )
    for exists in (True, False)
    for branch, other in (("success", "failure"), ("failure", "success"))
    for before in ([], [{"put": {"key": "app/k", "value": "1"}}] * 5)
    if before
]
CREATE = b'{"name": "x", "grants": [{"role": "read", "prefix": "PREFIX"}]}'
NODE = [
    Case("GET", "/v1/status", ANY),
    Case("GET", "/v1/limits", ANY),
    Case("GET", "/v1/cluster", ANY),
    Case("POST", "/v1/cluster/members", CLUSTER, b"{}"),
    Case("POST", "/v1/cluster/members?dry_run=true", CLUSTER, b"{}"),
    Case("DELETE", "/v1/cluster/members/n9", CLUSTER),
    Case("DELETE", "/v1/cluster/members/n9?dry_run=true", CLUSTER),
    Case("POST", "/v1/cluster/members/n9/promote", CLUSTER, b""),
    Case("POST", "/v1/cluster/members/n9/promote?dry_run=true", CLUSTER, b""),
    Case("POST", "/v1/cluster/leader", CLUSTER, b'{"to": "n9"}'),
    Case("GET", "/v1/tokens", TOKENS),
    Case("POST", "/v1/tokens", (("admin", b"app/x"),), CREATE.replace(b"PREFIX", b"app/x")),
    Case("POST", "/v1/tokens", (("admin", b"other/"),), CREATE.replace(b"PREFIX", b"other/")),
    Case("POST", "/v1/tokens", (("admin", b""),), CREATE.replace(b"PREFIX", b"")),
    Case("DELETE", "/v1/tokens/0000000000000000", TOKENS),
    Case("GET", "/v1/snapshots", CLUSTER),
    Case("POST", "/v1/snapshots", CLUSTER, b""),
    Case("GET", "/v1/snapshots/s0", CLUSTER),
    Case("GET", "/v1/snapshots/s0/manifest", CLUSTER),
    Case("GET", "/v1/snapshots/s0/chunks/0", CLUSTER),
    Case("DELETE", "/v1/snapshots/s0", CLUSTER),
    Case("POST", "/v1/snapshots/s0/verify", CLUSTER, b""),
    Case("GET", "/v1/operations/x", CLUSTER),
    Case("GET", "/metrics", ANY),
    Case("GET", "/openapi.json", ANY),
    Case("GET", "/docs", ANY),
    Case("GET", "/livez", OPEN),
    Case("GET", "/readyz?verbose", OPEN),
    Case("GET", "/startupz", OPEN),
    # What is not there is nobody's business who has no token.
    Case("GET", "/v1/nothing", ANY),
    Case("GET", "/", ANY),
    Case("PATCH", "/v1/kv/app/k", ANY, b""),
    Case("POST", "/v1/status", ANY, b""),
    Case("POST", "/v1/txn", ANY, b'{"success": [nonsense'),
    Case("POST", "/v1/batch", ANY, b""),
]
CASES = [*ONE_KEY, *RANGES, *TRANSACTIONS, *NODE]

CALLERS: dict[str, Grants] = {
    "reads app": (("read", b"app/"),),
    "reads all": (("read", b""),),
    "writes app": (("write", b"app/"),),
    "writes all": (("write", b""),),
    "reads and writes": (("read", b"app/"), ("write", b"app/k"), ("read", b"other/k")),
    "admin of app": (("admin", b"app/"),),
    "admin of two": (("admin", b"app/"), ("admin", b"other/")),
    "admin": (("admin", b""),),
    "nothing": (),
}


def permits(grants: Grants, need: Need) -> bool:
    role, key = need
    if role == "token":
        return True
    if role == "cluster":
        return ("admin", b"") in grants
    if role == "tokens":
        return any(has == "admin" for has, _ in grants)
    return any(has in (role, "admin") and key[: len(prefix)] == prefix for has, prefix in grants)


# --- nodes -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["hot", "cold"])
async def guarded(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    node = await start_node(LIMITS, security=TOKENS_ON, hot_path=request.param == "hot")
    yield node
    await node.api.close()


@pytest.fixture(params=["hot", "cold"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Node, Node]]:
    """A follower, and the leader that it knows."""
    options = {"security": TOKENS_ON, "hot_path": request.param == "hot"}
    leader = await start_node(LIMITS, "n1", **options)
    follower = await start_node(LIMITS, "n2", **options)
    follower.consensus.follow("n1", f"http://127.0.0.1:{leader.api.port}")
    yield follower, leader
    await follower.api.close()
    await leader.api.close()


async def ask(http: Http, case: Case, headers: dict[str, str]) -> Reply:
    return await http(case.method, case.target, case.body, [*case.headers, *headers.items()])


def code_of(reply: Reply) -> str:
    return str(reply.json["code"]) if reply.body else ""


# --- the table -------------------------------------------------------------------------------------------


def test_every_route_is_in_the_table() -> None:
    seen = set()
    for case in CASES:
        path, _, query = case.target.partition("?")
        try:
            route = match(case.method, path.encode(), [b"key"] if "key=" in query else []).route
        except Exception:  # noqa: BLE001  # cases of what is not there
            continue
        seen.add((route.template, route.method, len(route.parameters)))
    every = [*ROUTES, *BY_QUERY.values()]
    assert {(each.template, each.method, len(each.parameters)) for each in every} == seen


@pytest.mark.parametrize("name", CALLERS)
async def test_every_request_by_every_caller(guarded: Node, name: str) -> None:
    grants = CALLERS[name]
    token = admit(make(*grants), guarded)
    if name != "admin":
        admit(make(("admin", b"")), guarded)
    wrong = []
    machine, proposed = guarded.consensus.machine, guarded.consensus.proposed
    for case in CASES:
        before = machine.revision, len(proposed)
        reply = await ask(guarded.http, case, token.headers)
        allowed = all(permits(grants, need) for need in case.needs)
        denied = reply.status in (401, 403)
        if denied is allowed or (denied and (machine.revision, len(proposed)) != before):
            wrong.append((str(case), reply.status, allowed))
        if denied and reply.status != 403:
            wrong.append((str(case), reply.status, "a known token is never unauthenticated"))
    assert not wrong


@pytest.mark.parametrize("who", ["none", "basic", "garbage", "unknown", "wrong", "revoked", "expired", "cut"])
async def test_whoever_has_no_token_gets_nowhere(guarded: Node, who: str) -> None:
    admin = admit(make(("admin", b"")), guarded)
    gone = admit(make(("admin", b"")), guarded)
    late = admit(make(("admin", b""), expires_ms=int(time.time() * 1000) - 1), guarded)
    assert (await guarded.http("GET", "/v1/status", headers=gone.headers)).status == 200
    revoke(gone, guarded)
    headers = {
        "none": {},
        "basic": {"Authorization": "Basic " + admin.text},
        "garbage": {"Authorization": "Bearer x"},
        "unknown": make(("admin", b"")).headers,
        "wrong": {"Authorization": "Bearer " + admin.text[:-1] + ("0" if admin.text[-1] != "0" else "1")},
        "revoked": gone.headers,
        "expired": late.headers,
        "cut": {"Authorization": "Bearer " + admin.text[:-1]},
    }[who]
    revision = guarded.consensus.machine.revision
    for case in CASES:
        reply = await ask(guarded.http, case, headers)
        if case.needs == OPEN:
            assert reply.status == 200
            continue
        assert reply.status == 401, case
        assert reply.headers["www-authenticate"].startswith('Bearer realm="raftkv"')
        assert ("invalid_token" in reply.headers["www-authenticate"]) == (who not in ("none", "basic"))
        assert case.method == "HEAD" or code_of(reply) == "unauthenticated"
    assert guarded.consensus.machine.revision == revision
    assert not guarded.consensus.proposed


async def test_the_ops_listener_asks_for_no_token() -> None:
    node = await start_node(LIMITS, security=TOKENS_ON, ops=("127.0.0.1", 0))
    assert node.api.ops_port is not None
    ops = Http("127.0.0.1", node.api.ops_port)
    for target in ("/livez", "/readyz", "/startupz", "/metrics"):
        assert (await ops("GET", target)).status == 200
    assert (await ops("GET", "/v1/status")).status == 404
    assert (await ops("GET", "/v1/kv/a")).status == 404
    await node.api.close()


# --- batches ---------------------------------------------------------------------------------------------

LINES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("put", {"value": "1"}, ("write",)),
    ("put", {"value": "1", "prev": True}, ("write", "read")),
    ("put", {"value": "1", "if_revision": 3}, ("write",)),
    ("delete", {}, ("write",)),
    ("delete", {"prev": True}, ("write", "read")),
    ("append", {"value": "1"}, ("write",)),
    ("incr", {}, ("write", "read")),
    ("get", {}, ("read",)),
]


@pytest.mark.parametrize("name", CALLERS)
async def test_each_line_of_a_batch_is_checked_by_itself(guarded: Node, name: str) -> None:
    grants = CALLERS[name]
    token = admit(make(*grants), guarded)
    lines, expected = [], []
    for number in range(200):
        op, fields, roles = LINES[number % len(LINES)]
        key = KEYS[number // 3 % len(KEYS)]
        lines.append(json.dumps({"op": op, "key": key, **fields}))
        expected.append(all(permits(grants, (role, key.encode())) for role in roles))
    reply = await guarded.http("POST", "/v1/batch", "\n".join(lines).encode(), token.headers)
    assert reply.status == 200
    assert [answer["status"] != 403 for answer in reply.lines] == expected
    assert all(answer["code"] == "forbidden" for answer in reply.lines if answer["status"] == 403)
    written = {item.key.decode() for item in guarded.consensus.machine.scan(b"", None, 100)}
    allowed = {json.loads(line)["key"] for line, good in zip(lines, expected, strict=True) if good}
    assert written <= allowed


async def test_a_batch_ends_for_a_token_that_is_revoked_meanwhile(guarded: Node) -> None:
    admit(make(("admin", b"")), guarded)
    token = admit(make(("write", b"")), guarded)
    line = b'{"key": "a", "value": "1"}\n'
    async with guarded.http.connect() as connection:
        head = [("Transfer-Encoding", "chunked"), *token.headers.items()]
        connection.send(request("POST", "/v1/batch", head))
        connection.send(b"%x\r\n%b\r\n" % (len(line), line))
        async with asyncio.timeout(20):
            while not guarded.consensus.machine.get(b"a"):  # noqa: ASYNC110  # the machine tells nobody
                await asyncio.sleep(0.001)
        revoke(token, guarded)
        connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(line), line))
        statuses = [answer["status"] for answer in (await connection.reply("POST")).lines]
    assert statuses == [201, 401]


# --- passed on, and sent on ------------------------------------------------------------------------------

WRITES = [case for case in CASES if case.method in ("PUT", "POST", "DELETE")]
HOPS = {"forward": {"Raftkv-Route": "forward"}, "redirect": {}, "local": {"Raftkv-Route": "local"}}


@pytest.mark.parametrize("hop", HOPS)
@pytest.mark.parametrize("name", ["reads app", "writes app", "admin of app", "nothing"])
async def test_a_follower_checks_before_it_passes_on(pair: tuple[Node, Node], name: str, hop: str) -> None:
    """What only the body tells is checked by a follower that reads it, which one that redirects does not."""
    follower, leader = pair
    grants = CALLERS[name]
    admit(make(("admin", b"")), follower, leader)
    token = admit(make(*grants), follower, leader)
    wrong = []
    for case in WRITES:
        if case.headers:
            continue
        before = len(leader.consensus.proposed)
        reply = await ask(follower.http, case, {**token.headers, **HOPS[hop]})
        allowed = all(permits(grants, need) for need in case.needs)
        inner = case.target in ("/v1/txn", "/v1/tokens")
        if (reply.status in (401, 403)) is allowed and not (inner and hop != "forward"):
            wrong.append((str(case), reply.status, allowed))
        if not allowed and len(leader.consensus.proposed) != before:
            wrong.append((str(case), "it was done", before))
    assert not wrong


async def test_the_receiver_of_what_was_passed_on_checks_again() -> None:
    """A node that asks for no tokens is in front of one that does: nothing gets through it without one."""
    leader = await start_node(LIMITS, "n1", security=TOKENS_ON)
    careless = await start_node(LIMITS, "n2", route="forward")
    careless.consensus.follow("n1", f"http://127.0.0.1:{leader.api.port}")
    token = admit(make(("admin", b"app/")), leader)
    line = b'{"key": "other/k", "value": "1"}\n{"key": "app/k", "value": "1"}\n'
    assert (await careless.http("PUT", "/v1/kv/app/k", b"v")).status == 401
    refused = await careless.http("PUT", "/v1/kv/other/k", b"v", token.headers)
    assert (refused.status, code_of(refused)) == (403, "forbidden")
    assert (await careless.http("PUT", "/v1/kv/app/k", b"v", token.headers)).status == 201
    assert (await careless.http("POST", "/v1/batch", line)).headers["www-authenticate"]
    batch = await careless.http("POST", "/v1/batch", line, token.headers)
    assert [answer["status"] for answer in batch.lines] == [403, 200]
    made = await careless.http("POST", "/v1/tokens", CREATE.replace(b"PREFIX", b"app/x"), token.headers)
    assert made.status == 201
    assert made.json["token"].startswith(f"rkv_{made.json['id']}_")
    await careless.api.close()
    await leader.api.close()


# --- what is remembered ----------------------------------------------------------------------------------


async def test_a_token_is_hashed_once_and_stays_on_the_hot_path(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []
    real = guard_module.is_secret_of
    monkeypatch.setattr(
        guard_module, "is_secret_of", lambda secret, token: verified.append(token.id) or real(secret, token)
    )
    node = await start_node(LIMITS, security=TOKENS_ON)
    token = admit(make(("admin", b"")), node)
    async with node.http.connect() as one, node.http.connect() as other:
        for connection in (one, other, one):
            connection.send(request("PUT", "/v1/kv/a", list(token.headers.items()), b"v") * 3)
        for connection, count in ((one, 6), (other, 3)):
            for _ in range(count):
                assert (await connection.reply("PUT")).status in (200, 201)
        assert len(node.api.hot) == 2
    assert (await node.http("GET", "/v1/status", headers=token.headers)).status == 200
    assert verified == [token.record.id]
    await node.api.close()


async def test_a_wrong_secret_is_hashed_once_too(monkeypatch: pytest.MonkeyPatch, guarded: Node) -> None:
    verified = []
    real = guard_module.is_secret_of
    monkeypatch.setattr(
        guard_module, "is_secret_of", lambda secret, token: verified.append(token.id) or real(secret, token)
    )
    token = admit(make(("admin", b"")), guarded)
    wrong = {"Authorization": f"Bearer rkv_{token.record.id}_{'0' * 64}"}
    for _ in range(5):
        assert (await guarded.http("GET", "/v1/kv/a", headers=wrong)).status == 401
    assert verified == [token.record.id]


async def test_a_revoked_token_is_refused_on_a_connection_that_it_opened(guarded: Node) -> None:
    admit(make(("admin", b"")), guarded)
    token = admit(make(("read", b"")), guarded)
    async with guarded.http.connect() as connection:
        for expected in (404, 404, 401):
            if expected == 401:
                revoke(token, guarded)
            connection.send(request("GET", "/v1/kv/a", list(token.headers.items())))
            assert (await connection.reply()).status == expected


async def test_a_linearizable_read_never_answers_a_token_that_was_revoked_before_it(guarded: Node) -> None:
    """The node learns of it while the read waits for its read index."""
    admit(make(("admin", b"")), guarded)
    token = admit(make(("read", b"")), guarded)
    assert (await guarded.http("GET", "/v1/kv/a", headers=token.headers)).status == 404
    for target in ("/v1/kv/a", "/v1/kv?prefix=", "/v1/export"):
        token = admit(make(("read", b"")), guarded)
        await guarded.http("GET", "/v1/kv/a", headers=token.headers)
        waiting = asyncio.create_task(guarded.http("GET", target, headers=token.headers))
        async with asyncio.timeout(20):
            while not guarded.service.reads_in_flight:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0)
        revoke(token, guarded)
        assert (await waiting).status == 401


async def test_the_rate_of_a_token(guarded: Node) -> None:
    token = admit(make(("admin", b""), rate=5), guarded)
    other = admit(make(("admin", b"")), guarded)
    replies = [await guarded.http("GET", "/v1/kv/a", headers=token.headers) for _ in range(20)]
    limited = [reply for reply in replies if reply.status == 429]
    assert [reply.status for reply in replies[:5]] == [404] * 5
    assert len(limited) >= 10
    assert {reply.json["code"] for reply in limited} == {"rate_limited"}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in limited)
    assert all(reply.json["retryable"] for reply in limited)
    lines = b'{"key": "a", "value": "1"}\n' * 50
    batch = await guarded.http("POST", "/v1/batch", lines, other.headers)
    assert {answer["status"] for answer in batch.lines} == {200, 201}
    third = admit(make(("admin", b""), rate=5), guarded)
    batch = await guarded.http("POST", "/v1/batch", lines, third.headers)
    assert [answer["status"] for answer in batch.lines][:4] == [200] * 4
    assert sum(answer["status"] == 429 for answer in batch.lines) >= 30


# --- tokens over HTTP ------------------------------------------------------------------------------------


async def create(node: Node, by: Made, grants: list[dict[str, str]], **more: Any) -> Reply:
    body = json.dumps({"name": "made", "grants": grants, **more}).encode()
    return await node.http("POST", "/v1/tokens", body, by.headers)


async def test_a_token_is_made_used_listed_and_revoked(guarded: Node) -> None:
    admin = admit(make(("admin", b"")), guarded)
    made = (await create(guarded, admin, [{"role": "write", "prefix": "app/"}], rate=1000)).json
    headers = {"Authorization": "Bearer " + made["token"]}
    assert (await guarded.http("PUT", "/v1/kv/app/x", b"v", headers)).status == 201
    assert (await guarded.http("GET", "/v1/kv/app/x", headers=headers)).status == 403
    listed = (await guarded.http("GET", "/v1/tokens", headers=admin.headers)).json["tokens"]
    (mine,) = [each for each in listed if each["id"] == made["id"]]
    assert mine == {key: value for key, value in made.items() if key not in ("token", "revision")}
    assert mine["created_by"] == admin.record.id
    secret = made["token"].rpartition("_")[2]
    assert secret not in json.dumps(listed)
    gone = await guarded.http("DELETE", f"/v1/tokens/{made['id']}", headers=admin.headers)
    assert (gone.status, gone.json["revoked"]) == (200, made["id"])
    assert gone.json["revision"] > made["revision"]
    assert (await guarded.http("PUT", "/v1/kv/app/x", b"v", headers)).status == 401
    again = await guarded.http("DELETE", f"/v1/tokens/{made['id']}", headers=admin.headers)
    assert (again.status, code_of(again)) == (404, "token_not_found")


async def test_the_last_administrator_stays(guarded: Node) -> None:
    admin = admit(make(("admin", b"")), guarded)
    reply = await guarded.http("DELETE", f"/v1/tokens/{admin.record.id}", headers=admin.headers)
    assert (reply.status, code_of(reply)) == (409, "last_admin")


async def test_an_administrator_of_a_prefix_rules_only_there(guarded: Node) -> None:
    everything = admit(make(("admin", b"")), guarded)
    part = admit(make(("admin", b"app/"), ("read", b"")), guarded)
    other = admit(make(("read", b"other/")), guarded)
    for grants in (
        [{"role": "read", "prefix": ""}],
        [{"role": "read", "prefix": "app"}],
        [{"role": "admin", "prefix": "app/"}, {"role": "read", "prefix": "other/"}],
    ):
        assert (await create(guarded, part, grants)).status == 403
    made = (await create(guarded, part, [{"role": "admin", "prefix": "app/x/"}])).json
    listed = (await guarded.http("GET", "/v1/tokens", headers=part.headers)).json["tokens"]
    assert [each["id"] for each in listed] == [made["id"]]
    for token in (other, everything, part):
        reply = await guarded.http("DELETE", f"/v1/tokens/{token.record.id}", headers=part.headers)
        assert reply.status == 403
    reply = await guarded.http("DELETE", f"/v1/tokens/{made['id']}", headers=part.headers)
    assert reply.status == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "x"},
        {"name": "x", "grants": []},
        {"name": "x", "grants": [{"role": "read"}]},
        {"name": "x", "grants": [{"role": "root", "prefix": ""}]},
        {"name": "x", "grants": [{"role": "read", "prefix": "", "more": 1}]},
        {"name": "x", "grants": [{"role": "read", "prefix": ""}] * 33},
        {"name": "x", "grants": [{"role": "read", "prefix": "k" * 4097}]},
        {"name": "x", "grants": [{"role": "read", "prefix": "\ud800"}]},
        {"name": "", "grants": [{"role": "read", "prefix": ""}]},
        {"name": 'x" y', "grants": [{"role": "read", "prefix": ""}]},
        {"name": "x", "grants": [{"role": "read", "prefix": ""}], "rate": -1},
        {"name": "x", "grants": [{"role": "read", "prefix": ""}], "expires_in_seconds": 1 << 62},
        {"name": "x", "grants": [{"role": "read", "prefix": ""}], "unknown": 1},
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(guarded: Node, body: dict[str, Any]) -> None:
    admin = admit(make(("admin", b"")), guarded)
    reply = await guarded.http("POST", "/v1/tokens", json.dumps(body).encode(), admin.headers)
    assert (reply.status, code_of(reply)) == (400, "bad_request")


async def test_a_token_is_not_made_under_an_idempotency_key(guarded: Node) -> None:
    admin = admit(make(("admin", b"")), guarded)
    headers = {**admin.headers, "Idempotency-Key": "x"}
    body = CREATE.replace(b"PREFIX", b"")
    assert (await guarded.http("POST", "/v1/tokens", body, headers)).status == 400


async def test_an_expiry_that_has_come(guarded: Node) -> None:
    admin = admit(make(("admin", b"")), guarded)
    made = (await create(guarded, admin, [{"role": "read", "prefix": ""}], expires_in_seconds=3600)).json
    assert made["expires"] > made["created"]
    assert not made["expired"]


async def test_tokens_can_be_made_before_they_are_asked_for(node: Node) -> None:
    made = (await node.http("POST", "/v1/tokens", CREATE.replace(b"PREFIX", b"app/"))).json
    assert made["created_by"] is None
    (listed,) = (await node.http("GET", "/v1/tokens")).json["tokens"]
    assert listed["id"] == made["id"]
    headers = {"Authorization": "Bearer nonsense"}
    assert (await node.http("PUT", "/v1/kv/a", b"v", headers)).status == 201


# --- the audit -------------------------------------------------------------------------------------------


async def test_denials_and_administrators_are_audited_by_route_alone(
    guarded: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raftkv.audit")
    admin = admit(make(("admin", b""), name="boss"), guarded)
    reader = admit(make(("read", b"app/"), name="reader"), guarded)
    who, boss = f"{reader.record.id}:reader", f"{admin.record.id}:boss"
    line = b'{"key": "planted-key", "value": "planted-value"}'
    await guarded.http("GET", "/v1/kv/planted-key", headers=reader.headers)
    await guarded.http("PUT", "/v1/kv/planted-key?prev=true", b"planted-value", reader.headers)
    await guarded.http("GET", "/v1/kv?prefix=planted-key")
    await guarded.http("POST", "/v1/batch", line, reader.headers)
    await guarded.http("DELETE", "/v1/cluster/members/n9", headers=reader.headers)
    await guarded.http("DELETE", "/v1/cluster/members/n9", headers=admin.headers)
    made = (await create(guarded, admin, [{"role": "read", "prefix": "planted-prefix"}])).json
    await guarded.http("GET", "/v1/kv/planted-key", headers=admin.headers)  # no administrator's request
    said = [record.getMessage() for record in caplog.records if record.name == "raftkv.audit"]
    denials = [each.split(" request_id=")[0] for each in said if each.startswith("denied")]
    assert denials == [
        f'denied who={who} what="GET /v1/kv/{{key}}" code=forbidden',
        f'denied who={who} what="PUT /v1/kv/{{key}}" code=forbidden',
        'denied who=- what="GET /v1/kv" code=unauthenticated',
        f'denied who={who} what="POST /v1/batch" code=forbidden',
        f'denied who={who} what="DELETE /v1/cluster/members/{{id}}" code=forbidden',
    ]
    actions = [each for each in said if each.startswith("admin_action")]
    assert len(actions) == 2
    assert actions[0].startswith(f'admin_action who={boss} what="DELETE /v1/cluster/members/{{id}}" status=')
    assert actions[0].endswith(" target=n9")
    revision = made["revision"]
    assert f'who={boss} what="POST /v1/tokens" status=201 revision={revision} ' in actions[1]
    assert actions[1].endswith(f" target={made['id']}")
    assert "planted" not in "".join(said)
    counted = (await guarded.http("GET", "/metrics", headers=admin.headers)).body
    assert b'raftkv_auth_denials_total{code="forbidden"} 4.0' in counted
