"""Whole clusters in one process, from one seed.

    scheduler.py   virtual time, and the events of processes that can be paused and killed
    network.py     links that behave as TCP does
    disk.py        a disk that forgets what was not synced
    store.py       a snapshot store with the contract of the real ones
    invariants.py  what must hold after every event, kept incrementally
    client.py      clients, and the history of what they were told
    faults.py      the schedule of faults, drawn from the seed alone
    world.py       one run: puts these together around a kind of process
    node.py        the process under test: the real engine, journal and state machine
    stock.py       PySyncObj as released, under the same schedules
    mutants.py     bugs planted on purpose, each of which the invariants must find

Every decision comes from `random.Random` streams named after the seed, and no set's order matters as long
as PYTHONHASHSEED is fixed, so the same seed is the same run: `scripts/simulate.py --seed S --trace`
replays it.
"""
