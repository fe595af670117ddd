#!/usr/bin/env python3
"""Where raftkv comes from: a replicated dictionary behind a plain HTTP server, in the shape of PySyncObj's
own key-value example. For comparison only: it loses acknowledged writes (nothing is fsynced).

    scripts/plain_pysyncobj_http.py HTTP_PORT RAFT_ADDRESS JOURNAL [PARTNER_ADDRESS …]

GET and POST of /KEY; a POST is answered once PySyncObj says that the command is applied. The journal is
PySyncObj's own. A thread a connection, and the stock library: its own thread, its own timers.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pysyncobj import SyncObj, SyncObjConf, replicated


class Storage(SyncObj):  # type: ignore[misc]
    def __init__(self, address: str, partners: list[str], journal: str) -> None:
        super().__init__(address, partners, SyncObjConf(journalFile=journal))
        self.data: dict[str, bytes] = {}

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: bytes) -> None:
        self.data[key] = value


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer is one write; unbuffered, its head and body are two packets
    storage: Storage

    def do_GET(self) -> None:
        if self.path == "/leader":
            leader = self.storage._getLeader()
            return self.answer(200, b"yes" if leader == self.storage.selfNode else b"no")
        value = self.storage.data.get(self.path[1:])
        return self.answer(404, b"") if value is None else self.answer(200, value)

    def do_POST(self) -> None:
        value = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self.storage.put(self.path[1:], value, sync=True, timeout=5)
        except Exception:  # noqa: BLE001  the library raises bare ones
            return self.answer(503, b"")
        return self.answer(200, b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024


def main() -> None:
    port, address, journal, *partners = sys.argv[1:]
    Handler.storage = Storage(address, partners, journal)
    Server(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
