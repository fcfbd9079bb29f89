/* MPI's own profiling interface as a second opinion on what a program sends: preloaded, it counts every message of a rank by
 * tag, and at the end writes `rank tag messages bytes` lines to $PMPI_COUNTS/RANK. Only messages between callers, on
 * MPI_COMM_WORLD; those of collectives go over a communicator of their own. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#define TAGS (1 << 15)
static unsigned long long messages[TAGS], bytes[TAGS];

int MPI_Isend(const void *buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *request)
{
    int size, same = MPI_UNEQUAL;
    PMPI_Type_size(type, &size);
    PMPI_Comm_compare(comm, MPI_COMM_WORLD, &same);
    if (same == MPI_IDENT && tag >= 0 && tag < TAGS) {
        messages[tag]++;
        bytes[tag] += (unsigned long long)count * size;
    }
    return PMPI_Isend(buffer, count, type, to, tag, comm, request);
}

int MPI_Finalize(void)
{
    int rank;
    char path[4096];
    PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
    snprintf(path, sizeof path, "%s/%d", getenv("PMPI_COUNTS"), rank);
    FILE *file = fopen(path, "w");
    for (int tag = 0; file && tag < TAGS; tag++)
        if (messages[tag])
            fprintf(file, "%d %d %llu %llu\n", rank, tag, messages[tag], bytes[tag]);
    if (file)
        fclose(file);
    return PMPI_Finalize();
}
