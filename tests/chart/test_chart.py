"""The chart, without Kubernetes: Helm's own engine lints, renders and packages it over many values, and
what comes out fits the schemas of every supported Kubernetes, and says what it should."""

from __future__ import annotations

import json
import re
import tarfile
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from cryptography import x509
from kubernetes_validate import utils as kubernetes_schemas

from raftkv.config import MEMBERS_MAX, SETTING_BY_NAME
from tests.chart.rendering import CHART, NAME, container, objects, one, pod_of, render, secret_bytes
from tests.chart.values_table import values_table

ROOT = CHART.parents[1]
VERSIONS = sorted({kubernetes_schemas.major_minor(each) for each in kubernetes_schemas.all_versions()})
# Of operators that may be there or not: no schema comes with Kubernetes.
OPERATORS_KINDS = {"ServiceMonitor", "PrometheusRule"}

TLS = {"tls": {"enabled": True, "clientCertificates": True}, "peerTls": {"enabled": True}}
TOKENS = {"auth": {"enabled": True}}
CEPH = {"snapshots": {"url": "rados://raftkv/prod", "ceph": {"existingSecret": "ceph"}}}
RESTORE = {
    **CEPH,
    "restore": {
        "enabled": True,
        "snapshot": "0000000000000637-00000001-r63666-20261123T175822.430Z-2f5d1edc",
        "toRevision": 1_000_000,
        "newClusterId": "0123456789abcdef" * 2,
        "until": "2027-01-31T18:00:00Z",
    },
}
MONITORING = {
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    }
}
EVERY_OPTION = {
    "nameOverride": "store",
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"repository": "registry.example:5000/team/raftkv", "tag": "1.2.3", "pullPolicy": "Always"},
    "config": {"log_format": "json", "value_bytes_max": 4_000_000, "snapshot_interval_seconds": "60"},
    "listenHost": "[::]",
    "service": {
        "type": "LoadBalancer",
        "port": 80,
        "nodePort": 30080,
        "annotations": {"example.org/internal": "true"},
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
    },
    "persistence": {
        "storageClass": "fast",
        "whenScaled": "Delete",
        "annotations": {"example.org/backup": "no"},
    },
    "clusterSecret": {"existingSecret": "cluster", "key": "password"},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
        "monitoring": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    },
    "serviceAccount": {"name": "store", "annotations": {"example.org/role": "none"}},
    "antiAffinity": "hard",
    "zoneSpread": "hard",
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "high",
    "podLabels": {"team": "a"},
    "podAnnotations": {"example.org/a": "b"},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "extraVolumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}],
    "extraVolumeMounts": [{"name": "shared", "mountPath": "/shared"}],
}
OFF = {
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
    "membership": {"enabled": False},
    "antiAffinity": "off",
    "zoneSpread": "off",
}
MATRIX: dict[str, Mapping[str, Any]] = {
    "defaults": {},
    **{f"{replicas} replicas": {"replicas": replicas} for replicas in range(1, MEMBERS_MAX + 1)},
    "tls": TLS,
    "tls from secrets": {
        "tls": {"enabled": True, "existingSecret": "mine"},
        "peerTls": {"enabled": True, "existingSecret": "theirs"},
    },
    "tokens": TOKENS,
    "tokens from a secret": {"auth": {"enabled": True, "existingSecret": "mine", "key": "admin"}},
    "ceph": CEPH,
    "restore": RESTORE,
    "monitoring": MONITORING,
    "every option": EVERY_OPTION,
    "all off": OFF,
    "all": {**EVERY_OPTION, **TLS, **TOKENS, **RESTORE, **MONITORING, "replicas": 5},
}
by_values = pytest.mark.parametrize("values", [*MATRIX.values()], ids=[*MATRIX])


# --- Helm takes it, and so does every Kubernetes -------------------------------------------------------


@by_values
def test_helm_finds_nothing_to_complain_about(values: Mapping[str, Any]) -> None:
    report = helm_python.lint(CHART, dict(values), strict=True)
    complaints = [each for each in report["messages"] if each["error"] != "icon is recommended"]
    assert (complaints, report["errors"]) == ([], [])


@pytest.fixture(autouse=True, scope="module")
def schemas_are_read_once() -> None:
    """The validator reads the schemas of a version, 1 MB and more, for every object."""
    kubernetes_schemas.schema_contents = cache(kubernetes_schemas.schema_contents)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_rendered_fits_the_schemas_of_kubernetes(version: str) -> None:
    seen = set[str]()
    for values in MATRIX.values():
        for each in objects(values):
            text = json.dumps(each, sort_keys=True)
            if text not in seen and each["kind"] not in OPERATORS_KINDS:
                kubernetes_validate.validate(each, version, strict=True)
            seen.add(text)
    assert len(seen) > 100


def test_a_misspelt_field_would_not_pass() -> None:
    statefulset = one(objects(), "StatefulSet")
    statefulset["spec"]["podManagmentPolicy"] = "Parallel"
    with pytest.raises(kubernetes_validate.ValidationError, match="podManagmentPolicy"):
        kubernetes_validate.validate(statefulset, VERSIONS[-1], strict=True)


def test_the_versions_are_those_that_the_chart_supports() -> None:
    oldest = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert oldest == f">={VERSIONS[0]}.0-0"
    assert {"1.25", "1.30", "1.37"} <= set(VERSIONS)


def test_the_package_holds_all_that_it_renders_from(tmp_path: Path) -> None:
    archive = helm_python.package(CHART, destination=tmp_path)
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("raftkv/") for name in packed.getnames()}
    assert {"files/alerts.yml", "files/dashboard.json", "values.schema.json", "README.md"} <= names
    with helm_python.Chart.load(archive) as chart:
        for values in MATRIX.values():
            manifests = chart.render(dict(values), name="kv", namespace="prod")
            assert set(manifests) == set(render(values))


def test_the_chart_is_of_the_release_that_is_here() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    assert container(pod_of(objects()))["image"] == f"raftkv:{project['version']}"


# --- bad values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": 0}, "'/replicas': minimum: got 0, want 1"),
        ({"replicas": 10}, "'/replicas': maximum: got 10, want 9"),
        ({"replicas": "three"}, "'/replicas': got string, want integer"),
        ({"replicas": 2.5}, "'/replicas': got number, want integer"),
        ({"replica": 5}, "additional properties 'replica' not allowed"),
        ({"service": {"type": "ExternalName"}}, "'/service/type': value must be one of 'ClusterIP'"),
        ({"service": {"port": 70000}}, "'/service/port': maximum: got 70,000, want 65,535"),
        ({"service": {"nodePort": 30000}}, "service.nodePort is 30000, and service.type is ClusterIP"),
        ({"persistence": {"size": "ten"}}, "'/persistence/size': 'ten' does not match"),
        ({"persistence": {"whenScaled": "delete"}}, "value must be one of 'Retain', 'Delete'"),
        ({"image": {"tag": "a b"}}, "'/image/tag': 'a b' does not match"),
        ({"antiAffinity": "preferred"}, "value must be one of 'soft', 'hard', 'off'"),
        ({"config": {"data_dir": "/elsewhere"}}, "invalid propertyName 'data_dir'"),
        ({"config": {"Log-Format": "json"}}, "invalid propertyName 'Log-Format'"),
        ({"config": {"log_format": ["json"]}}, "'/config/log_format': got array, want"),
        ({"tls": {"enabled": "yes"}}, "'/tls/enabled': got string, want boolean"),
        ({"tls": {"existingSecret": "Not A Name"}}, "'/tls/existingSecret'"),
        ({"snapshots": {"url": "s3://bucket"}}, "'/snapshots/url': 's3://bucket' does not match"),
        ({"snapshots": {"url": "rados://raftkv/prod"}}, "name a Secret with ceph.conf and keyring"),
        ({"restore": {"newClusterId": "12"}}, "'/restore/newClusterId': '12' does not match"),
        ({"restore": {"enabled": True}}, 'restore.snapshot is "": give the id of one snapshot'),
        (
            {"restore": {**RESTORE["restore"], "snapshot": "latest"}},
            'restore.snapshot is "latest": give the id',
        ),
        ({"restore": {**RESTORE["restore"], "newClusterId": ""}}, "give 32 hex digits"),
        (
            {"restore": {**RESTORE["restore"], "until": ""}},
            "give the time until which empty volumes are filled",
        ),
        (
            {"restore": {**RESTORE["restore"], "until": "tomorrow"}},
            "'/restore/until': 'tomorrow' does not match",
        ),
        ({"restore": RESTORE["restore"]}, "give the store to restore from"),
        ({"leaveSeconds": -1}, "'/leaveSeconds': minimum"),
        ({"monitoring": {"prometheusRule": {"enable": True}}}, "additional properties 'enable' not allowed"),
        ({"podLabels": {"a": 1}}, "'/podLabels/a': got number, want string"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_and_told_why(values: Mapping[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    assert said in str(refused.value)


# --- what it says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("replicas", "away"), [*enumerate([0, 0, 1, 1, 2, 2, 3, 3, 4], start=1)])
def test_as_many_pods_may_be_away_as_a_majority_can_spare(replicas: int, away: int) -> None:
    among = objects({"replicas": replicas})
    assert one(among, "PodDisruptionBudget")["spec"]["maxUnavailable"] == away
    assert replicas - away > replicas / 2, "a majority is left"
    assert replicas - away - 1 <= replicas / 2, "and no more than that is asked for"


@by_values
def test_selectors_find_the_pods_and_nothing_else(values: Mapping[str, Any]) -> None:
    among = objects(values)
    labels = pod_of(among)["metadata"]["labels"]
    others = [
        one(among, "Pod")["metadata"]["labels"],
        *(each["spec"]["template"]["metadata"]["labels"] for each in among if each["kind"] == "Job"),
    ]
    selectors = [each["spec"]["selector"] for each in among if each["kind"] == "Service"]
    for kind in ("PodDisruptionBudget", "StatefulSet"):
        selectors += [each["spec"]["selector"]["matchLabels"] for each in among if each["kind"] == kind]
    selectors += [
        each["spec"]["podSelector"]["matchLabels"] for each in among if each["kind"] == "NetworkPolicy"
    ]
    assert len(selectors) >= 3
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert all(not selector.items() <= other.items() for other in others)


@by_values
def test_every_port_says_its_protocol(values: Mapping[str, Any]) -> None:
    def ports(value: Any) -> list[Mapping[str, Any]]:
        match value:
            case {"ports": list(found), **rest}:
                return [*found, *ports(rest)]
            case dict():
                return [port for each in value.values() for port in ports(each)]
            case list():
                return [port for each in value for port in ports(each)]
        return []

    found = [port for each in objects(values) for port in ports(each)]
    assert len(found) >= 7
    assert [port for port in found if port.get("protocol") != "TCP"] == []


@by_values
def test_containers_can_do_no_more_than_they_must(values: Mapping[str, Any]) -> None:
    among = objects(values)
    templates = [pod_of(among)["spec"], one(among, "Pod")["spec"]]
    templates += [each["spec"]["template"]["spec"] for each in among if each["kind"] == "Job"]
    for spec in templates:
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, 10001, 10001)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in (*spec.get("initContainers", ()), *spec["containers"]):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            names = [variable["name"] for variable in each.get("env", ())]
            assert len(names) == len(set(names)), "server-side apply refuses a list with two of a name"
            assert {"requests", "limits"} <= set(each["resources"])
            assert "cpu" not in each["resources"]["limits"], "a node that is throttled loses its leadership"
    accounts = [each for each in among if each["kind"] == "ServiceAccount"]
    assert all(each["automountServiceAccountToken"] is False for each in accounts)


def test_members_find_each_other_before_they_are_ready() -> None:
    among = objects()
    headless = one(among, "Service", f"{NAME}-peers")["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    statefulset = one(among, "StatefulSet")["spec"]
    assert statefulset["serviceName"] == f"{NAME}-peers"
    assert statefulset["podManagementPolicy"] == "Parallel"
    assert "publishNotReadyAddresses" not in one(among, "Service", NAME)["spec"]


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return tomllib.loads(one(objects(values), "ConfigMap", NAME)["data"]["raftkv.toml"])


@pytest.mark.parametrize("values", [v for n, v in MATRIX.items() if not re.match("every|all$|tokens", n)])
def test_every_setting_is_one_that_a_node_knows_and_takes(values: Mapping[str, Any]) -> None:
    settings = settings_of(values)
    assert set(settings) <= set(SETTING_BY_NAME)
    for name, value in settings.items():
        SETTING_BY_NAME[name].parse(value if isinstance(value, list) else str(value).lower())


def test_settings_pass_through_as_they_were_written() -> None:
    config = {
        "value_bytes_max": 4_000_000,
        "log_format": "json",
        "archive_interval": 0.5,
        "log_level": 'a"b\\c',
    }
    settings = settings_of({"config": config})
    assert {name: settings[name] for name in config} == {name: str(value) for name, value in config.items()}


def test_no_setting_of_the_charts_own_can_be_set_twice() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = schema["properties"]["config"]["propertyNames"]["not"]["enum"]
    everything = {**TLS, **TOKENS, **CEPH}
    assert set(settings_of(everything)) <= set(refused)
    environment = {each["name"] for each in container(pod_of(objects(everything)))["env"]}
    assert {f"RAFTKV_{name.upper()}" for name in SETTING_BY_NAME} & environment <= {
        f"RAFTKV_{name.upper()}" for name in refused
    }


def test_a_change_of_scale_does_not_restart_the_pods_that_stay() -> None:
    three, five = objects({"replicas": 3}), objects({"replicas": 5})
    assert pod_of(three) == pod_of(five)
    assert len(settings_of({"replicas": 5})["member"]) == 5
    assert pod_of(objects({"config": {"log_format": "json"}})) != pod_of(three)


def test_a_member_is_called_what_its_pod_is_called() -> None:
    among = objects({"replicas": 2})
    members = settings_of({"replicas": 2})["member"]
    assert members[1] == (
        f"{NAME}-1={NAME}-1.{NAME}-peers.prod.svc:8401,http://{NAME}-1.{NAME}-peers.prod.svc:8400"
    )
    environment = {each["name"]: each for each in container(pod_of(among))["env"]}
    assert environment["RAFTKV_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert one(among, "StatefulSet")["metadata"]["name"] == NAME


@pytest.mark.parametrize("release", ["kv", "raftkv", "my-raftkv-store", "x" * 53])
def test_names_leave_room_for_what_kubernetes_adds(release: str) -> None:
    for each in objects(MONITORING, name=release):
        name = each["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
        assert len(name) <= (52 if each["kind"] == "StatefulSet" else 63)


def test_secrets_that_the_chart_makes_outlive_the_release() -> None:
    secrets = [each for each in objects({**TLS, **TOKENS}) if each["kind"] == "Secret"]
    assert len(secrets) == 4
    for each in secrets:
        assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    cluster = one(secrets, "Secret", NAME)
    assert len(secret_bytes(cluster, "secret")) == 48
    assert cluster["immutable"] is True
    again = one(objects(), "Secret", NAME)
    assert secret_bytes(again, "secret") != secret_bytes(cluster, "secret"), "it is random"


def test_secrets_that_are_there_are_kept_by_an_upgrade_and_by_another_install() -> None:
    values = {**TLS, **TOKENS}
    first = objects(values, there=[])
    for options in ({"is_upgrade": True}, {"is_install": True}):
        again = [each for each in objects(values, there=first, **options) if each["kind"] == "Secret"]
        assert len(again) == 4
        assert again == [each for each in first if each["kind"] == "Secret"]
    elsewhere = one(objects(values, there=first, namespace="other"), "Secret", NAME)
    assert elsewhere["metadata"]["namespace"] == "other"


def test_certificates_are_for_the_names_that_they_are_reached_by() -> None:
    among = objects(TLS)
    for name, wanted in (
        (f"{NAME}-tls", {f"{NAME}.prod.svc", f"*.{NAME}-peers.prod.svc", "localhost"}),
        (f"{NAME}-peer-tls", {f"{NAME}-{ordinal}.raftkv" for ordinal in range(MEMBERS_MAX)}),
    ):
        secret = one(among, "Secret", name)
        certificate = x509.load_pem_x509_certificate(secret_bytes(secret, "tls.crt"))
        authority = x509.load_pem_x509_certificate(secret_bytes(secret, "ca.crt"))
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert wanted <= set(names.get_values_for_type(x509.DNSName))


def test_the_job_must_succeed_where_members_change_and_may_fail_where_they_stay() -> None:
    def arguments(replicas: int, there: list[dict[str, Any]] | None) -> list[str]:
        job = one(objects({"replicas": replicas}, there=there, is_upgrade=True), "Job")
        return list(job["spec"]["template"]["spec"]["containers"][0]["args"])

    three = objects({"replicas": 3})
    assert "--best-effort" in arguments(3, three)
    one(three, "StatefulSet")["spec"]["replicas"] = 0
    assert "--best-effort" in arguments(3, three), "all pods were stopped by hand"
    one(three, "StatefulSet")["spec"]["replicas"] = 3
    assert "--best-effort" in arguments(3, []), "the StatefulSet was deleted, to be made anew"
    assert "--best-effort" in arguments(3, None), "rendered where nothing is seen"
    for replicas in (1, 5):
        changed = arguments(replicas, three)
        assert "--best-effort" not in changed
        assert "--within=295" in changed
        assert sum(each.startswith("--member=") for each in changed) == replicas


def test_members_do_not_change_while_volumes_are_restored() -> None:
    there = objects({**RESTORE, "replicas": 3})
    assert objects({**RESTORE, "replicas": 3}, there=there)
    with pytest.raises(helm_python.HelmError, match="replicas go from 3 to 5"):
        render({**RESTORE, "replicas": 5}, there=there)


def test_a_secret_that_exists_is_used_and_none_is_made() -> None:
    among = objects(
        {
            "clusterSecret": {"existingSecret": "a"},
            "auth": {"enabled": True, "existingSecret": "b"},
            "tls": {"enabled": True, "existingSecret": "c"},
            "peerTls": {"enabled": True, "existingSecret": "d"},
        }
    )
    assert [each for each in among if each["kind"] == "Secret"] == []
    (files,) = (each for each in pod_of(among)["spec"]["volumes"] if each["name"] == "files")
    used = [each["secret"]["name"] for each in files["projected"]["sources"] if "secret" in each]
    assert used == ["a", "b", "c", "d"]


def test_the_raft_port_is_for_members_alone() -> None:
    among = objects({"networkPolicy": EVERY_OPTION["networkPolicy"]})
    rules = {rule["ports"][0]["port"]: rule for rule in one(among, "NetworkPolicy")["spec"]["ingress"]}
    assert set(rules) == {"api", "raft", "ops"}
    (members,) = rules["raft"]["from"]
    assert members["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "node"
    own, *others = rules["api"]["from"]
    job = one(among, "Job")["spec"]["template"]["metadata"]["labels"]
    assert own["podSelector"]["matchLabels"].items() <= job.items(), "or no member could be added or removed"
    assert others == EVERY_OPTION["networkPolicy"]["clients"]
    assert rules["ops"]["from"] == EVERY_OPTION["networkPolicy"]["monitoring"]


def test_volumes_stay_and_stopping_takes_as_long_as_it_may() -> None:
    spec = one(objects({"leaveSeconds": 7}), "StatefulSet")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenScaled": "Retain", "whenDeleted": "Retain"}
    assert settings_of({"leaveSeconds": 7})["drain_seconds"] == "7s"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 7 + 10


def test_the_job_that_changes_members_runs_before_pods_change_and_on_nothing_else() -> None:
    job = one(objects(), "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade,pre-rollback"


def test_kubectl_goes_to_the_node_without_being_told() -> None:
    pod = pod_of(objects(RESTORE))
    assert len(pod["spec"]["initContainers"]) == 1
    default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"]
    assert [each["name"] for each in pod["spec"]["containers"]] == [default]


# --- monitoring ----------------------------------------------------------------------------------------


def test_the_monitoring_files_are_the_projects_own() -> None:
    for name in ("alerts.yml", "dashboard.json"):
        original, copy = ROOT / "cluster" / "monitoring" / name, CHART / "files" / name
        assert original.read_bytes() == copy.read_bytes(), (
            f"a chart can hold only what lies in it: cp {original.relative_to(ROOT)} {copy.relative_to(ROOT)}"
        )


def test_rules_and_dashboard_come_out_as_they_went_in() -> None:
    among = objects(MONITORING)
    rules = yaml.safe_load((CHART / "files" / "alerts.yml").read_text())
    assert one(among, "PrometheusRule")["spec"] == rules
    dashboards = one(among, "ConfigMap", f"{NAME}-dashboards")
    assert json.loads(dashboards["data"]["raftkv.json"]) == json.loads(
        (CHART / "files" / "dashboard.json").read_text()
    )
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_metrics_are_read_from_every_pod_once() -> None:
    among = objects(MONITORING)
    monitor = one(among, "ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"]
    services = [each for each in among if each["kind"] == "Service"]
    chosen = [each for each in services if selector.items() <= each["metadata"]["labels"].items()]
    assert [each["metadata"]["name"] for each in chosen] == [f"{NAME}-peers"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in chosen[0]["spec"]["ports"]}
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


# --- what a person reads -------------------------------------------------------------------------------


def test_notes_say_what_is_open_and_how_to_get_in() -> None:
    notes = render()["raftkv/templates/NOTES.txt"]
    assert "WARNING: auth.enabled is false" in notes
    assert "WARNING: tls.enabled is false" in notes
    notes = render({**TLS, **TOKENS})["raftkv/templates/NOTES.txt"]
    assert "WARNING" not in notes
    assert 'curl --cacert ca.crt -H "Authorization: Bearer $TOKEN"' in notes
    assert "no member may be lost" in render({"replicas": 1})["raftkv/templates/NOTES.txt"]


def test_the_readme_lists_every_value() -> None:
    table = values_table((CHART / "values.yaml").read_text())
    assert table in (CHART / "README.md").read_text(), (
        f"helm/raftkv/README.md needs this, word for word:\n{table}"
    )


def test_the_schema_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    definitions = schema["definitions"]

    def check(values: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> None:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        properties = schema.get("properties")
        if properties is None:
            return
        assert schema["additionalProperties"] is False, path
        assert set(properties) - {"global"} == set(values), path
        for name, value in values.items():
            if isinstance(value, dict):
                check(value, properties[name], f"{path}.{name}")

    check(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")
