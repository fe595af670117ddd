"""What every command that talks to a cluster shares: its options, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
    tls_context,
)
from raftkv.errors import ConfigError

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


# Where the options that every client takes are kept, until `client_settings` makes them of use.
_SETTINGS = "raftkv.client"
_TOKEN = "raftkv.token"


def _endpoints(ctx: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    try:
        return parse_endpoints(value, "https" if ctx.meta.get(_SETTINGS) else "http")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _keep(ctx: click.Context, option: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.meta.setdefault(_SETTINGS, {})[option.name] = value


def _keep_token(ctx: click.Context, option: click.Parameter, value: Path | None) -> None:
    ctx.meta[_TOKEN] = value


def security_options(command: _Command) -> _Command:
    """`--ca-file`, `--cert-file`, `--key-file` and `--token-file`. The command does not see them;
    `client_settings` does."""
    command = click.option(
        "--token-file",
        envvar="RAFTKV_TOKEN_FILE",
        show_envvar=True,
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_keep_token,
        expose_value=False,
        metavar="FILE",
        help="File with the token to show, where nodes ask for one. Or set RAFTKV_TOKEN.",
    )(command)
    for flag, variable, help in reversed(_FILES):
        command = click.option(
            flag,
            envvar=variable,
            show_envvar=True,
            type=click.Path(dir_okay=False, path_type=Path),
            callback=_keep,
            expose_value=False,
            is_eager=True,  # before --endpoints, whose scheme depends on them
            metavar="FILE",
            help=help,
        )(command)
    return command


_FILES = (
    ("--ca-file", "RAFTKV_CA_FILE", "Trust nodes with a certificate of this CA. [default: the system's]"),
    ("--cert-file", "RAFTKV_CERT_FILE", "Certificate to show, where nodes want one of their clients."),
    ("--key-file", "RAFTKV_KEY_FILE", "Key of that certificate. [default: in --cert-file]"),
)


def client_settings() -> dict[str, Any]:
    """What a client is made with beside its endpoints, as the running command was told. Raises UsageError."""
    ctx = click.get_current_context(silent=True)
    kept: dict[str, Path] = ctx.meta.get(_SETTINGS, {}) if ctx is not None else {}
    token = _token(ctx.meta.get(_TOKEN) if ctx is not None else None)
    settings: dict[str, Any] = {} if token is None else {"token": token}
    if not kept:
        return settings
    if "key_file" in kept and "cert_file" not in kept:
        raise click.UsageError("--key-file without --cert-file: give the certificate as well")
    try:
        tls = tls_context(kept.get("ca_file"), kept.get("cert_file"), kept.get("key_file"))
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    return {**settings, "tls": tls}


def _token(path: Path | None) -> str | None:
    """From the file, else from the environment. Never from the command line, which others can read."""
    if path is None:
        source, text = "RAFTKV_TOKEN", os.environ.get("RAFTKV_TOKEN", "")
        if not text:
            return None
    else:
        source = f"--token-file {path}"
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise click.UsageError(f"{source}: cannot be read: {reason}") from None
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise click.UsageError(f"{source}: what is there ({len(text)} characters) is not a token")
    return text


def connection_options(command: _Command) -> _Command:
    """`--endpoints` and `--timeout`, given to the command as `endpoints` and `timeout_s`, and
    `security_options`."""
    command = security_options(command)
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
        default=",".join(url.removeprefix("http://") for url in DEFAULT_ENDPOINTS),
        metavar="URL[,URL…]",
        help="Nodes to ask; https:// where they speak TLS. [default: http://127.0.0.1:8400, :8410 and :8420, "
        "with a --ca-file the same with https]",
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
    with exit_on_error(), SyncClient(endpoints, timeout_s=timeout_s, **client_settings()) as client:
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
