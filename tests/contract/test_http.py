"""The HTTP contract, call by call, over real sockets; runs against a cluster too (`CONTRACT_URL`)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from urllib.parse import quote

import pytest

from raftkv.api.limits import LIMITS
from tests.contract.conftest import Node
from tests.contract.plain import Http, request

ANSWER_HEADERS = ("raftkv-revision", "raftkv-served-by", "raftkv-leader", "raftkv-term", "request-id")


def path(key: str) -> str:
    return "/v1/kv/" + quote(key, safe="")


# --- one key ---------------------------------------------------------------------------------------------


async def test_a_value_comes_back_byte_for_byte_with_its_type(http: Http, name: str) -> None:
    value = bytes(range(256)) * 40
    put = await http("PUT", path(name), value, {"Content-Type": "image/png"})
    assert put.status == 201
    revision = put.json["revision"]
    assert put.headers["etag"] == f'"{revision}"'
    got = await http("GET", path(name))
    assert (got.status, got.body, got.headers["content-type"]) == (200, value, "image/png")
    assert got.headers["etag"] == f'"{revision}"'
    assert got.headers["raftkv-consistency"] == "linearizable"
    assert all(header in got.headers for header in ANSWER_HEADERS)


async def test_a_second_put_replaces_and_counts_versions(http: Http, name: str) -> None:
    first = (await http("PUT", path(name), b"1")).json["revision"]
    second = await http("PUT", path(name), b"2")
    assert second.status == 200
    envelope = (await http("GET", path(name) + "?format=json")).json
    assert envelope == {
        "key": name,
        "value": "2",
        "content_type": "application/octet-stream",
        "create_revision": first,
        "mod_revision": second.json["revision"],
        "version": 2,
    }


async def test_head_is_get_without_the_body(http: Http, name: str) -> None:
    await http("PUT", path(name), b"12345")
    head = await http("HEAD", path(name))
    assert (head.status, head.headers["content-length"], head.body) == (200, "5", b"")
    missing = await http("HEAD", path(name + "-absent"))
    assert (missing.status, missing.body) == (404, b"")


async def test_an_empty_value_is_a_value(http: Http, name: str) -> None:
    assert (await http("PUT", path(name), b"")).status == 201
    got = await http("GET", path(name))
    assert (got.status, got.body) == (200, b"")


async def test_an_absent_key_is_a_problem(http: Http, name: str) -> None:
    got = await http("GET", path(name))
    assert (got.status, got.json["code"]) == (404, "key_not_found")
    assert got.headers["content-type"] == "application/problem+json"
    assert got.json["request_id"] == got.headers["request-id"]


async def test_the_form_type_that_curl_sends_counts_as_none(http: Http, name: str) -> None:
    await http("PUT", path(name), b"a=b", {"Content-Type": "application/x-www-form-urlencoded"})
    assert (await http("GET", path(name))).headers["content-type"] == "application/octet-stream"


async def test_a_value_that_a_browser_would_run_is_sandboxed(http: Http, name: str) -> None:
    await http("PUT", path(name), b"<script>", {"Content-Type": "text/html"})
    got = await http("GET", path(name))
    assert "sandbox" in got.headers["content-security-policy"]
    assert got.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("a/b/c", "a/b/c"),
        ("/leading", "/leading"),
        ("a//b", "a//b"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("..", ".."),
        ("a/../b", "a/../b"),
        ("./a", "./a"),
        ("a/", "a/"),
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("a%2Bb", "a+b"),
        ("%25", "%"),
        ("%2541", "%41"),
        ("%3F%23", "?#"),
        ("%00", "\0"),
        ("%C3%A9", "é"),
        ("%F0%9F%94%91", "🔑"),
        ("a;b=c,d@e:f!$&'()*~", "a;b=c,d@e:f!$&'()*~"),
    ],
)
async def test_the_key_is_the_decoded_rest_of_the_path_and_nothing_else(
    http: Http, name: str, raw: str, key: str
) -> None:
    await http("PUT", f"/v1/kv/{name}/{raw}", b"v")
    envelope = (await http("GET", f"/v1/kv/{name}/{raw}?format=json")).json
    assert envelope["key"] == f"{name}/{key}"
    by_query = await http("GET", "/v1/kv?format=json&key=" + quote(f"{name}/{key}", safe=""))
    assert by_query.json == envelope


async def test_keys_that_a_url_library_would_fold_are_different(http: Http, name: str) -> None:
    for raw in ("a/b", "a//b", "a/./b", "a/x/../b"):
        await http("PUT", f"/v1/kv/{name}/{raw}", raw.encode())
    for raw in ("a/b", "a//b", "a/./b", "a/x/../b"):
        assert (await http("GET", f"/v1/kv/{name}/{raw}")).body == raw.encode()


async def test_the_longest_key_fits_percent_encoded(http: Http, name: str) -> None:
    key = name + "é" * ((4096 - len(name)) // 2)
    assert (await http("PUT", path(key), b"v")).status == 201
    assert (await http("GET", path(key))).body == b"v"


async def test_every_call_on_a_key_works_by_query(http: Http, name: str) -> None:
    target = f"/v1/kv?key={name}"
    assert (await http("PUT", target, b"5")).status == 201
    assert (await http("POST", target + "&op=incr", b"")).json["value"] == 6
    assert (await http("GET", target)).body == b"6"
    assert (await http("HEAD", target)).status == 200
    assert (await http("DELETE", target)).json["deleted"] == 1


async def test_the_absolute_form_of_a_target_is_taken(http: Http, name: str) -> None:
    await http("PUT", path(name), b"v")
    assert (await http("GET", "http://elsewhere:1" + path(name))).body == b"v"


async def test_put_with_prev_tells_the_old_value(http: Http, name: str) -> None:
    first = (await http("PUT", path(name) + "?prev=true", b"\xff")).json
    assert first["prev"] is None
    second = (await http("PUT", path(name) + "?prev=true", b"2")).json
    assert base64.b64decode(second["prev"]["base64"]) == b"\xff"
    assert (await http("DELETE", path(name) + "?prev")).json["prev"]["value"] == "2"


async def test_delete_says_how_many(http: Http, name: str) -> None:
    await http("PUT", path(name), b"v")
    assert (await http("DELETE", path(name))).json["deleted"] == 1
    again = await http("DELETE", path(name))
    assert (again.status, again.json["deleted"]) == (200, 0)


async def test_append_creates_and_lengthens(http: Http, name: str) -> None:
    assert (await http("POST", path(name) + "?op=append", b"ab")).json["length"] == 2
    assert (await http("POST", path(name) + "?op=append", b"c")).json["length"] == 3
    assert (await http("GET", path(name))).body == b"abc"


async def test_append_stops_at_the_value_limit(http: Http, name: str) -> None:
    await http("PUT", path(name), b"v" * (1 << 20))
    over = await http("POST", path(name) + "?op=append", b"x")
    assert (over.status, over.json["code"], over.json["outcome"]) == (413, "value_too_large", "not_applied")
    assert over.json["size"] == (1 << 20) + 1


async def test_incr_counts_and_refuses_what_is_no_number(http: Http, name: str) -> None:
    assert (await http("POST", path(name) + "?op=incr", b"")).json["value"] == 1
    assert (await http("POST", path(name) + "?op=incr&by=-5", b"")).json["value"] == -4
    await http("PUT", path(name), b"four")
    refused = await http("POST", path(name) + "?op=incr", b"")
    assert (refused.status, refused.json["code"], refused.json["outcome"]) == (
        409,
        "not_a_number",
        "not_applied",
    )


# --- conditions ------------------------------------------------------------------------------------------


async def test_if_none_match_star_creates_once(http: Http, name: str) -> None:
    assert (await http("PUT", path(name), b"1", {"If-None-Match": "*"})).status == 201
    second = await http("PUT", path(name), b"2", {"If-None-Match": "*"})
    assert (second.status, second.json["code"], second.json["outcome"]) == (
        412,
        "precondition_failed",
        "not_applied",
    )
    assert second.headers["etag"] == f'"{second.json["current"]}"'
    assert (await http("GET", path(name))).body == b"1"


async def test_if_match_writes_over_one_revision(http: Http, name: str) -> None:
    tag = (await http("PUT", path(name), b"1")).headers["etag"]
    assert (await http("PUT", path(name), b"2", {"If-Match": tag})).status == 200
    assert (await http("PUT", path(name), b"3", {"If-Match": tag})).status == 412
    assert (await http("DELETE", path(name), None, {"If-Match": tag})).status == 412
    assert (await http("POST", path(name) + "?op=append", b"x", {"If-Match": tag})).status == 412
    assert (await http("GET", path(name))).body == b"2"


async def test_if_match_star_wants_the_key_to_exist(http: Http, name: str) -> None:
    absent = await http("PUT", path(name), b"1", {"If-Match": "*"})
    assert (absent.status, absent.json["current"]) == (412, 0)
    assert "etag" not in absent.headers
    await http("PUT", path(name), b"1")
    assert (await http("PUT", path(name), b"2", {"If-Match": "*"})).status == 200


async def test_if_match_takes_a_list(http: Http, name: str) -> None:
    tag = (await http("PUT", path(name), b"1")).headers["etag"]
    assert (await http("PUT", path(name), b"2", {"If-Match": f'"999999999", {tag}'})).status == 200
    assert (await http("PUT", path(name), b"3", {"If-Match": f'"999999999", {tag}'})).status == 412


async def test_a_keyed_write_with_a_list_of_etags_is_replayed(http: Http, name: str) -> None:
    tag = (await http("PUT", path(name), b"1")).headers["etag"]
    headers = {"If-Match": f'"999999999", {tag}', "Idempotency-Key": name}
    first = await http("PUT", path(name), b"2", headers)
    again = await http("PUT", path(name), b"2", headers)
    assert (first.status, again.status) == (200, 200)
    assert again.json == first.json
    assert again.headers["raftkv-replayed"] == "true"


async def test_if_revision_says_the_same_as_if_match(http: Http, name: str) -> None:
    assert (await http("PUT", path(name) + "?if_revision=5", b"1")).status == 412
    made = await http("PUT", path(name) + "?if_revision=0", b"1")
    assert made.status == 201
    assert (await http("PUT", path(name) + "?if_revision=0", b"2")).status == 412
    assert (await http("DELETE", path(name) + f"?if_revision={made.json['revision']}")).status == 200


async def test_304_on_if_none_match_weak_or_in_a_list(http: Http, name: str) -> None:
    tag = (await http("PUT", path(name), b"1")).headers["etag"]
    for value in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        got = await http("GET", path(name), None, {"If-None-Match": value})
        assert (got.status, got.body, got.headers["etag"]) == (304, b"", tag)
        assert all(header in got.headers for header in ANSWER_HEADERS)
    assert (await http("GET", path(name), None, {"If-None-Match": '"1x"'})).status == 200


async def test_if_match_on_a_read(http: Http, name: str) -> None:
    tag = (await http("PUT", path(name), b"1")).headers["etag"]
    assert (await http("GET", path(name), None, {"If-Match": tag})).status == 200
    assert (await http("GET", path(name), None, {"If-Match": '"999999999"'})).status == 412


# --- many keys -------------------------------------------------------------------------------------------


@pytest.fixture
async def many(http: Http, name: str) -> list[str]:
    keys = [f"{name}/{letter}/{number}" for letter in "abc" for number in range(5)]
    for key in keys:
        assert (await http("PUT", path(key), key.encode())).status == 201
    return keys


async def test_a_prefix_comes_in_key_order(http: Http, name: str, many: list[str]) -> None:
    page = (await http("GET", f"/v1/kv?prefix={name}/")).json
    assert [item["key"] for item in page["items"]] == many
    assert page["items"][0]["value"] == many[0]
    assert page["next_cursor"] is None
    assert page["revision"] >= page["items"][-1]["mod_revision"]


async def test_pages_follow_by_cursor(http: Http, name: str, many: list[str]) -> None:
    found, cursor = [], None
    for _ in range(10):
        target = f"/v1/kv?prefix={name}/&limit=4" + (f"&cursor={cursor}" if cursor else "")
        page = (await http("GET", target)).json
        assert len(page["items"]) <= 4
        found += [item["key"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == many


async def test_a_full_last_page_has_no_cursor(http: Http, name: str, many: list[str]) -> None:
    assert (await http("GET", f"/v1/kv?prefix={name}/&limit={len(many)}")).json["next_cursor"] is None


async def test_a_cursor_belongs_to_its_range(http: Http, name: str, many: list[str]) -> None:
    cursor = (await http("GET", f"/v1/kv?prefix={name}/&limit=2")).json["next_cursor"]
    other = await http("GET", f"/v1/kv?prefix={name}/a&limit=2&cursor={cursor}")
    assert (other.status, other.json["code"]) == (400, "bad_request")


async def test_start_and_end_bound_the_range(http: Http, name: str, many: list[str]) -> None:
    page = (await http("GET", f"/v1/kv?prefix={name}/&start={name}/a/3&end={name}/b/2")).json
    assert [item["key"][len(name) :] for item in page["items"]] == ["/a/3", "/a/4", "/b/0", "/b/1"]


async def test_empty_bounds_are_none(http: Http, name: str, many: list[str]) -> None:
    page = (await http("GET", f"/v1/kv?prefix={name}/&start=&end=&delimiter=")).json
    assert len(page["items"]) == len(many)


async def test_keys_only_leaves_values_out(http: Http, name: str, many: list[str]) -> None:
    item = (await http("GET", f"/v1/kv?prefix={name}/&keys_only")).json["items"][0]
    assert "value" not in item
    assert (item["key"], item["version"]) == (many[0], 1)


async def test_a_delimiter_folds(http: Http, name: str, many: list[str]) -> None:
    await http("PUT", path(f"{name}/plain"), b"v")
    page = (await http("GET", f"/v1/kv?prefix={name}/&delimiter=/")).json
    assert page["prefixes"] == [f"{name}/{letter}/" for letter in "abc"]
    assert [item["key"] for item in page["items"]] == [f"{name}/plain"]
    first = (await http("GET", f"/v1/kv?prefix={name}/&delimiter=/&limit=2")).json
    rest = (
        await http("GET", f"/v1/kv?prefix={name}/&delimiter=/&limit=2&cursor={first['next_cursor']}")
    ).json
    assert first["prefixes"] + rest["prefixes"] == page["prefixes"]
    assert rest["next_cursor"] is None


async def test_ndjson_has_an_item_a_line(http: Http, name: str, many: list[str]) -> None:
    reply = await http("GET", f"/v1/kv?prefix={name}/&limit=10", None, {"Accept": "application/x-ndjson"})
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert [line["key"] for line in reply.lines[:-1]] == many[:10]
    assert reply.lines[-1] == {"next_cursor": reply.headers["raftkv-next-cursor"]}


async def test_a_prefix_is_deleted_by_portions(http: Http, name: str, many: list[str]) -> None:
    first = (await http("DELETE", f"/v1/kv?prefix={name}/&limit=10")).json
    assert (first["deleted"], first["more"]) == (10, True)
    second = (await http("DELETE", f"/v1/kv?prefix={name}/")).json
    assert (second["deleted"], second["more"]) == (5, False)
    assert (await http("GET", f"/v1/kv?prefix={name}/")).json["items"] == []


async def transact(http: Http, **body: object) -> dict[str, object]:
    reply = await http("POST", "/v1/txn", json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert reply.status == 200, reply.body
    made: dict[str, object] = reply.json
    return made


async def test_a_transaction_runs_one_branch(http: Http, name: str) -> None:
    compare = [{"key": name, "target": "exists", "op": "==", "value": False}]
    success = [
        {"put": {"key": name, "value": "1"}},
        {"incr": {"key": name, "by": 4}},
        {"append": {"key": name, "value": "0"}},
        {"get": {"key": name}},
        {"get": {"key": name + "-absent"}},
        {"delete": {"key": name + "-absent"}},
    ]
    failure = [{"put": {"key": name, "base64": "/w==", "prev": True}}]
    first = await transact(http, compare=compare, success=success, failure=failure)
    revision = first["revision"]
    assert first == {
        "succeeded": True,
        "revision": revision,
        "responses": [
            {"revision": revision},
            {"revision": revision, "value": 5},
            {"revision": revision, "length": 2},
            {
                "key": name,
                "value": "50",
                "content_type": "application/octet-stream",
                "create_revision": revision,
                "mod_revision": revision,
                "version": 3,
            },
            None,
            {"revision": revision, "deleted": 0},
        ],
    }
    second = await transact(http, compare=compare, success=success, failure=failure)
    assert second["succeeded"] is False
    assert second["responses"][0]["prev"]["value"] == "50"  # type: ignore[index]


async def test_every_target_compares(http: Http, name: str) -> None:
    revision = (await http("PUT", path(name), b"b")).json["revision"]
    holds = [
        ("value", "==", "b"), ("value", "!=", "a"), ("value", "<", "c"), ("value", ">", "a"),
        ("mod_revision", "==", revision), ("create_revision", "<", revision + 1), ("version", ">", 0),
        ("exists", "==", True), ("exists", "!=", False),
    ]  # fmt: skip
    compare = [{"key": name, "target": t, "op": op, "value": v} for t, op, v in holds]
    assert (await transact(http, compare=compare))["succeeded"] is True
    for one in compare:
        opposite = {"==": "!=", "!=": "==", "<": ">", ">": "<"}[str(one["op"])]
        assert (await transact(http, compare=[{**one, "op": opposite}]))["succeeded"] is False


async def test_a_failing_operation_undoes_the_transaction(http: Http, name: str) -> None:
    await http("PUT", path(name), b"text")
    body = {"success": [{"put": {"key": name + "-other", "value": "1"}}, {"incr": {"key": name}}]}
    reply = await http("POST", "/v1/txn", json.dumps(body).encode())
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (409, "not_a_number", "not_applied")
    assert (await http("GET", path(name + "-other"))).status == 404


async def test_a_document_is_stored_as_it_was_written(http: Http, name: str) -> None:
    await http(
        "POST", "/v1/txn", b'{"success": [{"put": {"key": "%b", "json": {"a":  [1,2.50]}}}]}' % name.encode()
    )
    got = await http("GET", path(name))
    assert (got.body, got.headers["content-type"]) == (b'{"a":  [1,2.50]}', "application/json")


# --- batch and export ------------------------------------------------------------------------------------


async def batch(http: Http, *lines: object, headers: dict[str, str] | None = None) -> list[dict[str, object]]:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    reply = await http("POST", "/v1/batch", body, {"Content-Type": "application/x-ndjson", **(headers or {})})
    assert reply.status == 200, reply.body
    assert reply.ended
    made: list[dict[str, object]] = reply.lines
    return made


async def test_a_batch_answers_each_line_in_order(http: Http, name: str) -> None:
    answers = await batch(
        http,
        {"op": "put", "key": name, "value": "5"},
        {"op": "put", "key": name, "value": "6"},
        {"op": "incr", "key": name},
        {"op": "append", "key": name, "value": "0"},
        {"op": "get", "key": name},
        {"op": "put", "key": name, "value": "x", "if_revision": 0},
        {"op": "zap", "key": name},
        {"op": "delete", "key": name},
        {"op": "get", "key": name},
        {"op": "incr", "key": ""},
        {"op": "put", "key": name, "base64": "/w=="},
        {"op": "incr", "key": name},
    )
    assert [answer["status"] for answer in answers] == [
        201,
        200,
        200,
        200,
        200,
        412,
        400,
        200,
        404,
        400,
        201,
        409,
    ]
    assert answers[2]["value"] == 7
    assert answers[4]["value"] == "70"
    for answer, code in [
        (5, "precondition_failed"),
        (6, "bad_request"),
        (8, "key_not_found"),
        (11, "not_a_number"),
    ]:
        assert answers[answer]["code"] == code
        assert answers[answer]["outcome"] == "not_applied"
        assert answers[answer]["detail"]


async def test_a_batch_answers_a_line_before_the_next_is_sent(http: Http, name: str) -> None:
    """It streams: a client may wait for each answer."""
    async with http.connect() as connection:
        headers = [*http.headers, ("Transfer-Encoding", "chunked")]
        connection.send(request("POST", "/v1/batch", headers))
        for number in range(3):
            line = json.dumps({"op": "incr", "key": name}).encode() + b"\n"
            connection.send(b"%x\r\n%b\r\n" % (len(line), line))
            if number == 0:
                status, answer_headers = await asyncio.wait_for(connection._head(), 20)
                assert (status, answer_headers["transfer-encoding"]) == (200, "chunked")
            size = int(await asyncio.wait_for(connection.reader.readuntil(b"\r\n"), 20), 16)
            answer = json.loads(await connection.reader.readexactly(size))
            await connection.reader.readexactly(2)
            assert answer["value"] == number + 1
        connection.send(b"0\r\n\r\n")
        assert await asyncio.wait_for(connection.reader.readuntil(b"\r\n"), 20) == b"0\r\n"


async def test_a_large_batch_keeps_its_order(http: Http, name: str) -> None:
    lines = [{"op": "append", "key": name, "value": f"{number},"} for number in range(1500)]
    answers = await batch(http, *lines)
    assert {answer["status"] for answer in answers} == {200}
    assert (await http("GET", path(name))).body == b"".join(b"%d," % number for number in range(1500))


async def test_lines_with_keys_are_done_once(http: Http, name: str) -> None:
    line = {"op": "incr", "key": name, "idempotency_key": name + "/1"}
    first, second = await batch(http, line, {"op": "get", "key": name})
    assert (first["value"], second["value"]) == (1, "1")
    (again,) = await batch(http, line)
    assert again == {**first, "replayed": True}


async def test_a_key_for_a_whole_batch_makes_it_repeatable(http: Http, name: str) -> None:
    lines = [{"op": "incr", "key": name}] * 5
    first = await batch(http, *lines, headers={"Idempotency-Key": name})
    again = await batch(http, *lines, headers={"Idempotency-Key": name})
    assert [answer["value"] for answer in first] == [1, 2, 3, 4, 5]
    assert again == [{**answer, "replayed": True} for answer in first]


async def test_a_line_under_a_key_that_is_on_its_way_learns_so(http: Http, name: str) -> None:
    """What may not go on together does not, and keeps its place."""
    line = {"op": "incr", "key": name, "idempotency_key": name + "/1"}
    other = {"op": "incr", "key": name, "by": 2, "idempotency_key": name + "/1"}
    answers = await batch(http, {"op": "incr", "key": name}, line, line, other, {"op": "incr", "key": name})
    assert [answer.get("value") for answer in answers] == [1, 2, None, None, 3]
    assert [(answer["status"], answer.get("code")) for answer in answers[2:4]] == [
        (409, "in_flight"),
        (422, "idempotency_mismatch"),
    ]


async def test_what_is_wrong_with_a_line_concerns_no_other(http: Http, name: str) -> None:
    lines: list[object] = [{"op": "put", "key": name, "value": f"{number}"} for number in range(700)]
    lines[300] = {"op": "put", "key": name, "value": "x", "if_revision": 1}
    lines[301] = {"op": "put", "key": name}
    lines[600] = {"op": "get", "key": name}
    answers = await batch(http, *lines)
    assert [answer["status"] for answer in answers] == [201] + [200] * 299 + [412, 400] + [200] * 398
    assert answers[600]["value"] == "599"
    assert (await http("GET", path(name))).body == b"699"


async def test_a_batch_that_ends_in_the_middle_does_what_came(node: Node, name: str) -> None:
    http = node.http
    line = json.dumps({"op": "incr", "key": name}).encode() + b"\n"
    raw = request("POST", "/v1/batch", [*http.headers, ("Content-Length", "1000")], None) + line
    reply = await http.raw(raw, half_close=True)
    assert not reply.ended
    assert [answer["status"] for answer in reply.lines] == [200, 400]
    assert (await http("GET", path(name))).body == b"1"


async def test_an_export_is_a_batch(http: Http, name: str, many: list[str]) -> None:
    await http("PUT", path(name + "/bytes"), b"\xff\x00", {"Content-Type": "x/y"})
    exported = await http("GET", f"/v1/export?prefix={name}/")
    assert (await http("DELETE", f"/v1/kv?prefix={name}/")).json["deleted"] == len(many) + 1
    back = await http("POST", "/v1/batch", exported.body)
    assert [line["status"] for line in back.lines] == [201] * (len(many) + 1) + [200]
    got = await http("GET", path(name + "/bytes"))
    assert (got.body, got.headers["content-type"]) == (b"\xff\x00", "x/y")


async def test_an_export_ends_with_its_sum(http: Http, name: str, many: list[str]) -> None:
    reply = await http("GET", f"/v1/export?prefix={name}/")
    *items, end = reply.body.splitlines(keepends=True)
    last = json.loads(end)
    assert [json.loads(item)["key"] for item in items] == many
    assert (last["_end"], last["count"]) == (True, len(many))
    assert last["sha256"] == hashlib.sha256(b"".join(items)).hexdigest()
    assert last["revision"] >= 1


# --- exactly once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "{}/1", "any words of {}!"])
async def test_a_repeated_request_gets_the_first_answer(http: Http, name: str, form: str) -> None:
    headers = {"Idempotency-Key": form.format(name)}
    first = await http("POST", path(name) + "?op=incr", b"", headers)
    again = await http("POST", path(name) + "?op=incr", b"", headers)
    assert first.json == again.json
    assert "raftkv-replayed" not in first.headers
    assert again.headers["raftkv-replayed"] == "true"
    assert (await http("GET", path(name))).body == b"1"


async def test_a_refusal_is_replayed_as_well(http: Http, name: str) -> None:
    headers = {"Idempotency-Key": name, "If-Match": '"999999999"'}
    assert (await http("PUT", path(name), b"1", headers)).status == 412
    again = await http("PUT", path(name), b"1", headers)
    assert (again.status, again.headers["raftkv-replayed"]) == (412, "true")


@pytest.mark.parametrize(
    ("method", "suffix", "body", "headers"),
    [
        ("PUT", "", b"2", {}),
        ("PUT", "", b"1", {"Content-Type": "x/y"}),
        ("PUT", "", b"1", {"If-Match": "*"}),
        ("PUT", "?prev=true", b"1", {}),
        ("PUT", "-other", b"1", {}),
        ("POST", "?op=append", b"1", {}),
        ("DELETE", "", None, {}),
    ],
)
async def test_a_key_with_a_different_request_is_refused(
    http: Http, name: str, method: str, suffix: str, body: bytes | None, headers: dict[str, str]
) -> None:
    assert (await http("PUT", path(name), b"1", {"Idempotency-Key": name})).status == 201
    other = await http(method, path(name) + suffix, body, {"Idempotency-Key": name, **headers})
    assert (other.status, other.json["code"], other.json["outcome"]) == (
        422,
        "idempotency_mismatch",
        "not_applied",
    )


async def test_a_number_below_the_window_is_refused(http: Http, name: str) -> None:
    for number in (1, 5000):
        await http("PUT", path(name), b"v", {"Idempotency-Key": f"{name}/{number}"})
    late = await http("PUT", path(name), b"v", {"Idempotency-Key": f"{name}/2"})
    assert (late.status, late.json["code"]) == (422, "idempotency_expired")
    assert "3977" in late.json["detail"]


# --- reading ---------------------------------------------------------------------------------------------


async def test_stale_reads_say_how_far_they_are(http: Http, name: str) -> None:
    revision = (await http("PUT", path(name), b"v")).json["revision"]
    got = await http("GET", path(name) + f"?consistency=stale&min_revision={revision}")
    assert got.body == b"v"
    assert got.headers["raftkv-consistency"] == "stale"
    assert int(got.headers["raftkv-applied-revision"]) >= revision


async def test_min_revision_beyond_the_store_times_out_unready(http: Http, name: str) -> None:
    got = await http("GET", path(name) + "?min_revision=999999999&timeout=50ms")
    assert (got.status, got.json["code"]) == (503, "not_ready")
    assert "999999999" in got.json["detail"]
    assert got.headers["retry-after"]


# --- the node --------------------------------------------------------------------------------------------


async def test_status_tells_what_the_contract_names(http: Http) -> None:
    status = (await http("GET", "/v1/status")).json
    for field in (
        "name",
        "cluster_id",
        "role",
        "term",
        "leader",
        "commit_index",
        "applied_index",
        "revision",
        "keys",
        "bytes",
        "journal",
        "snapshot",
        "version",
        "peers",
        "acknowledged_means",
    ):
        assert field in status
    assert status["role"] in ("leader", "follower", "candidate", "learner")


async def test_limits_lists_every_limit_with_its_flag(http: Http) -> None:
    rows = (await http("GET", "/v1/limits")).json["limits"]
    assert [row["name"] for row in rows] == [limit.name for limit in LIMITS]
    assert all(row["flag"] == "--" + row["name"].replace("_", "-") for row in rows)
    assert all(isinstance(row["value"], int) and row["unit"] and row["help"] for row in rows)


async def test_cluster_tells_members_and_what_it_can_take(http: Http) -> None:
    cluster = (await http("GET", "/v1/cluster")).json
    assert cluster["quorum"] == len(cluster["members"]) // 2 + 1
    assert cluster["failures_tolerated"] == cluster["reachable"] - cluster["quorum"]
    for member in cluster["members"]:
        assert {"name", "peer", "client_url", "role", "match_index", "lag", "reachable"} <= member.keys()


@pytest.mark.parametrize("probe", ["/livez", "/readyz", "/startupz"])
async def test_probes_answer(http: Http, probe: str) -> None:
    assert (await http("GET", probe)).json == {"status": "ok"}
    verbose = (await http("GET", probe + "?verbose")).json
    assert all(check["ok"] for check in verbose["checks"])


async def test_a_snapshot_is_an_operation(http: Http, name: str) -> None:
    await http("PUT", path(name), b"v")
    started = await http("POST", "/v1/snapshots", b"")
    assert started.status == 202
    async with asyncio.timeout(20):
        while (operation := (await http("GET", started.headers["location"])).json)["state"] == "running":
            pass
        assert (operation["state"], operation["progress"]) == ("done", 1.0)
        while operation["result"] not in (await http("GET", "/v1/snapshots")).json["snapshots"]:
            pass
    assert {"id", "index", "term", "revision", "time", "bytes"} <= operation["result"].keys()


async def test_metrics_count_by_template_and_never_by_key(http: Http, name: str) -> None:
    await http("PUT", path(name), b"v")
    reply = await http("GET", "/metrics")
    text = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/plain")
    assert 'raftkv_http_requests_total{method="PUT",route="/v1/kv/{key}",status="201"}' in text
    assert name not in text
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith("raftkv_") for line in samples)


async def test_the_docs_page_needs_nothing_from_elsewhere(http: Http) -> None:
    reply = await http("GET", "/docs")
    page = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    for word in ("http://", "https://", "src=", "@import", "url("):
        assert word not in page


# --- connections -----------------------------------------------------------------------------------------


async def test_a_request_id_comes_back(http: Http, name: str) -> None:
    got = await http("GET", path(name), None, {"Request-Id": "mine-4711"})
    assert got.headers["request-id"] == "mine-4711"
    assert got.json["request_id"] == "mine-4711"
    one, other = await http("GET", "/livez"), await http("GET", "/livez")
    assert one.headers["request-id"] != other.headers["request-id"]


async def test_pipelined_requests_are_answered_in_order(http: Http, name: str) -> None:
    async with http.connect() as connection:
        put = request("PUT", path(name), [*http.headers], b"v" * 3000)
        connection.send(
            put + request("GET", path(name)) + request("GET", "/v1/nothing") + request("GET", "/livez")
        )
        replies = [await connection.reply() for _ in range(4)]
        assert [reply.status for reply in replies] == [201, 200, 404, 200]
        assert replies[1].body == b"v" * 3000


async def test_a_hundred_pipelined_requests_in_one_write(http: Http, name: str) -> None:
    async with http.connect() as connection:
        one = request("POST", path(name) + "?op=append", [*http.headers], b"0123456789")
        connection.send(one * 100)
        lengths = [(await connection.reply()).json["length"] for _ in range(100)]
        assert lengths == [10 * number for number in range(1, 101)]


async def test_requests_byte_by_byte(http: Http, name: str) -> None:
    async with http.connect() as connection:
        for data in (request("PUT", path(name), [*http.headers], b"abc"), request("GET", path(name))):
            for byte in data:
                connection.send(bytes((byte,)))
                await connection.writer.drain()
            assert (await connection.reply()).status in (200, 201)


async def test_chunked_bodies_and_what_follows_them(http: Http, name: str) -> None:
    async with http.connect() as connection:
        head = request("PUT", path(name), [*http.headers, ("Transfer-Encoding", "chunked")])
        body = b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\n\r\n"
        connection.send(head + body + request("GET", path(name)) + head + body)
        replies = [await connection.reply() for _ in range(3)]
        assert [reply.status for reply in replies] == [201, 200, 200]
        assert replies[1].body == b"abcdefg"


async def test_http_1_0_is_answered_and_closed(http: Http, name: str) -> None:
    await http("PUT", path(name), b"v")
    async with http.connect() as connection:
        connection.send(f"GET {path(name)} HTTP/1.0\r\n\r\n".encode())
        reply = await connection.reply()
        assert (reply.body, reply.headers["connection"]) == (b"v", "close")
        assert await connection.closed()


async def test_a_client_that_has_said_all_still_gets_its_answers(http: Http, name: str) -> None:
    async with http.connect() as connection:
        put = request("PUT", path(name), [*http.headers], b"v")
        connection.send(put + request("GET", path(name)))
        connection.end()
        assert (await connection.reply()).status == 201
        assert (await connection.reply()).body == b"v"
        assert await connection.closed()


async def test_expect_100_continue_is_answered_before_the_body(http: Http, name: str) -> None:
    async with http.connect() as connection:
        connection.send(request("PUT", path(name), [*http.headers, ("Expect", "100-continue")], b"v")[:-1])
        assert (
            await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), 20)
            == b"HTTP/1.1 100 Continue\r\n\r\n"
        )
        connection.send(b"v")
        assert (await connection.reply()).status == 201


async def test_expect_100_continue_with_too_much_is_refused_at_once(http: Http, name: str) -> None:
    async with http.connect() as connection:
        headers = [*http.headers, ("Expect", "100-continue"), ("Content-Length", "2000000")]
        connection.send(request("PUT", path(name), headers))
        reply = await connection.reply()
        assert (reply.status, reply.continued, reply.json["code"]) == (413, False, "value_too_large")


async def test_an_upgrade_that_nobody_makes_is_passed_over(http: Http, name: str) -> None:
    """Java's client asks for h2c with its first request, whatever that is."""
    headers = [
        *http.headers,
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AA"),
    ]
    reply = await http.raw(request("PUT", path(name), headers, b"value"))
    assert reply.status == 201
    assert (await http("GET", path(name))).body == b"value"
