"""Real nodes over TLS: who is refused on which port, what still works, and renewal without a restart."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from cluster.certs import Authority
from cluster.local import LocalCluster, find_base_port
from raftkv.client import Client, SyncClient, Unavailable, tls_context
from raftkv.model import Identity
from raftkv.raft.handshake import Dialer, Established, Refused, Send, Standing
from raftkv.raft.transport import RELEASE
from tests.certificates import Certificates, old_tls

DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Clients need a certificate as well."""
    directory = tmp_path_factory.mktemp("cluster")
    client_ca = ("--tls-client-ca", str(directory / "tls" / "ca.pem"))
    with LocalCluster(directory, base_port=find_base_port(), extra_args=client_ca, tls=True) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster
        cluster.stop_all()
        assert [cluster.exit_code(name) for name in cluster.names] == [0, 0, 0]


@pytest.fixture(scope="module")
def certificates(nodes: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of the cluster's own CA, whose key somebody has got hold of."""
    authority = Authority.read(nodes.tls_dir / "ca.pem", nodes.tls_dir / "ca.key")
    return Certificates(tmp_path_factory.mktemp("callers"), authority)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def raftkv(nodes: LocalCluster, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """With the endpoints and the three files in the environment, as one would have them."""
    files = {
        "RAFTKV_CA_FILE": str(nodes.tls_dir / "ca.pem"),
        "RAFTKV_CERT_FILE": str(nodes.tls_dir / "client.pem"),
        "RAFTKV_KEY_FILE": str(nodes.tls_dir / "client.key"),
        "RAFTKV_ENDPOINTS": ",".join(nodes.api_urls()),
    }
    return subprocess.run(
        [sys.executable, "-m", "raftkv", *arguments],
        capture_output=True,
        timeout=60,
        env={**os.environ, **files, **environment},
    )


# --- who is refused ---------------------------------------------------------------------------------------


def state(nodes: LocalCluster) -> list[tuple[object, ...]]:
    """What no refused caller may change, on each node."""
    names = ("term", "role", "leader", "revision", "keys", "commit_index")
    return [tuple((nodes.status(each) or {}).get(name) for name in names) for each in nodes.names]


def ask_api(nodes: LocalCluster, node: str, context: ssl.SSLContext | None) -> int:
    """The status of a write, or OSError."""
    address = (nodes.host(node), nodes.api_port(node))
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection(*address, timeout=5)
    else:
        connection = http.client.HTTPSConnection(*address, timeout=5, context=context)
    try:
        connection.request("PUT", "/v1/kv/intruder", b"was here", {"Raftkv-Route": "forward"})
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError("no answer") from error
    finally:
        connection.close()


def call_raft(nodes: LocalCluster, context: ssl.SSLContext | None) -> str:
    """Calls n1 as n2, with the secret. What n1 says: a refusal's code, or "established"; or OSError."""
    known = nodes.status("n1")
    assert known is not None
    identity = Identity("n2", secrets.token_hex(16), known["cluster_id"])
    dialer = Dialer(
        secret=nodes.secret_path.read_bytes().strip(),
        nonce=secrets.token_bytes(32),
        hello=Standing(identity, None, ()).hello(target="n1", release=RELEASE),
        judge=lambda _: None,
    )
    host, _, port = nodes.raft_address("n1").partition(":")
    with ExitStack() as stack:
        link = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
        if context is not None:
            link = stack.enter_context(context.wrap_socket(link, server_hostname="n1"))
        link.sendall(dialer.greeting)
        while True:
            data = link.recv(65536)
            if not data:
                raise ConnectionResetError("n1 hung up")
            for event in dialer.feed(data):
                match event:
                    case Send():
                        link.sendall(event.data)
                    case Refused():
                        return event.refusal.code
                    case Established():
                        return "established"


REFUSED = "refused"
# Of a caller, what the API port answers a write, and what the raft port says to one that calls itself n2.
MATRIX: dict[str, tuple[object, object]] = {
    "no certificate": (REFUSED, REFUSED),
    "expired": (REFUSED, REFUSED),
    "wrong CA": (REFUSED, REFUSED),
    "for servers alone": (REFUSED, REFUSED),
    "TLS 1.1": (REFUSED, REFUSED),
    "plain text": (REFUSED, REFUSED),
    "a client's": (200, "wrong_certificate"),
    "a non-member's": (200, "wrong_certificate"),
    "another member's": (200, "wrong_certificate"),
    # The control: past TLS, and then it is the disk that is another.
    "the member's own": (200, "other_instance"),
}


@pytest.mark.parametrize("caller", MATRIX)
def test_a_caller_with(caller: str, nodes: LocalCluster, certificates: Certificates) -> None:
    on_api, on_raft = MATRIX[caller]
    pairs = {**certificates.pairs(), "the member's own": certificates.authority.node("n2")}
    context: ssl.SSLContext | None = None
    if caller == "TLS 1.1":
        context = old_tls()
    elif caller != "plain text":
        context = certificates.caller(caller, pairs.get(caller))
    with SyncClient(nodes.api_urls(), tls=nodes.client_tls) as client:
        client.put("intruder", b"nobody yet")
        settled = max(status["revision"] for status in nodes.statuses().values() if status)
        until(lambda: all(each[3] == settled for each in state(nodes)), "the nodes differ in their revision")
        before = state(nodes)
        if on_api == REFUSED:
            for name in nodes.names:
                with pytest.raises(OSError):  # noqa: PT011  # of what kind is OpenSSL's affair
                    ask_api(nodes, name, context)
        if on_raft == REFUSED:
            with pytest.raises(OSError):  # noqa: PT011
                call_raft(nodes, context)
        else:
            assert call_raft(nodes, context) == on_raft
        assert state(nodes) == before
        if on_api != REFUSED:
            assert {ask_api(nodes, name, context) for name in nodes.names} == {on_api}
        client.put("after", caller.encode())  # and all goes on
        assert client.get("after").value == caller.encode()


@pytest.mark.parametrize("what", ["another CA", "another host", "expired"])
async def test_a_client_refuses_a_node_that_shows(
    what: str, nodes: LocalCluster, certificates: Certificates, tmp_path: Path
) -> None:
    """A listener in a node's place; nothing of the request reaches it."""
    pair = {
        "another CA": certificates.stranger.node("n1"),
        "another host": certificates.authority.node("n1", ("10.0.0.1",)),
        "expired": certificates.authority.node("n1", days=-1),
    }[what]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair.write(tmp_path, "impostor"))
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))

    impostor = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{impostor.sockets[0].getsockname()[1]}"
    async with Client(url, tls=tls_context(certificates.ca), timeout_s=0.5) as client:
        with pytest.raises(Unavailable, match="certificate"):
            await client.put("a", b"v")
    impostor.close()
    await impostor.wait_closed()
    assert heard == []


# --- what works -------------------------------------------------------------------------------------------


def test_the_command_line_does_everything_over_tls(nodes: LocalCluster, tmp_path: Path) -> None:
    assert raftkv(nodes, "kv", "put", "cli", "value").returncode == 0
    assert raftkv(nodes, "kv", "get", "cli").stdout == b"value"
    status = raftkv(nodes, "status", "-o", "json")
    assert {each["security"]["tls"] for each in json.loads(status.stdout)["nodes"]} == {True}
    lines = tmp_path / "lines.ndjson"
    lines.write_text("".join(json.dumps({"key": f"bulk/{n}", "value": "v"}) + "\n" for n in range(2000)))
    assert raftkv(nodes, "kv", "import", str(lines)).returncode == 0
    exported = raftkv(nodes, "kv", "export", "--prefix", "bulk/")
    assert exported.stdout.count(b'"bulk/') == 2000
    doctor = raftkv(nodes, "doctor", "--endpoints", ",".join(nodes.api_urls()))
    assert (doctor.returncode, doctor.stdout.count(b"reaches every member")) == (0, 3), doctor
    one = {"RAFTKV_ENDPOINTS": nodes.api_url("n1")}
    assert raftkv(nodes, "snapshot", "create", **one).returncode == 0
    copied = raftkv(nodes, "snapshot", "download", "latest", str(tmp_path / "copy"), **one)
    assert copied.returncode == 0, copied
    assert raftkv(nodes, "member", "list").returncode == 0


def test_without_a_scheme_a_ca_file_means_https(nodes: LocalCluster) -> None:
    bare = nodes.api_url("n1").removeprefix("https://")
    assert raftkv(nodes, "kv", "put", "bare", "v", RAFTKV_ENDPOINTS=bare).returncode == 0


def test_files_that_are_wrong_are_wrong_usage(nodes: LocalCluster, tmp_path: Path) -> None:
    absent = raftkv(nodes, "kv", "get", "a", RAFTKV_CA_FILE=str(tmp_path / "absent.pem"))
    assert (absent.returncode, b"absent.pem" in absent.stderr) == (2, True)


def test_a_follower_redirects_and_forwards_to_https(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    follower = next(name for name in nodes.names if name != leader)
    connection = http.client.HTTPSConnection(
        nodes.host(follower), nodes.api_port(follower), timeout=10, context=nodes.client_tls
    )
    connection.request("PUT", "/v1/kv/redirected", b"v")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 307
    assert answer.headers["Location"] == nodes.api_url(leader) + "/v1/kv/redirected"
    connection.request("PUT", "/v1/kv/forwarded", b"v", {"Raftkv-Route": "forward"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 201
    lines = b"".join(
        json.dumps({"op": "put", "key": f"b{n}", "value": "v"}).encode() + b"\n" for n in range(50)
    )
    connection.request("POST", "/v1/batch", lines, {"Raftkv-Route": "forward"})
    answer = connection.getresponse()
    assert answer.read().count(b'"revision"') == 50
    connection.close()


def test_members_find_each_other_again_after_kill_9(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    with SyncClient(nodes.api_urls(), tls=nodes.client_tls) as client:
        client.put("before", b"v")
        nodes.kill(leader)
        client.put("meanwhile", b"v")
        nodes.start(leader)
        nodes.wait_ready()
        assert client.get("meanwhile").value == b"v"


# --- renewal ----------------------------------------------------------------------------------------------


def serial(nodes: LocalCluster, node: str) -> bytes:
    """The certificate that the API port shows now."""
    assert nodes.client_tls is not None
    with (
        socket.create_connection((nodes.host(node), nodes.api_port(node)), timeout=5) as plain,
        nodes.client_tls.wrap_socket(plain, server_hostname=nodes.host(node)) as link,
    ):
        shown = link.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def shows_another(nodes: LocalCluster, node: str, old: bytes) -> bool:
    return serial(nodes, node) != old


def replace(nodes: LocalCluster, node: str, certificate: bytes, key: bytes) -> None:
    """As a careful person does it: each file whole."""
    for suffix, content in ((".key", key), (".pem", certificate)):
        fresh = nodes.tls_dir / f"{node}{suffix}.new"
        fresh.write_bytes(content)
        fresh.replace(nodes.tls_dir / f"{node}{suffix}")


def test_renewed_certificates_are_in_use_without_a_restart(
    nodes: LocalCluster, certificates: Certificates
) -> None:
    pids = [nodes.pid(name) for name in nodes.names]
    ended = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(writes_until, nodes, ended) for _ in range(2)]
        try:
            renew_each(nodes, certificates)
        finally:
            ended.set()
        for load in loads:
            answers = load.result()
            assert len(answers) > 20
            assert set(answers) <= {200, 201}  # each on a connection of its own
    assert [nodes.pid(name) for name in nodes.names] == pids
    nodes.wait_ready(timeout_s=10)


def writes_until(nodes: LocalCluster, ended: threading.Event) -> list[int]:
    answers = []
    for name in itertools.cycle(nodes.names):
        if ended.is_set():
            return answers
        answers.append(ask_api(nodes, name, nodes.client_tls))
    raise AssertionError


def renew_each(nodes: LocalCluster, certificates: Certificates) -> None:
    for name in nodes.names:
        old = serial(nodes, name)
        pair = certificates.authority.node(name, days=30)
        replace(nodes, name, pair.certificate, pair.key)
        if name == "n1":  # the others notice by themselves
            os.kill(nodes.pid(name) or 0, signal.SIGHUP)
        until(partial(shows_another, nodes, name, old), f"{name} shows the old certificate")
        security = (nodes.status(name) or {})["security"]
        left = [each["seconds_left"] for each in security["certificates"] if each["use"] in ("api", "peer")]
        assert len(left) == 2
        assert max(left) < 31 * 86_400


def test_a_broken_file_changes_nothing_but_the_alarm(nodes: LocalCluster, certificates: Certificates) -> None:
    shown = serial(nodes, "n2")
    right = [(nodes.tls_dir / f"n2{suffix}").read_bytes() for suffix in (".pem", ".key")]
    stranger = certificates.stranger.node("n2")
    replace(nodes, "n2", stranger.certificate, stranger.key)
    until(lambda: len((nodes.status("n2") or {})["security"]["reload_problems"]) == 2, "no problem is told")
    log = nodes.log_path("n2").read_text()
    assert "ERROR raftkv.tls tls_reload_failed use=peer" in log
    assert "ERROR raftkv.tls tls_reload_failed use=api" in log
    for problem in (nodes.status("n2") or {})["security"]["reload_problems"]:
        assert "would be refused by" in problem
    replace(nodes, "n2", right[0], right[1])
    until(lambda: not (nodes.status("n2") or {})["security"]["reload_problems"], "the problem stays")
    assert serial(nodes, "n2") == shown


def test_a_member_with_an_expired_certificate_is_kept_out_until_it_is_renewed(
    nodes: LocalCluster, certificates: Certificates
) -> None:
    leader = nodes.wait_leader()
    name = next(each for each in nodes.names if each != leader)
    nodes.stop(name)
    right = [(nodes.tls_dir / f"{name}{suffix}").read_bytes() for suffix in (".pem", ".key")]
    expired = certificates.authority.node(name, days=-1)
    replace(nodes, name, expired.certificate, expired.key)
    nodes.start(name)
    until(lambda: "certificate_expired use=peer" in nodes.log_path(name).read_text(), "it says nothing")
    others = [each for each in nodes.names if each != name]
    until(
        lambda: any("has expired" in nodes.log_path(each).read_text() for each in others),
        "the others say nothing",
    )
    with SyncClient([nodes.api_url(each) for each in others], tls=nodes.client_tls) as client:
        client.put("without it", b"v")
    replace(nodes, name, right[0], right[1])
    nodes.wait_ready([name])
