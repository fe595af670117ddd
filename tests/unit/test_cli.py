"""The command line: what it sends, what it prints, and the exit code for each way that a request can end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.cli import cli
from cluster.output import preview
from tests.unit.fake_node import Drop, FakeNode, Reply, Request, Word, problem, written


@contextmanager
def node(*script: Word | Callable[[Request], Word]) -> Iterator[FakeNode]:
    """A fake node on a loop of its own: the command line under test blocks this thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    fake = FakeNode(*script)
    asyncio.run_coroutine_threadsafe(fake.__aenter__(), loop).result()
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(_finish(fake), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _finish(fake: FakeNode) -> None:
    await fake.stop()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin, catch_exceptions=False)


def on(fake: FakeNode, *arguments: str, stdin: bytes | None = None) -> Result:
    return run(*arguments, "--endpoints", fake.url, "--timeout", "1", stdin=stdin)


def commands() -> Iterator[tuple[str, ...]]:
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        yield (name,)
        for sub in getattr(command, "commands", {}):
            yield (name, sub)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    if path[0] != "journal":
        assert "Example" in shown.output


def test_get_prints_the_bytes_and_nothing_else() -> None:
    with node(Reply(200, b"\x00\xffbytes", {"ETag": '"3"'})) as fake:
        shown = on(fake, "kv", "get", "k")
    assert (shown.exit_code, shown.stdout_bytes) == (0, b"\x00\xffbytes")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (problem(404, "key_not_found"), 3),
        (problem(412, "precondition_failed"), 4),
        (problem(503, "no_leader", retryable=True), 5),
        (problem(504, "commit_timeout", outcome="unknown", retryable=True), 6),
        (Drop(), 6),
        (problem(413, "value_too_large"), 2),
        (problem(409, "not_a_number"), 2),
        (Reply(200, b"<html>"), 1),
    ],
)
def test_exit_codes_tell_what_became_of_a_write(reply: Word, code: int) -> None:
    with node(reply) as fake:
        shown = on(fake, "kv", "put", "k", "v")
    assert shown.exit_code == code
    assert shown.stderr.startswith("raftkv: ")
    assert shown.stdout == ""
    assert ("may have been written" in shown.stderr) == (code == 6)


def test_a_node_that_is_not_there_is_unavailable() -> None:
    with node(written()) as fake:
        url = fake.url
    shown = run("kv", "put", "k", "v", "--endpoints", url, "--timeout", "0.2")
    assert shown.exit_code == 5


def test_values_come_from_the_argument_a_file_or_stdin(tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"\x00from file")
    with node(written()) as fake:
        for text, stdin in (
            ("plain", None),
            (f"@{tmp_path}/value", None),
            ("-", b"\xff stdin"),
            ("@@at", None),
        ):
            assert on(fake, "kv", "put", "k", text, stdin=stdin).exit_code == 0
        assert [request.body for request in fake.requests] == [
            b"plain",
            b"\x00from file",
            b"\xff stdin",
            b"@at",
        ]
        missing = on(fake, "kv", "put", "k", "@/nowhere/at/all")
    assert missing.exit_code == 2
    assert "No such file" in missing.stderr


def test_put_says_what_was_done_as_text_and_as_json() -> None:
    with node(written(57)) as fake:
        assert on(fake, "kv", "put", "k", "v").stdout == "revision 57  created true\n"
        shown = on(fake, "kv", "put", "k", "v", "-o", "json")
    assert json.loads(shown.stdout) == {"revision": 57, "created": True}


@pytest.mark.parametrize(
    "arguments",
    [
        ("put", "k", "v", "--if-absent", "--if-exists"),
        ("put", "k"),
        ("put", "k", "v", "--timeout", "0"),
        ("put", "k", "v", "--endpoints", "ftp://h"),
        ("del",),
        ("del", "k", "--prefix", "p"),
        ("del", "--prefix", ""),
        ("del", "--prefix", "p", "--if-revision", "3"),
        ("cas", "k", "v"),
        ("cas", "k", "v", "--absent", "--revision", "1"),
        ("incr", "k", "many"),
        ("nothing",),
    ],
)
def test_wrong_usage_is_2_and_sends_nothing(arguments: tuple[str, ...]) -> None:
    with node(written()) as fake:
        endpoints = () if "--endpoints" in arguments else ("--endpoints", fake.url)
        shown = run("kv", *arguments, *endpoints)
        assert shown.exit_code == 2
        assert fake.requests == []


def test_endpoints_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with node(written()) as fake:
        monkeypatch.setenv("RAFTKV_ENDPOINTS", fake.url)
        assert run("kv", "put", "k", "v").exit_code == 0


def test_cas_compares_the_value_and_fails_with_4() -> None:
    no = Reply(200, b'{"succeeded": false, "revision": 7, "responses": []}')
    yes = Reply(200, b'{"succeeded": true, "revision": 8, "responses": [{}]}')
    with node(no, yes, written(9, 200)) as fake:
        assert on(fake, "kv", "cas", "k", "new", "--expected", "old").exit_code == 4
        assert on(fake, "kv", "cas", "k", "new", "--expected", "old").exit_code == 0
        assert on(fake, "kv", "cas", "k", "new", "--absent").exit_code == 0
        assert json.loads(fake.requests[0].body) == {
            "compare": [{"key": "k", "target": "value", "op": "==", "value": "old"}],
            "success": [{"put": {"key": "k", "value": "new"}}],
            "failure": [],
        }
        assert fake.requests[2].target == "/v1/kv/k?if_revision=0"


def test_del_of_a_prefix_goes_on_until_nothing_is_left() -> None:
    more = Reply(200, b'{"revision": 3, "deleted": 10000, "more": true}')
    last = Reply(200, b'{"revision": 4, "deleted": 5, "more": false}')
    with node(more, last) as fake:
        shown = on(fake, "kv", "del", "--prefix", "tmp/")
    assert shown.stdout == "revision 4  deleted 10005\n"
    assert fake.requests[0].target == "/v1/kv?prefix=tmp%2F"


def test_incr_prints_the_sum() -> None:
    with node(Reply(200, b'{"revision": 3, "value": -2}')) as fake:
        assert on(fake, "kv", "incr", "k", "--", "-3").exit_code == 2  # the options came after --
        shown = run("kv", "incr", "--endpoints", fake.url, "k", "--", "-3")
    assert shown.stdout == "-2\n"
    assert fake.requests[0].target == "/v1/kv/k?op=incr&by=-3"


def test_list_is_plain_where_there_is_no_terminal_and_json_on_demand() -> None:
    items = [
        {
            "key": "a",
            "value": "one\ntwo",
            "content_type": "t",
            "create_revision": 1,
            "mod_revision": 2,
            "version": 2,
        },
        {
            "key": "b",
            "base64": "AP8=",
            "content_type": "t",
            "create_revision": 3,
            "mod_revision": 3,
            "version": 1,
        },
    ]
    with node(Reply(200, json.dumps({"items": items, "next_cursor": None}).encode())) as fake:
        plain = on(fake, "kv", "list", "--prefix", "a/b")
        assert plain.stdout.splitlines() == [
            "key\trevision\tversion\tbytes\tvalue",
            "a\t2\t2\t7\tone·two",
            "b\t3\t1\t2\t<2 bytes>",
        ]
        assert "prefix=a%2Fb" in fake.requests[0].target
        as_json = on(fake, "kv", "list", "-o", "json")
    assert [json.loads(line) for line in as_json.stdout.splitlines()] == items


def test_preview_is_one_short_line() -> None:
    assert preview(b"x" * 1000) == "x" * 59 + "…"
    assert preview("ü".encode() * 1000) == "ü" * 59 + "…"
    assert preview(b"\x80") == "<1 bytes>"
    assert preview(None) == ""


def test_txn_takes_a_document_and_fails_with_4_where_nothing_ran() -> None:
    no = Reply(200, b'{"succeeded": false, "revision": 7, "responses": []}')
    with node(no) as fake:
        document = b'{"compare": [{"key": "k", "target": "version", "op": "<", "value": 3}]}'
        assert on(fake, "kv", "txn", "-", stdin=document).exit_code == 4
        other = b'{"compare": [], "failure": [{"get": {"key": "k"}}]}'
        assert on(fake, "kv", "txn", "-", stdin=other).exit_code == 0
        for wrong in (b"{", b"[]", b'{"sucess": []}'):
            shown = on(fake, "kv", "txn", "-", stdin=wrong)
            assert shown.exit_code == 2
        assert "sucess" in shown.stderr


def test_import_says_which_line_is_broken() -> None:
    with node(written()) as fake:
        shown = on(fake, "kv", "import", "-", stdin=b'\n{"key": 3}\n')
    assert shown.exit_code == 2
    assert "line 2" in shown.stderr


def test_a_failed_import_ends_although_its_source_is_silent() -> None:
    """The other end of the pipe stays open and says nothing more."""
    with node(problem(401, "unauthenticated")) as fake:
        importing = subprocess.Popen(
            [sys.executable, "-m", "raftkv", "kv", "import", "-", "--endpoints", fake.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert importing.stdin is not None
        importing.stdin.write(b'{"key": "k", "value": "v"}\n')
        importing.stdin.flush()
        try:
            assert importing.wait(20) == 2
        finally:
            importing.kill()
            importing.communicate()


def test_import_of_nothing_is_fine() -> None:
    with node(written()) as fake:
        shown = on(fake, "kv", "import", "-", stdin=b'{"_end":true,"count":0}\n')
    assert shown.exit_code == 0
    assert shown.stdout.startswith("0 written")


def exported() -> tuple[bytes, bytes]:
    lines = b'{"key":"a","value":"1","content_type":"t","create_revision":1,"mod_revision":1,"version":1}\n'
    end = {"_end": True, "count": 1, "revision": 1, "sha256": hashlib.sha256(lines).hexdigest()}
    return lines, json.dumps(end, separators=(",", ":")).encode() + b"\n"


def test_export_writes_the_items_and_the_end_on_demand(tmp_path: Path) -> None:
    lines, end = exported()
    with node(Reply(200, lines + end)) as fake:
        assert on(fake, "kv", "export").stdout_bytes == lines
        assert on(fake, "kv", "export", "--with-end").stdout_bytes == lines + end
        assert on(fake, "kv", "export", "--file", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out").read_bytes() == lines
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_was_cut_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    lines, _ = exported()
    (tmp_path / "out").write_bytes(b"the last good one")
    with node(Reply(200, lines)) as fake:
        shown = on(fake, "kv", "export", "--file", str(tmp_path / "out"))
    assert shown.exit_code == 1
    assert "stream_cut" in shown.stderr
    assert (tmp_path / "out").read_bytes() == b"the last good one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_status_shows_every_node_and_is_5_without_a_leader() -> None:
    led = {"name": "n1", "role": "leader", "leader": "n1", "term": 3, "commit_index": 9, "applied_index": 9}
    with node(Reply(200, json.dumps({**led, "revision": 5, "keys": 2, "bytes": 10}).encode())) as fake:
        url = fake.url
        shown = on(fake, "status")
        assert shown.exit_code == 0
        assert shown.stdout.splitlines()[1] == f"{url}\tn1\tleader\tn1\t3\t9\t9\t5\t2\t10"
        document = json.loads(on(fake, "status", "-o", "json").stdout)
        assert document["nodes"][0]["leader"] == "n1"
    shown = run("status", "--endpoints", url, "--timeout", "0.2")
    assert shown.exit_code == 5
    assert "unreachable" in shown.stdout
    assert f"no status from {url}: unreachable: GET {url}: connection refused" in shown.stderr


def test_serve_refuses_a_wrong_configuration_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAFTKV_SECRET", raising=False)
    shown = run("serve", "--name", "n1", "--data-dir", "/d", "--member", "n1=h:1,http://h:2")
    assert shown.exit_code == 2
    assert shown.stderr.startswith("raftkv serve: --secret-file is not set")
    shown = run("serve", "--name", "n1", "--data-dir", "/d", "--member", "n1=h:1")
    assert "--member" in shown.stderr
    assert shown.exit_code == 2
