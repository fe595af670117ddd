"""raftkv: one node of a replicated key-value store, and the client to it. This is the map of the house.

    model.py, errors.py     the words that the layers share: frozen values, and errors that say what may have
                            happened
    kv/                     PURE. Commands and their bytes, and the state machine that applies them: keys in
                            order, revisions, the outcomes kept under idempotency keys, point-in-time images
    journal/                the write-ahead log: framing and recovery are pure, `disk.py` is the one seam to
                            the file system, `wal.py` is what Raft and the sync thread share
    snapshot/               the state at one index as checksummed chunks and a manifest: on this node's disk
                            (`directory.py`), and published by the leader for all (`archiver.py`,
                            `remote.py`) in a shared directory or in Ceph (`rados.py`), with the committed
                            log between snapshots (`ranges.py`)
    raft/                   consensus. `core.py` is PySyncObj put right, `engine.py` one whole member without
                            clock, threads or sockets; `node.py` gives it those; `transport.py` and
                            `handshake.py` are the authenticated links; `membership.py` is the arithmetic of
                            who votes, `roster.py` of who is let in; `restore.py` makes a new cluster of what
                            a store has, `survivor.py` of what a disk has. Only this folder knows pysyncobj
    access/                 who asks, and what their token permits: verified once, then remembered; the audit
    room.py                 whether there is room for more: the quota, and what is left of disk and memory
    service.py              what a client can ask, without HTTP: deadlines, consistency, admission
    api/                    HTTP: parsing, admission, routes, the one table from errors to statuses,
                            OpenAPI. `hot.py` answers plain requests for one key itself and leaves the rest
                            to aiohttp
    tls/                    certificates from files that may change, and the port that shakes hands
    addresses.py            how a member's name and addresses are written
    config.py               one table for flags, environment and TOML
    server.py               the composition root: Config -> objects -> serve -> stop in order
    client/                 the Python client, asynchronous and synchronous

Imports point one way: api -> service -> raft -> {journal, snapshot} -> kv -> {model, errors}. `server` sees
all. The command line and everything that knows more than one process is in `cluster/`, outside.

One thread runs a node: the asyncio loop. What blocks (fdatasync, compression, reading a snapshot) runs on a
worker thread and comes back to the loop as a callback, so nothing in here takes a lock.

Life of a PUT
    1. api/ parses it, checks it against the limits, and builds a command (`kv/command.py`).
    2. service.py admits it or refuses it at once. On a follower it ends here, with a redirection to the
       leader or by being passed on.
    3. The engine puts it into the next batch. While the disk is busy with one batch, what arrives becomes the
       next one: one log entry, one journal frame, one fdatasync for all of it.
    4. The entry goes to the followers and to the own disk at the same time. A follower answers when *its*
       disk has the entry, never before: what claims something durable waits at a gate (`raft/engine.py`).
    5. A majority has it on disk, the leader's own disk among them: it is committed, and the state machine
       applies it (`kv/machine.py`). Its result is the answer; its revision is the ETag.
    6. The followers learn of the commit with the next message, and apply the same entry.

Life of a GET
    1. api/ parses it; service.py asks for a read barrier.
    2. On the leader: a round of messages shows that a majority still follows it, so the commit index noted
       before is at least that of every write acknowledged anywhere by then (ReadIndex, `raft/reads.py`). A
       follower asks its leader for that index. One round serves every read that arrived before it began.
    3. This node has applied up to that index: the answer comes from its own memory.
    `consistency=stale` leaves out 2 and 3, and the answer says how far this node was.

Life of a restart
    1. The newest snapshot that is whole is loaded, the journal's segments are read, and the two are aligned
       by (index, term). A torn tail is cut; any other damage stops the node, with the file and the offset.
    2. What was read is synced again before the node speaks: after a crash it may have been in memory only.
    3. The node joins, learns what is committed, applies it, and is ready once a linearizable read succeeds.
"""
