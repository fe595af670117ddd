"""Every error that raftkv raises, and whether the write it answers may have happened.

Normal outcomes of a command (a failed condition, a missing key) are values, in `model.py`; what is
here was refused, was interrupted, or stops the process. `outcome` says what a client may conclude:

- `NOT_APPLIED`: the write did not happen and never will; repeating it is safe.
- `UNKNOWN`: it may have happened, or may yet; repeating it is safe only under an idempotency key.

`api/errors.py` holds the one table from these types to HTTP statuses.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Outcome = Literal["not_applied", "unknown"]


class RaftkvError(Exception):
    """Base of all. `code` is the stable machine-readable name, `retryable` says if trying again can help."""

    code: ClassVar[str] = "internal"
    outcome: ClassVar[Outcome] = "not_applied"
    retryable: ClassVar[bool] = False


# --- requests that were refused or interrupted -----------------------------------------------------


class BadRequest(RaftkvError):
    """The request is malformed. The message says which part, which value, and what is allowed."""

    code = "bad_request"


class LimitExceeded(RaftkvError):
    """Something is larger than a limit; names the limit, the size and the flag that sets it."""

    def __init__(self, message: str, *, limit: int, size: int | None, flag: str) -> None:
        super().__init__(message)
        self.limit = limit
        self.size = size
        self.flag = flag


class ValueTooLarge(LimitExceeded):
    code = "value_too_large"


class KeyTooLarge(LimitExceeded):
    code = "key_too_large"


class BodyTooLarge(LimitExceeded):
    code = "body_too_large"


class Unavailable(RaftkvError):
    """This node can't take the request now; nothing was done with it. Try again, perhaps elsewhere."""

    retryable = True


class NoLeader(Unavailable):
    """No leader is known. A write is never queued for a leader to come."""

    code = "no_leader"


class NotLeader(Unavailable):
    """Another node leads. `leader_url` is its advertised client URL."""

    code = "not_leader"

    def __init__(self, message: str, *, leader: str, leader_url: str) -> None:
        super().__init__(message)
        self.leader = leader
        self.leader_url = leader_url


class NotReady(Unavailable):
    """The node is starting, forming its cluster, or can't confirm a read in time."""

    code = "not_ready"


class Draining(Unavailable):
    """The node is on its way down and takes nothing new."""

    code = "draining"


class TooStale(Unavailable):
    """The node lost its leader for longer than the read's `max_staleness_ms`."""

    code = "too_stale"


class Overloaded(Unavailable):
    """A bounded queue is full; the request was not started."""

    code = "overloaded"


class NoRoom(RaftkvError):
    """A write that would make the state grow, where there is no room for that. It clears itself."""


class QuotaExceeded(NoRoom, LimitExceeded):
    code = "quota_exceeded"


class DiskSpaceLow(NoRoom):
    code = "disk_space_low"


class MemoryLow(NoRoom):
    code = "memory_low"


class RateLimited(Unavailable):
    """The token has done as many operations a second as it may."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unauthenticated(RaftkvError):
    """No token, or none that counts. `presented`: there was something that looked like one."""

    code = "unauthenticated"

    def __init__(self, message: str, *, presented: bool) -> None:
        super().__init__(message)
        self.presented = presented


class Forbidden(RaftkvError):
    """The token does not permit it."""

    code = "forbidden"


class NoSuchToken(RaftkvError):
    code = "token_not_found"


class LastAdmin(RaftkvError):
    """After revoking it, nobody could let others in."""

    code = "last_admin"


class TooManyTokens(RaftkvError):
    code = "too_many_tokens"


class ChangeInFlight(Unavailable):
    """One change of membership at a time, and the last one is not committed yet."""

    code = "change_in_flight"


class QuorumAtRisk(RaftkvError):
    """After the change too few voters would answer to commit anything."""

    code = "quorum_at_risk"


class NotCaughtUp(RaftkvError):
    """A learner that lacks more of the log than a voter may."""

    code = "not_caught_up"
    retryable = True


class NoSuchMember(RaftkvError):
    code = "no_such_member"


class MemberExists(RaftkvError):
    code = "member_exists"


class TransferFailed(RaftkvError):
    """Nobody took leadership over, and who had it leads on."""

    code = "transfer_failed"


class StoreUnavailable(Unavailable):
    """The snapshot store can't do it now: away, slow, full, or refusing. `reason` is one word for programs;
    the message says what to do. After `timed_out` the operation may have happened, or may yet."""

    code = "store_unavailable"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreFenced(RaftkvError):
    """A later leader publishes to the store: what this one had under way counts no more."""

    code = "store_fenced"


class InFlight(RaftkvError):
    """The first request under this idempotency key is still on its way: its outcome is not known yet."""

    code = "in_flight"
    outcome = "unknown"
    retryable = True


class CommitTimeout(RaftkvError):
    """The write was proposed but not committed before its deadline; it may commit later."""

    code = "commit_timeout"
    outcome = "unknown"
    retryable = True


class LeaderChanged(RaftkvError):
    """Leadership moved while the write was on its way, and its fate could not be followed."""

    code = "leader_changed"
    outcome = "unknown"
    retryable = True


# --- what a node can't go on with ------------------------------------------------------------------


class Fatal(RaftkvError):
    """The node must stop: it can't be sure of its data, or of its place. Exits non-zero with this message."""


class ConfigError(Fatal):
    """The configuration is wrong; says which setting, which value, and what is allowed."""

    code = "config"


class JournalDamaged(Fatal):
    """The journal can't be read where it must be readable. Names file, offset, and what to do."""

    code = "journal_damaged"


class JournalLocked(Fatal):
    """Another process holds the journal's directory. Says which directory."""

    code = "journal_locked"


class JournalFailed(Fatal):
    """A journal write or sync failed. It is never retried: the kernel may have dropped the pages."""

    code = "journal_failed"


class DiskFull(JournalFailed):
    """The journal has no room left. Says which directory, and how much was wanted."""

    code = "disk_full"


class SnapshotDamaged(RaftkvError):
    """A snapshot's bytes don't match its manifest, or its manifest can't be read."""

    code = "snapshot_damaged"


class SnapshotMissing(RaftkvError):
    """No snapshot by that id."""

    code = "snapshot_missing"


class ReleaseTooOld(Fatal):
    """The cluster, and so this node's data, is beyond what this release can read."""

    code = "release_too_old"


class IdentityRefused(Fatal):
    """The peers refuse this node (another cluster, an unknown name, an empty disk under a known name)."""

    code = "identity_refused"


class DiskReplaced(IdentityRefused):
    """The cluster has removed the member that this disk was, and added one of the same name, which it waits
    for with an empty disk."""
