"""`raftkv kv …`: keys and values from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from cluster import transfer
from cluster.connection import (
    EXIT_CODES_HELP,
    EXIT_PRECONDITION,
    connected,
    connection_options,
    output_option,
)
from cluster.output import preview, print_json, print_table
from raftkv.client import Item
from raftkv.client.answers import fields_of_value


@click.group(
    epilog=f"""\b
Examples:
  raftkv kv put hello world
  raftkv kv get hello
  raftkv kv put logo @logo.png --content-type image/png
  raftkv kv list --prefix app/ -o json
  raftkv kv export > backup.ndjson

{EXIT_CODES_HELP}"""
)
def kv() -> None:
    """Read and write keys."""


def _bytes_of(ctx: click.Context, parameter: click.Parameter, text: str | None) -> bytes | None:
    """The bytes that an argument names: itself, a file, or stdin."""
    if text is None:
        return None
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@") and not text.startswith("@@"):
        try:
            return Path(text[1:]).read_bytes()
        except OSError as error:
            raise click.BadParameter(f"{text[1:]}: {error.strerror}") from None
    return text.removeprefix("@").encode(errors="surrogateescape")


@kv.command(epilog="Example: raftkv kv get hello")
@click.argument("key")
@click.option("--stale", is_flag=True, help="Answer from one node's own state, which may be behind.")
@click.option("--min-revision", type=click.IntRange(0), help="Wait until the node has applied this revision.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["raw", "json"]),
    default="raw",
    help="json: with revisions and version.",
)
@connection_options
def get(
    key: str,
    stale: bool,
    min_revision: int | None,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Print the value of KEY: its bytes, as they are."""
    with connected(endpoints, timeout_s) as client:
        if output == "json":
            print_json(_envelope(client.get_item(key, stale=stale, min_revision=min_revision)))
            return
        sys.stdout.buffer.write(client.get(key, stale=stale, min_revision=min_revision).value)
        sys.stdout.buffer.flush()


@kv.command(
    epilog="""\b
Examples:
  raftkv kv put hello world
  raftkv kv put config @config.toml --if-revision 57"""
)
@click.argument("key")
@click.argument("value", callback=_bytes_of)
@click.option(
    "--content-type", help="Stored with the value and given back. [default: application/octet-stream]"
)
@click.option(
    "--if-revision", type=click.IntRange(0), help="Only where the key is at this revision (0: absent)."
)
@click.option("--if-absent", is_flag=True, help="Only where the key is absent.")
@click.option("--if-exists", is_flag=True, help="Only where the key is there.")
@output_option
@connection_options
def put(
    key: str,
    value: bytes,
    content_type: str | None,
    if_revision: int | None,
    if_absent: bool,
    if_exists: bool,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Set KEY to VALUE: the text itself, @FILE for a file's bytes, or - for stdin. A text that starts with @
    is written @@text."""
    if if_absent + if_exists + (if_revision is not None) > 1:
        raise click.UsageError("--if-revision, --if-absent and --if-exists exclude each other")
    with connected(endpoints, timeout_s) as client:
        done = client.put(
            key,
            value,
            content_type=content_type,
            if_revision=if_revision,
            if_exists=True if if_exists else False if if_absent else None,
        )
        _print_done(output, revision=done.revision, created=done.created)


@kv.command(
    name="del",
    epilog="""\b
Examples:
  raftkv kv del hello
  raftkv kv del --prefix tmp/""",
)
@click.argument("key", required=False)
@click.option("--prefix", help="Delete every key with this prefix, 10,000 at a time.")
@click.option("--all", "everything", is_flag=True, help="Delete every key.")
@click.option("--if-revision", type=click.IntRange(1), help="Only where the key is at this revision.")
@output_option
@connection_options
def delete(
    key: str | None,
    prefix: str | None,
    everything: bool,
    if_revision: int | None,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Delete KEY, or every key with a prefix. A key that is absent is no error: 0 are deleted."""
    if (key is not None) + (prefix is not None) + everything != 1:
        raise click.UsageError("give one of KEY, --prefix and --all")
    if prefix == "":
        raise click.UsageError("an empty --prefix is every key: say --all")
    if if_revision is not None and key is None:
        raise click.UsageError("--if-revision goes with a KEY")
    with connected(endpoints, timeout_s) as client:
        if key is not None:
            done = client.delete(key, if_revision=if_revision)
            _print_done(output, revision=done.revision, deleted=done.deleted)
            return
        count, more, revision = 0, True, 0
        while more:
            done = client.delete_prefix(prefix or "", all=everything)
            count, more, revision = count + done.deleted, done.more, done.revision
        _print_done(output, revision=revision, deleted=count)


@kv.command(name="list", epilog="Example: raftkv kv list app/ --limit 20")
@click.argument("prefix", default="")
@click.option("--prefix", "prefix_option", help="The same as PREFIX.")
@click.option("--start", help="From this key on.")
@click.option("--end", help="Up to this key, without it.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.option("--keys-only", is_flag=True, help="Without the values.")
@click.option("--stale", is_flag=True, help="Answer from one node's own state, which may be behind.")
@output_option
@connection_options
def list_(
    prefix: str,
    prefix_option: str | None,
    start: str | None,
    end: str | None,
    limit: int | None,
    keys_only: bool,
    stale: bool,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """List keys in order. With -o json one item a line."""
    with connected(endpoints, timeout_s) as client:
        items = client.list(
            prefix_option if prefix_option is not None else prefix,
            start=start,
            end=end,
            limit=limit,
            keys_only=keys_only,
            stale=stale,
        )
        if output == "json":
            for item in items:
                print_json(_envelope(item))
            return
        columns = ["key", "revision", "version", *(() if keys_only else ("bytes", "value"))]
        print_table(columns, (_row(item) for item in items))


def _row(item: Item) -> list[object]:
    row: list[object] = [item.key, item.mod_revision, item.version]
    return row if item.value is None else [*row, len(item.value), preview(item.value)]


@kv.command(
    epilog="""\b
Examples:
  raftkv kv cas leader n2 --expected n1
  raftkv kv cas config @new.toml --revision 57
  raftkv kv cas lock me --absent"""
)
@click.argument("key")
@click.argument("value", callback=_bytes_of)
@click.option("--expected", callback=_bytes_of, help="The value it must have now (or @FILE).")
@click.option("--revision", type=click.IntRange(0), help="The revision it must be at (0: absent).")
@click.option("--absent", is_flag=True, help="It must be absent.")
@output_option
@connection_options
def cas(
    key: str,
    value: bytes,
    expected: bytes | None,
    revision: int | None,
    absent: bool,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Compare and swap: set KEY to VALUE only where it is as expected. Exit code 4 where it is not."""
    if (expected is not None) + (revision is not None) + absent != 1:
        raise click.UsageError("give one of --expected, --revision and --absent")
    with connected(endpoints, timeout_s) as client:
        if expected is None:
            done = client.put(key, value, if_revision=0 if absent else revision)
            _print_done(output, revision=done.revision)
            return
        compare = {"key": key, "target": "value", "op": "==", **fields_of_value(expected)}
        result = client.txn([compare], [{"put": {"key": key, **fields_of_value(value)}}])
        if not result.succeeded:
            click.echo(
                "raftkv: precondition_failed: the value is not as expected; nothing was written", err=True
            )
            sys.exit(EXIT_PRECONDITION)
        _print_done(output, revision=result.revision)


@kv.command(epilog="Example: date | raftkv kv append journal -")
@click.argument("key")
@click.argument("value", callback=_bytes_of)
@output_option
@connection_options
def append(key: str, value: bytes, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Add VALUE to the end of KEY's value, creating the key where it is absent."""
    with connected(endpoints, timeout_s) as client:
        done = client.append(key, value)
        _print_done(output, revision=done.revision, length=done.length)


@kv.command(
    epilog="""\b
Examples:
  raftkv kv incr visits
  raftkv kv incr stock -- -3""",
)
@click.argument("key")
@click.argument("by", type=int, default=1)
@output_option
@connection_options
def incr(key: str, by: int, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Add BY (1) to the decimal number that KEY's value is, and print the sum. An absent key is 0."""
    with connected(endpoints, timeout_s) as client:
        done = client.incr(key, by)
        if output == "json":
            print_json({"revision": done.revision, "value": done.value})
        else:
            click.echo(done.value)


@kv.command(
    epilog="""\b
Example:
  echo '{"compare": [{"key": "a", "target": "exists", "op": "==", "value": false}],
         "success": [{"put": {"key": "a", "value": "1"}}, {"incr": {"key": "n"}}]}' | raftkv kv txn -"""
)
@click.argument("document", type=click.File("rb"))
@connection_options
def txn(document: Any, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Run the transaction that the JSON file DOCUMENT is (- for stdin), and print its result as JSON.

    Exit code 4 where a comparison failed and there was no `failure` branch to run.
    """
    body = _transaction(document.read())
    with connected(endpoints, timeout_s) as client:
        result = client.txn(body.get("compare", []), body.get("success", []), body.get("failure", []))
        print_json(
            {"succeeded": result.succeeded, "revision": result.revision, "responses": result.responses}
        )
        if not result.succeeded and not body.get("failure"):
            sys.exit(EXIT_PRECONDITION)


def _transaction(text: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        raise click.UsageError(f"the transaction is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise click.UsageError("the transaction is not a JSON object")
    if unknown := body.keys() - {"compare", "success", "failure"}:
        raise click.UsageError(
            f"the transaction has {', '.join(sorted(unknown))}; allowed: compare, success, failure"
        )
    return body


@kv.command(
    name="import",
    epilog="""\b
Examples:
  raftkv kv import backup.ndjson
  zcat backup.ndjson.gz | raftkv kv import -""",
)
@click.argument("file", type=click.File("rb"))
@output_option
@connection_options
def import_(file: Any, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Write every line of the NDJSON FILE (- for stdin): {"key": …, "value": … or "base64": …}.

    Each line is written exactly once and in order, also while nodes die. A line may name another operation
    as POST /v1/batch does ("op": "delete"). Lines that are refused are told on stderr and counted; where
    the cluster stays away, the import ends and says how many lines were written.
    """
    sys.exit(transfer.load(file, endpoints, timeout_s=timeout_s, as_json=output == "json"))


@kv.command(
    epilog="""\b
Examples:
  raftkv kv export > backup.ndjson
  raftkv kv export --prefix app/ --file app.ndjson"""
)
@click.option("--prefix", default="", help="Only keys with this prefix.")
@click.option(
    "--file", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write here, not to stdout."
)
@click.option("--with-end", is_flag=True, help="Keep the last line, with count, revision and checksum.")
@connection_options
def export(
    prefix: str, path: Path | None, with_end: bool, endpoints: tuple[str, ...], timeout_s: float
) -> None:
    """Write every key as NDJSON, an item a line in key order, all of one revision.

    The stream's count and checksum are verified; where it was cut, the exit code is not 0 and a --file is
    left as it was.
    """
    sys.exit(transfer.save(prefix, path, endpoints, timeout_s=timeout_s, with_end=with_end))


# --- what is printed -----------------------------------------------------------------------------------


def _print_done(output: str, **fields: object) -> None:
    if output == "json":
        print_json(fields)
    else:
        words = (f"{name} {str(value).lower()}" for name, value in fields.items())
        click.echo("  ".join(words))


def _envelope(item: Item) -> dict[str, object]:
    return {
        "key": item.key,
        **(fields_of_value(item.value) if item.value is not None else {}),
        "content_type": item.content_type,
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "version": item.version,
    }
