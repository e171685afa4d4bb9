/* Two Rust libraries linked into one program, each of which brings Rust's run time. */

#include "stepper.h"

uint64_t neighbour_sum(uint64_t count);

int main(void) {
    static stepper s;
    int round;
    if (!stepper_create(&s)) return 1;
    for (round = 0; round < 4; round++) {
        if (!stepper_step(&s)) return 1;
        if (neighbour_sum(1000) != 500500) {
            fprintf(stderr, "the other library has failed\n");
            return 1;
        }
        /* An error, so that mofo's own thread-local text is there too. */
        if (mofo_step(NULL, NULL) >= 0 || mofo_last_error()[0] == '\0') return 1;
    }
    stepper_destroy(&s);
    printf("both libraries work\n");
    return 0;
}
