#!/bin/sh
# Writes requirements/*.txt: exact versions with hashes, one set for Python 3.11 to 3.14 on x86-64 and ARM64 Linux.
# Pins that still fit are kept; `tools/lock.sh --upgrade` (or `--upgrade-package NAME`) renews them.
# The development set is solved first and holds for the others, so that one environment can hold all three.
set -eu

cd "$(dirname "$0")/.."
python=$(sh tools/python.sh)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" --quiet --disable-pip-version-check install 'uv==0.13.9'

compile() {
    output=requirements/$1.txt
    shift
    "$scratch/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --only-binary :all: --generate-hashes \
        --no-emit-index-url --no-header --output-file "$output" "$@"
}

compile dev pyproject.toml --group dev --group build "$@"
compile runtime pyproject.toml --constraints requirements/dev.txt "$@"
compile build --group build --constraints requirements/dev.txt "$@"
