/* The MPI program of the test images. Each rank prints one line that says, from inside, who it is and which
 * MPI library really is loaded; rank 0 then prints the result of a collective.
 *
 *   rank 0 of 2: MPICH Version: 5.0.2; loaded /usr/lib/x86_64-linux-gnu/libmpich.so.12.2.2
 *   rank 1 of 2: ...
 *   sum of ranks + 1: 3
 */
#include <mpi.h>
#include <stdio.h>
#include <string.h>

/* Appends every file mapped into this process whose name has libmpi in it (libmpi.so, libmpich.so), once each. */
static void loaded(char *out, size_t size) {
    char line[4608], last[4608] = "";
    FILE *maps = fopen("/proc/self/maps", "r");
    out[0] = 0;
    if (!maps) {
        snprintf(out, size, " (no /proc)");
        return;
    }
    while (fgets(line, sizeof line, maps)) {
        char *path = strchr(line, '/'), *name = path ? strrchr(path, '/') : NULL;
        if (!name || strncmp(name, "/libmpi", 7))
            continue;
        path[strcspn(path, "\n")] = 0;
        if (strcmp(path, last) && strlen(out) + strlen(path) + 2 < size) {
            strcat(strcat(out, " "), path);
            strcpy(last, path);
        }
    }
    fclose(maps);
}

int main(int argc, char **argv) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING], libraries[8192];
    int rank, ranks, length, mine, sum = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Get_library_version(version, &length);
    version[strcspn(version, "\n")] = 0;
    for (char *c = version; *c; c++)
        if (*c == '\t')
            *c = ' ';
    loaded(libraries, sizeof libraries);
    mine = rank + 1;
    MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d of %d: %s; loaded%s\n", rank, ranks, version, libraries);
    fflush(stdout);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        printf("sum of ranks + 1: %d\n", sum);
    MPI_Finalize();
    return sum == ranks * (ranks + 1) / 2 ? 0 : 1;
}
