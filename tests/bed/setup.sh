#!/bin/bash
# Makes a bare Debian 12 machine able to run the demo and the tests: packages, a virtual
# environment, an unprivileged user with subordinate ids. Adds what is missing, touches nothing else;
# a second run finds nothing to do and ends within two seconds.
#
#   tests/bed/setup.sh          everything
#   tests/bed/setup.sh --check  only say whether this machine is one that can be set up
set -euo pipefail
umask 022

die() { echo "setup: $1" >&2; exit 2; }

# quietly COMMAND...: its output is shown only if it fails
quietly() {
    local output
    output=$("$@" 2>&1 </dev/null) && return
    echo "$output" >&2
    echo "setup: failed: $*" >&2
    return 1
}

[ "$(id -u)" = 0 ] || die "needs root (containers, mounts and packages): run it as root, for example with sudo."
# shellcheck disable=SC1091
. /etc/os-release 2>/dev/null || ID=unknown
if [ "${ID:-}" != debian ] || [ "${VERSION_ID:-}" != 12 ]; then
    die "this machine is '${PRETTY_NAME:-unknown}', and the test bed knows only Debian 12 (bookworm)."
fi
[ "$(dpkg --print-architecture)" = amd64 ] || die "the test bed's images are built for amd64 only, this is $(dpkg --print-architecture)."
[ "${1:-}" = --check ] && exit 0

ROOT=$(cd "$(dirname "$0")/../.." && pwd -P)
USER_NAME=hpcuser
cd "$ROOT"

# ---------------------------------------------------------------- packages
PACKAGES=(
    podman crun runc conmon catatonit buildah                   # engines
    docker.io containerd charliecloud-runtime                   # others; their daemons the tests start by themselves
    netavark slirp4netns uidmap fuse-overlayfs iptables         # and what they call
    docker-compose                                              # the compose client for pytest-docker; needs no docker
    mmdebstrap debian-archive-keyring ca-certificates           # images
    gcc gfortran libc6-dev musl musl-tools busybox-static       # programs inside the images
    automake libtool                                            # libfabric's source comes without its configure
    make python3-venv python3-dev libcap-dev                    # the project (python-prctl is compiled)
    slurmctld slurmd slurm-client slurm-wlm-basic-plugins       # a batch system with PMIx and PMI-2, see slurm.py
    munge libpmix-dev                                           # slurmd opens libpmix.so, which only -dev has
    squashfuse inotify-tools                                    # what podman-hpc starts containers of squashed images with
    rpm rpmlint cpio                                            # make rpm
    mount passwd util-linux procps strace acl                   # what a minimal Debian lacks, and looking at it
)
missing=()
installed=" $(dpkg-query -W -f='${db:Status-Status}:${Package}\n' | sed -n 's/^installed://p' | tr '\n' ' ') "
for package in "${PACKAGES[@]}"; do
    [[ $installed == *" $package "* ]] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # No service of theirs is to start: the bed starts its own. A policy that the machine has stays in force instead.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\ncase $1 in munge*|slurm*|docker*|containerd*) exit 101 ;; esac\n' >"$policy"
        chmod 755 "$policy"
    fi
    # An unrelated source that does not answer must not stop us: install decides.
    quietly apt-get update -q || echo "setup: going on with the package lists that there are" >&2
    quietly apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

# ---------------------------------------------------------------- the unprivileged user
next_free_range() { # the first id above every range of that file, and above the classic first range
    awk -F: 'BEGIN { m = 100000 } NF == 3 && $2 + $3 > m { m = $2 + $3 } END { print m }' "$1"
}
add_range() { # name, count: an entry in /etc/subuid and /etc/subgid if the name has none
    local file
    for file in /etc/subuid /etc/subgid; do
        [ -e "$file" ] || : >"$file"
        grep -q "^$1:" "$file" || echo "$1:$(next_free_range "$file"):$2" >>"$file"
    done
}
if ! getent passwd "$USER_NAME" >/dev/null; then
    useradd --system --user-group --create-home --home-dir "/var/lib/$USER_NAME" --shell /bin/bash "$USER_NAME"
    echo "setup: added the user $USER_NAME"
fi
add_range "$USER_NAME" 65536
add_range containers 1048576                      # what --userns=auto of root takes its ids from
user_id=$(id -u "$USER_NAME")
if [ ! -d "/run/user/$user_id" ]; then            # logind makes it at login; nobody logs in here
    install -d -m 755 /run/user
    install -d -m 700 -o "$USER_NAME" -g "$USER_NAME" "/run/user/$user_id"
fi

# ---------------------------------------------------------------- where things are built
# The user must be able to read the virtual environment, the site's files and the images. A checkout
# below /root is closed to it, and one below /tmp is hidden from the nodes of the tests' Slurm, which
# have a /tmp of their own: then build/ is a link to an open place, and the package is installed
# there as a copy.
readable() { setpriv --reuid "$USER_NAME" --regid "$USER_NAME" --init-groups test -r "$1" -a -x "$1"; }
if readable "$ROOT" && [[ $ROOT/ != /tmp/* ]]; then
    editable=yes
    mkdir -p build
else
    editable=no
    open_place=/opt/oci-hpc-hooks-bed-$(printf %s "$ROOT" | sha256sum | cut -c1-8)
    if [ ! -e build ]; then
        echo "setup: $USER_NAME or a node of Slurm's cannot see $ROOT: building in $open_place (build/ links to it)"
        mkdir -p "$open_place"
        ln -s "$open_place" build
    fi
fi
readable "$ROOT/build/." 2>/dev/null || readable "$(readlink -f build)" ||
    die "$USER_NAME cannot read $(readlink -f build): remove it, or open the folders above it."

# ---------------------------------------------------------------- virtual environment
venv=$(readlink -f build)/venv
if [ "$editable" = yes ]; then
    wanted=$(sha256sum setup.cfg setup.py)
else
    wanted=$({ sha256sum setup.cfg setup.py; find oci_hpc_hooks schemas hooks.d -type f -not -name '*.pyc' -exec sha256sum {} + | sort; } | sha256sum)
fi
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
    [ -f setup.cfg ] || die "no setup.cfg in $ROOT: this is not a checkout of the project."
    [ -x "$venv/bin/python" ] || /usr/bin/python3 -m venv "$venv"
    echo "setup: installing the Python packages into build/venv"
    if [ "$editable" = yes ]; then
        quietly "$venv/bin/pip" install --disable-pip-version-check -e '.[test,lint]'
    else
        rm -rf build/lib build/bdist.* # setuptools would install what an earlier state of the checkout left there
        quietly "$venv/bin/pip" install --disable-pip-version-check '.[test,lint]'
        quietly "$venv/bin/pip" install --disable-pip-version-check --force-reinstall --no-deps .
    fi
    echo "$wanted" >"$venv/.installed"
fi
