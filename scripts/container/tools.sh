#!/usr/bin/env bash
# Makes a virtual environment with what compiles llama.cpp, hashes checked: tools.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python3}" -m venv "$1"
"$1/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --require-hashes \
    --requirement requirements-build.lock
