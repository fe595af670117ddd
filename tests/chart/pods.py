"""What the chart renders, run as real processes without Kubernetes: a network namespace for each pod, with
another address whenever it is made anew, /etc/hosts for the Services' names, the volumes at the paths that
the template names, and a root file system that can't be written.

A `Namespace` does by hand what Kubernetes does: hooks before an upgrade, pods made and ended together, as
`Parallel` has it, replaced one by one from the last where their template changed, containers started again
when they end, preStop before SIGTERM, volumes kept by name. What it does not do: images (the container's
`raftkv` is this checkout's), users other than root, probes by a kubelet, and scheduling.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from cluster.network import SUBNET, Network
from tests.chart.rendering import NAME, NAMESPACE, Object, container, objects, one, pod_of, secret_bytes

PODS_MAX = 5
# In a mount namespace of its own: files over /etc, and the volume; nothing else on the disk can be written.
_ENTER = """
set -e
mount -t overlay overlay -o "lowerdir=$FILES:/etc" /etc
mount --bind "$HOSTS" /etc/hosts
if [ "$VOLUME" ]; then
  mkdir -p "$VOLUME"
  exec 9<"$VOLUME"
  mount -t tmpfs tmpfs /var/lib
  mkdir /var/lib/raftkv
  mount --bind /proc/self/fd/9 /var/lib/raftkv
  exec 9<&-
fi
mount -o remount,bind,ro /
exec "$@"
"""


class Process:
    """A container's process, in the pod's network namespace."""

    def __init__(
        self, prefix: list[str], command: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*prefix, "unshare", "--mount", "/bin/sh", "-c", _ENTER, "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(environment),
            )

    @property
    def ended(self) -> int | None:
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(
                f"still running after {timeout_s} s:\n{self.log.read_text()[-2000:]}"
            ) from None


class Namespace:
    """A release of the chart with a place for its pods. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Names of interfaces are short. The last one is for jobs and tests.
        self._slots = [f"p{number}" for number in range(PODS_MAX)]
        self.network = Network([*self._slots, "job"])
        self._objects: list[Object] = []
        self._secrets: dict[str, Object] = {}  # kept: an upgrade and an uninstall leave them alone
        self._pods: dict[int, Pod] = {}
        self._addresses_given = 0
        self.hosts = directory / "hosts"  # one file for all, changed in place
        self.restarts: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods.values():
            pod.kill()
        self.network.close()

    # --- what a person does -------------------------------------------------------------------------

    def install(self, values: Mapping[str, Any]) -> None:
        """`helm install`."""
        self._take(objects(values, is_install=True, there=self._there))
        self._scale()

    def upgrade(self, values: Mapping[str, Any], *, wait_s: float = 60) -> None:
        """`helm upgrade`: hooks, then pods. Raises AssertionError where a hook fails."""
        before = self._objects
        after = objects(values, is_upgrade=True, there=self._there)
        for job in (each for each in after if each["kind"] == "Job"):
            assert "pre-upgrade" in job["metadata"]["annotations"]["helm.sh/hook"]
            self._keep_secrets(after)
            self.run_job(after, job["spec"]["template"])
        self._take(after)
        self._scale()
        if pod_of(before) != pod_of(after):
            self._roll(wait_s)

    def uninstall(self) -> None:
        """`helm uninstall`: pods go all at once; volumes and Secrets stay."""
        self._delete([*self._pods])
        self._objects = []

    def scale_behind_its_back(self, replicas: int) -> None:
        """`kubectl scale`, which runs no hook."""
        one(self._objects, "StatefulSet")["spec"]["replicas"] = replicas
        self._scale()

    def kill(self, ordinal: int) -> None:
        """kill -9 of the container's process; it is started again."""
        self._pods[ordinal].kill()

    def delete_pod(self, ordinal: int) -> None:
        """`kubectl delete pod`: ended in order, and made anew."""
        self._delete([ordinal])
        self._create(ordinal)

    def delete_volume(self, ordinal: int) -> None:
        shutil.rmtree(self.volume(ordinal))

    def run_test(self) -> str:
        """`helm test`: what it printed."""
        return self.run_job(self._objects, one(self._objects, "Pod"))

    def execute(self, ordinal: int, *command: str) -> str:
        """`kubectl exec`: what it printed. Raises AssertionError where it fails."""
        return self._pods[ordinal].execute(list(command))

    # --- asking -------------------------------------------------------------------------------------

    def volume(self, ordinal: int) -> Path:
        return self.directory / "volumes" / f"data-{NAME}-{ordinal}"

    def log(self, ordinal: int) -> str:
        return (self.directory / f"{NAME}-{ordinal}.log").read_text()

    def url(self, ordinal: int, port: int = 8400) -> str:
        return f"http://{self.network.addresses[self._slots[ordinal]]}:{port}"

    def probe(self, ordinal: int, which: str) -> int:
        """The status that the pod's startup, readiness or liveness probe gets; 0 for no answer."""
        main = container(pod_of(self._objects))
        get = main[f"{which}Probe"]["httpGet"]
        (port,) = (each["containerPort"] for each in main["ports"] if each["name"] == get["port"])
        assert get["scheme"] == "HTTP"
        return self.get(self.url(ordinal, port) + get["path"])[0]

    def get(self, url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        with self.network.entered():
            try:
                request = urllib.request.Request(url, data=body, method=method)
                with urllib.request.urlopen(request, timeout=5) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()
            except OSError:
                return 0, b""

    def members(self) -> dict[str, str]:
        """Name and role of each member, as the leader sees them; {} where none says it leads."""
        for ordinal in self._pods:
            status, body = self.get(self.url(ordinal) + "/v1/cluster")
            members = json.loads(body)["members"] if status == 200 else ()
            roles = {each["name"]: each["role"] for each in members}
            if roles.get(f"{NAME}-{ordinal}") == "leader":
                return roles
        return {}

    def listed(self, ordinal: int) -> set[str]:
        """The members as `raftkv member list` shows them in that pod."""
        return set(
            re.findall(rf"^({NAME}-\d+)\t", self.execute(ordinal, "raftkv", "member", "list"), re.MULTILINE)
        )

    def wait(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Until it holds; meanwhile containers that end are started again."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._restart_ended()
            if time.monotonic() > deadline:
                logs = "\n".join(f"{each}: {self.log(each)[-1500:]}" for each in self._pods)
                raise AssertionError(f"not within {timeout_s} s; members {self.members()}\n{logs}")
            time.sleep(0.05)

    def wait_ready(self, timeout_s: float = 60) -> None:
        self.wait(lambda: all(self.probe(each, "readiness") == 200 for each in self._pods), timeout_s)

    # --- what Kubernetes does -----------------------------------------------------------------------

    def _take(self, among: list[Object]) -> None:
        self._objects = among
        self._keep_secrets(among)
        for pod in self._pods.values():
            pod.write_files(among, self._secrets)

    @property
    def _there(self) -> list[Object]:
        """What Helm's `lookup` finds: the objects of the release, and Secrets that outlived one."""
        return [*self._objects, *self._secrets.values()]

    def _keep_secrets(self, among: list[Object]) -> None:
        for each in among:
            if each["kind"] == "Secret":
                known = self._secrets.setdefault(each["metadata"]["name"], each)
                assert known["data"] == each["data"], "what exists was made anew"

    @property
    def replicas(self) -> int:
        count: int = one(self._objects, "StatefulSet")["spec"]["replicas"]
        return count

    def _scale(self) -> None:
        self._delete([each for each in self._pods if each >= self.replicas])
        for ordinal in range(self.replicas):
            if ordinal not in self._pods:
                self._create(ordinal)

    def _roll(self, wait_s: float) -> None:
        for ordinal in reversed(range(self.replicas)):
            self.delete_pod(ordinal)
            self.wait(lambda ordinal=ordinal: self.probe(ordinal, "readiness") == 200, wait_s)  # type: ignore[misc]

    def _create(self, ordinal: int) -> None:
        self.restarts.setdefault(ordinal, 0)
        self._move(self._slots[ordinal])
        pod = Pod(
            self, f"{NAME}-{ordinal}", self._slots[ordinal], self.volume(ordinal), pod_of(self._objects)
        )
        pod.write_files(self._objects, self._secrets)
        self._pods[ordinal] = pod
        pod.start()

    def _move(self, slot: str) -> None:
        """A new pod has a new address, which every name server knows at once."""
        self._addresses_given += 1
        address = f"{SUBNET}.{100 + self._addresses_given}"
        inside = [*self.network.command_prefix(slot), "ip", "addr"]
        subprocess.run([*inside, "flush", "dev", "eth0"], check=True)
        subprocess.run([*inside, "add", f"{address}/24", "dev", "eth0"], check=True)
        self.network.addresses[slot] = address
        self.hosts.write_text(self._names())

    def _delete(self, ordinals: list[int]) -> None:
        """All at once, as `Parallel` has it."""
        with ThreadPoolExecutor(PODS_MAX) as pool:
            for _ in pool.map(lambda each: self._pods[each].end(), ordinals):
                pass
        for ordinal in ordinals:
            del self._pods[ordinal]

    def _restart_ended(self) -> None:
        for ordinal, pod in self._pods.items():
            if pod.restart_if_ended():
                self.restarts[ordinal] += 1

    def _names(self) -> str:
        """The names that Services give: each pod's own, and for clients one that leads to any pod."""
        addresses = [self.network.addresses[slot] for slot in self._slots]
        lines = ["127.0.0.1 localhost"]
        lines += [
            f"{address} {NAME}-{ordinal}.{NAME}-peers.{NAMESPACE}.svc"
            for ordinal, address in enumerate(addresses)
        ]
        lines += [f"{addresses[each]} {NAME}.{NAMESPACE}.svc" for each in range(self.replicas)]
        return "\n".join(lines) + "\n"

    def run_job(self, among: list[Object], template: Object) -> str:
        """A pod that runs to its end. Raises AssertionError where it fails."""
        pod = Pod(self, "job", "job", None, template)
        pod.write_files(among, self._secrets)
        pod.start()
        assert pod.process is not None
        code = pod.process.wait(60)
        printed = pod.process.log.read_text()
        pod.process.log.unlink()
        assert code == 0, printed
        return printed


class Pod:
    def __init__(self, space: Namespace, name: str, slot: str, volume: Path | None, template: Object) -> None:
        self.process: Process | None = None
        self._space = space
        self._name = name
        self._volume = volume
        self._template = template
        self._prefix = space.network.command_prefix(slot)
        self._files = space.directory / "files" / name
        self._log = space.directory / f"{name}.log"

    def write_files(self, among: list[Object], secrets: Mapping[str, Object]) -> None:
        """What lies under /etc: the projected volume, and the names of hosts."""
        shutil.rmtree(self._files, ignore_errors=True)
        etc = self._files
        etc.mkdir(parents=True)
        (etc / "hosts").touch()
        for volume in self._template["spec"].get("volumes", ()):
            for source in volume.get("projected", {}).get("sources", ()):
                for path, content in _content(source, among, secrets).items():
                    file = etc / "raftkv" / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                    file.chmod(0o440)

    def start(self) -> None:
        for each in self._template["spec"].get("initContainers", ()):
            self._run(each).wait(60)
        self.process = self._run(self._main)

    def restart_if_ended(self) -> bool:
        assert self.process is not None
        if self.process.ended is None:
            return False
        self.process = self._run(self._main)
        return True

    def end(self) -> None:
        """preStop, then SIGTERM, then as long as the pod has."""
        assert self.process is not None
        spec = self._template["spec"]
        began = time.monotonic()
        if self.process.ended is None:
            self.execute(self._main["lifecycle"]["preStop"]["exec"]["command"])
            self.process.signal(signal.SIGTERM)
        self.process.wait(spec["terminationGracePeriodSeconds"] - (time.monotonic() - began))

    def execute(self, command: list[str]) -> str:
        assert self.process is not None
        done = subprocess.run(
            ["nsenter", f"--target={self.process.pid}", "--mount", "--net", "--", *command],
            env=self._environment(self._main),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self._template["spec"]["terminationGracePeriodSeconds"],
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def kill(self) -> None:
        if self.process is not None and self.process.ended is None:
            self.process.signal(signal.SIGKILL)
            self.process.wait(10)

    @property
    def _main(self) -> Object:
        main: Object = self._template["spec"]["containers"][0]
        return main

    def _run(self, each: Object) -> Process:
        command = [*(each.get("command") or ["raftkv"]), *each.get("args", ())]
        return Process(self._prefix, command, self._environment(each), self._log)

    def _environment(self, each: Object) -> dict[str, str]:
        """Kubernetes' own expansion of $(NAME), and what the image sets."""
        values = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "HOSTNAME": self._name,
            "RAFTKV_DATA_DIR": "/var/lib/raftkv",
            "RAFTKV_API": "0.0.0.0:8400",
            "RAFTKV_RAFT": "0.0.0.0:8401",
            "RAFTKV_OPS_LISTEN": "0.0.0.0:8402",
        }
        for variable in each.get("env", ()):
            field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            assert field in (None, "metadata.name")
            text = self._name if field else variable["value"]
            for name, value in values.items():
                text = text.replace(f"$({name})", value)
            values[variable["name"]] = text
        return {
            **values,
            "FILES": str(self._files),
            "HOSTS": str(self._space.hosts),
            "VOLUME": str(self._volume or ""),
        }


def _content(source: Object, among: list[Object], secrets: Mapping[str, Object]) -> dict[str, bytes]:
    if "configMap" in source:
        data = one(among, "ConfigMap", source["configMap"]["name"])["data"]
        return {name: text.encode() for name, text in data.items()}
    wanted = source["secret"]
    there = secrets.get(wanted["name"])
    if there is None:
        assert wanted.get("optional"), f"the pod would wait for the Secret {wanted['name']}"
        return {}
    return {item["path"]: secret_bytes(there, item["key"]) for item in wanted["items"]}
