/* SPDX-License-Identifier: MIT OR Apache-2.0 */

#include "digits.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

enum { MAX_PIXEL = 16, FIELDS = PIXELS + 1, MAX_IMAGES = 100000, MAX_LINE = 512 };

static dataset dataset_new(size_t count) {
    dataset d = {count, allocate(count * PIXELS, sizeof(float)), allocate(count, 1)};
    return d;
}

void dataset_free(dataset *d) {
    free(d->pixels);
    free(d->labels);
}

static void dataset_copy_image(dataset *to, size_t i, const dataset *from, size_t j) {
    memcpy(to->pixels + i * PIXELS, from->pixels + j * PIXELS, PIXELS * sizeof(float));
    to->labels[i] = from->labels[j];
}

/* Reads one number and the comma, or the end of the line, behind it. */
static const char *parse_field(const char *text, bool last, int limit, int *value, const char **problem) {
    int number = 0, digits = 0;
    for (; *text >= '0' && *text <= '9'; text++, digits++) {
        number = 10 * number + (*text - '0');
        if (number > limit) {
            *problem = last ? "a label above 9" : "a pixel above 16";
            return NULL;
        }
    }
    if (digits == 0) {
        *problem = *text ? "a character that belongs to no number" : "too few numbers";
        return NULL;
    }
    if (*text != (last ? '\0' : ',')) {
        *problem = last ? "more than 65 numbers, or something behind the label"
                        : *text ? "a character that belongs to no number" : "too few numbers";
        return NULL;
    }
    *value = number;
    return last ? text : text + 1;
}

static void parse_image(const char *path, size_t line_number, const char *text, dataset *d, size_t i) {
    for (int field = 0; field < FIELDS; field++) {
        bool last = field == PIXELS;
        const char *problem;
        int value;
        text = parse_field(text, last, last ? CLASSES - 1 : MAX_PIXEL, &value, &problem);
        if (!text) fail("%s, line %zu, number %d of %d: %s", path, line_number, field + 1, FIELDS, problem);
        if (last) {
            d->labels[i] = (unsigned char)value;
        } else {
            d->pixels[i * PIXELS + (size_t)field] = (float)value / MAX_PIXEL;
        }
    }
}

/* Reads a line without its end into `text`; false at the end of the file. */
static bool read_line(FILE *file, const char *path, size_t line_number, char text[MAX_LINE]) {
    size_t length = 0;
    int c;
    while ((c = getc(file)) != EOF && c != '\n') {
        if (c == '\0') fail("%s, line %zu: a zero byte; this is no text file", path, line_number);
        if (length + 1 >= MAX_LINE) fail("%s, line %zu: longer than %d characters", path, line_number, MAX_LINE - 1);
        text[length++] = (char)c;
    }
    if (ferror(file)) fail("%s: %s", path, strerror(errno));
    if (c == EOF && length == 0) return false;
    if (length > 0 && text[length - 1] == '\r') length--;
    text[length] = '\0';
    return true;
}

dataset load_digits(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("%s: %s (give its place with --data PATH)", path, strerror(errno));

    char text[MAX_LINE];
    size_t count = 0;
    while (read_line(file, path, count + 1, text)) {
        if (++count > MAX_IMAGES) fail("%s: more than %d lines", path, MAX_IMAGES);
    }
    if (count < 10 * CLASSES) fail("%s: only %zu images; too few for training and a test", path, count);

    dataset d = dataset_new(count);
    rewind(file);
    for (size_t i = 0; i < count; i++) {
        if (!read_line(file, path, i + 1, text)) fail("%s: changed while it was read", path);
        parse_image(path, i + 1, text, &d, i);
    }
    fclose(file);

    size_t seen[CLASSES] = {0};
    for (size_t i = 0; i < count; i++) seen[d.labels[i]]++;
    for (int label = 0; label < CLASSES; label++) {
        if (seen[label] == 0) fail("%s: no image of the digit %d", path, label);
    }
    return d;
}

static const struct {
    const char *name;
    const char *meaning;
} views[NUM_VIEWS] = {
    [VIEW_ROT90] = {"rot90", "turned by 90 degrees"},
    [VIEW_FLIP] = {"flip", "mirrored"},
    [VIEW_INVERT] = {"invert", "bright and dark exchanged"},
    [VIEW_PERMUTE] = {"permute", "pixels in another, fixed order"},
};

const char *view_name(view_kind view) { return views[view].name; }

const char *view_meaning(view_kind view) { return views[view].meaning; }

dataset seen_as(const dataset *upright, view_kind view, uint64_t seed) {
    size_t source[PIXELS];
    for (size_t i = 0; i < PIXELS; i++) {
        size_t row = i / IMAGE_SIDE, column = i % IMAGE_SIDE;
        source[i] = view == VIEW_ROT90  ? column * IMAGE_SIDE + (IMAGE_SIDE - 1 - row)
                    : view == VIEW_FLIP ? row * IMAGE_SIDE + (IMAGE_SIDE - 1 - column)
                                        : i;
    }
    if (view == VIEW_PERMUTE) {
        rng r = rng_for(seed, RNG_PERMUTATION);
        shuffle(&r, source, PIXELS);
    }

    dataset d = dataset_new(upright->count);
    memcpy(d.labels, upright->labels, upright->count);
    for (size_t i = 0; i < d.count; i++) {
        const float *from = upright->pixels + i * PIXELS;
        float *to = d.pixels + i * PIXELS;
        for (size_t j = 0; j < PIXELS; j++) to[j] = view == VIEW_INVERT ? 1.0F - from[j] : from[source[j]];
    }
    return d;
}

size_t held_out(size_t count) { return count / 5; }

void split(const dataset *all, uint64_t seed, dataset *train, dataset *test) {
    size_t *order = allocate(all->count, sizeof *order);
    for (size_t i = 0; i < all->count; i++) order[i] = i;
    rng r = rng_for(seed, RNG_SPLIT);
    shuffle(&r, order, all->count);

    *test = dataset_new(held_out(all->count));
    *train = dataset_new(all->count - test->count);
    for (size_t i = 0; i < test->count; i++) dataset_copy_image(test, i, all, order[i]);
    for (size_t i = 0; i < train->count; i++) dataset_copy_image(train, i, all, order[test->count + i]);
    free(order);
}
