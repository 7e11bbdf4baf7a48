#!/usr/bin/env bash
# Runs the tests of tests/engines, which use pagedvid inside other engines' own code, in an environment of their own at
# the versions in constraints-engines.txt: .venv-engines, or the folder in PAGEDVID_ENGINES_VENV. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${PAGEDVID_ENGINES_VENV:-.venv-engines}
python=${PYTHON:-python3}
wanted=$(cksum <constraints-engines.txt)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    echo "engines: installing into $venv (log: $venv/setup.log)"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --no-deps --only-binary :all: --requirement constraints-engines.txt \
        >"$venv/setup.log" 2>&1 || {
        tail -n 20 "$venv/setup.log" >&2
        echo "engines: installation failed; the whole log is in $venv/setup.log" >&2
        exit 1
    }
    echo "$wanted" >"$venv/installed"
fi

# Each engine in a process of its own, since they change PyTorch. tests/conftest.py, which leaves these tests out and
# needs packages of the main environment, is not read.
export PYTHONPATH=$PWD
status=0
for engine in tests/engines/*/; do
    echo "== $engine"
    "$venv/bin/python" -m pytest -q -W ignore::DeprecationWarning "$engine" --confcutdir tests/engines "$@" || status=1
done
exit "$status"
