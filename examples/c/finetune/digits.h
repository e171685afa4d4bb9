/*
 * The handwritten digits: reading, viewing and splitting them.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef FINETUNE_DIGITS_H
#define FINETUNE_DIGITS_H

#include <stddef.h>
#include <stdint.h>

enum { IMAGE_SIDE = 8, PIXELS = IMAGE_SIDE * IMAGE_SIDE, CLASSES = 10 };

typedef struct {
    size_t count;
    float *pixels;         /* `count` rows of PIXELS values from 0 to 1 */
    unsigned char *labels; /* `count` values from 0 to CLASSES - 1 */
} dataset;

void dataset_free(dataset *d);

/* Reads one image a line: 64 pixels from 0 to 16, row by row, and the label, separated by commas. */
dataset load_digits(const char *path);

/* How the new task shows the digits. */
typedef enum { VIEW_ROT90, VIEW_FLIP, VIEW_INVERT, VIEW_PERMUTE, NUM_VIEWS } view_kind;

const char *view_name(view_kind view);
const char *view_meaning(view_kind view);

/* The same images and labels in another view. The seed chooses the permutation of VIEW_PERMUTE. */
dataset seen_as(const dataset *upright, view_kind view, uint64_t seed);

/* A random fifth of the images is held out for tests: `held_out(count)` of them. */
size_t held_out(size_t count);
void split(const dataset *all, uint64_t seed, dataset *train, dataset *test);

#endif
