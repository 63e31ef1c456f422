#!/usr/bin/env bash
# Installs the system packages of one stage, as root: packages.sh build|run
set -euo pipefail
case $1 in
    # The compiler, and what makes a virtual environment.
    build) packages=(g++ python3 python3-venv) ;;
    # The interpreter, ggml's OpenMP, and the certificates that downloads are checked with.
    run) packages=(ca-certificates libgomp1 python3) ;;
    *) echo "packages.sh build|run" >&2; exit 2 ;;
esac
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}"
rm -rf "${APT_LISTS:-/var/lib/apt/lists}"/*
