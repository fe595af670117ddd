"""Every command says what it does, what each option is for, and how it is typed, in words that parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cluster.cli import cli


def commands(command: click.Command = cli, *path: str) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(["raftkv", *path]), command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from commands(found, *path, name)


ALL = dict(commands())
by_command = pytest.mark.parametrize("name", ALL)


@by_command
def test_it_says_what_it_does(name: str) -> None:
    help_text = ALL[name].help
    assert help_text is not None, name
    assert re.match(r"[A-Z].+", help_text.strip())


@by_command
def test_every_option_says_what_it_is_for(name: str) -> None:
    silent = [
        option.opts[-1]
        for option in ALL[name].params
        if isinstance(option, click.Option) and not (option.help or "").strip()
    ]
    assert silent == []


def examples(command: click.Command) -> list[str]:
    """The raftkv commands in the epilog, without what they are piped from or to."""
    text = (command.epilog or "").replace("\b", "").replace("\\\n", " ")
    found = re.findall(
        r"^(?:Example: | +)(?:.*\| )?(raftkv [^|&>\n]+)|\| (raftkv [^|&>\n]+)", text, re.MULTILINE
    )
    return [(one or other).strip() for one, other in found]


@by_command
def test_it_shows_an_example_of_itself(name: str) -> None:
    assert any(f"{each} ".startswith(f"{name} ") for each in examples(ALL[name])), ALL[name].epilog


@by_command
def test_its_examples_parse(name: str) -> None:
    for example in examples(ALL[name]):
        parse(
            cli,
            [word for word in shlex.split(example)[1:] if word != "…"],
            elided="…" in shlex.split(example),
        )


def parse(command: click.Command, words: list[str], *, elided: bool = False) -> None:
    """As click would, up to where it would look at files or run anything. Raises what click would. `elided`:
    the example leaves something out, so what is required may be missing."""
    ctx = click.Context(command, info_name="raftkv")
    values, rest, _ = command.make_parser(ctx).parse_args(list(words))
    if isinstance(command, click.Group):
        _, chosen, rest = command.resolve_command(ctx, rest)
        assert chosen is not None
        parse(chosen, rest, elided=elided)
        return
    assert not rest, f"{command.name} takes no {rest}"
    if "--help" in words:  # which asks for nothing else
        return
    for parameter in command.params:
        value = values.get(str(parameter.name))
        given = value if isinstance(value, list | tuple) else [value]
        if parameter.required and not elided:
            assert isinstance(value, str | list | tuple), f"{parameter.name} is missing"
        if not isinstance(parameter.type, click.Path | click.File):
            for each in given:
                if isinstance(each, str):
                    parameter.type.convert(each, parameter, ctx)


@pytest.mark.parametrize(
    "words",
    [
        ["kv", "fetch", "hello"],
        ["kv", "get", "hello", "--fresh"],
        ["kv", "get"],
        ["kv", "get", "hello", "-o", "yaml"],
        ["kv", "list", "--limit", "few"],
        ["status", "hello"],
        ["restore", "--from", "file:///x"],
    ],
)
def test_a_planted_wrong_example_is_found(words: list[str]) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(cli, words)


@by_command
def test_help_is_shown_on_demand(name: str) -> None:
    shown = CliRunner().invoke(cli, [*name.split()[1:], "--help"], prog_name="raftkv")
    assert shown.exit_code == 0
    assert shown.output.startswith(f"Usage: {name} ")
