"""The one table from errors to HTTP, and the problems (RFC 9457) that it makes. PURE.

Every refusal that reaches a client is a `RaftkvError`: those of `raftkv/errors.py`, and the ones below that
only HTTP knows. Results of commands that are refusals to a client (a failed condition, an expired
idempotency key) become errors by `refusal`. No handler writes a status of its own for an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from raftkv.errors import (
    BadRequest,
    BodyTooLarge,
    ChangeInFlight,
    CommitTimeout,
    DiskSpaceLow,
    Draining,
    Forbidden,
    InFlight,
    KeyTooLarge,
    LastAdmin,
    LeaderChanged,
    LimitExceeded,
    MemberExists,
    MemoryLow,
    NoLeader,
    NoSuchMember,
    NoSuchToken,
    NotCaughtUp,
    NotLeader,
    NotReady,
    Outcome,
    Overloaded,
    QuorumAtRisk,
    QuotaExceeded,
    RaftkvError,
    RateLimited,
    SnapshotDamaged,
    SnapshotMissing,
    StoreFenced,
    StoreUnavailable,
    TooManyTokens,
    TooStale,
    TransferFailed,
    Unauthenticated,
    ValueTooLarge,
)
from raftkv.kv.tokens import TOKENS_MAX
from raftkv.model import (
    IdempotencyExpired,
    IdempotencyMismatch,
    NotANumber,
    PreconditionFailed,
    Result,
    ResultTooLarge,
    TokenRefused,
)

PROBLEM = "application/problem+json"


class KeyNotFound(RaftkvError):
    code = "key_not_found"


class NoSuchRoute(RaftkvError):
    code = "no_such_route"


class NoSuchOperation(RaftkvError):
    code = "no_such_operation"


class MethodNotAllowed(RaftkvError):
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(RaftkvError):
    """The request came too slowly. Whatever it was, it never reached the store."""

    code = "request_timeout"
    retryable = True


class RequestLineTooLarge(LimitExceeded):
    """Named for the only thing that makes a request line long: a key, in its path or its query."""

    code = "key_too_large"


class HeadersTooLarge(LimitExceeded):
    code = "headers_too_large"


class UnsupportedMediaType(RaftkvError):
    code = "unsupported_media_type"


class NotImplementedHere(RaftkvError):
    code = "not_implemented"


class HttpVersionNotSupported(RaftkvError):
    code = "http_version"


class ConditionFailed(RaftkvError):
    """`current` is the key's mod_revision, 0 where it is absent."""

    code = "precondition_failed"

    def __init__(self, message: str, *, current: int) -> None:
        super().__init__(message)
        self.current = current


class ValueIsNotANumber(RaftkvError):
    code = "not_a_number"


class IdempotencyKeyMismatch(RaftkvError):
    code = "idempotency_mismatch"


class IdempotencyKeyExpired(RaftkvError):
    code = "idempotency_expired"


class InternalError(RaftkvError):
    """Something that should not happen did, on a read: nothing was to be applied."""

    code = "internal"


class InternalErrorOnWrite(InternalError):
    outcome = "unknown"


@dataclass(frozen=True, slots=True)
class Status:
    """How one type of error is answered. `retry_after_seconds` becomes Retry-After."""

    status: int
    title: str
    retry_after_seconds: int | None = None


# Most specific type first where one derives from another.
TABLE: dict[type[RaftkvError], Status] = {
    BadRequest: Status(400, "The request is malformed"),
    Unauthenticated: Status(401, "A token is needed"),
    Forbidden: Status(403, "The token does not permit this"),
    KeyNotFound: Status(404, "No such key"),
    NoSuchRoute: Status(404, "No such route"),
    NoSuchOperation: Status(404, "No such operation"),
    NoSuchMember: Status(404, "No such member"),
    NoSuchToken: Status(404, "No such token"),
    SnapshotMissing: Status(404, "No such snapshot"),
    MethodNotAllowed: Status(405, "The method is not allowed here"),
    RequestTimeout: Status(408, "The request came too slowly"),
    ValueIsNotANumber: Status(409, "The value is not a number"),
    InFlight: Status(409, "The first request under this idempotency key is still on its way", 1),
    ChangeInFlight: Status(409, "Another change of membership is on its way", 1),
    QuorumAtRisk: Status(409, "The change would cost the cluster its quorum"),
    NotCaughtUp: Status(409, "The learner has not caught up", 1),
    MemberExists: Status(409, "The member exists already"),
    TransferFailed: Status(409, "Leadership was not taken over"),
    LastAdmin: Status(409, "Nobody would be left to let others in"),
    TooManyTokens: Status(409, "There are as many tokens as there may be"),
    ConditionFailed: Status(412, "The condition does not hold"),
    ValueTooLarge: Status(413, "The value is too large"),
    BodyTooLarge: Status(413, "The body is too large"),
    KeyTooLarge: Status(414, "The key is too large"),
    RequestLineTooLarge: Status(414, "The request line is too large"),
    UnsupportedMediaType: Status(415, "The media type is not supported"),
    IdempotencyKeyMismatch: Status(422, "The idempotency key was used for a different request"),
    IdempotencyKeyExpired: Status(422, "The idempotency key is older than what is kept"),
    Overloaded: Status(429, "The node is overloaded", 1),
    RateLimited: Status(429, "The token has done what it may a second", 1),
    HeadersTooLarge: Status(431, "The headers are too large"),
    NotImplementedHere: Status(501, "Not implemented"),
    NoLeader: Status(503, "No leader is known", 1),
    NotLeader: Status(503, "Another node leads", 1),
    NotReady: Status(503, "The node is not ready", 1),
    Draining: Status(503, "The node is shutting down", 1),
    StoreUnavailable: Status(503, "The snapshot store is not available", 5),
    StoreFenced: Status(503, "A later leader publishes snapshots", 1),
    TooStale: Status(503, "The node's state is too old for this read", 1),
    CommitTimeout: Status(504, "The write was not committed in time"),
    LeaderChanged: Status(504, "Leadership changed while the write was on its way"),
    HttpVersionNotSupported: Status(505, "The HTTP version is not supported"),
    QuotaExceeded: Status(507, "The quota is used up"),
    DiskSpaceLow: Status(507, "The leader's disk is nearly full"),
    MemoryLow: Status(507, "The leader's memory is nearly used up"),
    SnapshotDamaged: Status(500, "The snapshot is damaged"),
    InternalErrorOnWrite: Status(500, "Internal error"),
    InternalError: Status(500, "Internal error"),
}


def status_of(error: RaftkvError) -> Status:
    """The row of the error's type, or of the nearest type that it derives from."""
    for kind in type(error).__mro__:
        row = TABLE.get(kind)
        if row is not None:
            return row
    return TABLE[InternalError]


def refusal(result: Result, *, value_bytes_flag: str = "--value-bytes-max") -> RaftkvError | None:
    """The error that a result stands for; None where the command did what it was asked to."""
    match result:
        case PreconditionFailed(current=current):
            state = f"its mod_revision is {current}" if current else "it is absent"
            return ConditionFailed(
                f"nothing was written: the condition on the key does not hold, {state}", current=current
            )
        case NotANumber(detail=detail):
            return ValueIsNotANumber(detail)
        case ResultTooLarge(size=size, limit=limit):
            return ValueTooLarge(
                f"the value would have {size} bytes after the append; at most {limit} are allowed "
                f"({value_bytes_flag})",
                limit=limit,
                size=size,
                flag=value_bytes_flag,
            )
        case IdempotencyMismatch():
            return IdempotencyKeyMismatch(
                "this idempotency key came before with a different request; use a new key for a new request"
            )
        case IdempotencyExpired(lowest=lowest):
            return IdempotencyKeyExpired(
                f"the outcome under this idempotency key is no longer kept; the lowest n accepted from this "
                f"client is {lowest}. Whether the request was done before can't be told from the key"
            )
        case TokenRefused(reason="last_admin"):
            return LastAdmin(
                "it is the last administrator of every key that never expires; make another one first"
            )
        case TokenRefused(reason="missing"):
            return NoSuchToken("there is no token with this id")
        case TokenRefused(reason="too_many"):
            return TooManyTokens(f"there are {TOKENS_MAX} tokens already; revoke some first")
        case TokenRefused():
            return InternalErrorOnWrite("a token with this id exists; try again")
        case _:
            return None


class Problem(msgspec.Struct, omit_defaults=True):
    """The body of every error. Members without a value are left out."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool | None = None
    outcome: Outcome | None = None
    leader: str | None = None
    limit: int | None = None
    size: int | None = None
    flag: str | None = None
    current: int | None = None


def problem(error: RaftkvError, *, request_id: str, leader_url: str | None, write: bool) -> Problem:
    """`write`: the request could have changed something, so its outcome is said."""
    row = status_of(error)
    made = Problem(
        type=f"/docs#{error.code}",
        title=row.title,
        status=row.status,
        detail=str(error),
        code=error.code,
        request_id=request_id,
        retryable=error.retryable,
        outcome=error.outcome if write or row.status not in (404, 405) else None,
        leader=leader_url,
    )
    if isinstance(error, LimitExceeded):
        made.limit, made.size, made.flag = error.limit, error.size, error.flag
    if isinstance(error, ConditionFailed):
        made.current = error.current
    return made


def problem_headers(error: RaftkvError) -> tuple[tuple[str, str], ...]:
    """Headers that go with the error beside those of every answer."""
    headers: list[tuple[str, str]] = []
    row = status_of(error)
    if isinstance(error, RateLimited):
        headers.append(("Retry-After", str(error.retry_after_s)))
    elif row.retry_after_seconds is not None:
        headers.append(("Retry-After", str(row.retry_after_seconds)))
    if isinstance(error, Unauthenticated):
        wrong = ', error="invalid_token"' if error.presented else ""  # RFC 6750 §3
        headers.append(("WWW-Authenticate", f'Bearer realm="raftkv"{wrong}'))
    if isinstance(error, MethodNotAllowed):
        headers.append(("Allow", ", ".join(error.allow)))
    if isinstance(error, ConditionFailed) and error.current:
        headers.append(("ETag", f'"{error.current}"'))
    return tuple(headers)


def reason(status: int) -> str:
    """The words of a status line."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
