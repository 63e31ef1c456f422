#!/usr/bin/env bash
# Build llama-server, the peer of BENCHMARKS.md, from the llama.cpp sources that llama-cpp-python's own source
# distribution carries: the same code that this server computes with.
#
#   scripts/build_llama_server.sh [DIRECTORY]     default build/llama-server; JOBS=2 for fewer than all cores
#
# Prints the path of the binary. What it downloads are the source distribution (75 MB), cmake and ninja, from the
# package index that pip is set to. CMAKE_ARGS goes to cmake as it is (-DGGML_CUDA=ON for an NVIDIA card).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[[ -x $python ]] || { echo "There is no $python: run make install first, or set PYTHON." >&2; exit 1; }
release=$(sed -nE 's/^ *"(llama-cpp-python==[^"]+)",$/\1/p' pyproject.toml)
[[ -n $release ]] || { echo "pyproject.toml pins no llama-cpp-python." >&2; exit 1; }
mkdir -p "${1:-build/llama-server}"
into=$(cd "${1:-build/llama-server}" && pwd)
jobs=${JOBS:-$(nproc)}

if [[ ! -x $into/tools/bin/ninja ]]; then
    "$python" -m venv "$into/tools"
    "$into/tools/bin/pip" install --quiet --disable-pip-version-check cmake ninja
fi
source=$into/llama_cpp_python-${release##*==}
if [[ ! -d $source ]]; then
    # Without the dependencies; what pip needs to read the package's own metadata it fetches aside.
    "$into/tools/bin/pip" download --quiet --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-python --dest "$into" "$release"
    tar -xzf "$source.tar.gz" -C "$into"
fi
[[ -d $source/vendor/llama.cpp/tools/server ]] || {
    echo "The source distribution of $release has no llama-server." >&2
    exit 1
}

# The web page is left out: its files would be downloaded while building. What computes is built as
# llama-cpp-python builds it (Release, for this very processor).
read -ra more <<<"${CMAKE_ARGS:-}"
"$into/tools/bin/cmake" -G Ninja -S "$source/vendor/llama.cpp" -B "$into/build" \
    -DCMAKE_MAKE_PROGRAM="$into/tools/bin/ninja" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON \
    -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
    "${more[@]}" >"$into/cmake.log" 2>&1 || { tail -n 30 "$into/cmake.log" >&2; exit 1; }
"$into/tools/bin/cmake" --build "$into/build" --target llama-server -j "$jobs" \
    >"$into/build.log" 2>&1 || { tail -n 30 "$into/build.log" >&2; exit 1; }
echo "$into/build/bin/llama-server"
