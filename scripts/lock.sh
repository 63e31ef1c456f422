#!/usr/bin/env bash
# Regenerates the three lock files with current versions (`make lock`). Pins and hashes only: no
# registry address is written, so the locks work with whatever index pip is configured for.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$python" -m venv "$tools"
"$tools/bin/pip" install --quiet uv

compile() {
    "$tools/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 \
        --generate-hashes --strip-extras --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "make lock" "$@"
}
compile requirements-build.in --output-file requirements-build.lock
compile pyproject.toml --output-file requirements.lock
compile pyproject.toml --extra dev --constraints requirements.lock --output-file requirements-dev.lock
