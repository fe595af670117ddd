#!/usr/bin/env python3
"""Every disk lost, and all back from the store: `.venv/bin/python scripts/backup_restore.py` (see --help)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.backup_restore import main

if __name__ == "__main__":
    main()
