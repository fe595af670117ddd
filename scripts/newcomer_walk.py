#!/usr/bin/env python3
"""README in a fresh clone, every command as it stands: `.venv/bin/python scripts/newcomer_walk.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.walk import main

if __name__ == "__main__":
    sys.exit(main())
