#!/usr/bin/env python3
"""The Debian index in and out while nodes die: `.venv/bin/python scripts/packages.py` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.packages import main

if __name__ == "__main__":
    main()
