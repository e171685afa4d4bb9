/*
 * Fine-tuning that forgets less, shown on handwritten digits.
 *
 * A small network learns upright digits and is then fine-tuned on the same digits seen in another way (turned by 90
 * degrees, say) until its training loss is low. How well does it still read upright ones? The program answers for
 * AdamW, for MoFO, which moves only the entries of largest momentum, and for a control that moves as many entries, but
 * random ones. All are compared at the same training loss on the new task and at the same learning rates.
 *
 * It is also an example of a training engine that uses mofo: the engine owns parameters and gradients, and the library
 * takes the optimizer steps on them. finetune/trainer.c has the calls. Around it are the data (digits.c), the network
 * (mlp.c), the runs (demo.c) and the table (report.c), all of it C11 with nothing but the standard library:
 *
 *     cc -O3 -std=c11 -Iinclude examples/c/finetune.c examples/c/finetune/[a-z]*.c target/release/libmofo.a \
 *         -lpthread -ldl -lm -o finetune
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "finetune/demo.h"
#include "finetune/mlp.h"
#include "finetune/trainer.h"

int main(int argc, char **argv) {
    arguments a = parse_arguments(argc, argv);
    mlp net = mlp_new();
    engine on_the_cpu = host_engine(&net);
    int status = run_demo(&a, &on_the_cpu);
    mlp_free(&net);
    return status;
}
