"""Real libraries for the tests of the scan, built with gcc; no system headers, no C runtime unless asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Sequence

#: What tells MPICH from Open MPI.
MPICH = ("MPI_Init", "MPI_Send", "PMPI_Send", "MPIR_Dup_fn")
OPENMPI = ("MPI_Init", "ompi_mpi_comm_world")


def build(
    path: Path,
    *,
    soname: str = "",
    exports: Sequence[str] = (),
    needed: Sequence[Path] = (),
    runpath: str = "",
    version: str = "",
    uses: Sequence[str] = (),
) -> Path:
    """A shared object. ``needed`` are built files, and each becomes a DT_NEEDED by its soname; ``version`` is given to every symbol.
    ``uses`` are functions that it calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-w", "-xc", "-", "-xnone", "-shared", "-fPIC", "-nostdlib", "-o", str(path), "-Wl,--no-as-needed"]
    command += ["-Wl,--allow-shlib-undefined", f"-Wl,-soname,{soname or path.name}"]
    if runpath:
        command += ["-Wl,--enable-new-dtags", f"-Wl,-rpath,{runpath}"]
    if version:
        script = path.with_name(f"{path.name}.map")
        script.write_text(f"{version} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={script}")
    source = "".join(f"int {name}(void) {{ return 0; }}\n" for name in exports)
    source += "".join(f"extern int {name}(void); int (*use_{name})(void) = {name};\n" for name in uses)
    subprocess.run([*command, *map(str, needed)], input=source.encode(), check=True)
    return path
