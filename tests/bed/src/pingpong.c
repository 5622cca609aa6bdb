/* Whether ranks reach each other, and how: pairs of ranks send messages of several sizes to and fro and look at each byte. Each rank
 * prints one line:
 *
 *   rank 0 of 4 on n1: Open MPI v4.1.4; sum of ranks + 1: 10; 3 messages right; memory shared with 3 ranks
 *
 * Memory is shared with a rank if both have mapped one file of /dev/shm (by device and inode, so two that only have the same name
 * do not count).
 *
 * With the argument "late" rank 0 comes to MPI_Finalize a second before the others, who are at work in MPI meanwhile.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILES = 256 };

static unsigned char pattern(int from, size_t size, size_t at) { return (unsigned char)(from * 131 + size * 31 + at * 7 + at / 251); }

/* Files of /dev/shm that are mapped shared, as device * 2^40 + inode; 0 where there is none. */
static void shared_files(unsigned long long *files) {
    char line[4608], flags[8], path[4096];
    unsigned long long inode;
    unsigned major, minor;
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    memset(files, 0, FILES * sizeof *files);
    while (maps && count < FILES && fgets(line, sizeof line, maps))
        if (sscanf(line, "%*s %7s %*s %x:%x %llu %4095s", flags, &major, &minor, &inode, path) == 5 && flags[3] == 's' &&
            !strncmp(path, "/dev/shm/", 9))
            files[count++] = ((unsigned long long)(major << 20 | minor) << 40) + inode;
    if (maps)
        fclose(maps);
}

/* Returns how many of the messages, one for each size, came back from the peer as they should. */
static int exchange(int rank, int peer) {
    static const size_t sizes[] = {1, 4096, 1 << 20};
    int right = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t size = sizes[s], bad = 0;
        unsigned char *out = malloc(size), *in = calloc(1, size);
        for (size_t i = 0; i < size; i++)
            out[i] = pattern(rank, size, i);
        if (rank < peer)
            MPI_Send(out, (int)size, MPI_BYTE, peer, 7, MPI_COMM_WORLD);
        MPI_Recv(in, (int)size, MPI_BYTE, peer, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (rank > peer)
            MPI_Send(out, (int)size, MPI_BYTE, peer, 7, MPI_COMM_WORLD);
        for (size_t i = 0; i < size; i++)
            bad += in[i] != pattern(peer, size, i);
        right += !bad;
        free(out);
        free(in);
    }
    return right;
}

/* Answers whatever other ranks want from this one. */
static void stay(double seconds) {
    int flag;
    for (double start = MPI_Wtime(); MPI_Wtime() < start + seconds;)
        MPI_Iprobe(MPI_ANY_SOURCE, 8, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
}

int main(int argc, char **argv) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING], host[256] = "";
    unsigned long long mine[FILES], *all;
    int rank, ranks, length, value, sum = 0, right = 0, peers = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Get_library_version(version, &length);
    version[strcspn(version, "\n,;")] = 0;
    for (char *c = version; *c; c++)
        if (*c == '\t')
            *c = ' ';
    gethostname(host, sizeof host - 1);
    value = rank + 1;
    MPI_Allreduce(&value, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if ((rank ^ 1) < ranks)
        right = exchange(rank, rank ^ 1);
    shared_files(mine);
    all = calloc(ranks, sizeof mine);
    MPI_Allgather(mine, FILES, MPI_UNSIGNED_LONG_LONG, all, FILES, MPI_UNSIGNED_LONG_LONG, MPI_COMM_WORLD);
    for (int other = 0; other < ranks; other++) {
        int common = 0;
        for (int i = 0; i < FILES; i++)
            for (int j = 0; j < FILES; j++)
                common |= other != rank && mine[i] && mine[i] == all[other * FILES + j];
        peers += common;
    }
    free(all);
    printf("rank %d of %d on %s: %s; sum of ranks + 1: %d; %d messages right; memory shared with %d ranks\n", rank, ranks, host, version,
           sum, right, peers);
    fflush(stdout);
    if (rank > 0 && argc > 1 && !strcmp(argv[1], "late"))
        stay(1);
    MPI_Finalize();
    return 0;
}
