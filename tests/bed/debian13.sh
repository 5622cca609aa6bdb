#!/bin/bash
# The tests with the engines of Debian 13 (podman 5, its crun, runc and conmon) and Python 3.13, in the folder that images.sh makes of it, as
# on a machine of its own: in a mount namespace that ends with the tests, with a /dev and a build/ of its own, and this machine's images
# and sites. Arguments go to pytest.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd -P)
BUILD=$(readlink -f "$ROOT/build")
export ROOT BUILD NODE=$BUILD/chroots/trixie OWN=$BUILD/debian13
[ $# -gt 0 ] || set -- tests/engine tests/attacks -m "not long"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$OWN"/{images,stamps,podman-hpc,chroots/bullseye,run,tmp,venv}
rm -rf "$OWN/site"
cp -al "$BUILD/site" "$OWN/site" # tests link files of it into folders of their own, which no mount may lie between
ln -f "$BUILD/qemu-aarch64" "$OWN/"
exec unshare --mount --propagation private bash -euo pipefail -c '
    mount --bind "$NODE" "$NODE"
    mount --bind "$BUILD/chroots/python313" "$NODE/usr/local/lib/python3.13/dist-packages"
    mount -t proc proc "$NODE/proc"
    mount --rbind /sys "$NODE/sys"
    mount -t tmpfs -o mode=755 dev "$NODE/dev"
    find /dev -maxdepth 1 ! -type d ! -type s -exec cp --archive --target-directory="$NODE/dev" {} +
    mkdir "$NODE"/dev/{net,pts,shm,mqueue}
    cp --archive /dev/net/* "$NODE/dev/net"
    mount --rbind /dev/pts "$NODE/dev/pts"
    mount -t tmpfs -o mode=1777 shm "$NODE/dev/shm"
    mount -t mqueue mqueue "$NODE/dev/mqueue"
    mount -t tmpfs -o mode=755 tmpfs "$NODE/run"
    mount --bind "$OWN/tmp" "$NODE/tmp"
    chmod 1777 "$NODE/tmp"
    mkdir -p "$NODE$ROOT" "$NODE$BUILD"
    mount --bind "$ROOT" "$NODE$ROOT"
    mount --bind "$OWN" "$NODE$BUILD"
    for folder in images stamps podman-hpc chroots/bullseye; do
        mount --bind "$BUILD/$folder" "$NODE$BUILD/$folder"
        mount -o remount,bind,ro "$NODE$BUILD/$folder"
    done
    cd "$NODE"
    pivot_root . .
    umount --lazy .
    cd "$ROOT"
    install -d -m 700 -o hpcuser -g hpcuser "/run/user/$(id -u hpcuser)" || exit
    [ -x "$BUILD/venv/bin/python" ] || python3 -m venv --without-pip --system-site-packages "$BUILD/venv"
    echo "$ROOT" >"$(echo "$BUILD"/venv/lib/python3*/site-packages)/checkout.pth"
    printf "#!%s/venv/bin/python\nfrom oci_hpc_hooks.cli import main\nmain()\n" "$BUILD" >"$BUILD/venv/bin/oci-hpc-hooks"
    chmod 755 "$BUILD/venv/bin/oci-hpc-hooks"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root TERM="${TERM:-dumb}" PYTHONDONTWRITEBYTECODE=1 \
        HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
        "$BUILD/venv/bin/python" -m pytest -ra -p no:cacheprovider "$@"
' debian13 "$@"
