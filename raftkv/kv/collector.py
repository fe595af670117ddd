"""How the garbage collector is set, so that it never holds the loop for long.

CPython's collector walks every tracked object of a generation in one go. What a node keeps much of is never
tracked: the state machine's blocks are dicts of bytes (`kv.table`), and tuples of bytes and integers, such as
the journal's entries, are let go of by the first young collection that meets them. What remains is the
program itself (some 100,000 functions, classes and constants, 20 ms a walk) and what grows with connections.
So the program is frozen once it stands, out of the collector's sight, and full collections walk the
connections only, however many keys there are. `scripts/measure_pauses.py` measures it.

Why not switch the collector off: exceptions with tracebacks and closed connections form cycles, and a node
runs for months. Why not freeze again and again: what is frozen and later dies in a cycle is never freed.
"""

from __future__ import annotations

import gc

# A young collection costs some 20 ns an object: this many are 0.2 ms, and most requests have come and gone
# by then, which is why it is cheaper than CPython's 700 (2,000 from 3.12 on) in sum.
YOUNG_OBJECTS = 10_000
_MIDDLE_PER_FULL = 10


def settle() -> None:
    """To be called once, when everything that lives as long as the process has been built."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, _MIDDLE_PER_FULL)
