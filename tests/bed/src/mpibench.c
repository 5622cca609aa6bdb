/* How long ranks take to start, and messages to arrive; for benchmarks/application.py. Rank 0 prints, one figure a line:
 *
 *   mpibench              started RANKS NANOSECONDS           when the last rank had left MPI_Init, on the clock CLOCK_MONOTONIC, which
 *                                                             all processes of a machine share
 *   mpibench SIZE...      pingpong SIZE MICROSECONDS          one way, of ranks 0 and 1
 *                         allreduce SIZE MICROSECONDS         the sum of that many bytes of doubles
 *                         checked HEX                         of all bits that have arrived: equal if the same was computed
 *
 * and in both cases the library's version. A figure is the median over batches, so that a moment in which a rank was not running does
 * not count. A wrong byte ends the program with status 1.
 */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCHES = 15 };

static uint64_t check = 14695981039346656037u; /* FNV-1a, 64 bits */

static void checked(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        check = (check ^ ((const unsigned char *)data)[i]) * 1099511628211u;
}

static int ascending(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

/* So many of one batch that the clock's own cost is lost in them, and that large messages do not take minutes. */
static int repeats(size_t size) { return size < 4096 ? 200 : size > (1 << 20) ? 4 : (int)((1 << 20) / size) + 4; }

static void pingpong(int rank, char *data, size_t size) {
    for (int i = 0; i < repeats(size); i++)
        if (rank == 0) {
            MPI_Send(data, (int)size, MPI_BYTE, 1, 1, MPI_COMM_WORLD);
            MPI_Recv(data, (int)size, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else if (rank == 1) {
            MPI_Recv(data, (int)size, MPI_BYTE, 0, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(data, (int)size, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
        }
}

static void measure(int rank, const char *what, size_t size, char *data, double *numbers, double *sums) {
    double took[BATCHES];
    int sum = strcmp(what, "pingpong") != 0;
    for (int batch = -1; batch < BATCHES; batch++) { /* the first one warms up */
        MPI_Barrier(MPI_COMM_WORLD);
        double began = MPI_Wtime();
        if (!sum)
            pingpong(rank, data, size);
        for (int i = 0; sum && i < repeats(size); i++)
            MPI_Allreduce(numbers, sums, (int)(size / sizeof *sums), MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        if (batch >= 0)
            took[batch] = (MPI_Wtime() - began) * 1e6 / repeats(size) / (sum ? 1 : 2);
    }
    qsort(took, BATCHES, sizeof *took, ascending);
    checked(sum ? (char *)sums : data, size);
    if (rank == 0)
        printf("%s %zu %.3f\n", what, size, took[BATCHES / 2]);
}

static void messages(int rank, size_t size) {
    char *data = malloc(size);
    double *numbers = malloc(size), *sums = malloc(size);
    for (size_t i = 0; i < size; i++)
        data[i] = rank ? 0 : (char)(i * 7 + i / 251);
    for (size_t i = 0; i < size / sizeof *numbers; i++)
        numbers[i] = 1.0 / (double)(i * 3 + rank + 1); /* sums that round */
    measure(rank, "pingpong", size, data, numbers, sums);
    for (size_t i = 0; i < size && rank < 2; i++)
        if (data[i] != (char)(i * 7 + i / 251)) {
            fprintf(stderr, "mpibench: byte %zu of %zu is wrong\n", i, size);
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
    measure(rank, "allreduce", size, data, numbers, sums);
    free(data);
    free(numbers);
    free(sums);
}

int main(int argc, char **argv) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    long long now, last = 0;
    struct timespec clock;
    int rank, ranks, length;
    MPI_Init(&argc, &argv);
    clock_gettime(CLOCK_MONOTONIC, &clock);
    now = clock.tv_sec * 1000000000LL + clock.tv_nsec;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Reduce(&now, &last, 1, MPI_LONG_LONG, MPI_MAX, 0, MPI_COMM_WORLD);
    MPI_Get_library_version(version, &length);
    version[strcspn(version, "\n,;")] = 0;
    if (rank == 0) {
        printf("version %s\n", version);
        printf("started %d %lld\n", ranks, last);
    }
    for (int i = 1; i < argc; i++)
        messages(rank, strtoul(argv[i], NULL, 10));
    if (rank == 0 && argc > 1)
        printf("checked %016llx\n", (unsigned long long)check);
    MPI_Finalize();
    return 0;
}
