#!/usr/bin/env bash
# Make .venv: a virtual environment with the pinned packages and this checkout, installed editable.
#
#   scripts/bootstrap.sh [PYTHON]     make calls it; PYTHON defaults to the first python3 that is new enough
#
# uv does the work where it is installed, otherwise pip. Both use the user's pip configuration, so a CPU build of torch
# that it points to is used instead of a CUDA build.
set -euo pipefail
cd "$(dirname "$0")/.."

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in "$@" python3 python3.11 python3.12 python3.13 python; do
        if new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer on PATH; install one, or say make PYTHON=/path/to/python" >&2
    return 2
}

# The value of a pip setting: the environment wins over pip's configuration files, as it does for pip.
pip_setting() {
    local name=$1 variable
    variable=PIP_$(tr 'a-z-' 'A-Z_' <<<"$name")
    if [[ -n ${!variable:-} ]]; then
        echo "${!variable}"
    else
        "$python" -m pip config get "install.$name" 2>/dev/null || "$python" -m pip config get "global.$name" 2>/dev/null || true
    fi
}

# uv does not read pip's settings; hand them over under uv's names, unless the user has set those.
pass_pip_settings_to_uv() {
    local find_links
    find_links=$(pip_setting find-links | xargs)
    default_for_uv UV_FIND_LINKS "${find_links// /,}"
    default_for_uv UV_DEFAULT_INDEX "$(pip_setting index-url)"
    default_for_uv UV_INDEX "$(pip_setting extra-index-url | xargs)"
    default_for_uv UV_INSECURE_HOST "$(pip_setting trusted-host | xargs)"
    default_for_uv SSL_CERT_FILE "$(pip_setting cert)"
    # pip takes the best version over all indexes; uv would stop at the first index that knows the name.
    default_for_uv UV_INDEX_STRATEGY unsafe-best-match
    default_for_uv UV_HTTP_TIMEOUT 300
}

default_for_uv() {
    if [[ -n $2 && -z ${!1:-} ]]; then
        export "$1=$2"
    fi
}

python=$(find_python ${1:+"$1"})
echo "Setting up .venv with $("$python" -V) (once; takes some minutes)"
rm -f .venv/ready
if command -v uv >/dev/null; then
    pass_pip_settings_to_uv
    uv venv --quiet --allow-existing --python "$python" .venv
    uv pip install --python .venv/bin/python --constraint constraints.txt --editable '.[deepspeed,dev,sentiment,serve]'
else
    "$python" -m venv .venv || {
        echo "error: $python cannot make a virtual environment; install its venv module (python3-venv) or uv" >&2
        exit 2
    }
    .venv/bin/python -m pip install --constraint constraints.txt --editable '.[deepspeed,dev,sentiment,serve]'
fi
touch .venv/ready
