/* A program without MPI: linked statically, or against musl, for images that can take no glibc library. */
#include <stdio.h>

int main(void) {
    puts("hello from " KIND);
    return 0;
}
