#!/usr/bin/env bash
# Sets up what the Makefile's targets need: the system libraries that ffcv is built against, a virtual environment, and
# the packages of pyproject.toml in the versions of constraints.txt. Run again, it finds its stamp and does nothing.
#
#   [PYTHON=python3.12] [VENV=.venv] ./setup.sh [dev] [dali] [onnx] [parquet] [slurm] [wandb]
#
# VENV=none (a notebook, conda, a container): no environment, but into PYTHON or python3 itself. What fits pyproject.toml
# stays as it is, so a torch that is there already is not downloaded once more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-}
home=$VENV # where notes of this set-up lie
[[ $VENV != none ]] || home=build/none
stamp=$home/setup.stamp
log=build/setup.log
key=$(cat pyproject.toml constraints.txt setup.sh | sha256sum | cut -c 1-16)

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_supported() { [[ $1 == 3.11 || $1 == 3.12 || $1 == 3.13 ]]; }

# Runs a command with its output in the log, of which the end is shown where it fails.
logged() {
    mkdir -p build
    "$@" </dev/null >>"$log" 2>&1 && return
    tail -n 5 "$log" >&2
    return 1
}

# The environment that is there already, unless it is broken or PYTHON asks for another version.
environment_fits() {
    local version
    version=$(version_of "$VENV/bin/python") && is_supported "$version" &&
        [[ -z $PYTHON || $version == "$(version_of "$PYTHON")" ]]
}

is_stamped() {
    local group
    for group in base "$@"; do
        grep -qsx "$key $group" "$stamp" || return 1
    done
}

find_python() {
    local candidate version seen=""
    local candidates=(python3 python3.13 python3.12 python3.11)
    [[ $VENV != none && -z $PYTHON ]] || candidates=("${PYTHON:-python3}")
    for candidate in "${candidates[@]}"; do
        version=$(version_of "$candidate") || continue
        if is_supported "$version"; then
            command -v "$candidate"
            return
        fi
        seen+="${seen:+, }$candidate is $version"
    done
    fail "Python 3.11 to 3.13 is needed (found: ${seen:-none}); install one, or name it: make ... PYTHON=/path/to/python"
}

# What builds of ffcv and of the C in ffcv_ops/ need and this machine lacks, as Debian and Ubuntu call it.
missing_packages() {
    local python=$1 version headers
    version=$(version_of "$python")
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    command -v g++ >/dev/null || command -v c++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    pkg-config --exists libjpeg 2>/dev/null || echo libjpeg-dev
    [[ $VENV == none ]] || "$python" -c 'import ensurepip' 2>/dev/null || echo "python$version-venv"
    [[ -e $headers/Python.h ]] || echo "python$version-dev"
}

install_system_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$1")
    ((${#missing[@]})) || return 0
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "installing ${missing[*]} with apt (some 200 packages, minutes; its output is in $log)"
        export DEBIAN_FRONTEND=noninteractive
        logged apt-get update -qq || say "apt-get update failed; trying with the lists that are there"
        logged apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
            fail "apt-get could not install ${missing[*]}; all that it said is in $log"
    else
        fail "to build ffcv this machine lacks: ${missing[*]}. Install them, then run this again:" \
            "  with apt:   sudo apt-get install ${missing[*]}" \
            "  with conda: conda install -c conda-forge python=3.12 compilers pkg-config opencv=4 libjpeg-turbo"
    fi
}

# The report's tests look at it in a browser, and are skipped without one.
offer_browser() {
    local name
    for name in chromium chromium-browser google-chrome; do
        if command -v "$name" >/dev/null; then return; fi
    done
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "installing chromium with apt"
        logged apt-get update -qq || true
        if DEBIAN_FRONTEND=noninteractive logged apt-get install -y -qq --no-install-recommends chromium; then return; fi
    fi
    say "no chromium here: tests of the report in a browser will be skipped (sudo apt-get install chromium)"
}

create_environment() {
    [[ ! -e $VENV || -e $VENV/pyvenv.cfg ]] || fail "$VENV is there and is not a virtual environment; name another VENV"
    say "creating $VENV with $1 ($(version_of "$1"))"
    "$1" -m venv --clear "$VENV"
}

install_packages() {
    local options=(--constraint constraints.txt)
    [[ $VENV != none ]] || options=() # keeps what is there
    say "installing packages for $python: several GB to download, 6.6 GB on disk, minutes; pip's output is in $log"
    mkdir -p "$home"
    "$python" - "$@" >"$home/requirements.txt" <<'PYTHON_CODE'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = [project["optional-dependencies"][name] for name in ("train", *sys.argv[1:])]
print(*project["dependencies"], *sum(extras, []), sep="\n")
PYTHON_CODE
    logged "$python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        "${options[@]}" --requirement "$home/requirements.txt" ||
        fail "pip could not install the packages; all that it said is in $log"
}

check_packages() {
    local said
    if ! said=$("$python" -c 'import torchvision' 2>&1); then
        if [[ $said == *torchvision::nms* ]]; then
            said=$("$python" -m pip list --disable-pip-version-check 2>/dev/null | grep -E '^torch(vision)? ' |
                tr -s ' ' | paste -sd , | sed 's/,/, /')
            fail "torch and torchvision are no pair ($said): 'operator torchvision::nms does not exist'. One of them is a \
CPU-only or otherwise different build; remove $VENV and the index or folder of wheels it came from, and run this again."
        fi
        fail "torchvision does not import: ${said##*$'\n'}"
    fi
    said=$("$python" -c 'import ffcv, timm' 2>&1) || fail "ffcv or timm does not import: ${said##*$'\n'}"
}

if [[ $VENV == none ]]; then
    python=$(find_python)
    key+=" $python"
    if is_stamped "$@"; then exit 0; fi
    install_system_packages "$python"
elif environment_fits; then
    if is_stamped "$@"; then exit 0; fi
    install_system_packages "$VENV/bin/python"
else
    python=$(find_python)
    install_system_packages "$python"
    create_environment "$python"
fi
[[ $VENV == none ]] || python=$VENV/bin/python
install_packages "$@"
check_packages
if [[ " $* " == *" dev "* ]]; then offer_browser; fi
"$python" -m ffcv_ops.warm_up | while read -r line; do say "$line"; done || # or a run compiles them
    say "the kernels are not compiled yet; python -m tools.doctor says what is missing"
is_stamped || : >"$stamp" # what another state of the files left behind
printf "$key %s\n" base "$@" >>"$stamp"
say "done"
