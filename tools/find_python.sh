# Sourced by the scripts that make environments.

# Prints the name of a Python that can make one: the one in PYTHON, or the first of the usual names that can.
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "needs Python 3.11 or newer with the venv module (Debian: apt-get install python3 python3-venv);" \
        "tried ${candidates[*]}" >&2
    return 1
}
