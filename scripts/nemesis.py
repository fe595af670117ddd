#!/usr/bin/env python3
"""Real nodes under faults: `.venv/bin/python scripts/nemesis.py --minutes 5 --seed 1` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.nemesis import main

if __name__ == "__main__":
    main()
