"""What the image's files say that is said elsewhere too, and the health check that it runs."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cluster.cli import cli
from cluster.probe_cli import address_beside
from cluster.sbom import debian_components
from tests.unit.fake_node import FakeNode, Reply

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()


def test_the_image_is_labelled_with_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ARG VERSION={project['version']}\n" in DOCKERFILE
    assert f'image.description="{project["description"]}"' in DOCKERFILE


def test_nothing_gets_into_a_build_that_is_not_named() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule for rule in rules if rule.startswith("!")} == {
        "!pyproject.toml",
        "!README.md",
        "!LICENSE",
        "!raftkv",
        "!cluster",
        "!scripts/ceph-dev.sh",
    }


def test_grafana_is_provisioned_with_the_dashboard_and_the_prometheus_of_the_compose_file() -> None:
    """Its image can't be had everywhere the tests run: what it would read is checked here."""
    compose = yaml.safe_load((ROOT / "docker-compose.cluster.yml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    provisioning = ROOT / "cluster" / "monitoring" / "grafana" / "provisioning"
    assert mounts[f"./{provisioning.relative_to(ROOT)}"] == "/etc/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "raftkv.yml").read_text())["providers"]
    dashboard = mounts["./cluster/monitoring/dashboard.json"]
    assert dashboard.startswith(provider["options"]["path"] + "/")
    assert json.loads((ROOT / "cluster" / "monitoring" / "dashboard.json").read_text())["panels"]


# --- raftkv probe ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ("127.0.0.1", 8400)),
        ({"RAFTKV_API": ":8410"}, ("127.0.0.1", 8410)),
        ({"RAFTKV_API": "0.0.0.0:8400", "RAFTKV_OPS_LISTEN": "0.0.0.0:8402"}, ("127.0.0.1", 8402)),
        ({"RAFTKV_OPS_LISTEN": "[::]:8402"}, ("::1", 8402)),
        ({"RAFTKV_API": "10.0.0.1:8400"}, ("10.0.0.1", 8400)),
    ],
)
def test_a_probe_asks_the_node_that_its_environment_configures(
    environment: dict[str, str], address: tuple[str, int]
) -> None:
    assert address_beside(environment) == address


async def probed(reply: Reply) -> int:
    async with FakeNode(reply) as node:
        address = node.url.removeprefix("http://")
        run = CliRunner().invoke
        result = await asyncio.to_thread(run, cli, ["probe", "readyz", "--address", address])
        assert node.requests[0].target == "/readyz"
        return result.exit_code


async def test_a_probe_exits_0_for_200_alone() -> None:
    assert await probed(Reply(200, b"{}")) == 0
    assert await probed(Reply(503, b'{"status": "not_ready"}')) == 1


def test_a_probe_of_nobody_fails(unused_tcp_port: int) -> None:
    result = CliRunner().invoke(cli, ["probe", "livez", "--address", f"127.0.0.1:{unused_tcp_port}"])
    assert result.exit_code == 1
    assert "no answer from 127.0.0.1" in result.output


def test_a_probe_refuses_what_is_no_address() -> None:
    result = CliRunner().invoke(cli, ["probe", "livez", "--address", "nowhere"])
    assert result.exit_code == 2
    assert "HOST:PORT" in result.output


# --- the bill of materials -------------------------------------------------------------------------------

STATUS = """\
Package: tini
Status: install ok installed
Maintainer: Somebody <somebody@example.org>
Architecture: amd64
Version: 0.19.0-1
Description: tiny but valid init
 Version: no field, but text

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_the_bill_of_materials_has_the_installed_debian_packages() -> None:
    (tini,) = debian_components(STATUS)
    assert tini["purl"] == "pkg:deb/debian/tini@0.19.0-1?arch=amd64&distro=debian-12"
