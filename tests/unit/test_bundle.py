"""What a bundle must never hold, and what it must."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from cluster.bundle import LOG_BYTES_MAX, STRUCK, environment_told, packed, settings_told, struck, tail

SECRET = "5f0c1e7a9b3d4c2f8e6a1b0d9c8e7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e"
KEY = """-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY/PuoAoGCCqGSM49
-----END EC PRIVATE KEY-----"""


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        ("curl -H 'Authorization: Bearer rkv_abc123' x", "rkv_abc123"),
        ("header authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("request_slow token=rkv_abc.def ms=5", "rkv_abc.def"),
        ('{"token": "rkv_abc def", "ms": 5}', "rkv_abc def"),
        ("RAFTKV_SECRET=hunter2 raftkv serve", "hunter2"),
        ("bootstrap_token: 'a b c'", "a b c"),
        ("password = hunter2", "hunter2"),
        (f"it was rkv_0a1b2c3d_{'Ab-_' * 9} there", "Ab-_Ab"),
        ("http://user:hunter2@10.0.0.1:8400/x", "hunter2"),
        ("GET /v1/kv/customers/4711?format=json 200", "4711"),
        ("GET /v1/kv?prefix=customers/&limit=3", "customers"),
        ("GET /v1/kv?limit=3&key=customers%2F4711", "4711"),
        (f"the secret was {SECRET}", SECRET),
        (f"key:\n{KEY}\nend", "MHcCAQEE"),
        ("AQBSdFhcGgMkDhAAbQyA0yYyQmX1nGmXTnp3bw9Y0Z1Q==", "AQBSdFhcGgMkDhAAbQyA0yYyQmX1nGmXTnp3bw9Y0Z1Q"),
    ],
)
def test_what_looks_like_a_secret_or_a_key_is_struck(line: str, gone: str) -> None:
    shown = struck(line)
    assert gone not in shown
    assert STRUCK in shown


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-26T14:00:00.123Z INFO raftkv.raft role_changed node=n1 term=7 role=leader leader=n1",
        "node_formed node=n1 cluster=f8f6426c1194e14fde2c3d56f501cd1f members=n1,n2,n3 last_index=2",
        "request_slow request_id=0a1b-2f method=PUT route=/v1/kv/{key} status=200 code=- ms=1000.5 "
        "trace_id=4bf92f3577b34da6a3ce929d0e0e4736 left_out=0",
        "snapshot_published id=0000000000000637-00000001-r63666-20261123T175822.430Z-2f5d1edc bytes=13710546",
        "--secret-file /etc/raftkv/secret",
        "secret_file=/etc/raftkv/secret",
        '  File "/usr/lib/python3/dist-packages/raftkv/raft/engine.py", line 300, in _settle',
    ],
)
def test_what_helps_stays(line: str) -> None:
    assert struck(line) == line


def test_of_configuration_only_known_settings_go_in() -> None:
    told = settings_told(
        {
            "name": "n1",
            "secret_file": "/etc/raftkv/secret",
            "secret": SECRET,
            "snapshots": f"rados://raftkv/prod?key={SECRET}",
            "member": ["n1=10.0.0.1:8401,http://user:hunter2@10.0.0.1:8400"],
            "otlp_endpoint": "http://user:hunter2@collector:4318",
            "something": {"else": SECRET},
            "slow_request_ms": 500,
        }
    )
    assert SECRET not in str(told)
    assert "hunter2" not in str(told)
    assert (told["name"], told["secret_file"], told["slow_request_ms"]) == ("n1", "/etc/raftkv/secret", 500)
    assert told["snapshots"] == "rados://raftkv/prod"
    assert told["something"] == STRUCK


def test_of_the_environment_only_known_settings_go_in() -> None:
    told = environment_told(
        {"RAFTKV_NAME": "n1", "RAFTKV_SECRET": SECRET, "RAFTKV_TOKEN": "t", "HOME": "/root"}
    )
    assert told == {"name": "n1", "secret": STRUCK, "token": STRUCK}


def test_a_long_log_gives_its_end_in_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    line = "x" * 99 + "\n"
    log.write_text("first\n" + line * (LOG_BYTES_MAX // 100 + 10) + "last\n")
    text = tail(log)
    assert len(text) <= LOG_BYTES_MAX
    assert text.startswith("x" * 99 + "\n")
    assert text.endswith("last\n")


def test_what_is_packed_comes_out_for_its_owner_alone() -> None:
    files = {"a/b.json": b"{}", "c": b"\x00\xff"}
    with tarfile.open(fileobj=io.BytesIO(packed(files, "root", 0.0))) as archive:
        out = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
        assert {each.mode for each in archive} == {0o600}
    assert out == {f"root/{name}": content for name, content in files.items()}
