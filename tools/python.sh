#!/bin/sh
# Prints a Python that can run Springtide; otherwise says in one sentence what is missing and exits with status 2.
# $PYTHON names one; without it: python3, then python3.14 down to python3.11.
set -u

fail() {
    printf '%s\n' "$1" >&2
    exit 2
}

system=$(uname -s) machine=$(uname -m)
[ "$system" = Linux ] || fail "Springtide runs on Linux only; this is $system."
case $machine in
x86_64 | aarch64) ;;
*) fail "Springtide runs on x86_64 and aarch64 only; this is $machine." ;;
esac

# The packages' binaries need glibc 2.31; getconf knows the name only where glibc is.
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc=
case $libc in
'glibc '2.*) [ "${libc#glibc 2.}" -ge 31 ] || fail "Springtide needs glibc 2.31 or newer; this system has ${libc#glibc }." ;;
*) fail "Springtide needs a Linux with glibc (musl, as in Alpine, is not supported)." ;;
esac

# Answers "ok 3.12", or "unfit …" when the version, implementation or word size has no packages, or "bare 3.12" when it
# cannot make virtual environments. A shim that only exists fails here and answers nothing.
probe() {
    "$1" -c '
import struct, sys
version = "%d.%d" % tuple(sys.version_info[:2])
fit = (3, 11) <= tuple(sys.version_info[:2]) <= (3, 14) and sys.implementation.name == "cpython" and struct.calcsize("P") == 8
if fit:
    import sysconfig
    fit = not sysconfig.get_config_var("Py_GIL_DISABLED")
state = "ok" if fit else "unfit"
if fit:
    try:
        import ensurepip, venv
    except ImportError:
        state = "bare"
print(state + " " + version)
' 2>/dev/null </dev/null
}

if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3 python3.14 python3.13 python3.12 python3.11
fi
bare=
for candidate; do
    answer=$(probe "$candidate") || continue
    case $answer in
    'ok '*)
        command -v "$candidate"
        exit 0
        ;;
    'bare '*) bare=${bare:-${answer#bare }} ;;
    esac
done

if [ -n "$bare" ]; then
    fail "Python $bare has no venv module with pip: install it (Debian, Ubuntu: apt install python$bare-venv) and try again."
elif [ -n "${PYTHON:-}" ]; then
    fail "PYTHON=$PYTHON is not a working CPython 3.11 to 3.14 (64 bits, with the GIL)."
else
    fail "Springtide needs Python 3.11 to 3.14, and none was found on the PATH: install one, or name one with PYTHON=/path/to/python3."
fi
