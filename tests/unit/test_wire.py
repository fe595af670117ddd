"""Bytes to meaning: every key survives its encoding, and what is refused says so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.api.batch import TooLongLine, cut, lines_of
from raftkv.api.bodies import Line, parse_line, parse_lines, parse_transaction
from raftkv.api.limits import LIMITS, Limits, check_limits
from raftkv.api.routes import KEY_PREFIX, ROUTES, match
from raftkv.api.wire import (
    Answer,
    Parameter,
    answer_head,
    collect_headers,
    decoded,
    entity_tags,
    parse_query,
    read_conditions,
    split_target,
    stored_content_type,
    write_conditions,
)
from raftkv.errors import BadRequest, RaftkvError
from raftkv.kv.command import Condition, Put

LIMITS_IN_FORCE = Limits()
keys = st.text(min_size=1, max_size=200).filter(lambda key: not any("\ud800" <= c <= "\udfff" for c in key))


@given(keys, st.booleans())
def test_every_key_comes_out_of_a_path_as_it_went_in(key: str, slashes_encoded: bool) -> None:
    raw = quote(key, safe="" if slashes_encoded else "/").encode()
    path, query = split_target(b"/v1/kv/" + raw + b"?format=json")
    found = match("GET", path, [])
    assert (path, query) == (KEY_PREFIX + raw, b"format=json")
    assert found.rest is not None
    assert decoded(found.rest, "path") == key.encode()


@given(keys)
def test_every_key_comes_out_of_a_query_as_it_went_in(key: str) -> None:
    allowed = {"key": Parameter("key", "key", "")}
    for encoded in (quote(key, safe=""), quote(key, safe="").replace("%20", "+")):
        assert parse_query(b"key=" + encoded.encode(), allowed, LIMITS_IN_FORCE) == {"key": key.encode()}


@given(st.binary(max_size=60))
def test_decoding_takes_utf_8_and_nothing_else(raw: bytes) -> None:
    encoded = quote_from_bytes(raw, safe="").encode()
    try:
        raw.decode()
    except UnicodeDecodeError:
        with pytest.raises(BadRequest, match="UTF-8"):
            decoded(encoded, "path")
    else:
        assert decoded(encoded, "path") == raw


@given(st.binary(max_size=80))
def test_a_target_of_any_bytes_is_parsed_or_refused(target: bytes) -> None:
    try:
        path, query = split_target(target)
        match("GET", path, [])
        decoded(path, "path")
        parse_query(query, {}, LIMITS_IN_FORCE)
    except RaftkvError:
        pass


@given(st.binary(max_size=120))
def test_a_line_or_a_transaction_of_any_bytes_is_parsed_or_refused(body: bytes) -> None:
    for parse in (parse_line, parse_transaction):
        with contextlib.suppress(RaftkvError):
            parse(body, LIMITS_IN_FORCE)


@given(
    st.lists(st.tuples(st.sampled_from(["if-match", "ACCEPT", "X-Other", "Expect"]), st.binary(max_size=20)))
)
def test_headers_of_any_bytes_are_taken_or_refused(pairs: list[tuple[str, bytes]]) -> None:
    try:
        headers = collect_headers([(name.encode(), value) for name, value in pairs])
        write_conditions(headers, {})
        read_conditions(headers)
    except RaftkvError:
        pass


def test_a_plus_is_a_space_in_a_query_only() -> None:
    assert decoded(b"a+b", "path") == b"a+b"
    assert decoded(b"a+b%2B", "query", form=True) == b"a b+"


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        ('"57"', [(False, "57")]),
        ('W/"57"', [(True, "57")]),
        ('"1", W/"2" ,"a,b"', [(False, "1"), (True, "2"), (False, "a,b")]),
        ('""', [(False, "")]),
    ],
)
def test_entity_tags(value: str, tags: list[tuple[bool, str]]) -> None:
    assert entity_tags("If-Match", value) == tags


@pytest.mark.parametrize("value", ["57", '"57', '57"', '"1" "2"', '"1",', ',"1"', 'w/"1"', "*, *", ""])
def test_what_is_no_list_of_entity_tags(value: str) -> None:
    with pytest.raises(BadRequest, match="entity tags"):
        entity_tags("If-Match", value)


@pytest.mark.parametrize(
    ("headers", "query", "condition", "revisions"),
    [
        ({}, {}, None, ()),
        ({"If-Match": '"5"'}, {}, Condition(5, None), ()),
        ({"If-Match": "*"}, {}, Condition(None, True), ()),
        ({"If-None-Match": "*"}, {}, Condition(None, False), ()),
        ({}, {"if_revision": 0}, Condition(0, None), ()),
        ({"If-Match": '"5"'}, {"if_revision": 5}, Condition(5, None), ()),
        ({"If-Match": "*"}, {"if_revision": 5}, Condition(5, True), ()),
        ({"If-None-Match": "*"}, {"if_revision": 0}, Condition(0, False), ()),
        ({"If-Match": '"5", "6", "5"'}, {}, Condition(None, None), (5, 6)),
    ],
)
def test_conditions_of_a_write(
    headers: dict[str, str], query: dict[str, int], condition: Condition | None, revisions: tuple[int, ...]
) -> None:
    found = write_conditions(headers, query)
    assert (found.condition, found.revisions) == (condition, revisions)


@pytest.mark.parametrize(
    "sent", [None, "application/x-www-form-urlencoded", "Application/X-WWW-Form-URLEncoded; a=b"]
)
def test_curls_form_type_counts_as_none(sent: str | None) -> None:
    assert stored_content_type(sent, "header", LIMITS_IN_FORCE) == "application/octet-stream"


@pytest.mark.parametrize("sent", ["a", "a/", "/b", "a/b\r\nX: y", "a b/c", "a/b; c=é", "a/b\0"])
def test_a_content_type_that_is_none_is_never_stored(sent: str) -> None:
    with pytest.raises(BadRequest):
        stored_content_type(sent, "header", LIMITS_IN_FORCE)


def test_an_answers_head() -> None:
    answer = Answer(200, b"{}", headers=(("ETag", '"1"'),))
    head = answer_head(answer, "A: b\r\n", keep_alive=True, old_version=False, length=2)
    assert (
        head == b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        b'ETag: "1"\r\n\r\n'
    )
    unmodified = answer_head(Answer(304), "", keep_alive=False, old_version=False, length=0)
    assert unmodified == b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n"


def test_a_json_document_is_kept_as_it_was_written() -> None:
    line = parse_line(b'{"key": "a", "json": {"x":  [1.50, 2]}}', LIMITS_IN_FORCE)
    assert line.operation == Put(b"a", b'{"x":  [1.50, 2]}', "application/json")


@given(
    st.lists(st.text("abc\r", max_size=8).map(str.encode), max_size=8),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_lines_are_the_same_however_the_body_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    body = b"\n".join(parts)
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(bounds):
            yield body[start:end]

    async def found() -> list[bytes | None]:
        return [
            None if isinstance(line, TooLongLine) else line
            async for lines in lines_of(pieces(), 4)
            for line in lines
        ]

    expected = [None if len(part) > 4 else part for part in parts if part.strip() or len(part) > 4]
    assert asyncio.run(found()) == expected


@given(st.lists(st.integers(0, 400_000), max_size=20), st.integers(1, 4))
def test_lines_are_cut_into_parts_of_bounded_size_in_their_order(sizes: list[int], lines_max: int) -> None:
    lines = [bytes(size) for size in sizes]
    parts = cut(lines, lines_max)
    assert [line for part in parts for line in part] == lines
    assert all(1 <= len(part) <= lines_max for part in parts)
    assert all(len(part) == 1 or sum(map(len, part)) <= 256 << 10 for part in parts)


_PUT = b'{"op": "put", "key": "a", "value": "1"}'
_members = st.sampled_from(
    [
        b'"op": "put"', b'"op": "delete"', b'"op": "get"', b'"op": "incr"', b'"key": "a"', b'"key": ""',
        b'"key": "\xc3\xa9"', b'"key": "\\ud800"', b'"value": "}\\n{"', b'"value": ""', b'"base64": "/w=="',
        b'"base64": "x"', b'"json": {"a": [1]}', b'"content_type": "text/plain"', b'"content_type": "x"',
        b'"content_type": null', b'"by": 1', b'"by": null', b'"if_revision": 0', b'"if_revision": -1',
        b'"idempotency_key": "c/1"', b'"idempotency_key": ""', b'"prev": true', b'"create_revision": 1',
        b'"mod_revision": 2', b'"version": 3', b'"_end": true', b'"count": 1', b'"zap": 1',
    ]
)  # fmt: skip
_one_line = st.one_of(
    st.just(_PUT),
    st.lists(_members, min_size=1, max_size=4, unique=True).map(lambda them: b"{" + b", ".join(them) + b"}"),
    st.sampled_from(
        [
            b"{", b"}", b"{}", b"[]", b"1", b"null", b'{"key": "a"', b'"value": "b"}', _PUT + _PUT,
            b"{" + _PUT, _PUT + b"}", b" " + _PUT, _PUT + b" ", _PUT + b"\r", b"{" + _PUT + b"}",
            b'{"key": "\xff", "value": "1"}', _PUT + b"{", b'{"json": ' + _PUT,
            b'"key": "b", "value": "1"}', _PUT + b',' + _PUT,
        ]
    ),
)  # fmt: skip


@given(st.lists(_one_line, min_size=1, max_size=6))
def test_lines_that_are_parsed_together_mean_what_each_means_alone(lines: list[bytes]) -> None:
    def alone(line: bytes) -> object:
        try:
            return parse_line(line, LIMITS_IN_FORCE)
        except RaftkvError as error:
            return (type(error), str(error))

    together = [
        (type(each), str(each)) if isinstance(each, RaftkvError) else each
        for each in parse_lines(lines, LIMITS_IN_FORCE)
    ]
    assert together == [alone(line) for line in lines]


def test_plain_puts_are_decoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.api.bodies.parse_line", None)
    assert parse_lines([_PUT] * 3, LIMITS_IN_FORCE) == [Line(Put(b"a", b"1"))] * 3


def test_the_limits_table_and_the_defaults_agree() -> None:
    assert check_limits(Limits()) == []
    assert all(getattr(Limits(), limit.name) == limit.default for limit in LIMITS)
    assert "--value-bytes-max" in check_limits(Limits(value_bytes_max=0))[0]


def test_every_route_has_a_name_and_a_place_of_its_own() -> None:
    assert len({(route.method, route.template) for route in ROUTES}) == len(ROUTES)
    assert len({route.name for route in ROUTES}) == len(ROUTES)
