"""Benchmarks: raftkv and its peers under the same load. `scripts/bench.py` and `loadtest/run` are the doors.

requests.py    what is asked, as bytes for each HTTP dialect                    PURE
results.py     samples, medians, ratios, the bars to meet, tables              PURE
processes.py   child processes: start, CPU time, end
systems.py     the systems, each started the same way and checked after each case
load.py        the load generators: wrk, and the Go clients built on first use
campaign.py    rounds of systems and cases
chart.py       the picture
ceiling.py     the same answers from a constant: as fast as one Python process gets
probes.py      raftkv alone: beyond its knee, beside a slow follower, with many keys, with its instruments
uncounted.py   a node without instruments, for the last of these
loadtest.py    k6 scripts against a cluster that dies and comes back meanwhile
"""
