#!/bin/bash
# Removes what was built: containers, images, stores and mounts of the test bed, then build/ itself. Packages and the
# user hpcuser stay.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -e build ] || exit 0
[ "$(id -u)" = 0 ] || { echo "clean: containers and mounts of the test bed are root's: run it as root." >&2; exit 2; }
[ ! -d build/bed ] || /usr/bin/python3 tests/bed/bed.py clean
target=$(readlink -f build)
if grep -q " $target/" /proc/self/mountinfo; then
    echo "clean: mounts are left below $target, so nothing more is removed:" >&2
    grep " $target/" /proc/self/mountinfo >&2
    exit 1
fi
rm -rf --one-file-system "$target" build
