#!/usr/bin/env bash
# Packs onegpu itself as a wheel: app.sh TOOLS WHEELS
set -euo pipefail
tools=$1 wheels=$2
cd "$(dirname "$0")/../.."
mkdir -p "$wheels"
"$tools/bin/pip" wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-index \
    --wheel-dir "$wheels" .
