"""Real raft ports on the loopback, for tests: nodes that record what they are told, and a bare peer that
holds the secret and may misbehave. Waits are for conditions, with a deadline."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

import uvloop

from raftkv.model import Identity, Member, Membership
from raftkv.raft.forming import Action, Control, Formed, Forming, Persist, Tell
from raftkv.raft.frames import Sealer
from raftkv.raft.handshake import Dialer, Established, Hello, Refusal, Send, Standing
from raftkv.raft.messages import Message
from raftkv.raft.transport import RELEASE, Callbacks, Limits, Transport
from raftkv.tls.credentials import Credentials

SECRET = b"a secret of the cluster, 32 bytes"
DEADLINE_SECONDS = 5.0

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` on a loop of that kind; no test takes longer than the deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await main
        for _ in range(3):  # what was aborted closes its socket at the loop's next turns
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Polls; the deadline is `run`'s."""
    while not condition():  # noqa: ASYNC110 what it waits for is spread over many callbacks
        await asyncio.sleep(0.002)


def instance_of(name: str) -> str:
    return name[-1] * 32


@dataclass
class Node:
    """One raft port and what it was told, in order."""

    name: str
    secret: bytes = SECRET
    limits: Limits = field(default_factory=Limits)
    port: int = 0
    standing: Standing | None = None
    on_message: Callable[[str, Message], None] | None = None
    credentials: Credentials | None = None
    messages: list[tuple[str, Message]] = field(default_factory=list)
    controls: list[tuple[str, Control]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # "+n2" connected, "-n2" disconnected
    refusals: list[tuple[str, Refusal]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.standing = self.standing or Standing(Identity(self.name, instance_of(self.name), ""), None, ())
        self.transport = Transport(
            listen=("127.0.0.1", self.port),
            secret=self.secret,
            standing=self._standing,
            callbacks=Callbacks(
                on_message=self._heard,
                on_control=lambda sender, control: self.controls.append((sender.name, control)),
                on_connected=lambda peer: self.links.append(f"+{peer.name}"),
                on_disconnected=lambda peer: self.links.append(f"-{peer}"),
                on_refused=lambda peer, refusal: self.refusals.append((peer.name, refusal)),
            ),
            limits=self.limits,
            credentials=self.credentials,
        )

    def _standing(self) -> Standing:
        assert self.standing is not None
        return self.standing

    def _heard(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))
        if self.on_message is not None:
            self.on_message(peer, message)

    @property
    def member(self) -> Member:
        return Member(self.name, f"127.0.0.1:{self.transport.address[1]}", f"http://{self.name}")

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.transport.__aexit__(*error)


def introduce(*nodes: Node, dial: bool = True) -> tuple[Member, ...]:
    """Each is told of all, as the initial members."""
    members = tuple(node.member for node in nodes)
    for node in nodes:
        assert node.standing is not None
        node.standing = Standing(node.standing.identity, node.standing.membership, members)
    if dial:
        for node in nodes:
            node.transport.set_members(members)
    return members


async def connected(*nodes: Node) -> None:
    await until(lambda: all(a.transport.connected(b.name) for a in nodes for b in nodes if a is not b))


class BarePeer:
    """A connection to a raft port made by hand. `shake_hands` uses the secret; then `frame` makes frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.sealer: Sealer

    @classmethod
    async def call(cls, node: Node) -> BarePeer:
        return cls(*await asyncio.open_connection(*node.transport.address))

    async def shake_hands(self, name: str, target: Node, *, instance: str = "") -> BarePeer:
        assert target.standing is not None
        members = target.standing.initial_members
        hello = Standing(Identity(name, instance or instance_of(name), ""), None, members)
        dialer = Dialer(
            secret=SECRET,
            nonce=os.urandom(32),
            hello=hello.hello(target=target.name, release=RELEASE),
            judge=lambda _: None,
        )
        self.writer.write(dialer.greeting)
        while True:
            data = await self.reader.read(65536)
            assert data, "the port hung up during the handshake"
            for event in dialer.feed(data):
                match event:
                    case Send():
                        self.writer.write(event.data)
                    case Established():
                        self.sealer = Sealer(event.frame_key)
                        return self
                    case _:
                        raise AssertionError(event)

    def frame(self, payload: bytes) -> bytes:
        return self.sealer.seal(payload) + payload

    async def closed_by_the_port(self) -> None:
        """Waits for the end; whatever the port still sends is read and dropped."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.close()

    def close(self) -> None:
        self.writer.transport.abort()


class FormingNode(Node):
    """A port with forming on it, as a node has; its disk is two attributes."""

    founding: Membership | None = None

    def form(self, members: tuple[Member, ...]) -> None:
        assert self.standing is not None
        self.formed: Membership | None = None
        self.forming = Forming(
            self.standing.identity, members, founding=self.founding, draw=lambda: os.urandom(16).hex()
        )
        callbacks = Callbacks(
            on_message=self._heard,
            on_control=lambda sender, control: self.act(self.forming.receive(sender, control)),
            on_connected=self._connected,
            on_disconnected=self.forming.peer_disconnected,
            on_refused=lambda peer, refusal: self.refusals.append((peer.name, refusal)),
        )
        self.transport._callbacks = callbacks
        self.standing = Standing(self.forming.identity, self.forming.membership, members)
        self.transport.set_members(members)
        self.act(self.forming.start())

    def _connected(self, peer: Hello) -> None:
        self.act(self.forming.peer_connected(peer))

    def act(self, actions: tuple[Action, ...]) -> None:
        assert self.standing is not None
        for action in actions:
            match action:
                case Tell():
                    self.transport.send_control(action.peer, action.control)
                case Persist():
                    self.founding = action.membership
                    asyncio.get_running_loop().call_soon(lambda: self.act(self.forming.persisted()))
                case Formed():
                    self.formed = action.membership
                    self.standing = Standing(
                        self.forming.identity, self.forming.membership, self.standing.initial_members
                    )
                    self.transport.set_members(action.membership.members)
