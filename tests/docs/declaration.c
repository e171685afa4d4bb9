/* A declaration must be that of the header: two that differ are an error. */
#include <mofo.h>

#pragma GCC diagnostic ignored "-Wunused-local-typedefs"

int main(void) {
/* the block */
    return 0;
}
