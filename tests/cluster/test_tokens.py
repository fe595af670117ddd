"""Three real nodes that ask for tokens: the first one, those that it makes, and where secrets end up."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cluster.cli import cli
from cluster.local import LocalCluster, find_base_port
from raftkv.client import BadRequest, SyncClient
from raftkv.client.answers import ClientError


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    data_dir = tmp_path_factory.mktemp("tokens")
    arguments = ("--audit-file", str(data_dir / "audit.log"), "--log-level", "debug")
    with LocalCluster(
        data_dir, base_port=find_base_port(), auth=True, tls=True, extra_args=arguments
    ) as made:
        for name in made.names:
            made.start(name)
        made.wait_ready()
        for url in made.api_urls():  # a node that is ready lets the first token in
            with client_of(made, made.token, url) as admin:
                assert status_of(lambda client=admin: client.get("none", stale=True)) == 404
        yield made
        made.stop_all()


def admin_of(cluster: LocalCluster) -> SyncClient:
    return client_of(cluster, cluster.token)


def client_of(cluster: LocalCluster, token: str | None, url: str | None = None) -> SyncClient:
    return SyncClient(url or cluster.api_urls(), token=token, tls=cluster.client_tls)


def status_of(call: Callable[[], Any]) -> int:
    try:
        call()
    except ClientError as error:
        return error.problem.status
    return 200


def run(cluster: LocalCluster, *words: str, token: str | None = None) -> Result:
    """The command line, with the token in the environment."""
    arguments = [*words, "--endpoints", ",".join(cluster.api_urls())]
    tls = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    files = {f"RAFTKV_{name.upper()}_FILE": str(cluster.tls_dir / file) for name, file in tls.items()}
    return CliRunner().invoke(cli, arguments, env={"RAFTKV_TOKEN": token, **files}, catch_exceptions=False)


def test_the_first_token_is_made_once_and_others_by_it(cluster: LocalCluster, tmp_path: Path) -> None:
    assert cluster.token is not None
    listed = run(cluster, "token", "list", "-o", "json", token=cluster.token)
    (first,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert (first["name"], first["grants"]) == ("bootstrap", [{"role": "admin", "prefix": ""}])
    assert first["id"] == cluster.token.split("_")[1]

    out = tmp_path / "ci"
    made = run(cluster, "token", "create", "ci", "--write", "builds/", "--out", str(out), token=cluster.token)
    assert made.exit_code == 0, made.stderr
    assert made.stdout == ""
    assert out.stat().st_mode & 0o777 == 0o600
    token = out.read_text().strip()
    assert run(cluster, "kv", "put", "builds/1", "ok", "--token-file", str(out)).exit_code == 0
    assert run(cluster, "kv", "get", "builds/1", token=token).exit_code == 2
    assert "forbidden" in run(cluster, "kv", "put", "other", "ok", token=token).stderr
    assert run(cluster, "kv", "get", "builds/1", token=cluster.token).stdout == "ok"
    assert "unauthenticated" in run(cluster, "kv", "get", "builds/1").stderr
    revoked = run(cluster, "token", "revoke", token.split("_")[1], token=cluster.token)
    assert revoked.exit_code == 0, revoked.stderr
    assert "unauthenticated" in run(cluster, "kv", "put", "builds/1", "ok", token=token).stderr
    assert run(cluster, "token", "revoke", token.split("_")[1], token=cluster.token).exit_code == 3
    last = run(cluster, "token", "revoke", first["id"], token=cluster.token)
    assert (last.exit_code, "last_admin" in last.stderr) == (2, True)


def test_every_command_that_asks_a_node_takes_a_token(cluster: LocalCluster) -> None:
    assert cluster.token is not None
    commands = (
        ("status", "-o", "json"),
        ("member", "list"),
        ("cluster", "health"),
        ("top", "--once", "-o", "json"),
        ("snapshot", "list"),
        ("snapshot", "create"),
        ("kv", "list"),
        ("kv", "export"),
    )
    done = [run(cluster, *words, token=cluster.token) for words in commands]
    assert [(each.exit_code, each.stderr) for each in done if each.exit_code] == []
    assert json.loads(done[3].stdout)["leader"] in cluster.names
    for words in (("status",), ("kv", "list")):
        refused = run(cluster, *words)
        assert refused.exit_code != 0, (words, refused.stdout)


def test_a_token_counts_on_every_node_at_once_and_no_more_when_revoked(cluster: LocalCluster) -> None:
    with admin_of(cluster) as admin:
        for _ in range(5):
            made = admin.create_token("w", [("read", "w/"), ("write", "w/")])
            for url in cluster.api_urls():
                with client_of(cluster, made["token"], url) as client:
                    client.put("w/x", b"v")
                    assert client.get("w/x").value == b"v"
            admin.revoke_token(made["id"])
            for url in cluster.api_urls():
                with client_of(cluster, made["token"], url) as client:
                    with pytest.raises(BadRequest, match="unauthenticated"):
                        client.get("w/x")  # linearizable, so it can't be older than the revocation
                    with pytest.raises(BadRequest, match="unauthenticated"):
                        client.put("w/x", b"v")


def test_tokens_outlive_kills_and_come_with_a_snapshot(cluster: LocalCluster) -> None:
    with admin_of(cluster) as admin:
        made = admin.create_token("kept", [("read", "")], expires_in_s=3600)
        admin.put("k", b"v")
        admin.create_snapshot()
        later = admin.create_token("later", [("read", "")])
    cluster.kill_all()
    for name in cluster.names:
        cluster.start(name)
    cluster.wait_ready()
    for token in (made["token"], later["token"]):
        with client_of(cluster, token) as client:
            assert client.get("k").value == b"v"


def test_no_secret_is_anywhere_in_the_clear(cluster: LocalCluster, tmp_path: Path) -> None:
    """Tokens, planted in all that a client can send, the cluster's secret and private keys are looked for
    in everything that the nodes write and say."""
    admin_token, bundle = cluster.token, tmp_path / "bundle.tar.gz"
    assert admin_token is not None
    with admin_of(cluster) as admin:
        made = admin.create_token("planted", [("admin", "p/")], rate=10_000)
        texts = [admin_token, made["token"]]
        with client_of(cluster, made["token"]) as client:
            client.put("p/x", b"v")
            for path in ("other", "p/absent"):
                with pytest.raises(ClientError):
                    client.get(path)
        answers = [admin.status(url) for url in cluster.api_urls()]
        answers += [admin.cluster(), list(admin.tokens()), admin.create_snapshot()]
    for name in cluster.names:
        for text in texts:  # misused by hand: in a header that is no Authorization, and cut
            cluster_get(cluster, name, "/v1/kv/p/x", {"Authorization": f"Bearer {text}x", "X-Token": text})
            cluster_get(cluster, name, "/v1/kv/p/x", {"Authorization": f"Basic {text}"})
    said = b"".join(
        cluster.get(name, path)[1] for name in cluster.names for path in ("/metrics", "/v1/limits")
    )
    said += json.dumps(answers).encode()
    logs = [word for name in cluster.names for word in ("--log", str(cluster.log_path(name)))]
    made_bundle = run(cluster, "debug", "bundle", "-f", str(bundle), *logs, token=admin_token)
    assert made_bundle.exit_code == 0, made_bundle.stderr
    cluster.stop_all()
    inspected = [
        subprocess.run(
            [sys.executable, "-m", "raftkv", "journal", "inspect", str(cluster.node_dir(name) / "journal")],
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
        for name in cluster.names
    ]
    assert all(inspected)
    secret = cluster.secret_path.read_text().strip()
    needles = [
        form
        for text in (admin_token.rpartition("_")[2], made["token"].rpartition("_")[2], secret)
        for form in (text.encode(), base64.b64encode(text.encode()), bytes.fromhex(text))
    ]
    keys = list(cluster.tls_dir.rglob("*.key"))
    needles += [line for key in keys for line in key.read_bytes().splitlines()[1:-1] if len(line) > 40]
    assert len(needles) > 9 + len(keys)
    files = [path for path in cluster.data_dir.rglob("*") if path.is_file()]
    kept = {cluster.token_path, cluster.secret_path, *keys}  # where they belong
    assert needles[0] in cluster.token_path.read_bytes()  # the search finds what is there
    everything = {str(path): read(path) for path in files if path not in kept}
    assert any("journal" in path for path in everything)
    assert any("snapshots" in path for path in everything)
    with tarfile.open(bundle) as packed:
        parts = {each.name: packed.extractfile(each) for each in packed if each.isfile()}
        everything |= {f"bundle {name}": part.read() for name, part in parts.items() if part is not None}
    assert any(name.startswith("bundle ") for name in everything)
    everything |= {"said": said, **{f"inspect {at}": text for at, text in enumerate(inspected)}}
    for where, data in everything.items():
        for needle in needles:
            assert needle not in data, f"a secret is in {where}"
    audit = (cluster.data_dir / "audit.log").read_text()
    assert f"who={admin_token.split('_')[1]}:bootstrap" in audit
    assert 'what="POST /v1/tokens" status=201' in audit
    assert "code=forbidden" in audit
    assert "p/absent" not in audit


def read(path: Path) -> bytes:
    """As it is; of a snapshot's chunk what is packed in it."""
    import zstandard

    data = path.read_bytes()
    return zstandard.ZstdDecompressor().decompress(data) if path.suffix == ".chunk" else data


def cluster_get(cluster: LocalCluster, name: str, path: str, headers: dict[str, str]) -> None:
    import http.client

    connection = http.client.HTTPSConnection(
        cluster.host(name), cluster.api_port(name), timeout=10, context=cluster.client_tls
    )
    connection.request("GET", path, headers=headers)
    assert connection.getresponse().status == 401
    connection.close()
