#!/bin/sh
# Attack every command: kills, file operations that fail, damaged and hostile files, random command
# lines, odd sizes and surroundings, lost processes. Prints what failed and a table; see --help.
#   sh scripts/campaign.sh [MINUTES]
set -eu
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 exec .venv/bin/python -m scripts.campaign "$@"
