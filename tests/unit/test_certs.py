"""`raftkv certs dev`: what it writes, for whom, and what it leaves alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from cluster.cli import cli
from raftkv.tls.credentials import ApiFiles, Credentials, PeerFiles, client_context


def dev(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["certs", "dev", "--out", str(directory), *arguments])


def test_each_member_and_a_client_get_a_pair_that_only_this_user_reads(tmp_path: Path) -> None:
    out = tmp_path / "certs"
    made = dev(out, "--member", "n1", "--member", "n2,10.0.0.2,n2.example.org")
    names = {"ca.pem", "ca.key", "n1.pem", "n1.key", "n2.pem", "n2.key", "client.pem", "client.key"}
    assert (made.exit_code, {Path(line).name for line in made.output.split()}) == (0, names)
    assert {path.name for path in out.iterdir()} == names
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}
    assert out.stat().st_mode & 0o777 == 0o700
    found = x509.load_pem_x509_certificate((out / "n2.pem").read_bytes())
    shown = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in shown] == ["n2.raftkv", "n2", "10.0.0.2", "n2.example.org"]


def test_what_it_makes_is_good_for_both_ports_and_for_clients(tmp_path: Path) -> None:
    assert dev(tmp_path, "--member", "n1").exit_code == 0
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "n1.pem", "n1.key"))
    Credentials("api", ApiFiles(cert, key, client_ca=ca, ca=ca))
    Credentials("peer", PeerFiles("n1", cert, key, ca))
    client_context(ca, tmp_path / "client.pem", tmp_path / "client.key")


def test_no_file_is_overwritten_and_the_ca_is_used_again(tmp_path: Path) -> None:
    assert dev(tmp_path, "--member", "n1").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused = dev(tmp_path, "--member", "n2", "--member", "n1")
    assert refused.exit_code == 2
    assert "n1.pem is there already" in refused.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    added = dev(tmp_path, "--member", "n2")
    assert (added.exit_code, len(added.output.split())) == (0, 2)
    assert all(path.read_bytes() == content for path, content in before.items())
    Credentials(
        "peer", PeerFiles("n2", *(tmp_path / f"n2.{end}" for end in ("pem", "key")), tmp_path / "ca.pem")
    )


@pytest.mark.parametrize("member", ["", "ca", "client", "n1,", "../n1", "n1,höst"])
def test_a_member_that_is_none_is_refused(member: str, tmp_path: Path) -> None:
    refused = dev(tmp_path / "certs", "--member", member)
    assert (refused.exit_code, bool(re.search("Invalid value", refused.output))) == (2, True)
    assert not (tmp_path / "certs").exists()
