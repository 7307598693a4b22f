# Sourced by the scripts beside it: the virtual environment in which they work. After `use_env EXTRA`, $VENV_PYTHON is a
# Python that has the core, every plugin and that extra of the umbrella distribution, all installed in editable form.
#
# PYTHON names the Python that makes the environment; by default the first suitable one on the PATH.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
VENV_PYTHON=$VENV/bin/python

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

is_suitable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_suitable "$PYTHON" || die "PYTHON=$PYTHON is no Python of version 3.11 or later"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if is_suitable "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "Python 3.11 or later is needed; set PYTHON to one"
}

make_venv() {
    # A run that was interrupted can leave an environment without pip; making it once more completes it.
    if ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        printf 'Creating %s\n' "$VENV" >&2
        "$python" -m venv "$VENV" || die "cannot create $VENV (on Debian and Ubuntu, install python3-venv)"
    fi
}

# What an installation depends on: the pyproject files, the Python, and the place, as editable packages refer to it.
fingerprint() {
    { cat "$ROOT/pyproject.toml" "$ROOT"/core/pyproject.toml "$ROOT"/plugins/*/pyproject.toml
      "$VENV_PYTHON" --version
      printf '%s\n' "$ROOT"
    } | cksum
}

use_env() {
    local extra=$1 stamp=$VENV/.installed-$1 current pyproject editables=()
    make_venv
    current=$(fingerprint)
    if [[ ! -f $stamp || $(<"$stamp") != "$current" ]]; then
        printf 'Installing speedup with its plugins and what %s needs; the first time takes some minutes.\n' "$extra" >&2
        for pyproject in "$ROOT"/core/pyproject.toml "$ROOT"/plugins/*/pyproject.toml; do
            editables+=(-e "$(dirname "$pyproject")")
        done
        "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check "${editables[@]}" -e "$ROOT[$extra]"
        printf '%s\n' "$current" >"$stamp"
    fi
}
