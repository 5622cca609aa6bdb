#!/bin/bash
# The unit tests on Python 3.9, in the Debian 11 folder of images.sh. The checkout is seen there read-only, in a mount
# namespace that ends with the tests. Arguments go to pytest.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd -P)
export ROOT CHROOT=$(readlink -f "$ROOT/build")/chroots/bullseye
[ $# -gt 0 ] || set -- tests/unit
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec unshare --mount --propagation private bash -euo pipefail -c '
    mount --bind "$CHROOT" "$CHROOT"
    mount --bind "$CHROOT/../python39" "$CHROOT/usr/local/lib/python3.9/dist-packages"
    rm -rf "$CHROOT"/tmp/* # on disk: tests tell a tmpfs from other file systems
    mount --bind "$ROOT" "$CHROOT/src"
    mount -o remount,bind,ro "$CHROOT/src"
    mount -t proc proc "$CHROOT/proc"
    mount --rbind /dev "$CHROOT/dev"
    cd "$CHROOT"
    pivot_root . . # unlike after a chroot, tests can make mount namespaces of their own
    umount --lazy .
    cd /src
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/tmp PYTHONPATH=/src \
        PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
        python3 -m pytest -q -p no:cacheprovider "$@"
' python39 "$@"
