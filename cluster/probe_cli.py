"""`raftkv probe`: one question to the node beside it. Light, since health checks run it every few seconds."""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

import click

from raftkv.addresses import Address, parse_address

BODY_BYTES_MAX = 4096


@click.command(
    epilog="""\b
Examples:
  raftkv probe livez
  raftkv probe readyz --address 127.0.0.1:8402

Exit code 0 where the answer is 200, 1 where it is another or none comes."""
)
@click.argument("what", type=click.Choice(["livez", "readyz", "startupz"]))
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Where to ask, in plain HTTP. [default: as RAFTKV_OPS_LISTEN, else RAFTKV_API, else 127.0.0.1:8400; "
    "the API over TLS where RAFTKV_TLS_CERT is set]",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 60, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="An answer that takes longer is none.",
)
def probe(what: str, address: str | None, timeout_s: float) -> None:
    """Ask the node on this machine whether it is alive, ready, or started; the exit code says it."""
    try:
        host, port = parse_address(address) if address is not None else address_beside(os.environ)
    except ValueError as error:
        raise click.UsageError(f"{error}; allowed: HOST:PORT") from None
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        if address is None and (tls := tls_beside(os.environ)) is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls)
        connection.request("GET", f"/{what}")
        response = connection.getresponse()
        text = response.read(BODY_BYTES_MAX).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"raftkv: no answer from {host}:{port}: {error}", err=True)
        sys.exit(1)
    finally:
        connection.close()
    click.echo(text)
    sys.exit(0 if response.status == 200 else 1)


def tls_beside(environment: Mapping[str, str]) -> ssl.SSLContext | None:
    """For the API of the node that the same environment configures; None where it is asked in plain HTTP. The
    node is the one on this machine, whatever names its certificate has, so that is not verified; its own is
    what is shown to it, should it ask for one. Raises OSError."""
    cert, key = environment.get("RAFTKV_TLS_CERT"), environment.get("RAFTKV_TLS_KEY")
    if environment.get("RAFTKV_OPS_LISTEN") or not cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(cert, key)
    return context


def address_beside(environment: Mapping[str, str]) -> Address:
    """The node that the same environment configures, seen from beside it. Raises ValueError."""
    text = environment.get("RAFTKV_OPS_LISTEN") or environment.get("RAFTKV_API") or "127.0.0.1:8400"
    host, port = parse_address(text)
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port
