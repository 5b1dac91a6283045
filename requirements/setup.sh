#!/bin/sh
# Makes .venv from requirements/lock.txt. Once it stands, a second call does nothing.
set -eu
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
NEEDED_GIB=8

fail() {
    echo "setup: $1" >&2
    exit 2
}

fingerprint=$(cat requirements/lock.txt requirements/setup.sh pyproject.toml | cksum)
stamp=.venv/rayward-setup
if [ -x .venv/bin/rayward ] && [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then
    exit 0
fi

# Everything that can be known to fail is asked before anything is downloaded.
command -v "$PYTHON" >/dev/null 2>&1 ||
    fail "$PYTHON is not there; install Python 3.11 or name one: make setup PYTHON=python3.11"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    fail "$PYTHON does not start; name a Python 3.11 to 3.13: make setup PYTHON=python3.11"
case "$version" in
3.11 | 3.12 | 3.13) ;;
*) fail "$PYTHON is $version, needed is 3.11 to 3.13; name one: make setup PYTHON=python3.11" ;;
esac
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$PYTHON has no venv module; install it (Debian: apt-get install python3-venv)"
command -v g++ >/dev/null 2>&1 ||
    fail "no C++ compiler; DeepSpeed needs g++ (Debian: apt-get install g++)"
free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gib" -ge "$NEEDED_GIB" ] ||
    fail "$free_gib GiB of disk are free here, needed are $NEEDED_GIB"

echo "setup: making .venv; this takes a few minutes" >&2
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check"
torch=$(grep '^torch==' requirements/lock.txt)
$pip install --quiet --dry-run --no-deps "$torch" >/dev/null 2>&1 ||
    fail "pip finds no $torch; tell it where PyTorch's CPU builds are, with PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS (README, Set-up)"
# The lock is whole; with dependencies pip would bring CUDA builds that break a CPU torch.
$pip install --quiet --no-deps --requirement requirements/lock.txt
$pip install --quiet --no-deps --no-build-isolation --editable .

# DeepSpeed compiles its shared-memory op at first use. A killed compile leaves a lock that hangs
# the next start, so it is built here, alone and from nothing.
echo "setup: compiling DeepSpeed's communication op" >&2
rm -rf .venv/torch_extensions
TORCH_EXTENSIONS_DIR="$PWD/.venv/torch_extensions" PATH="$PWD/.venv/bin:$PATH" \
    .venv/bin/python -c \
    'from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)' \
    >.venv/deepspeed-op.log 2>&1 ||
    fail "DeepSpeed's op does not compile; see .venv/deepspeed-op.log"

echo "$fingerprint" >"$stamp"
echo "setup: done" >&2
