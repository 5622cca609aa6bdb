#!/bin/bash
# Builds the RPM in build/rpm from this checkout: the sdist that the project itself makes, and the wheels of bundle.txt. Then rpmlint
# looks at it. The interpreter is this machine's /usr/bin/python3: on Debian that makes an RPM to test with, not one for another system.
set -euo pipefail
umask 022

cd "$(dirname "$0")/../.."
TOP=$(readlink -f build)/rpm
SPEC=packaging/rpm/oci-hpc-hooks.spec
VERSION=$(sed -n 's/^Version: *//p' $SPEC)
PYTHON=build/venv/bin/python
mkdir -p "$TOP/SOURCES" "$TOP/bundle"

# Downloaded again only if the list has changed.
wanted=$(sha256sum <packaging/rpm/bundle.txt)
if [ "$(cat "$TOP/bundle.stamp" 2>/dev/null)" != "$wanted" ]; then
    rm -f "$TOP"/bundle/*
    $PYTHON -m pip download -qqq --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.9 --platform any \
        --dest "$TOP/bundle" -r packaging/rpm/bundle.txt
    echo "$wanted" >"$TOP/bundle.stamp"
fi
tar -C "$TOP" --sort=name --mtime=@0 --owner=0 --group=0 -czf "$TOP/SOURCES/oci-hpc-hooks-bundle-$VERSION.tar.gz" bundle

# In a copy: setuptools leaves its notes in the folder, and trusts those that it finds there.
rm -rf "$TOP/checkout" "$TOP/RPMS" "$TOP/SRPMS" "$TOP/BUILD" "$TOP/BUILDROOT"
mkdir "$TOP/checkout"
tar -c --exclude=__pycache__ --exclude='*.egg-info' LICENSE MANIFEST.in README.md docs hooks.d oci_hpc_hooks packaging schemas setup.cfg setup.py |
    tar -xC "$TOP/checkout"
(cd "$TOP/checkout" && "$OLDPWD/$PYTHON" setup.py -q sdist --formats=gztar -d "$TOP/SOURCES")
# Newer releases of setuptools write the name with underscores.
mv "$TOP/SOURCES/oci_hpc_hooks-$VERSION.tar.gz" "$TOP/SOURCES/oci-hpc-hooks-$VERSION.tar.gz" 2>/dev/null || true

# --nodeps: what is installed here is known to dpkg, not to rpm.
rpmbuild --nodeps --define "_topdir $TOP" -ba $SPEC >"$TOP/log" 2>&1 || { tail -n 40 "$TOP/log" >&2; exit 1; }
rpmlint -r packaging/rpm/rpmlintrc $SPEC "$TOP"/RPMS/*/*.rpm "$TOP"/SRPMS/*.rpm
ls "$TOP"/RPMS/*/*.rpm "$TOP"/SRPMS/*.rpm
