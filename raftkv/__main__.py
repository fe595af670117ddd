"""`python -m raftkv`: the same as the `raftkv` command.

The command line lives above this package, so it is found by its entry point and not by import.
"""

from importlib.metadata import entry_points

if __name__ == "__main__":
    (command,) = entry_points(group="console_scripts", name="raftkv")
    command.load()(prog_name="raftkv")
