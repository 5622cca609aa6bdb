/* dlcall LIBRARY FUNCTION ...: opens each library by its name and calls int FUNCTION(0) in it, as programs do that find a driver at run time.
 * Prints what that returns, and the file that was opened. Exit status 1 if a library or function is missing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int status = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        struct link_map *map = NULL;
        void *library = dlopen(argv[i], RTLD_NOW);
        if (!library || dlinfo(library, RTLD_DI_LINKMAP, &map)) {
            printf("%s: %s\n", argv[i], dlerror());
            status = 1;
            continue;
        }
        int (*function)(unsigned) = (int (*)(unsigned))dlsym(library, argv[i + 1]);
        if (!function) status = 1;
        printf("%s: %s = %d (%s)\n", argv[i], argv[i + 1], function ? function(0) : -1, map->l_name);
        fflush(stdout);
    }
    return status;
}
