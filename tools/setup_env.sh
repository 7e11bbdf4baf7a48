# Sourced by scripts from the repository root: creates .venv, installs pagedvid with its development tools at the
# versions in constraints.txt, and puts the environment first on PATH. Installs again only when these have changed.

source tools/find_python.sh

fail() {
    echo "setup: $*" >&2
    exit 1
}

install_environment() {
    local python log=.venv/setup.log
    if ! [ -x .venv/bin/python ]; then
        python=$(find_python) || exit 1
        "$python" -m venv .venv || fail "could not create .venv"
    fi
    echo "setup: installing into .venv (log: $log)"
    {
        .venv/bin/python -m ensurepip && # a run that was cut short, or another program, may have left none
            .venv/bin/python -m pip install --constraint constraints.txt hatchling editables &&
            .venv/bin/python -m pip install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
    } >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "installation failed; the whole log is in $log"
    }
}

wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    install_environment
    echo "$wanted" >.venv/installed
fi
PATH="$PWD/.venv/bin:$PATH"
