"""What is never injected alone."""

from __future__ import annotations

from typing import Sequence

import pytest

from oci_hpc_hooks.elf.glibc import is_c_runtime, release_needed


@pytest.mark.parametrize("name", [
    "libc.so.6", "libm.so.6", "libmvec.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libresolv.so.2", "libutil.so.1",
    "libnsl.so.1", "libanl.so.1", "libBrokenLocale.so.1", "libnss_files.so.2", "libnss_dns.so.2",
    "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
    "ld64.so.2", "ld64.so.1", "/lib64/ld-linux-x86-64.so.2"])
def test_the_c_runtime(name: str) -> None:
    assert is_c_runtime(name)


@pytest.mark.parametrize("name", [
    "libcrypt.so.1", "libnsl.so.2", "libcap.so.2", "libmpi.so.12", "libstdc++.so.6", "libgcc_s.so.1", "libdlfoo.so.2", "libcxi.so.1",
    "libmlx5.so.1", "", "libc.so", "libld.so"])
def test_not_the_c_runtime(name: str) -> None:
    assert not is_c_runtime(name)


@pytest.mark.parametrize(("versions", "release"), [
    ([], ""),
    (["GLIBC_PRIVATE"], ""),
    (["GLIBC_2.9", "GLIBC_2.17", "GLIBC_2.2.5"], "2.17"),
    (["GLIBC_2.2.5", "GLIBC_2.2"], "2.2.5"),
    (["GLIBC_2.17", "GLIBC_ABI_DT_RELR"], "2.36"),
    (["GLIBC_2.38", "GLIBC_ABI_DT_RELR"], "2.38"),
    (["GLIBC_2.", "GLIBC_2.x", "GLIBC_" + "9" * 5000, "2.99"], ""),
])
def test_the_release_that_is_needed(versions: Sequence[str], release: str) -> None:
    assert release_needed([[("libc.so.6", tuple(versions))]]) == release


def test_the_release_that_several_files_need() -> None:
    needs = [[("libz.so.1", ("GLIBC_2.99",)), ("libm.so.6", ("GLIBC_2.29",))], [], [("libc.so.6", ("GLIBC_2.17",))]]
    assert release_needed([[*need] for need in needs]) == "2.29"
