"""What is read out of a page, and what counts as the output that the page promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.examples import Example, Failed, Shell, agrees, examples

PAGE = """\
# A page

```sh
# of what follows
one 'a # b'  # first
two \\
  more   # second
# third

three '{
  "a": 1}'
```

```text
not run
```

```python
print(1 + 1)  # 2
print("x")
for each in "ab":
    print(each)  # a …
```
"""


def test_commands_and_programs_with_what_they_print() -> None:
    program = 'print(1 + 1)  # 2\nprint("x")\nfor each in "ab":\n    print(each)  # a …\n'
    assert list(examples(PAGE)) == [
        Example(5, "one 'a # b'", "first"),
        Example(6, "two \\\n  more", "second\nthird"),
        Example(10, "three '{\n  \"a\": 1}'", None),
        Example(19, program, "2\na …", program=True),
    ]


@pytest.mark.parametrize(
    ("printed", "shown", "so"),
    [
        ("world", "world\n", True),
        ("world", "worlds\n", False),
        ("w…d", "wild and\n", True),
        ("a\n…\nz", "a\nb\nc\nz\n", True),
        ("a\n…\nz", "a\nz", True),
        ("a\n…", "a\n", True),
        ("a\n…\nz", "a\nb\n", False),
        ("a.c", "abc", False),
        ("a    b", "a\tb\n", True),
        ("a b", "ab", False),
        ("", "", True),
        ("", "something", False),
    ],
)
def test_what_agrees(printed: str, shown: str, so: bool) -> None:
    assert agrees(printed, shown) is so


def test_a_shell_keeps_its_variables_and_tells_what_failed(tmp_path: Path) -> None:
    with Shell(tmp_path, {"HERE": "there"}) as shell:
        assert shell.run("A=1; cat; echo $HERE")[:2] == (0, "there\n")
        assert shell.check(Example(1, "printf %s $A", "1")) == "1"
        assert shell.run("echo no >&2; false") == (1, "", "no\n")
        with pytest.raises(Failed, match=r"line 7: false\nexit code 1"):
            shell.check(Example(7, "false", None))
        with pytest.raises(Failed, match=r"should print\n1\nand printed\n2"):
            shell.check(Example(7, "echo 2", "1"))
        with pytest.raises(Failed, match="did not end in time"):
            shell.run("sleep 100", timeout_s=0.2)
    assert list(tmp_path.iterdir()) == []
