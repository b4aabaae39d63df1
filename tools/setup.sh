#!/bin/sh
# Makes .venv hold exactly the locked packages and Springtide itself: `setup.sh runtime` or `setup.sh dev`.
#
# .venv/springtide-setup is written last, so its absence means an interrupted setup and the environment is made anew. It is
# made anew as well when it was moved or copied, when its Python is gone, or when the locks changed; when nothing
# changed this costs a few milliseconds.
set -eu

level=${1:-}
case $level in
runtime | dev) ;;
*)
    echo "usage: tools/setup.sh runtime|dev" >&2
    exit 2
    ;;
esac

cd "$(dirname "$0")/.."
root=$(pwd -P)
state=.venv/springtide-setup
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV

say() { printf '%s\n' "$1" >&2; }

fail() {
    say "$1"
    exit 2
}

digest() { cat "$@" | sha256sum | cut -c 1-64; }

# The line of the state file when everything is up to date at this level.
wanted() { printf '%s %s %s %s' "$1" "$locks" "$project" "$root"; }

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

pip() {
    .venv/bin/python -m pip --quiet --disable-pip-version-check --no-input install --progress-bar off "$@" && return
    say "The packages could not be installed for the reason above (often the network): run the same command again."
    exit 1
}

# Only one setup at a time; the lock ends with this process.
if command -v flock >/dev/null; then
    exec 9<tools/setup.sh
    flock -n 9 || {
        say "waiting for another setup of .venv to finish…"
        flock 9
    }
fi

locks=$(digest requirements/runtime.txt requirements/dev.txt requirements/build.txt)
project=$(digest pyproject.toml src/springtide/__init__.py)
have=none
if [ -f $state ] && [ -d ".venv/lib/python$(python_version .venv/bin/python)/site-packages" ]; then
    case $(cat $state) in
    "$(wanted dev)") have=dev ;;
    "$(wanted runtime)") have=runtime ;;
    "dev $locks "*" $root") have='dev, project changed' ;;
    "runtime $locks "*" $root") have='runtime, project changed' ;;
    esac
fi
if [ -n "${PYTHON:-}" ] && [ "$have" != none ]; then
    python=$(sh tools/python.sh)
    [ "$(python_version "$python")" = "$(python_version .venv/bin/python)" ] || have=none
fi

case "$level $have" in
*' dev' | 'runtime runtime') exit 0 ;;
*' none')
    python=$(sh tools/python.sh)
    if [ -e .venv ] || [ -L .venv ]; then
        say "making .venv anew (it is unfinished, moved or out of date)…"
        rm -rf .venv 2>/dev/null || fail "$root/.venv belongs to another user: remove it and try again."
    fi
    mkdir .venv 2>/dev/null || fail "$root cannot be written to: copy Springtide to a folder of your own and try again."
    message=$("$python" -m venv .venv 2>&1) || fail "A virtual environment could not be made with $python: $message"
    install=$level
    ;;
'dev runtime'*) install=dev ;;
'dev dev,'* | 'runtime dev,'*) level=dev install= ;;
'runtime runtime,'*) install= ;;
esac

rm -f $state 2>/dev/null || fail "$root/.venv belongs to another user: remove it and try again."
if [ -n "$install" ]; then
    lock=requirements/$install.txt
    say "installing $(grep '^[a-z].*==' "$lock" | grep -cv win32) packages into .venv (Python $(python_version .venv/bin/python))…"
    pip --require-hashes --only-binary :all: -r "$lock" -r requirements/build.txt
fi
pip --no-index --no-deps --no-build-isolation --editable .
wanted "$level" >$state.new
mv $state.new $state
