#!/usr/bin/env python3
"""Every node restarted under load: `.venv/bin/python scripts/rolling_restart.py --rounds 3` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.rolling import main

if __name__ == "__main__":
    main()
