#!/bin/sh
# Make the virtual environment $1 and put the installer (uv, pinned and hashed in $2) into it.
# Needs Python >= 3.11 and one of: the venv module whole (Debian: python3-venv), pip, or uv. No root rights, nothing outside $1.
set -eu
venv=$1
lock=$2
python=${PYTHON:-python3}

die() { printf 'banyan: %s\n' "$@" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 ||
    die "no $python here; install Python 3.11 or newer (Debian: sudo apt install python3 python3-venv), or say PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is $("$python" --version 2>&1), and Banyan needs 3.11 or newer; say which with: make PYTHON=python3.12 ..."

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "Making $venv with $("$python" --version)"
    rm -rf "$venv"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif "$python" -c 'import venv, pip' 2>/dev/null; then
        "$python" -m venv --without-pip "$venv"      # Debian without python3-venv: its pip installs into another environment
    elif command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python "$python" "$venv"
    else
        die "$python can make no virtual environment: its module ensurepip is missing, and so are pip and uv." \
            "Debian and Ubuntu keep it in a package of its own: sudo apt install python3-venv" \
            "Without root rights: put uv on the PATH (https://docs.astral.sh/uv), then run make again."
    fi
fi

install_with() { "$@" --require-hashes -r "$lock" ||
    die "the packages of $lock could not be had. Is a package registry in reach? Behind a proxy set HTTPS_PROXY," \
        "for a mirror PIP_INDEX_URL and UV_INDEX_URL; then run make again."; }

if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    install_with "$venv/bin/python" -m pip install --quiet --disable-pip-version-check
elif "$python" -m pip --version >/dev/null 2>&1; then
    install_with "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check
else
    install_with uv pip install --quiet --python "$venv/bin/python"
fi
