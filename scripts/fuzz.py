#!/usr/bin/env python3
"""Fuzzes every reader of bytes that this process did not make: `scripts/fuzz.py --inputs 1000000` (--help).

The targets are in `tests/fuzz/targets.py`: the raft port's handshake, frames and messages; the journal; the
snapshots, their chunks and pages; the archived log; log entries and memberships; the identity; HTTP. Each
runs in a process of its own, under a bound on time, on traced allocations, and on its address space.

With atheris, which `scripts/venv --dev` installs, inputs are guided by what they reach in the code; without
it, or with --engine mutation, they are valid samples changed at random, the same ones for the same seed.
Guided inputs stay in build/fuzz/samples/, and the next run begins from them. What breaks a bound is printed
with the command that repeats it, and its input kept in build/fuzz/. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FINDINGS = ROOT / "build" / "fuzz"
SECONDS_A_THOUSAND = 30  # a target that is slower than this hangs
INPUT_BYTES_MAX = 8192
HANG_SECONDS = 10
_DONE = re.compile(rb"Done ([0-9]+) runs in ")
_COVERED = re.compile(rb"cov: ([0-9]+)")
_KEPT = re.compile(rb"Test unit written to (\S+)")


@dataclass(frozen=True, slots=True)
class Outcome:
    target: str
    inputs: int
    seconds: float
    covered: str
    finding: str


def main() -> int:
    options = _options()
    if options.child:
        return _child(options)
    if options.input:
        return _repeat(options)
    from tests.fuzz.targets import TARGETS

    chosen = [TARGETS[name] for name in options.target or TARGETS]
    whole = sum(target.share for target in chosen)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    print(f"fuzz: {options.inputs} inputs, engine {options.engine}, seed {options.seed}", flush=True)
    done = []
    for target in chosen:
        done.append(_run(target.name, max(1, round(options.inputs * target.share / whole)), options))
        print(_line(done[-1]), flush=True)
    findings = [each for each in done if each.finding]
    print(
        f"fuzz: {sum(each.inputs for each in done)} inputs in {sum(each.seconds for each in done):.0f} s, "
        f"{len(findings)} findings"
    )
    return 1 if findings else 0


def _options() -> argparse.Namespace:
    atheris = importlib.util.find_spec("atheris") is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all (1000000)")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs (1)")
    parser.add_argument("--target", action="append", help="this one, and not all; may be given again")
    parser.add_argument(
        "--engine", choices=["atheris", "mutation"], default="atheris" if atheris else "mutation"
    )
    parser.add_argument(
        "--input", type=Path, help="run this file's bytes through --target, and say what happens"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, inputs: int, options: argparse.Namespace) -> Outcome:
    command = [sys.executable, __file__, "--child", "--target", name, "--inputs", str(inputs)]
    command += ["--seed", str(options.seed), "--engine", options.engine]
    started = time.monotonic()
    log = FINDINGS / f"{name}.log"
    with log.open("wb") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=file, timeout=60 + inputs * SECONDS_A_THOUSAND / 1000
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    output = log.read_bytes()
    ran, covered, kept = _DONE.search(output), _COVERED.findall(output), _KEPT.search(output)
    finding = ""
    if code != 0 or ran is None:
        repeat = (
            f"{sys.executable} scripts/fuzz.py --target {name} --input {kept[1].decode()}" if kept else "see"
        )
        finding = f"{'no end' if code is None else f'exit code {code}'}: {repeat}   # {log}"
    number = int(ran[1]) if ran else 0
    return Outcome(
        name, number, time.monotonic() - started, covered[-1].decode() if covered else "-", finding
    )


def _line(outcome: Outcome) -> str:
    text = f"{outcome.target:24} {outcome.inputs:8} inputs  {outcome.seconds:7.1f} s"
    text += f"  coverage {outcome.covered:>6}"
    return text + (f"  FINDING {outcome.finding}" if outcome.finding else "")


# --- in the process of one target ------------------------------------------------------------------------


def _child(options: argparse.Namespace) -> int:
    (name,) = options.target
    if options.engine == "atheris":
        return _guided(name, options)
    from tests.fuzz.mutation import inputs
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.watch import Watch, limit_memory

    target = TARGETS[name]
    watch = Watch(target)
    limit_memory()
    started = time.monotonic()
    for data in itertools.islice(inputs(target.samples(), options.seed), options.inputs):
        try:
            watch.run(data)
        except BaseException:
            kept = FINDINGS / f"{name}-{watch.inputs}.input"
            kept.write_bytes(data)
            print(f"Test unit written to {kept}")
            raise
    print(f"slowest {watch.slowest_s:.4f} s, most memory {watch.hungriest_bytes} bytes")
    print(f"Done {watch.inputs} runs in {time.monotonic() - started:.0f} second(s)")
    return 0


def _guided(name: str, options: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["raftkv"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.watch import Watch, limit_memory

    target = TARGETS[name]
    samples = FINDINGS / "samples" / name
    samples.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(target.samples()):
        (samples / f"{number:03}").write_bytes(sample)
    watch = Watch(target)
    arguments = [
        *(sys.argv[0], str(samples), f"-runs={options.inputs}", f"-seed={options.seed}"),
        *(f"-max_len={INPUT_BYTES_MAX}", f"-timeout={HANG_SECONDS}", f"-artifact_prefix={FINDINGS}/{name}-"),
    ]
    atheris.Setup(arguments, watch.run)
    limit_memory()
    atheris.Fuzz()
    return 0


def _repeat(options: argparse.Namespace) -> int:
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.watch import Watch

    (name,) = options.target
    Watch(TARGETS[name]).run(options.input.read_bytes())
    print("read or refused, within its bounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
