! mpihello.c in Fortran, with the module mpi.
program mpihello
    use mpi
    implicit none
    character(len=MPI_MAX_LIBRARY_VERSION_STRING) :: version
    character(len=4096) :: line, path, last
    character(len=8192) :: loaded
    integer :: rank, ranks, length, mine, total, error, unit, status, i

    call MPI_Init(error)
    call MPI_Comm_rank(MPI_COMM_WORLD, rank, error)
    call MPI_Comm_size(MPI_COMM_WORLD, ranks, error)
    call MPI_Get_library_version(version, length, error)
    length = min(length, index(version // char(10), char(10)) - 1)
    do i = 1, length
        if (version(i:i) == char(9)) version(i:i) = ' '
    end do
    loaded = ''
    last = ''
    open(newunit=unit, file='/proc/self/maps', action='read')
    do
        read(unit, '(a)', iostat=status) line
        if (status /= 0) exit
        if (index(line, '/libmpi') == 0) cycle
        path = line(index(line, '/'):)
        if (path /= last) loaded = trim(loaded) // ' ' // path
        last = path
    end do
    close(unit)
    mine = rank + 1
    call MPI_Allreduce(mine, total, 1, MPI_INTEGER, MPI_SUM, MPI_COMM_WORLD, error)
    print '(a,i0,a,i0,5a)', 'rank ', rank, ' of ', ranks, ': ', version(1:length), '; loaded', trim(loaded)
    flush(6)
    call MPI_Barrier(MPI_COMM_WORLD, error)
    if (rank == 0) print '(a,i0)', 'sum of ranks + 1: ', total
    call MPI_Finalize(error)
    if (total /= ranks * (ranks + 1) / 2) stop 1
end program mpihello
