"""Who asks, and what they may do. Knows no HTTP, and nothing of Raft.

secret.py     tokens as text, and their hashes
caller.py     what a token permits: the one place that decides it                       PURE
guard.py      from a presented token to a caller: verified once, then remembered
audit.py      what administrators did, and who was turned away
redaction.py  what keeps secrets out of the log
"""
