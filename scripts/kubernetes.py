#!/usr/bin/env python3
"""The chart on a real Kubernetes, from API server to kubelet, by Helm's own engine.

    .venv/bin/pip install dnslib
    .venv/bin/python scripts/kubernetes.py build     about 5 minutes, once: from Debian's source package
    .venv/bin/python scripts/kubernetes.py walk      starts them, plays every situation below, ends them
    .venv/bin/python scripts/kubernetes.py up        only starts them, until Ctrl-C; says how to use kubectl

Needs root, Debian 12, Docker, Go (`golang-go`), etcd, conntrack, iptables and kubectl. All of it runs in a
network namespace of its own, `raftkv-k8s`, and below --directory; nothing is left running.

Debian 12 has the source of Kubernetes 1.20.2, which is older than what the chart is for. So a copy of the
chart is installed, without what 1.20 does not know yet: `persistentVolumeClaimRetentionPolicy` and
`kubeVersion` are left out, and the PodDisruptionBudget is a `policy/v1beta1`. The kubelet is changed in one
number, the pause container's `oom_score_adj`, since not every machine lets even root lower it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from raftkv.client import Client  # noqa: E402  # found by the line above
from tests.docker import some_docker  # noqa: E402  # likewise

NAMESPACE = "raftkv-k8s"
BRIDGE = "172.17.0.1"  # docker0: where pods find DNS, and the API server finds the kubelet
SERVICES = "10.96.0.0/16"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")
VOLUMES = 16
GAP_SECONDS_MAX = 5.0
ADMIN = "admin-of-this-walk"


class Failed(Exception):
    """A command did, or what had to come about did not."""


def run(*words: str | Path, **more: Any) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def until(what: str, holds: Callable[[], bool], seconds: float = 120) -> None:
    """A command that fails counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Failed, ValueError):
            if holds():
                return
        if time.monotonic() > deadline:
            raise Failed(f"not in {seconds:g} s: {what}")
        time.sleep(0.2)


# --- building --------------------------------------------------------------------------------------------


def build(directory: Path) -> None:
    source = directory / "source"
    if not (source / "cmd/kubelet").exists():
        fetch(directory, source)
    # The pause container gets a negative score; without CAP_SYS_RESOURCE nobody may give it one.
    sandbox = source / "pkg/kubelet/dockershim/docker_sandbox.go"
    sandbox.write_text(re.sub(r"(defaultSandboxOOMAdj int = )-998", r"\g<1>0", sandbox.read_text()))
    package = directory / "go/src/k8s.io/kubernetes"
    package.parent.mkdir(parents=True, exist_ok=True)
    if not package.is_symlink():
        package.symlink_to(source)
    go = {**os.environ, "GO111MODULE": "off", "GOFLAGS": "", "GOPATH": str(directory / "go")}
    go |= {"GOCACHE": str(directory / "cache"), "PWD": str(package)}  # Go's tools go by the linked path

    def make(name: str, path: str) -> Path:
        print(f"building {name}", flush=True)
        run("go", "build", "-o", directory / "bin" / name, f"k8s.io/kubernetes/{path}", cwd=package, env=go)
        return directory / "bin" / name

    generator = make("openapi-gen", "vendor/k8s.io/kube-openapi/cmd/openapi-gen")
    marked = run(
        *("grep", "-rl", "--include=*.go", "--", "+k8s:openapi-gen="),
        *(f"{path}/" for path in sorted((package / "vendor/k8s.io").iterdir()) if path.is_dir()),
        cwd=package,
    )
    left_out = ("code-generator", "sample-apiserver", "kube-openapi", "gengo")
    packages = {str(Path(file).parent.relative_to(package)) for file in marked.split()}
    inputs = [f"k8s.io/kubernetes/{each}" for each in sorted(packages) if each.split("/")[2] not in left_out]
    run(
        *(generator, "-i", ",".join(inputs), "-p", "k8s.io/kubernetes/pkg/generated/openapi"),
        *("-O", "zz_generated.openapi", "-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"),
        *("-r", directory / "violations"),
        cwd=package,
        env=go,
    )
    for name in PROGRAMS:
        make(name, f"cmd/{name}")


def fetch(directory: Path, source: Path) -> None:
    """Debian's source package, through a list of sources of its own: the machine's stay as they are."""
    print("fetching the source", flush=True)
    apt = directory / "apt"
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").iterdir()]
    text = "\n".join(path.read_text() for path in lists if path.is_file())
    mirror = next(
        iter(re.findall(r"^(?:URIs:|deb)\s.*?(https?://\S+?/debian)/?\s", text, re.MULTILINE)), None
    )
    if mirror is None:
        raise SystemExit("no mirror of Debian in /etc/apt: name it in a sources.list there")
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb-src [signed-by={keys}] {mirror} bookworm main\n")
    options = [f"-oDir::Etc::SourceList={apt}/sources.list", "-oDir::Etc::SourceParts=/dev/null"]
    options += [f"-oDir::State::Lists={apt}/lists"]
    run("apt-get", *options, "update")
    run("apt-get", *options, "source", "--download-only", "kubernetes", cwd=apt)
    (archive,) = apt.glob("kubernetes_*.orig.tar.gz")
    source.mkdir(parents=True, exist_ok=True)
    run("tar", "xzf", archive, "--strip-components=1", "-C", source)


# --- running ---------------------------------------------------------------------------------------------


class Kubernetes:
    """One node, and all that it takes, as processes in a network namespace."""

    def __init__(self, directory: Path) -> None:
        self.built = directory / "bin"
        self.run = directory / "run"
        self.docker_host = f"unix://{self.run}/docker.sock"
        self.kubeconfig = self.run / "kubeconfig"
        self._started: list[subprocess.Popen[bytes]] = []

    def inside(self, *words: str | Path) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{NAMESPACE}", "--", *map(str, words)]

    def start(self, name: str, *words: str | Path) -> None:
        with (self.run / f"{name}.log").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    self.inside(*words),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "DOCKER_HOST": self.docker_host},
                    start_new_session=True,
                )
            )

    def docker(self, *words: str | Path, **more: Any) -> str:
        return run("/usr/bin/docker", "-H", self.docker_host, *words, **more)

    def kubectl(self, *words: str | Path, **more: Any) -> str:
        return run(*self.inside("kubectl", "--kubeconfig", self.kubeconfig, *words), **more)

    def up(self, image: Path) -> None:
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
        run("ip", "netns", "add", NAMESPACE)
        run("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
        self.start(
            "dockerd",
            *("dockerd", f"--data-root={self.run}/docker", f"--exec-root={self.run}/exec"),
            *(f"--host={self.docker_host}", f"--pidfile={self.run}/docker.pid"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs"),
        )
        until("Docker answers", lambda: bool(self.docker("info")))
        run("ip", "-n", NAMESPACE, "route", "add", SERVICES, "dev", "docker0")
        self.docker("load", "-i", image)
        self._pause_image()
        self._credentials()
        data, urls = self.run / "etcd", "http://127.0.0.1:2379"
        self.start(
            "etcd",
            *("etcd", "--data-dir", data, "--listen-client-urls", urls, "--advertise-client-urls", urls),
            *("--listen-peer-urls", "http://127.0.0.1:2380"),
        )
        self.start(
            "kube-apiserver",
            *(self.built / "kube-apiserver", f"--etcd-servers={urls}", "--secure-port=6443"),
            *(f"--advertise-address={BRIDGE}", f"--service-cluster-ip-range={SERVICES}"),
            *(f"--tls-cert-file={self.run}/api.crt", f"--tls-private-key-file={self.run}/api.key"),
            *(f"--token-auth-file={self.run}/tokens.csv", "--authorization-mode=AlwaysAllow"),
            *(f"--service-account-key-file={self.run}/api.key", f"--cert-dir={self.run}"),
            *(f"--service-account-signing-key-file={self.run}/api.key",),
            *("--service-account-issuer=https://kubernetes.default.svc",),
            *("--kubelet-preferred-address-types=InternalIP",),
        )
        until("the API server is ready", lambda: bool(self.kubectl("get", "--raw", "/readyz")))
        client = f"--kubeconfig={self.kubeconfig}"
        self.start(
            "kube-controller-manager",
            *(self.built / "kube-controller-manager", client, "--leader-elect=false"),
            *(f"--service-account-private-key-file={self.run}/api.key", f"--root-ca-file={self.run}/api.crt"),
            *(f"--cert-dir={self.run}", f"--service-cluster-ip-range={SERVICES}"),
        )
        self.start("kube-scheduler", self.built / "kube-scheduler", client, "--leader-elect=false")
        conntrack = ("max-per-core", "min", "tcp-timeout-established", "tcp-timeout-close-wait")
        self.start(
            "kube-proxy",
            *(self.built / "kube-proxy", client, "--hostname-override=node1", "--proxy-mode=iptables"),
            *("--cluster-cidr=172.17.0.0/16", *(f"--conntrack-{each}=0" for each in conntrack)),
        )
        self.start(
            "kubelet",
            *(self.built / "kubelet", client, f"--root-dir={self.run}/kubelet", "--container-runtime=docker"),
            *(f"--docker-endpoint={self.docker_host}", "--pod-infra-container-image=pause:local"),
            *("--cgroups-per-qos=false", "--enforce-node-allocatable=", "--cgroup-driver=cgroupfs"),
            *("--fail-swap-on=false", "--eviction-hard=", "--image-gc-high-threshold=100"),
            *(f"--cluster-dns={BRIDGE}", "--cluster-domain=cluster.local", "--hostname-override=node1"),
            *(
                f"--node-ip={BRIDGE}",
                f"--cert-dir={self.run}/kubelet-pki",
                "--authorization-mode=AlwaysAllow",
            ),
        )
        self.start("dns", sys.executable, Path(__file__).resolve(), "dns", "--directory", self.run.parent)
        until("the node is ready", lambda: " Ready " in self.kubectl("get", "nodes", "--no-headers"))
        self._volumes()

    def _pause_image(self) -> None:
        code = "#include <unistd.h>\n#include <signal.h>\n#include <stdlib.h>\n"
        code += "static void end(int n) { exit(0); }\n"
        code += "int main(void) { signal(SIGTERM, end); signal(SIGCHLD, SIG_IGN); for (;;) pause(); }\n"
        (self.run / "pause.c").write_text(code)
        run("gcc", "-static", "-o", self.run / "pause", self.run / "pause.c")
        run("tar", "cf", self.run / "pause.tar", "-C", self.run, "pause")
        self.docker("import", "--change", 'ENTRYPOINT ["/pause"]', self.run / "pause.tar", "pause:local")

    def _credentials(self) -> None:
        names = f"DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:{BRIDGE},IP:10.96.0.1"
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=api"),
            *("-keyout", self.run / "api.key", "-out", self.run / "api.crt"),
            *("-addext", f"subjectAltName={names}"),
        )
        (self.run / "tokens.csv").write_text(f'{ADMIN},admin,admin,"system:masters"\n')
        cluster = {"server": "https://127.0.0.1:6443", "certificate-authority": str(self.run / "api.crt")}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "walk", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": ADMIN}}],
            "contexts": [{"name": "walk", "context": {"cluster": "walk", "user": "admin"}}],
            "current-context": "walk",
        }
        self.kubeconfig.write_text(json.dumps(document))

    def _volumes(self) -> None:
        """Directories that everyone may write to, as the usual provisioners for one node make them."""
        storage = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "local",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kubernetes.io/no-provisioner",
        }
        items: list[dict[str, Any]] = [storage]
        for name in ["shared", *(f"volume-{number}" for number in range(VOLUMES))]:
            directory = self.run / "volumes" / name
            directory.mkdir(parents=True)
            directory.chmod(0o777)
            spec = {
                "capacity": {"storage": "10Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "local",
                "hostPath": {"path": str(directory)},
            }
            if name != "shared":
                kind = {"apiVersion": "v1", "kind": "PersistentVolume"}
                items.append({**kind, "metadata": {"name": name}, "spec": spec})
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        self.kubectl("apply", "--validate=false", "-f", "-", input=listed)

    def down(self) -> None:
        """Pods first, since their containers outlive the kubelet; then everything that was started."""
        with contextlib.suppress(Failed):
            for container in self.docker("ps", "-aq").split():
                self.docker("rm", "-f", container)
        for process in reversed(self._started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._started):
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted(mounts, reverse=True):
            if mount.startswith(f"{self.run}/"):
                subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", NAMESPACE], capture_output=True, check=False)


def serve_names(directory: Path) -> None:
    """The cluster's DNS: Services by their address, headless ones and their pods by their endpoints'."""
    from dnslib import QTYPE, RCODE, RR, A
    from dnslib.server import BaseResolver, DNSServer

    context = ssl.create_default_context(cafile=str(directory / "run/api.crt"))

    def ask(path: str) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"https://127.0.0.1:6443{path}", headers={"Authorization": f"Bearer {ADMIN}"}
        )
        with urllib.request.urlopen(request, context=context, timeout=5) as answer:
            items: list[dict[str, Any]] = json.load(answer)["items"]
            return items

    def names() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        headless = set()
        for service in ask("/api/v1/services"):
            name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local."
            address = service["spec"].get("clusterIP")
            found[name] = [] if address == "None" else [address]
            if address == "None":
                headless.add(name)
        for each in ask("/api/v1/endpoints"):
            name = f"{each['metadata']['name']}.{each['metadata']['namespace']}.svc.cluster.local."
            addresses = [
                address for subset in each.get("subsets") or () for address in subset.get("addresses") or ()
            ]
            for address in addresses if name in headless else ():
                found[name].append(address["ip"])
                found.setdefault(f"{address.get('hostname')}.{name}", []).append(address["ip"])
        return found

    class Resolver(BaseResolver):
        def __init__(self) -> None:
            self.names: dict[str, list[str]] = {}

        def resolve(self, request: Any, handler: Any) -> Any:
            reply, name = request.reply(), str(request.q.qname).lower()
            if name not in self.names:
                reply.header.rcode = RCODE.NXDOMAIN
            elif request.q.qtype == QTYPE.A:
                for address in self.names[name]:
                    reply.add_answer(RR(name, QTYPE.A, rdata=A(address), ttl=1))
            return reply

    resolver = Resolver()
    DNSServer(resolver, address=BRIDGE, port=53).start_thread()
    while True:
        try:
            resolver.names = names()
        except OSError as error:
            print(error, flush=True)
        time.sleep(0.5)


# --- the walk --------------------------------------------------------------------------------------------


class Release:
    """One release of the chart, through Helm's own engine, in a process inside the namespace."""

    def __init__(self, kubernetes: Kubernetes, chart: Path, name: str) -> None:
        self.kubernetes = kubernetes
        self.chart = chart
        self.name = name

    def helm(self, action: str, values: dict[str, Any] | None = None) -> None:
        began = time.monotonic()
        words = (
            sys.executable,
            Path(__file__).resolve(),
            "helm",
            action,
            self.name,
            json.dumps(values or {}),
        )
        run(*self.kubernetes.inside(*words, "--directory", self.kubernetes.run.parent))
        print(f"    helm {action}: {time.monotonic() - began:.1f} s", flush=True)

    def pod(self, ordinal: int) -> str:
        return f"{self.name}-raftkv-{ordinal}"

    def raftkv(self, *words: str, ordinal: int = 0, **more: Any) -> str:
        return self.kubernetes.kubectl(
            "exec", "-i", self.pod(ordinal), "-c", "raftkv", "--", "raftkv", *words, **more
        )

    def members(self) -> dict[str, str]:
        """Roles by name."""
        listed = self.raftkv("member", "list", "-o", "json")
        return {each["name"]: each["role"] for each in json.loads(listed)["members"]}

    def expect(self, members: int) -> None:
        """So many voters, all ready, one of which leads."""

        def holds() -> bool:
            self.raftkv("cluster", "health")
            return sorted(self.members().values()) == ["follower"] * (members - 1) + ["leader"]

        until(f"{members} voters, all ready", holds)

    def leader(self) -> str:
        return next(name for name, role in self.members().items() if role == "leader")

    def url(self) -> str:
        address = self.kubernetes.kubectl(
            "get", "service", f"{self.name}-raftkv", "-o", "jsonpath={.spec.clusterIP}"
        )
        return f"http://{address}:8400"

    def wait_ready(self) -> None:
        label = f"app.kubernetes.io/instance={self.name}"
        self.kubernetes.kubectl("wait", "--for=condition=Ready", "pod", "-l", label, "--timeout=120s")


@contextlib.contextmanager
def counted(release: Release) -> Iterator[None]:
    """Adds to one counter through the client Service meanwhile: each answer must be one more than the last,
    and no gap longer than the bound."""
    words = release.kubernetes.inside(sys.executable, Path(__file__).resolve(), "count", release.url())
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        said, _ = process.communicate("\n", timeout=120)
        print(f"    {said.strip()}", flush=True)
    if process.returncode:
        raise Failed("writes were lost, doubled or held up")


def count(url: str) -> int:
    """Until a line comes in: increments under idempotency keys. Prints what it saw; 1 where it is wrong."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.readline()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()

    async def counting() -> tuple[int, int, float]:
        done, wrong, longest = 0, 0, 0.0
        async with Client(url, timeout_s=60) as client:
            last = (await client.incr("counter")).value
            answered = time.monotonic()
            while not ended.is_set():
                value = (await client.incr("counter")).value
                wrong += value != last + 1
                last, done = value, done + 1
                longest, answered = max(longest, time.monotonic() - answered), time.monotonic()
                await asyncio.sleep(0.005)
        return done, wrong, longest

    done, wrong, longest = asyncio.run(counting())
    print(f"{done} increments, {wrong} out of sequence, longest gap {longest:.2f} s")
    return int(wrong > 0 or longest > GAP_SECONDS_MAX)


def walk(kubernetes: Kubernetes, chart: Path) -> None:
    kv = Release(kubernetes, chart, "kv")

    def say(what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)

    say("install, without a flag, and helm test")
    kv.helm("install")
    kv.expect(3)
    kv.helm("test")

    say("a container is killed")
    (container,) = kubernetes.docker("ps", "-q", "--filter", f"name=k8s_raftkv_{kv.pod(1)}_").split()
    with counted(kv):
        os.kill(int(kubernetes.docker("inspect", "-f", "{{.State.Pid}}", container)), signal.SIGKILL)
        restarts = ("get", "pod", kv.pod(1), "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
        until("it is restarted", lambda: kubernetes.kubectl(*restarts) == "1")
        kv.expect(3)

    say("the leader's pod is deleted at once")
    with counted(kv):
        kubernetes.kubectl("delete", "pod", kv.leader(), "--grace-period=0", "--force")
        kv.expect(3)

    say("one pod may be evicted, a second one not")
    until("the first eviction", lambda: evict(kubernetes, kv.pod(1)) == 201)
    assert evict(kubernetes, kv.pod(2)) == 429
    kv.expect(3)

    for replicas in (5, 3, 5):
        say(f"to {replicas} members, under load")
        with counted(kv):
            kv.helm("upgrade", {"replicas": replicas})
            kv.expect(replicas)

    say("a setting changes, under load, and back")
    with counted(kv):
        kv.helm("upgrade", {"replicas": 5, "config": {"log_format": "json"}})
        kv.expect(5)
        kv.helm("rollback")
        kv.expect(5)

    say("uninstalled, and installed again on the same volumes")
    counter = kv.raftkv("kv", "get", "counter")
    kv.helm("uninstall")
    until("no pods", lambda: not kubernetes.kubectl("get", "pods", "-o", "name"))
    kv.helm("install", {"replicas": 5})
    kv.expect(5)
    assert kv.raftkv("kv", "get", "counter", ordinal=3) == counter

    say("a volume is lost, and its member replaced")
    volume = kubernetes.kubectl("get", "pvc", f"data-{kv.pod(4)}", "-o", "jsonpath={.spec.volumeName}")
    kubernetes.kubectl("delete", "pod", kv.pod(4), "--grace-period=0", "--force")
    shutil.rmtree(kubernetes.run / "volumes" / volume / "node")
    lost = f"the disk of {kv.pod(4)} is empty"
    until(lost, lambda: lost in kubernetes.kubectl("logs", kv.pod(4)))
    kv.raftkv("member", "replace", kv.pod(4))
    kv.expect(5)
    kv.helm("uninstall")

    say("TLS on both ports, and tokens: install, helm test, to 5 and back, a rolling restart")
    secured = Release(kubernetes, chart, "secured")
    values: dict[str, Any] = {
        "auth": {"enabled": True},
        "tls": {"enabled": True},
        "peerTls": {"enabled": True},
    }
    secured.helm("install", values)
    secured.expect(3)
    secured.raftkv("kv", "put", "greeting", "hello")
    secured.helm("test")
    for replicas in (5, 3):
        secured.helm("upgrade", {**values, "replicas": replicas})
        secured.expect(replicas)
    secured.helm("upgrade", {**values, "podAnnotations": {"example.org/restarted": "yes"}})
    secured.expect(3)
    assert secured.raftkv("kv", "get", "greeting", ordinal=2) == "hello"
    secured.helm("uninstall")

    say("one member, to three and back; a snapshot, restored into another release")
    shared = {"path": str(kubernetes.run / "volumes/shared")}
    values = {
        "snapshots": {"url": "file:///snapshots"},
        "extraVolumes": [{"name": "snapshots", "hostPath": shared}],
        "extraVolumeMounts": [{"name": "snapshots", "mountPath": "/snapshots"}],
    }
    one = Release(kubernetes, chart, "one")
    one.helm("install", {**values, "replicas": 1})
    one.raftkv("kv", "put", "greeting", "hello")
    for replicas in (3, 1):
        one.helm("upgrade", {**values, "replicas": replicas})
        one.expect(replicas)
    one.raftkv("snapshot", "create")
    snapshot = json.loads(one.raftkv("snapshot", "list", "-o", "json").splitlines()[0])["id"]
    one.helm("uninstall")
    restored = Release(kubernetes, chart, "restored")
    until_when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    restore = {
        "enabled": True,
        "snapshot": snapshot,
        "newClusterId": os.urandom(16).hex(),
        "until": until_when,
    }
    restored.helm("install", {**values, "restore": restore})
    restored.expect(3)
    assert restored.raftkv("kv", "get", "greeting", ordinal=1) == "hello"
    restored.helm("uninstall")
    say("all of it went well")


def evict(kubernetes: Kubernetes, pod: str) -> int:
    """The status that the API server answers with, as `kubectl drain` would see it."""
    eviction = {
        "apiVersion": "policy/v1beta1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": "default"},
    }
    url = f"https://127.0.0.1:6443/api/v1/namespaces/default/pods/{pod}/eviction"
    return int(
        run(
            *kubernetes.inside("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"),
            *("--cacert", kubernetes.run / "api.crt", "-H", f"Authorization: Bearer {ADMIN}"),
            *("-H", "Content-Type: application/json", "-d", json.dumps(eviction), url),
        )
    )


def helm(kubeconfig: Path, chart: Path, action: str, name: str, values: dict[str, Any]) -> None:
    from helm_python import Config

    with Config(kubeconfig_path=kubeconfig, namespace="default") as config:
        if action in ("install", "upgrade"):
            getattr(config, action)(chart, name, values, timeout=300, wait="watcher")
        elif action in ("rollback", "uninstall"):
            getattr(config, action)(name, timeout=300, wait="watcher")
        else:
            config.test(name)


def old_chart(directory: Path) -> Path:
    """The chart, without what Kubernetes 1.20 does not know."""
    chart = directory / "chart"
    shutil.rmtree(chart, ignore_errors=True)
    shutil.copytree(ROOT / "helm/raftkv", chart)

    def change(file: str, pattern: str, by: str) -> None:
        path = chart / file
        text, changes = re.subn(pattern, by, path.read_text(), flags=re.MULTILINE)
        assert changes == 1, f"{file}: {changes} places are like {pattern}"
        path.write_text(text)

    change("Chart.yaml", r"^kubeVersion:.*\n", "")
    change("templates/poddisruptionbudget.yaml", r"^apiVersion: policy/v1$", "apiVersion: policy/v1beta1")
    change("templates/statefulset.yaml", r"^  persistentVolumeClaimRetentionPolicy:\n(    .*\n)+", "")
    return chart


def save_image(path: Path) -> None:
    """Built with the machine's network, which the namespace does not have."""
    with some_docker() as docker:
        if not docker.has_image("debian:bookworm-slim"):
            docker.shell("scripts/base-image", timeout_s=600)
        docker.shell("scripts/image", "--network", "host", timeout_s=600)
        version = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
        docker.run("save", "--output", str(path), f"raftkv:{version}", timeout_s=300)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("build", "walk", "up", "dns", "helm", "count"))
    parser.add_argument("words", nargs="*", help="of those that the script starts itself")
    parser.add_argument("--directory", type=Path, default=ROOT / "build/kubernetes")
    chosen = parser.parse_args(words)
    directory = chosen.directory.resolve()
    kubernetes = Kubernetes(directory)
    if chosen.action == "build":
        directory.mkdir(parents=True, exist_ok=True)
        build(directory)
    elif chosen.action == "dns":
        serve_names(directory)
    elif chosen.action == "count":
        return count(chosen.words[0])
    elif chosen.action == "helm":
        action, name, values = chosen.words
        helm(kubernetes.kubeconfig, directory / "chart", action, name, json.loads(values))
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if missing := [name for name in PROGRAMS if not (kubernetes.built / name).exists()]:
            raise SystemExit(f"not built: {', '.join(missing)}. First: scripts/kubernetes.py build")
        save_image(directory / "image.tar")
        chart = old_chart(directory)
        try:
            kubernetes.up(directory / "image.tar")
            if chosen.action == "walk":
                walk(kubernetes, chart)
            else:
                print(*kubernetes.inside("kubectl", "--kubeconfig", kubernetes.kubeconfig, "get", "nodes"))
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()
        finally:
            kubernetes.down()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failed:
        sys.exit(str(failed))
