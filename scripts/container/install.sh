#!/usr/bin/env bash
# Makes the virtual environment that the image runs: install.sh PREFIX WHEELS
# Hashes of everything downloaded are checked; WHEELS holds what was built here.
set -euo pipefail
prefix=$1 wheels=$2
cd "$(dirname "$0")/../.."
lock=$(mktemp)
trap 'rm -f "$lock"' EXIT
# llama-cpp-python was built from the source that the lock names; its wheel has no hash there.
awk '/^[^ #]/ { skip = /^llama-cpp-python==/ } !skip' "${LOCK:-requirements.lock}" > "$lock"
"${PYTHON:-python3}" -m venv "$prefix"
pip=("$prefix/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps)
"${pip[@]}" --only-binary :all: --require-hashes --requirement "$lock"
"${pip[@]}" --no-index "$wheels"/*.whl
"$prefix/bin/pip" check
"$prefix/bin/pip" uninstall --quiet --yes pip
"$prefix/bin/onegpu" --version
