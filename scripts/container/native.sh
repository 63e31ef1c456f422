#!/usr/bin/env bash
# Compiles the pinned llama-cpp-python into a wheel, its source's hash checked: native.sh TOOLS WHEELS
# CUDA_ARCHITECTURES names the cards, as CMake does ("89", or "86;90"); empty builds for the CPU.
set -euo pipefail
tools=$1 wheels=$2
cd "$(dirname "$0")/../.."
mkdir -p "$wheels"
lock=$(mktemp)
trap 'rm -f "$lock"' EXIT
PYTHONPATH=scripts "$tools/bin/python" - "$lock" <<'PYTHON'
import sys
from pathlib import Path

from install_test_data import pinned_requirement

lock = Path("requirements.lock")
pinned = pinned_requirement("llama-cpp-python", lock.read_text(encoding="utf-8"), lock.name)
Path(sys.argv[1]).write_text(pinned, encoding="utf-8")
PYTHON

# An image runs on other CPUs than the one that builds it.
CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF"
if [[ -n ${CUDA_ARCHITECTURES:-} ]]; then
    # No driver while building: libcuda.so.1 comes from the host when the container starts.
    CMAKE_ARGS+=" -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHITECTURES -DGGML_CUDA_NCCL=OFF"
    CMAKE_ARGS+=" -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"
fi
export CMAKE_ARGS
echo "CMAKE_ARGS=$CMAKE_ARGS"
# cmake and ninja are in the tools.
PATH="$tools/bin:$PATH" "$tools/bin/pip" wheel --disable-pip-version-check --no-cache-dir \
    --no-build-isolation --no-deps --require-hashes --requirement "$lock" --wheel-dir "$wheels"
