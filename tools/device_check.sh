#!/bin/sh
# Checks d2kd on a GPU in 8 minutes at most; `tools/device_check.sh --device cpu` shows that the check works.
cd "$(dirname "$0")/.." || exit 1
exec "${PYTHON:-python3}" -m d2kd check --device --json output/device_check.json "$@"
