"""The schemas of profile and site: rows that pass, and for each of their keywords a row that fails with one message."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from jsonschema import Draft7Validator

from oci_hpc_hooks.inputs import resources, validate

SCHEMAS = sorted(resources.find("schemas/profile.schema.json").parent.glob("*.schema.json"))

PROFILE: Dict[str, Any] = {
    "$schema": "profile.schema.json",
    "version": 1,
    "name": "mpich",
    "description": "The node's MPICH",
    "provides": {"mpi": "mpich"},
    "libraries": [{"soname": "libmpi.so.12", "role": "replace", "replaces": ["libmpich.so.12"], "required": True}],
    "search": ["/opt/mpich/lib"],
    "plugins": ["$ORIGIN/mpich/ucx"],
    "immovable": ["$ORIGIN/openmpi/mca_*.so"],
    "variants": [{"name": "el7", "search": ["/opt/mpich-el7/lib"]}],
    "sets": [{"name": "verbs", "when": "libibverbs.so.1", "libraries": ["librdmacm.so.1"], "directories": ["/etc/libibverbs.d"],
              "private": "IBVERBS_PRIVATE_", "separable": True}],
    "devices": ["/dev/cxi*"],
    "interfaces": [{"device": "hsn0", "mode": "ipvlan", "name": "hsn0", "addresses": ["10.253.0.17/16"]}],
    "companions": ["$ORIGIN/lib*.so.$VERSION"],
    "icds": ["/etc/OpenCL/vendors/*.icd"],
    "files": ["/usr/bin/vendor-smi"],
    "newer": {"file": "/usr/local/cuda/compat/libcuda.so.*.*", "section": ".note.x", "owner": "Vendor", "key": "driver"},
    "verified": {"by": "paper", "source": "its documentation"},
    "job": {"when": "PMIX_RANK", "protocol": "pmix", "start": "srun --mpi=pmix", "environment": ["PMIX_*"], "except_for": ["PMIX_PREFIX"],
            "variables": {"PMIX_MCA_psec": "${PMIX_SECURITY_MODE}"}, "directories": ["${PMIX_SERVER_TMPDIR}"],
            "sockets": ["/run/munge/munge.socket.2"], "needs": [{"what": "pid", "severity": "error", "otherwise": {"A": "0"}}],
            "scheduler": {"gpus": ["JOB_GPUS"], "cgroup": "job_${JOB}"}},
    "gpus": {"each": "/proc/acme/*/information", "only": {"Kind": "gpu"}, "bus": "${Bus}", "uuid": "${UUID}",
             "devices": ["/dev/acme${Minor}"], "drm": "/sys/bus/pci/devices/${Bus}/drm", "hidden": ["/proc/acme/${1}"],
             "parts": {"each": "/proc/acme/${1}/*/access", "devices": {"/proc/acme/${1}": "/dev/acme-part${Minor}"}, "uuid": "${1}"},
             "chosen_by": ["ACME_VISIBLE"], "selected_by": {"ACME_DEVICES": "index"},
             "capabilities": {"variable": "ACME_USES", "devices": {"/dev/acme-video": "video"}},
             "numbered": {"ACME_PORTS": "/dev/acme-port*"},
             "requirements": {"variables": "ACME_REQUIRES_*", "unless": "ACME_ANYWAY", "driver": "/sys/module/acme/version",
                              "interface": "acme", "versions": {"7": "1.2"}}},
    "gpus_of": ["cuda"],
}
SITE: Dict[str, Any] = {
    "$schema": "site.schema.json",
    "version": 1,
    "profiles": ["mpich", {"name": "cray", "root": "/run/vendor", "search": ["/opt/cray/lib"],
                           "variants": [{"name": "el7", "search": ["/opt/el7/lib"]}]}],
    "defaults": {"org.supercontainers.mpi": "auto", "org.supercontainers.launcher": "auto", "org.supercontainers.gpu": "auto",
                 "org.supercontainers.network": "slingshot",
                 "org.supercontainers.fabric": "auto"},
    "on_refusal": "refuse",
    "unproved": "run",
    "loader_cache": "bind",
    "c_runtime": {"search": ["/opt/glibc/lib"]},
}
WHOLE = {"profile": PROFILE, "site": SITE}

REMOVE = object()


def changed(kind: str, path: str, value: object) -> Any:
    """The whole document with another value at a path such as ``libraries/0/role``."""
    document = copy.deepcopy(WHOLE[kind])
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place: Any = document
    for step in steps:
        place = place[step]
    if value is REMOVE:
        del place[last]
    else:
        place[last] = value
    return document


GOOD: List[Tuple[str, str, object]] = [
    ("profile", "$schema", "../../schemas/profile.schema.json"),
    ("profile", "$schema", REMOVE),
    ("profile", "name", "cray-mpich_8.1"),
    ("profile", "search", REMOVE),
    ("profile", "search", ["/opt/cray/pe/mpich/*/ofi/gnu/*/lib-abi-mpich"]),
    ("profile", "search/0", "/opt/…/.hidden/..x/lib"),
    ("profile", "plugins", []),
    ("profile", "plugins/0", "$ORIGIN/../lib/ucx"),
    ("profile", "plugins/0", "/usr/lib/ucx"),
    ("profile", "immovable", REMOVE),
    ("profile", "immovable/0", "$ORIGIN/../lib/openmpi/mca_?*.so"),
    ("profile", "provides/mpi", "openmpi"),
    ("profile", "variants", REMOVE),
    ("profile", "sets", REMOVE),
    ("profile", "sets/0", {"name": "verbs", "when": "libibverbs.so.1"}),
    ("profile", "variants", []),
    ("profile", "provides", {"launcher": "my-launcher_2"}),
    ("profile", "provides", {"gpu": "acme"}),
    ("profile", "provides", {"fabric": "acme-net"}),
    ("profile", "sets/0/separable", False),
    ("profile", "libraries", REMOVE),
    ("profile", "devices", REMOVE),
    ("profile", "provides", {"network": "slingshot"}),
    ("profile", "interfaces", REMOVE),
    ("profile", "interfaces/0", {"device": "*", "mode": "move"}),
    ("profile", "interfaces/0/device", "a.b_c-d*9"),
    ("profile", "interfaces/0/addresses/0", "fd00::1/64"),
    ("site", "defaults/org.supercontainers.network", "a+b"),
    *(("profile", key, REMOVE) for key in ("companions", "icds", "files", "newer", "verified")),
    ("profile", "newer", {"file": "/opt/a/lib*.so.*"}),
    ("profile", "companions/0", "$ORIGIN/../x/lib*.so.$VERSION"),
    ("profile", "verified/by", "hardware"),
    ("site", "profiles/1/root", REMOVE),
    ("site", "profiles/1/cdi", "nvidia.com/gpu=GPU-1:0"),
    ("profile", "cdi", "vendor.com/a.b=0"),
    ("profile", "gpus", {"each": "/sys/class/drm/renderD*"}),
    ("profile", "gpus/parts/uuid", REMOVE),
    ("profile", "job/scheduler", {}),
    ("site", "defaults/org.supercontainers.gpu.devices", "0+GPU-3f1c"),
    ("profile", "devices/0", "/dev/xpmem"),
    ("profile", "devices/0", "/dev/infiniband/uverbs*"),
    ("profile", "devices/0", "/dev/a*b"),
    ("profile", "job", {}),
    ("profile", "job/environment/0", "A"),
    ("profile", "job/directories/0", "/run/job"),
    ("profile", "job/directories/0", "${A}/b_${C}.${D}"),
    ("profile", "job/needs/0", {"what": "network"}),
    ("site", "defaults/org.supercontainers.launcher", "pmix+slurm"),
    ("site", "defaults/org.supercontainers.gpu", "cuda+opencl"),
    ("site", "defaults/org.supercontainers.fabric", "verbs+ucx"),
    ("site", "profiles/1/variants", REMOVE),
    ("profile", "libraries/0/soname", "libstdc++.so.6"),
    ("profile", "libraries/0/soname", "libmpi.so"),
    ("profile", "libraries/0/role", "add"),
    ("profile", "libraries/0/required", REMOVE),
    ("profile", "libraries/0/replaces", REMOVE),
    ("site", "$schema", REMOVE),
    ("site", "profiles", []),
    ("site", "profiles", REMOVE),
    ("site", "profiles/1/search", REMOVE),
    ("site", "defaults", {}),
    ("site", "defaults/org.supercontainers.mpi", "none"),
    ("site", "defaults/org.supercontainers.mpi", "mpich"),
    ("site", "on_refusal", "run-without"),
    ("site", "unproved", "refuse"),
    ("site", "loader_cache", "file"),
    ("site", "loader_cache", REMOVE),
    ("site", "c_runtime", "host"),
    ("site", "c_runtime", "none"),
    ("site", "c_runtime", REMOVE),
]

LIBRARY = {"soname": "libmpi.so.12", "role": "add"}
SET = {"name": "verbs", "when": "libibverbs.so.1"}
VARIANT = {"name": "el7", "search": ["/opt/el7"]}
INTERFACE = "is not the name of a network interface, at most 15 characters"
NAME = "is not a name of lower-case letters, digits, dots, dashes and underscores, at most 64"
DIRECTORY = "is not an absolute path without empty, . or .. parts, colons or a slash at the end"
SONAME = "is not a library's file name such as libmpi.so.12, without directory"
TEXT = "is not a text of 1 to 4095 characters"
WITH_FACTS = "is not an absolute path, which may have facts"
DEVICE = "is not a path below /dev without empty, . or .. parts"
VARIABLE = "is not a variable's name"
PLUGIN = "is not $ORIGIN/ or / followed by a directory"

#: Of a list of variants, which a profile and an entry of site.json can have: path and place below that list.
BAD_VARIANTS: List[Tuple[str, object, str, str]] = [
    ("", "el7", "", "is not a list"),
    ("", [VARIANT] * 17, "", "17 entries, at most 16 possible"),
    ("/0", "el7", "[0]", '"el7" is not an object'),
    ("/0/serach", [], "[0]", 'did you mean "search"?'),
    ("/0/name", REMOVE, "[0]", 'the key "name" is missing'),
    ("/0/search", REMOVE, "[0]", 'the key "search" is missing'),
    ("/0/name", "EL 7", "[0].name", NAME),
    ("/0/name", 7, "[0].name", NAME),
    ("/0/search", "/opt", "[0].search", "is not a list"),
    ("/0/search", [], "[0].search", "0 entries, at least 1 wanted"),
    ("/0/search", ["/a", "/a"], "[0].search", "an entry occurs twice"),
    ("/0/search", [f"/{n}" for n in range(257)], "[0].search", "257 entries, at most 256 possible"),
    ("/0/search/0", "lib", "[0].search[0]", DIRECTORY),
    ("/0/search/0", 1, "[0].search[0]", DIRECTORY),
    ("/0/search/0", "/" + "x" * 5000, "[0].search[0]", "5001 characters, at most 4095 possible"),
]


def variants(kind: str, path: str, where: str) -> Iterator[Tuple[str, str, object, str, str]]:
    for below, value, place, message in BAD_VARIANTS:
        yield kind, path + below, value, where + place, message


BAD: List[Tuple[str, str, object, str, str]] = [
    # kind, what is changed, to what, path of the one error, what its message has
    ("profile", "extra", 1, "$", 'the key "extra" is unknown; known are: $schema, version'),
    ("profile", "searhc", [], "$", 'the key "searhc" is unknown; did you mean "search"?'),
    ("profile", "$schema", "https://example.org/site.schema.json", "$.$schema", "is not a reference to profile.schema.json"),
    ("profile", "$schema", 1, "$.$schema", "1 is not a reference to profile.schema.json"),
    ("profile", "version", 2, "$.version", "2 is not 1, the only value known here"),
    ("profile", "version", "1", "$.version", '"1" is not 1'),
    ("profile", "version", True, "$.version", "true is not 1"),
    ("profile", "version", REMOVE, "$", 'the key "version" is missing: Version of this format.'),
    ("profile", "name", REMOVE, "$", 'the key "name" is missing'),
    ("profile", "name", "Mpich", "$.name", NAME),
    ("profile", "name", "mpich\n", "$.name", NAME),
    ("profile", "name", "../mpich", "$.name", NAME),
    ("profile", "name", "m" * 65, "$.name", NAME),
    ("profile", "name", ["mpich"], "$.name", NAME),
    ("profile", "masked", False, "$.masked", "false is not true"),
    ("profile", "description", REMOVE, "$", 'the key "description" is missing'),
    ("profile", "description", "", "$.description", "0 characters, at least 1 wanted"),
    ("profile", "description", "x" * 1001, "$.description", "1001 characters, at most 1000 possible"),
    ("profile", "description", None, "$.description", "null is not a string"),
    ("profile", "provides", REMOVE, "$", 'the key "provides" is missing'),
    ("profile", "provides", {}, "$.provides", "0 keys, at least 1 wanted"),
    ("profile", "provides/launcher", "pmix", "$.provides", "2 keys, at most 1 possible"),
    ("profile", "provides", {"launcher": "PMIx"}, "$.provides.launcher", NAME),
    ("profile", "provides", {"launcher": 1}, "$.provides.launcher", NAME),
    ("profile", "provides", "mpich", "$.provides", '"mpich" is not an object'),
    ("profile", "provides", {"fabrics": "cxi"}, "$.provides", 'the key "fabrics" is unknown'),
    ("profile", "provides", {"fabric": "CXI"}, "$.provides.fabric", NAME),
    ("profile", "provides", {"fabric": 1}, "$.provides.fabric", NAME),
    ("profile", "sets/0/separable", "yes", "$.sets[0].separable", "is not true or false"),
    ("profile", "provides", {"gpu": "CUDA"}, "$.provides.gpu", NAME),
    ("profile", "provides", {"gpu": 1}, "$.provides.gpu", NAME),
    ("profile", "provides/mpi", "mpihc", "$.provides.mpi", '"mpihc" is none of: "mpich", "openmpi", "mpi-abi"; did you mean "mpich"?'),
    ("profile", "libraries", {}, "$.libraries", "{} is not a list"),
    ("profile", "libraries", [], "$.libraries", "0 entries, at least 1 wanted"),
    ("profile", "libraries", [LIBRARY] * 65, "$.libraries", "65 entries, at most 64 possible"),
    ("profile", "libraries/0", "libmpi.so.12", "$.libraries[0]", '"libmpi.so.12" is not an object'),
    ("profile", "libraries/0/sonames", "x", "$.libraries[0]", 'did you mean "soname"?'),
    ("profile", "libraries/0/soname", REMOVE, "$.libraries[0]", 'the key "soname" is missing'),
    ("profile", "libraries/0/role", REMOVE, "$.libraries[0]", 'the key "role" is missing: replace: over the image\'s copies.'),
    ("profile", "libraries/0/soname", "/opt/lib/libmpi.so.12", "$.libraries[0].soname", SONAME),
    ("profile", "libraries/0/soname", "libmpi.a", "$.libraries[0].soname", SONAME),
    ("profile", "libraries/0/soname", 12, "$.libraries[0].soname", SONAME),
    ("profile", "libraries/0/soname", "l" * 300 + ".so", "$.libraries[0].soname", "303 characters, at most 255 possible"),
    ("profile", "libraries/0/role", "relpace", "$.libraries[0].role", 'none of: "replace", "add"; did you mean "replace"?'),
    ("profile", "libraries/0/replaces", "libmpich.so.12", "$.libraries[0].replaces", "is not a list"),
    ("profile", "libraries/0/replaces", ["a.so", "a.so"], "$.libraries[0].replaces", "an entry occurs twice"),
    ("profile", "libraries/0/replaces", [f"a{n}.so" for n in range(65)], "$.libraries[0].replaces", "65 entries, at most 64"),
    ("profile", "libraries/0/replaces/0", "libmpich", "$.libraries[0].replaces[0]", SONAME),
    ("profile", "libraries/0/required", "yes", "$.libraries[0].required", '"yes" is not true or false'),
    ("profile", "search", "/opt", "$.search", "is not a list"),
    ("profile", "search", ["/opt", "/opt"], "$.search", "an entry occurs twice"),
    ("profile", "search", [f"/opt/{n}" for n in range(257)], "$.search", "257 entries, at most 256 possible"),
    ("profile", "search/0", "opt/lib", "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/", "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/opt/", "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/opt//lib", "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/opt/../etc", "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/opt/.", "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/opt:/usr", "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/opt/\0", "$.search[0]", DIRECTORY),
    ("profile", "search/0", 1, "$.search[0]", DIRECTORY),
    ("profile", "search/0", "/" + "x" * 5000, "$.search[0]", "5001 characters, at most 4095 possible"),
    ("profile", "plugins", "$ORIGIN/ucx", "$.plugins", "is not a list"),
    ("profile", "plugins", ["/a", "/a"], "$.plugins", "an entry occurs twice"),
    ("profile", "plugins", [f"/{n}" for n in range(65)], "$.plugins", "65 entries, at most 64 possible"),
    ("profile", "plugins/0", "ucx", "$.plugins[0]", PLUGIN),
    ("profile", "plugins/0", "$ORIGIN", "$.plugins[0]", PLUGIN),
    ("profile", "plugins/0", "$LIB/ucx", "$.plugins[0]", PLUGIN),
    ("profile", "plugins/0", "$ORIGIN/ucx/../..", "$.plugins[0]", PLUGIN),
    ("profile", "plugins/0", {}, "$.plugins[0]", PLUGIN),
    ("profile", "plugins/0", "/" + "x" * 5000, "$.plugins[0]", "5001 characters, at most 4095 possible"),
    ("profile", "immovable", "$ORIGIN/a", "$.immovable", "is not a list"),
    ("profile", "immovable", ["/a", "/a"], "$.immovable", "an entry occurs twice"),
    ("profile", "immovable", [f"/{n}" for n in range(65)], "$.immovable", "65 entries, at most 64 possible"),
    ("profile", "immovable/0", "mca_*.so", "$.immovable[0]", "is not $ORIGIN/ or / followed by a path"),
    ("profile", "immovable/0", {}, "$.immovable[0]", "is not $ORIGIN/ or / followed by a path"),
    ("profile", "immovable/0", "/" + "x" * 5000, "$.immovable[0]", "5001 characters, at most 4095 possible"),
    *variants("profile", "variants", "$.variants"),
    ("profile", "sets", {}, "$.sets", "{} is not a list"),
    ("profile", "sets", [SET] * 17, "$.sets", "17 entries, at most 16 possible"),
    ("profile", "sets/0", "verbs", "$.sets[0]", "is not an object"),
    ("profile", "sets/0/wehn", "x", "$.sets[0]", 'did you mean "when"?'),
    ("profile", "sets/0/name", REMOVE, "$.sets[0]", 'the key "name" is missing'),
    ("profile", "sets/0/name", "Verbs", "$.sets[0].name", NAME),
    ("profile", "sets/0/name", 1, "$.sets[0].name", NAME),
    ("profile", "sets/0/when", "libibverbs", "$.sets[0].when", SONAME),
    ("profile", "sets/0/libraries", "x", "$.sets[0].libraries", "is not a list"),
    ("profile", "sets/0/libraries", ["a.so", "a.so"], "$.sets[0].libraries", "an entry occurs twice"),
    ("profile", "sets/0/libraries", [f"a{n}.so" for n in range(65)], "$.sets[0].libraries", "65 entries, at most 64 possible"),
    ("profile", "sets/0/directories", "/etc", "$.sets[0].directories", "is not a list"),
    ("profile", "sets/0/directories", ["/a", "/a"], "$.sets[0].directories", "an entry occurs twice"),
    ("profile", "sets/0/directories", [f"/{n}" for n in range(17)], "$.sets[0].directories", "17 entries, at most 16 possible"),
    ("profile", "sets/0/directories/0", "etc", "$.sets[0].directories[0]", PLUGIN),
    ("profile", "sets/0/directories/0", 1, "$.sets[0].directories[0]", PLUGIN),
    ("profile", "sets/0/directories/0", "/" + "x" * 5000, "$.sets[0].directories[0]", "5001 characters, at most 4095 possible"),
    ("profile", "sets/0/private", "a-b", "$.sets[0].private", "is not a beginning of symbol versions"),
    ("profile", "sets/0/private", 1, "$.sets[0].private", "is not a beginning of symbol versions"),
    *(row for key, most in (("companions", 64), ("icds", 16), ("files", 64)) for row in (
        ("profile", key, "/a", f"$.{key}", "is not a list"),
        ("profile", key, ["/a", "/a"], f"$.{key}", "an entry occurs twice"),
        ("profile", key, [f"/{n}" for n in range(most + 1)], f"$.{key}", f"{most + 1} entries, at most {most} possible"),
        ("profile", f"{key}/0", "lib*.so", f"$.{key}[0]", "is not $ORIGIN/ or / followed by a path"),
        ("profile", f"{key}/0", 1, f"$.{key}[0]", "is not $ORIGIN/ or / followed by a path"),
        ("profile", f"{key}/0", "/" + "x" * 5000, f"$.{key}[0]", "5001 characters, at most 4095 possible"))),
    ("profile", "newer", "/x", "$.newer", "is not an object"),
    ("profile", "newer/flie", "x", "$.newer", 'did you mean "file"?'),
    ("profile", "newer/file", REMOVE, "$.newer", 'the key "file" is missing'),
    ("profile", "newer/file", "lib.so", "$.newer.file", DIRECTORY),
    ("profile", "newer/file", 1, "$.newer.file", DIRECTORY),
    ("profile", "newer/file", "/" + "x" * 5000, "$.newer.file", "5001 characters, at most 4095 possible"),
    *(row for key in ("section", "owner", "key") for row in (
        ("profile", f"newer/{key}", 1, f"$.newer.{key}", "is not a string"),
        ("profile", f"newer/{key}", "", f"$.newer.{key}", "0 characters, at least 1 wanted"),
        ("profile", f"newer/{key}", "x" * 256, f"$.newer.{key}", "256 characters, at most 255 possible"))),
    ("profile", "verified", "paper", "$.verified", "is not an object"),
    ("profile", "verified/bye", "x", "$.verified", 'did you mean "by"?'),
    ("profile", "verified/by", REMOVE, "$.verified", 'the key "by" is missing'),
    ("profile", "verified/by", "papers", "$.verified.by", 'did you mean "paper"?'),
    ("profile", "verified/source", REMOVE, "$.verified", 'the key "source" is missing'),
    ("profile", "verified/source", 1, "$.verified.source", "is not a string"),
    ("profile", "verified/source", "", "$.verified.source", "0 characters, at least 1 wanted"),
    ("profile", "verified/source", "x" * 1001, "$.verified.source", "1001 characters, at most 1000 possible"),
    ("site", "profiles/1/root", "vendor", "$.profiles[1].root", DIRECTORY),
    *(row for kind, key in (("profile", "cdi"), ("site", "profiles/1/cdi")) for at in ["$." + key.replace("s/1/", "s[1].")] for row in (
        (kind, key, "nvidia.com/gpu", at, "is not a device of CDI as VENDOR/CLASS=NAME"),
        (kind, key, "nvidia.com/gpu=a b", at, "is not a device of CDI as VENDOR/CLASS=NAME"),
        (kind, key, 1, at, "is not a device of CDI as VENDOR/CLASS=NAME"),
        (kind, key, "a/b=" + "x" * 400, at, "404 characters, at most 400 possible"))),
    ("site", "profiles/1/root", 1, "$.profiles[1].root", DIRECTORY),
    ("site", "profiles/1/root", "/" + "x" * 5000, "$.profiles[1].root", "5001 characters, at most 4095 possible"),
    ("profile", "provides", {"network": "A"}, "$.provides.network", NAME),
    ("profile", "provides", {"network": 1}, "$.provides.network", NAME),
    ("profile", "interfaces", {}, "$.interfaces", "is not a list"),
    ("profile", "interfaces", [], "$.interfaces", "0 entries, at least 1 wanted"),
    ("profile", "interfaces", [{"device": f"a{n}", "mode": "move"} for n in range(17)], "$.interfaces", "17 entries, at most 16 possible"),
    ("profile", "interfaces/0", "hsn0", "$.interfaces[0]", "is not an object"),
    ("profile", "interfaces/0/colour", 1, "$.interfaces[0]", 'the key "colour" is unknown'),
    ("profile", "interfaces/0/mode", REMOVE, "$.interfaces[0]", 'the key "mode" is missing'),
    ("profile", "interfaces/0/mode", "bridge", "$.interfaces[0].mode", "is none of"),
    ("profile", "interfaces/0/device", "..", "$.interfaces[0].device", INTERFACE),
    ("profile", "interfaces/0/device", "a/b", "$.interfaces[0].device", INTERFACE),
    ("profile", "interfaces/0/device", "a*b*", "$.interfaces[0].device", INTERFACE),
    ("profile", "interfaces/0/device", "a" * 16, "$.interfaces[0].device", INTERFACE),
    ("profile", "interfaces/0/device", 1, "$.interfaces[0].device", INTERFACE),
    ("profile", "interfaces/0/name", "hsn*", "$.interfaces[0].name", INTERFACE),
    ("profile", "interfaces/0/name", 1, "$.interfaces[0].name", INTERFACE),
    ("profile", "interfaces/0/addresses", "10.0.0.1/8", "$.interfaces[0].addresses", "is not a list"),
    ("profile", "interfaces/0/addresses", ["::1/64", "::1/64"], "$.interfaces[0].addresses", "an entry occurs twice"),
    ("profile", "interfaces/0/addresses", [f"10.0.0.{n}/8" for n in range(9)], "$.interfaces[0].addresses", "9 entries, at most 8"),
    ("profile", "interfaces/0/addresses/0", "10.0.0.1", "$.interfaces[0].addresses[0]", "is not an address and the length"),
    ("profile", "interfaces/0/addresses/0", 1, "$.interfaces[0].addresses[0]", "is not an address and the length"),
    ("profile", "devices", "/dev/x", "$.devices", "is not a list"),
    ("profile", "devices", ["/dev/x", "/dev/x"], "$.devices", "an entry occurs twice"),
    ("profile", "devices", [f"/dev/{n}" for n in range(65)], "$.devices", "65 entries, at most 64 possible"),
    ("profile", "devices/0", "/etc/x", "$.devices[0]", DEVICE),
    ("profile", "devices/0", "/dev/../etc/x", "$.devices[0]", DEVICE),
    ("profile", "devices/0", "/dev/..", "$.devices[0]", DEVICE),
    ("profile", "devices/0", "/dev/a*/b", "$.devices[0]", DEVICE),
    ("profile", "devices/0", "/dev/a*b*", "$.devices[0]", DEVICE),
    ("profile", "devices/0", "/dev/", "$.devices[0]", DEVICE),
    ("profile", "devices/0", 1, "$.devices[0]", DEVICE),
    ("profile", "devices/0", "/dev/" + "x" * 5000, "$.devices[0]", "5005 characters, at most 4095 possible"),
    ("profile", "job", [], "$.job", "[] is not an object"),
    ("profile", "job/wehn", "A", "$.job", 'did you mean "when"?'),
    ("profile", "job/when", "A B", "$.job.when", VARIABLE),
    ("profile", "job/when", 1, "$.job.when", VARIABLE),
    ("profile", "job/protocol", "pmi2", "$.job.protocol", 'none of: "pmix", "pmi"'),
    ("profile", "job/start", 1, "$.job.start", "is not a string"),
    ("profile", "job/start", "", "$.job.start", "0 characters, at least 1 wanted"),
    ("profile", "job/start", "x" * 201, "$.job.start", "201 characters, at most 200 possible"),
    ("profile", "job/environment", "A", "$.job.environment", "is not a list"),
    ("profile", "job/environment", ["A", "A"], "$.job.environment", "an entry occurs twice"),
    ("profile", "job/environment", [f"A{n}" for n in range(65)], "$.job.environment", "65 entries, at most 64 possible"),
    ("profile", "job/environment/0", "*", "$.job.environment[0]", VARIABLE[:-1]),
    ("profile", "job/environment/0", 1, "$.job.environment[0]", VARIABLE[:-1]),
    ("profile", "job/except_for", "A", "$.job.except_for", "is not a list"),
    ("profile", "job/except_for", ["A", "A"], "$.job.except_for", "an entry occurs twice"),
    ("profile", "job/except_for", [f"A{n}" for n in range(65)], "$.job.except_for", "65 entries, at most 64 possible"),
    ("profile", "job/except_for/0", "A*", "$.job.except_for[0]", VARIABLE),
    ("profile", "job/variables", [], "$.job.variables", "is not an object"),
    ("profile", "job/variables", {f"A{n}": "" for n in range(65)}, "$.job.variables", "65 keys, at most 64 possible"),
    ("profile", "job/variables", {"A=B": ""}, "$.job.variables", VARIABLE),
    ("profile", "job/variables/A", 1, "$.job.variables.A", "is not a text of at most 4095 characters"),
    ("profile", "job/variables/A", "x" * 4096, "$.job.variables.A", "is not a text of at most 4095 characters"),
    ("profile", "job/directories", "/a", "$.job.directories", "is not a list"),
    ("profile", "job/directories", ["/a", "/a"], "$.job.directories", "an entry occurs twice"),
    ("profile", "job/directories", [f"/{n}" for n in range(17)], "$.job.directories", "17 entries, at most 16 possible"),
    ("profile", "job/directories/0", "$A/b", "$.job.directories[0]", "is not / or ${NAME} followed by a path"),
    ("profile", "job/directories/0", 1, "$.job.directories[0]", "is not / or ${NAME} followed by a path"),
    ("profile", "job/directories/0", "/" + "x" * 5000, "$.job.directories[0]", "5001 characters, at most 4095 possible"),
    ("profile", "job/sockets", "/a", "$.job.sockets", "is not a list"),
    ("profile", "job/sockets", ["/a", "/a"], "$.job.sockets", "an entry occurs twice"),
    ("profile", "job/sockets", [f"/{n}" for n in range(17)], "$.job.sockets", "17 entries, at most 16 possible"),
    ("profile", "job/sockets/0", "a", "$.job.sockets[0]", DIRECTORY),
    ("profile", "job/needs", {}, "$.job.needs", "is not a list"),
    ("profile", "job/needs", [{"what": "network"}] * 17, "$.job.needs", "17 entries, at most 16 possible"),
    ("profile", "job/needs/0", "network", "$.job.needs[0]", "is not an object"),
    ("profile", "job/needs/0/waht", "x", "$.job.needs[0]", 'did you mean "what"?'),
    ("profile", "job/needs/0/what", REMOVE, "$.job.needs[0]", 'the key "what" is missing'),
    ("profile", "job/needs/0/what", "netwrok", "$.job.needs[0].what", 'did you mean "network"?'),
    ("profile", "job/needs/0/severity", "note", "$.job.needs[0].severity", 'none of: "error", "warning"'),
    ("profile", "job/needs/0/otherwise", [], "$.job.needs[0].otherwise", "is not an object"),
    ("profile", "job/needs/0/otherwise", {f"A{n}": "" for n in range(17)}, "$.job.needs[0].otherwise", "17 keys, at most 16 possible"),
    ("profile", "job/needs/0/otherwise", {"1": ""}, "$.job.needs[0].otherwise", VARIABLE),
    ("profile", "job/needs/0/otherwise/A", 1, "$.job.needs[0].otherwise.A", "is not a text of at most 4095 characters"),
    ("profile", "job/needs/0/otherwise/A", "\0", "$.job.needs[0].otherwise.A", "is not a text of at most 4095 characters"),
    ("profile", "job/scheduler", [], "$.job.scheduler", "is not an object"),
    ("profile", "job/scheduler/gpu", [], "$.job.scheduler", 'did you mean "gpus"?'),
    ("profile", "job/scheduler/gpus", "A", "$.job.scheduler.gpus", "is not a list"),
    ("profile", "job/scheduler/gpus", ["A", "A"], "$.job.scheduler.gpus", "an entry occurs twice"),
    ("profile", "job/scheduler/gpus", [f"A{n}" for n in range(17)], "$.job.scheduler.gpus", "17 entries, at most 16 possible"),
    ("profile", "job/scheduler/gpus/0", "A*", "$.job.scheduler.gpus[0]", VARIABLE),
    ("profile", "job/scheduler/cgroup", 1, "$.job.scheduler.cgroup", "is not a text of 1 to 255 characters without a slash"),
    ("profile", "job/scheduler/cgroup", "a/b", "$.job.scheduler.cgroup", "is not a text of 1 to 255 characters without a slash"),
    ("profile", "gpus", [], "$.gpus", "is not an object"),
    ("profile", "gpus/eahc", "/a", "$.gpus", 'did you mean "each"?'),
    ("profile", "gpus/each", REMOVE, "$.gpus", 'the key "each" is missing'),
    ("profile", "gpus/each", "a", "$.gpus.each", DIRECTORY),
    ("profile", "gpus/only", [], "$.gpus.only", "is not an object"),
    ("profile", "gpus/only", {f"A{n}": "x" for n in range(65)}, "$.gpus.only", "65 keys, at most 64 possible"),
    ("profile", "gpus/only", {"": "x"}, "$.gpus.only", TEXT),
    ("profile", "gpus/only/Kind", 1, "$.gpus.only.Kind", TEXT),
    ("profile", "gpus/bus", "", "$.gpus.bus", TEXT),
    ("profile", "gpus/devices", "/dev/a", "$.gpus.devices", "is not a list"),
    ("profile", "gpus/devices", ["/dev/a", "/dev/a"], "$.gpus.devices", "an entry occurs twice"),
    ("profile", "gpus/devices", [f"/dev/a{n}" for n in range(17)], "$.gpus.devices", "17 entries, at most 16 possible"),
    ("profile", "gpus/devices/0", "/proc/a", "$.gpus.devices[0]", DEVICE),
    ("profile", "gpus/devices/0", "/dev/../a", "$.gpus.devices[0]", DEVICE),
    ("profile", "gpus/devices/0", 1, "$.gpus.devices[0]", DEVICE),
    ("profile", "gpus/devices/0", "/dev/" + "x" * 5000, "$.gpus.devices[0]", "5005 characters, at most 4095 possible"),
    ("profile", "gpus/drm", "a", "$.gpus.drm", WITH_FACTS),
    ("profile", "gpus/drm", 1, "$.gpus.drm", WITH_FACTS),
    ("profile", "gpus/drm", "/" + "x" * 5000, "$.gpus.drm", "5001 characters, at most 4095 possible"),
    ("profile", "gpus/hidden", "/a", "$.gpus.hidden", "is not a list"),
    ("profile", "gpus/hidden", ["/a", "/a"], "$.gpus.hidden", "an entry occurs twice"),
    ("profile", "gpus/hidden", [f"/a{n}" for n in range(17)], "$.gpus.hidden", "17 entries, at most 16 possible"),
    ("profile", "gpus/parts", [], "$.gpus.parts", "is not an object"),
    ("profile", "gpus/parts/eahc", "/a", "$.gpus.parts", 'did you mean "each"?'),
    ("profile", "gpus/parts/devices", REMOVE, "$.gpus.parts", 'the key "devices" is missing'),
    ("profile", "gpus/selected_by", [], "$.gpus.selected_by", "is not an object"),
    ("profile", "gpus/selected_by", {"A B": "uuid"}, "$.gpus.selected_by", VARIABLE),
    ("profile", "gpus/selected_by/ACME_DEVICES", "uid", "$.gpus.selected_by.ACME_DEVICES", 'did you mean "uuid"?'),
    ("profile", "gpus/capabilities", [], "$.gpus.capabilities", "is not an object"),
    ("profile", "gpus/capabilities/variables", "A", "$.gpus.capabilities", 'did you mean "variable"?'),
    ("profile", "gpus/capabilities/variable", REMOVE, "$.gpus.capabilities", 'the key "variable" is missing'),
    ("profile", "gpus/requirements", [], "$.gpus.requirements", "is not an object"),
    ("profile", "gpus/requirements/version", {}, "$.gpus.requirements", 'did you mean "versions"?'),
    ("profile", "gpus/requirements/driver", REMOVE, "$.gpus.requirements", 'the key "driver" is missing'),
    ("profile", "gpus/requirements/variables", "*", "$.gpus.requirements.variables", VARIABLE[:-1]),
    ("profile", "gpus/requirements/variables", 1, "$.gpus.requirements.variables", VARIABLE[:-1]),
    ("profile", "gpus_of", "cuda", "$.gpus_of", "is not a list"),
    ("profile", "gpus_of", ["a", "a"], "$.gpus_of", "an entry occurs twice"),
    ("profile", "gpus_of", [f"a{n}" for n in range(17)], "$.gpus_of", "17 entries, at most 16 possible"),
    ("profile", "gpus_of/0", "CUDA", "$.gpus_of[0]", NAME),
    ("profile", "gpus_of/0", 1, "$.gpus_of[0]", NAME),
    ("site", "defaults/org.supercontainers.gpu.devices", "", '$.defaults["org.supercontainers.gpu.devices"]', "is not GPUs by number"),
    ("site", "defaults/org.supercontainers.gpu.devices", 0, '$.defaults["org.supercontainers.gpu.devices"]', "is not GPUs by number"),
    ("site", "defaults/org.supercontainers.launcher", "PMIx", '$.defaults["org.supercontainers.launcher"]', "is not none, auto, or names"),
    ("site", "defaults/org.supercontainers.fabric", "CXI", '$.defaults["org.supercontainers.fabric"]', "is not none, auto, or names of"),
    ("site", "defaults/org.supercontainers.fabric", 1, '$.defaults["org.supercontainers.fabric"]', "is not none, auto, or names of"),
    ("site", "defaults/org.supercontainers.gpu", "CUDA", '$.defaults["org.supercontainers.gpu"]', "is not none, auto, or names of GPU"),
    ("site", "defaults/org.supercontainers.gpu", 1, '$.defaults["org.supercontainers.gpu"]', "is not none, auto, or names of GPU stacks"),
    ("site", "defaults/org.supercontainers.launcher", 1, '$.defaults["org.supercontainers.launcher"]', "is not none, auto, or names"),
    ("site", "defaults/org.supercontainers.network", "A", '$.defaults["org.supercontainers.network"]', "is not none, auto, or names"),
    ("site", "defaults/org.supercontainers.network", 1, '$.defaults["org.supercontainers.network"]', "is not none, auto, or names of net"),
    ("site", "default", {}, "$", 'the key "default" is unknown; did you mean "defaults"?'),
    ("site", "$schema", "profile.schema.json", "$.$schema", "is not a reference to site.schema.json"),
    ("site", "$schema", 1, "$.$schema", "is not a reference to site.schema.json"),
    ("site", "version", REMOVE, "$", 'the key "version" is missing'),
    ("site", "version", 0, "$.version", "0 is not 1"),
    ("site", "profiles", "mpich", "$.profiles", "is not a list"),
    ("site", "profiles", [f"p{n}" for n in range(257)], "$.profiles", "257 entries, at most 256 possible"),
    ("site", "profiles/0", 1, "$.profiles[0]", "1 is not the name of a profile, or an object with name and search"),
    ("site", "profiles/0", "MPICH", "$.profiles[0]", "is not the name of a profile"),
    ("site", "profiles/1/name", REMOVE, "$.profiles[1]", 'the key "name" is missing'),
    ("site", "profiles/1/name", "", "$.profiles[1].name", NAME),
    ("site", "profiles/1/name", 1, "$.profiles[1].name", NAME),
    ("site", "profiles/1/serach", [], "$.profiles[1]", 'did you mean "search"?'),
    ("site", "profiles/1/search", "/opt", "$.profiles[1].search", "is not a list"),
    ("site", "profiles/1/search", ["/a", "/a"], "$.profiles[1].search", "an entry occurs twice"),
    ("site", "profiles/1/search", [f"/{n}" for n in range(257)], "$.profiles[1].search", "257 entries, at most 256 possible"),
    ("site", "profiles/1/search/0", "lib", "$.profiles[1].search[0]", DIRECTORY),
    ("site", "profiles/1/search/0", 1, "$.profiles[1].search[0]", DIRECTORY),
    ("site", "profiles/1/search/0", "/" + "x" * 5000, "$.profiles[1].search[0]", "5001 characters, at most 4095 possible"),
    *variants("site", "profiles/1/variants", "$.profiles[1].variants"),
    ("site", "defaults", "auto", "$.defaults", "is not an object"),
    ("site", "defaults/org.supercontainers.mip", "auto", "$.defaults", 'did you mean "org.supercontainers.mpi"?'),
    ("site", "defaults/org.supercontainers.mpi", "atuo", '$.defaults["org.supercontainers.mpi"]', 'did you mean "auto"?'),
    ("site", "on_refusal", "run", "$.on_refusal", '"run" is none of: "refuse", "run-without"'),
    ("site", "unproved", "runs", "$.unproved", '"runs" is none of: "run", "refuse"; did you mean "run"?'),
    ("site", "loader_cache", "bin", "$.loader_cache", '"bin" is none of: "file", "bind"; did you mean "bind"?'),
    ("site", "c_runtime", "hots", "$.c_runtime", "is not none, host, or an object with search"),
    ("site", "c_runtime", 1, "$.c_runtime", "is not none, host, or an object with search"),
    ("site", "c_runtime", {}, "$.c_runtime", 'the key "search" is missing'),
    ("site", "c_runtime/serach", [], "$.c_runtime", 'did you mean "search"?'),
    ("site", "c_runtime/search", "/opt", "$.c_runtime.search", "is not a list"),
    ("site", "c_runtime/search", [], "$.c_runtime.search", "0 entries, at least 1 wanted"),
    ("site", "c_runtime/search", ["/a", "/a"], "$.c_runtime.search", "an entry occurs twice"),
    ("site", "c_runtime/search", [f"/{n}" for n in range(257)], "$.c_runtime.search", "257 entries, at most 256 possible"),
    ("site", "c_runtime/search/0", "lib", "$.c_runtime.search[0]", DIRECTORY),
    ("site", "c_runtime/search/0", 1, "$.c_runtime.search[0]", DIRECTORY),
    ("site", "c_runtime/search/0", "/" + "x" * 5000, "$.c_runtime.search[0]", "5001 characters, at most 4095 possible"),
]


def errors(kind: str, document: object) -> List[Tuple[str, str]]:
    return [(problem.path, problem.message) for problem in validate.schema_problems(document, kind, "file.json")]


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_document_is_good(kind: str) -> None:
    assert errors(kind, WHOLE[kind]) == []


@pytest.mark.parametrize(("kind", "path", "value"), GOOD)
def test_good(kind: str, path: str, value: object) -> None:
    assert errors(kind, changed(kind, path, value)) == []


@pytest.mark.parametrize(("kind", "path", "value", "where", "message"), BAD)
def test_bad(kind: str, path: str, value: object, where: str, message: str) -> None:
    ((found_where, found_message),) = errors(kind, changed(kind, path, value))
    assert found_where == where
    assert message in found_message


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("document", [[], "x", 1, None])
def test_document_that_is_no_object(kind: str, document: object) -> None:
    ((where, message),) = errors(kind, document)
    assert where == "$"
    assert "is not" in message


def test_mask_needs_nothing_else() -> None:
    assert errors("profile", {"version": 1, "name": "mpich", "masked": True}) == []
    assert [message for _, message in errors("profile", {"masked": True})] == [
        'the key "version" is missing: Version of this format.',
        "the key \"name\" is missing: The file's name without .json; site.json refers to it.",
    ]


def subschemas(schema: Any) -> Iterator[Dict[str, Any]]:
    """Every schema in a schema that a value can fail; an ``if`` chooses, nothing fails it."""
    if isinstance(schema, dict):
        yield schema
        for name in ("properties", "definitions"):
            for child in schema.get(name, {}).values():
                yield from subschemas(child)
        for name in ("items", "else", "additionalProperties"):
            yield from subschemas(schema.get(name))


@pytest.mark.parametrize("kind", WHOLE)
def test_each_keyword_has_a_bad_row(kind: str) -> None:
    validator = validate._validator(kind)
    words = {*validate._SAYS, "pattern"}
    # A schema for all other keys has no words of its own: what it holds has.
    known = {(id(schema), word): (schema, word) for schema in subschemas(validator.schema) for word, value in schema.items()
             if word in words and not (word == "additionalProperties" and isinstance(value, dict))}
    rows: List[Any] = [changed(row[0], row[1], row[2]) for row in BAD if row[0] == kind]
    failed = {(id(error.schema), error.validator) for document in [*rows, []] for error in validator.iter_errors(document)}
    lacking = [f"{word} of {schema.get('description', schema)}" for key, (schema, word) in known.items() if key not in failed]
    assert lacking == []


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: str(path.name))
def test_schema_is_draft_07(path: Path) -> None:
    schema = json.loads(path.read_text())
    Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    for part in subschemas(schema):
        if "pattern" in part:
            assert part["pattern"].startswith("^") and part["pattern"].endswith("$")


@pytest.mark.parametrize("kind", ["profile", "site", "inventory"])
def test_schema_explains_itself(kind: str) -> None:
    schema = json.loads(resources.find(f"schemas/{kind}.schema.json").read_text())
    for part in subschemas(schema):
        if part.get("type") == "object":
            assert "additionalProperties" in part, part
        if "pattern" in part:
            assert "title" in part, part
        for name, child in part.get("properties", {}).items():
            target = schema["definitions"][child["$ref"].rpartition("/")[2]] if "$ref" in child else child
            assert child.get("description") or target.get("description"), name
            assert child.get("examples") or target.get("examples") or target.get("properties"), name


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: str(path.name))
def test_examples_are_valid(path: Path) -> None:
    schema = json.loads(path.read_text())
    for part in subschemas(schema):
        for example in part.get("examples", ()):
            checked = {**part, "definitions": schema.get("definitions", {})}
            checked.pop("$id", None)
            Draft7Validator(checked).validate(example)
