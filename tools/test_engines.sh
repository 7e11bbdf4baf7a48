#!/usr/bin/env bash
# Runs the tests of tests/engines, which use pagedvid inside other engines' own code, in an environment of their own at
# the versions in constraints-engines.txt: .venv-engines, or the folder in PAGEDVID_ENGINES_VENV. Arguments go to pytest.
# Needs Python 3.11 to 3.13, which SGLang allows; PYTHON names one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/find_python.sh

venv=${PAGEDVID_ENGINES_VENV:-.venv-engines}
cpu_builds=https://download.pytorch.org/whl/cpu

install_environment() {
    local python
    if [ -e "$venv" ] && ! [ -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        echo "engines: $venv is not an environment and would be emptied; remove it, or name another folder" >&2
        exit 1
    fi
    python=$(find_python) || exit 1
    echo "engines: installing into $venv (log: $venv/setup.log)"
    "$python" -m venv --clear "$venv"
    # torch first, from where its CPU builds are: the build on PyPI does not start without CUDA's packages.
    {
        pip_install --timeout 20 --extra-index-url "$cpu_builds" "$(grep '^torch==' constraints-engines.txt)" &&
            pip_install --requirement constraints-engines.txt
    } >"$venv/setup.log" 2>&1 || {
        tail -n 20 "$venv/setup.log" >&2
        echo "engines: installation failed; the whole log is in $venv/setup.log" >&2
        exit 1
    }
}

pip_install() {
    "$venv/bin/python" -m pip install --no-deps --only-binary :all: "$@"
}

wanted=$(cksum <constraints-engines.txt)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    install_environment
    echo "$wanted" >"$venv/installed"
fi

# Each engine in a process of its own, since they change PyTorch. tests/conftest.py, which leaves these tests out and
# needs packages of the main environment, is not read.
export PYTHONPATH=$PWD
no_tests=5
status=0
has_run=
for engine in tests/engines/*/; do
    echo "== $engine"
    result=0
    "$venv/bin/python" -m pytest -q -W ignore::DeprecationWarning "$engine" --confcutdir tests/engines "$@" || result=$?
    if [ "$result" -eq "$no_tests" ] && [ $# -gt 0 ]; then
        continue # arguments such as `-k` may choose tests of one engine only
    fi
    has_run=yes
    [ "$result" -eq 0 ] || status=1
done
[ -n "$has_run" ] || status=$no_tests
exit "$status"
