"""Tests outside of this folder by which docs/security.md proves what it says: each fails where the defence that it stands for is taken out
of a copy of the package. It runs in a process of its own, whose package is that copy, as are the hooks that it registers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.weaken import Edit, edited
from tests.bed import bed

RESOLVED: Edit = ("linux/paths.py", "RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS", "RESOLVE = 0")
NO_VOLUME: Edit = ("apply/rootfs.py", "        if number != self.root_mount:\n            entry", "        if False:\n            entry")
NOT_SHARED: Edit = ("apply/rootfs.py", "if entry is not None and entry.shared:", "if False:")
OF_IMAGES: Edit = ("decide/request.py", '        if source.who == "image author":\n', "        if False:\n")
ONLY_ROOT: Edit = ("inputs/trust.py", "if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared:", "if False:")
OWNER: Edit = ("inputs/launcher.py", 'return "" if status.st_uid in owners else', 'return "" if True else')
OWNER_ONCE_MORE: Edit = ("apply/rootfs.py", " and status.st_uid in owners else -1", " else -1")
NOT_TAKEN_BACK: Edit = ("apply/rootfs.py", "    def take_back(self) -> None:\n", "    def take_back(self) -> None:\n        return\n")
REGULAR: Edit = ("linux/paths.py", "if not S_ISREG(posix.fstat(handle).st_mode):", "if posix.fstat(handle).st_mode >> 12 == 1:  # a FIFO")

#: A test of tests/, and what is taken out.
DEFENCES: dict[str, tuple[Edit, ...]] = {
    "unit/decide/test_request.py::test_an_annotation_that_the_manifest_also_has_is_the_images_word": (
        ("decide/request.py", "if manifest.get(key) != value}", "}"),),
    "unit/decide/test_gpus.py::test_more_than_was_given": (("decide/gpus.py", "kept = _within(found, units)", "kept = found"),),
    "unit/decide/test_gpus.py::test_never_more_than_the_cgroup_lets_be_opened": (
        ("decide/gpus.py", "[unit for unit in map(_opened, units) if unit is not None] for name", "units for name"),
        ("decide/gpus.py", "kept = _within(found, units)", "kept = found")),
    "unit/decide/test_gpus.py::test_the_images_word_only_says_no": (
        ("decide/gpus.py", "if variable in self.now.given:", "if variable in self.now.inside:"),
        ("decide/gpus.py", "return self.now.given[variable], f", "return self.now.inside[variable], f"),
        ("decide/gpus.py", "={self.now.given[variable]} of the caller", "")),
    "unit/decide/test_gpus.py::test_channels_of_imex": (
        ("decide/gpus.py", "value = self.now.given.get(variable, \"\")\n            there", "value = 'all'\n            there"),),
    "unit/decide/test_job.py::test_who_may_ask": (OF_IMAGES,),
    "unit/decide/test_job.py::test_munges_socket_goes_to_no_root_of_the_node": (
        ("decide/job.py", 'if one["sockets"] and self.now.root:', "if False:"),),
    "unit/decide/test_job.py::test_who_may_ask_for_services": (
        ("decide/launcher.py", "for profile, wish in asking if not wish.by_image}", "for profile, wish in asking}"),),
    "unit/decide/test_job.py::test_a_container_of_root_gets_no_socket_of_the_gpus": (
        ("decide/job.py", "            if self.now.root:\n                continue", "            if False:\n                continue"),),
    "unit/decide/test_network.py::test_an_image_cannot_ask": (OF_IMAGES,),
    "unit/config/test_trust.py::test_file_that_others_can_write": (ONLY_ROOT,),
    "unit/config/test_trust.py::test_setgid_tree": (ONLY_ROOT,),
    "unit/config/test_trust.py::test_root_of_the_host_counts_nowhere_else": (
        ("inputs/trust.py", "    return any(_is_below(real, place)", "    return True or any(_is_below(real, place)"),),
    "unit/inputs/test_launcher.py::test_whose_directories": (("inputs/launcher.py", 'if "SUDO_UID" in now.launcher:', "if False:"),),
    "unit/inputs/test_launcher.py::test_a_path_that_others_could_change": (
        ("inputs/launcher.py", "if status.st_uid != 0 or (status", "if status.st_uid < 0 and (status"),),
    "unit/test_record.py::test_a_folder_that_others_can_write_is_not_used": (("record.py", "if not replay.owned(status):", "if False:"),),
    "unit/test_record.py::test_a_plan_cut_at_each_byte_is_none": (
        ("replay.py", 'if data[:begin] != b"%08x\\n" % crc32(memoryview(data)[begin:]):', "if False:"),
        ("replay.py", ' and record["cache_length"] == len(cache):', ":")),
    "unit/test_precreate.py::test_another_cache_with_the_same_checksum": (("precreate.py", "elif known != cache:", "elif False:"),),
    "unit/test_precreate.py::test_a_folder_that_others_can_write": (("precreate.py", "if not owned(posix.fstat(folder)):", "if False:"),),
    "unit/test_device_filter.py::test_a_program_that_would_not_mean_the_same_is_left": (
        ("linux/bpf.py", "if operation in (CALL, WIDE):", "if False:"),),
    "unit/test_device_filter.py::test_the_cgroup_that_we_are_in_ourselves_is_never_changed": (
        ("linux/cgroups.py", 'if (ours + "/").startswith(path.rstrip("/") + "/"):', "if False:"),),
    "unit/test_rootfs.py::test_links_of_the_image_lead_nowhere_outside": (RESOLVED, NO_VOLUME),
    "unit/test_rootfs.py::test_a_shared_target": (NOT_SHARED,),
    "unit/test_rootfs.py::test_nothing_is_created_in_a_volume": (NO_VOLUME,),
    "unit/test_rootfs.py::test_nothing_is_left_whichever_mount_fails": (NOT_TAKEN_BACK,),
    "unit/test_rootfs.py::test_nothing_is_left_when_the_last_step_fails": (NOT_TAKEN_BACK,),
    "unit/test_linux.py::test_nothing_outside_is_found": (RESOLVED,),
    "unit/test_linux.py::test_magic_links_are_not_followed": (RESOLVED,),
    "unit/test_linux.py::test_only_regular_files_are_opened": (REGULAR,),
    "unit/test_linux.py::test_reading_is_bounded": (
        ("linux/paths.py", "    if size > limit:\n", "    limit = 1 << 40\n    if size > limit:\n"),),
    "engine/test_job.py::test_somebody_elses_directory_stays_outside": (OWNER, OWNER_ONCE_MORE),
    "engine/test_job.py::test_nothing_is_created_in_a_users_volume": (NO_VOLUME,),
    "engine/test_job.py::test_a_directory_that_the_image_names_stays_outside": (
        ("inputs/launcher.py", "        image = set(image_env)\n", "        image = set()\n"),),
    "engine/test_devices.py::test_a_label_alone_gets_root_no_more_than_anybody_may_open": (
        ("decide/launcher.py", "closed = _asking(profile, request).by_image", "closed = False"),),
    "engine/test_device_filter.py::test_of_two_programs_none_is_touched": (("linux/bpf.py", "if len(attached) > 1:", "if False:"),),
    "engine/test_gpus.py::test_what_a_scheduler_gives": (
        ("decide/gpus.py", "return self.by_numbers(opened, self.now.launcher[variable])", "return opened"),),
    "engine/test_safety.py::test_container_root_can_write_nothing[crun-root]": (
        ("linux/mounts.py", "HARMLESS = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV", "HARMLESS = MOUNT_ATTR_NOSUID"),),
    "engine/test_volumes.py::test_shared_volume_is_refused": (NOT_SHARED,),
    "engine/test_volumes.py::test_volume_without_loader_cache": (NO_VOLUME,),
    "engine/test_interfaces.py::test_where_there_is_nothing_to_bring_them_into": (
        ("network.py", "if self._unprivileged or namespaces.in_own_user_namespace():", "if False:"),
        ("network.py", "if self.network.is_the_nodes:", "if False:")),
    "engine/test_drivers.py::test_a_newer_driver_in_the_image": (
        ("decide/newer.py", "if library.supports is not None and _major(host) not in library.supports:", "if False:"),),
    "engine/test_asks_for_nothing.py::test_bitten_plan": (
        ("replay.py", 'if data[:begin] != b"%08x\\n" % crc32(memoryview(data)[begin:]):', "if False:"),),
    "engine/test_refusals.py::test_old_glibc_is_refused": (
        ("decide/proof.py", "        worst = max(gaps, key=", "        return\n        worst = max(gaps, key="),),
    "engine/test_bad_input.py::test_no_state": (
        ("warm.py", "    if isinstance(error, HookError):\n        return str(error)", "    if False:\n        return str(error)"),),
}
#: Containers are started, or hypothesis looks for the smallest failure.
LONG = ("engine/", "unit/decide/test_gpus.py::test_never_more")

RUN = """
import sys
import oci_hpc_hooks  # before pytest puts the checkout first
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("test", [pytest.param(test, marks=pytest.mark.long if test.startswith(LONG) else ()) for test in DEFENCES])
def test_without_the_defence(test: str, open_folder: Path) -> None:
    copy = edited(open_folder / "package", *DEFENCES[test])
    words = [sys.executable, "-c", RUN, "--rootdir", bed.ROOT, "-c", bed.ROOT / "setup.cfg", "-q", "-p", "no:cacheprovider",
             "-m", "not long", "-x", bed.ROOT / "tests" / test]
    done = subprocess.run([str(word) for word in words], cwd=copy, env=bed.root_account().environment() | {"PYTHONPATH": str(copy)},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-3000:] + done.stderr
    assert re.search(r"^\d+ failed", done.stdout.splitlines()[-1]), done.stdout[-3000:]


def test_each_file_of_the_tables_is_here() -> None:
    page = (bed.ROOT / "docs/security.md").read_text()
    tables = page.split("## Who may ask for what\n")[1].split("## Faults\n")[0]
    named = set(re.findall(r"`tests/([\w/]+\.py)", tables))
    own = {f"attacks/{path.name}" for path in Path(__file__).parent.glob("test_*.py")} | {"unit/test_hostile_images.py"}
    assert named - own == {test.partition("::")[0] for test in DEFENCES}
