"""What every command that talks to a cluster shares: its options, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import click

from raftkv.client import (
    DEFAULT_ENDPOINTS,
    BadRequest,
    ClientError,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    SyncClient,
    Unavailable,
    parse_endpoints,
)

EXIT_OTHER, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_PRECONDITION, EXIT_UNAVAILABLE, EXIT_UNKNOWN = 1, 2, 3, 4, 5, 6
EXIT_CODES_HELP = (
    "Exit codes: 0 done, 2 refused or wrong usage, 3 not found, 4 precondition failed, 5 unavailable "
    "(nothing was written), 6 outcome unknown (it may have been written), 1 anything else."
)
_EXIT_CODES: dict[type[ClientError], int] = {
    BadRequest: EXIT_USAGE,
    NotFound: EXIT_NOT_FOUND,
    PreconditionFailed: EXIT_PRECONDITION,
    Unavailable: EXIT_UNAVAILABLE,
    OutcomeUnknown: EXIT_UNKNOWN,
}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _endpoints(ctx: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    try:
        return parse_endpoints(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def connection_options(command: _Command) -> _Command:
    """`--endpoints` and `--timeout`, given to the command as `endpoints` and `timeout_s`."""
    command = click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(0, 100, min_open=True),
        default=15.0,
        show_default=True,
        metavar="SECONDS",
        help="Give up after this long; failures that may be tried again are until then.",
    )(command)
    return click.option(
        "--endpoints",
        envvar="RAFTKV_ENDPOINTS",
        show_envvar=True,
        callback=_endpoints,
        default=",".join(DEFAULT_ENDPOINTS),
        metavar="URL[,URL…]",
        help="Nodes to ask. [default: http://127.0.0.1:8400, :8410 and :8420]",
    )(command)


def output_option(command: _Command) -> _Command:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Tables are drawn on a terminal only, and plain elsewhere.",
    )(command)


@contextmanager
def connected(endpoints: tuple[str, ...], timeout_s: float) -> Iterator[SyncClient]:
    """A client, and an end of the process with the right code and words where a request fails."""
    with exit_on_error(), SyncClient(endpoints, timeout_s=timeout_s) as client:
        yield client


@contextmanager
def exit_on_error() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        fail(error)
    except BrokenPipeError:  # the reader of our stdout has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_OTHER)


def exit_code_of(error: ClientError) -> int:
    return _EXIT_CODES.get(type(error), EXIT_OTHER)


def fail(error: ClientError) -> NoReturn:
    click.echo(f"raftkv: {describe(error)}", err=True)
    sys.exit(exit_code_of(error))


def describe(error: ClientError) -> str:
    """The error in a line, with what became of the write where that is in doubt."""
    text = str(error)
    if isinstance(error, OutcomeUnknown):
        text += " (outcome unknown: it may have been written)"
    if error.problem.request_id:
        text += f" [request {error.problem.request_id}]"
    return text
