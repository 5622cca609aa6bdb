#!/usr/bin/python3
"""mpihello.c, for mpi4py."""

from mpi4py import MPI  # type: ignore[import-not-found]

comm = MPI.COMM_WORLD
version = MPI.Get_library_version().split("\n")[0].strip("\x00").replace("\t", " ")
with open("/proc/self/maps") as maps:
    loaded = dict.fromkeys(line.split()[-1] for line in maps if "/libmpi" in line)
total = comm.allreduce(comm.rank + 1)
print(f"rank {comm.rank} of {comm.size}: {version}; loaded {' '.join(loaded)}", flush=True)
comm.Barrier()
if comm.rank == 0:
    print(f"sum of ranks + 1: {total}", flush=True)
raise SystemExit(total != comm.size * (comm.size + 1) // 2)
