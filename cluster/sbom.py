"""What is in the image, as a CycloneDX 1.6 document: Python's packages and Debian's. Run by its Dockerfile.

`cyclonedx-py` of the package cyclonedx-bom tells the Python side, from the environment itself; dpkg's own
status file tells the Debian side. Neither is needed by raftkv: this file is for the build alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

DISTRIBUTION = "debian-12"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter of the environment that is described")
    parser.add_argument("--dpkg-status", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    document = python_side(options.python)
    document["components"] += debian_components(options.dpkg_status.read_text())
    text = json.dumps(document, indent=1)
    check(text)
    options.output.write_text(text)


def python_side(python: str) -> dict[str, Any]:
    """The document of `cyclonedx-py`, with raftkv itself as what it describes."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", python, "--pyproject", "pyproject.toml"]
    made = subprocess.run([*command, "--output-format", "JSON"], check=True, stdout=subprocess.PIPE)
    document: dict[str, Any] = json.loads(made.stdout)
    return document


def debian_components(status: str) -> Iterator[dict[str, Any]]:
    """Of each installed package in dpkg's status file: paragraphs of `Field: value` lines."""
    for paragraph in status.split("\n\n"):
        lines = (line.partition(": ") for line in paragraph.splitlines() if not line.startswith(" "))
        fields = {name: value for name, _, value in lines}
        if fields.get("Status") != "install ok installed":
            continue
        name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
        address = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={machine}&distro={DISTRIBUTION}"
        yield {
            "type": "library",
            "bom-ref": address,
            "name": name,
            "version": version,
            "purl": address,
            "supplier": {"name": fields.get("Maintainer", "unknown")},
        }


def check(text: str) -> None:
    """Exits where the text is no CycloneDX 1.6 document."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        sys.exit(f"not CycloneDX 1.6: {error}")


if __name__ == "__main__":
    main()
