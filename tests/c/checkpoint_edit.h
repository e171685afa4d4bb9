/* Checkpoints that are made wrong in one place: a saved one is taken apart, changed, and put together again with the
 * checksum of its description as it should be. For small models with names of plain characters. */

#ifndef CHECKPOINT_EDIT_H
#define CHECKPOINT_EDIT_H

#include "checkpoint.h"

/* CRC-32 as in zlib, bit by bit: a check of the library's own that shares nothing with it. */
static inline uint32_t crc32_of(const void *data, size_t size) {
    const unsigned char *bytes = data;
    uint32_t crc = 0xFFFFFFFFu;
    size_t i;
    int bit;
    for (i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1u ? 0xEDB88320u : 0u);
        }
    }
    return ~crc;
}

/* A checkpoint in parts. */
struct parts {
    char *description; /* the string "mofo", unescaped */
    char *arrays;      /* what follows the metadata in the header */
    unsigned char *data;
    size_t data_size;
};

static inline uint64_t read_length(const unsigned char *bytes) {
    uint64_t length = 0;
    int i;
    for (i = 7; i >= 0; i--) {
        length = length << 8 | bytes[i];
    }
    return length;
}

static inline void write_length(unsigned char *bytes, uint64_t length) {
    int i;
    for (i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)(length >> (8 * i));
    }
}

static const char metadata_begin[] = "{\"__metadata__\":{\"mofo\":\"";
static const char metadata_end[] = "\",\"mofo_crc32\":\"";

static inline struct parts parts_of(const struct bytes *saved) {
    struct parts parts;
    size_t length = (size_t)read_length(saved->data);
    const char *at = (const char *)saved->data + 8;
    char *to;
    parts.data_size = saved->size - 8 - length;
    parts.data = buffer_copy(saved->data + 8 + length, parts.data_size);
    parts.description = to = buffer_new(length + 1);
    REQUIRE(strncmp(at, metadata_begin, strlen(metadata_begin)) == 0);
    for (at += strlen(metadata_begin); *at != '"'; at++) {
        at += *at == '\\';
        *to++ = *at;
    }
    REQUIRE(strncmp(at, metadata_end, strlen(metadata_end)) == 0);
    at += strlen(metadata_end);
    REQUIRE(strncmp(at + 8, "\"}", 2) == 0);
    {
        char digits[9];
        snprintf(digits, sizeof digits, "%08lx", (unsigned long)crc32_of(parts.description, strlen(parts.description)));
        CHECK(strncmp(at, digits, 8) == 0);
    }
    at += 10;
    length -= (size_t)(at - (const char *)saved->data - 8);
    parts.arrays = buffer_new(length + 1);
    memcpy(parts.arrays, at, length);
    while (length > 0 && parts.arrays[length - 1] == ' ') {
        parts.arrays[--length] = 0;
    }
    return parts;
}

static inline void parts_free(struct parts *parts) {
    free(parts->description);
    free(parts->arrays);
    free(parts->data);
}

/* `text` with the first `from` replaced, which must be there. */
static inline char *replaced(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    char *result = buffer_new(strlen(text) + strlen(to) + 1);
    if (!CHECK(at != NULL)) {
        printf("    \"%s\" is not in \"%s\"\n", from, text);
        exit(check_finish());
    }
    sprintf(result, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return result;
}

/* A file with this header and this data. */
static inline struct bytes with_header(const char *header, const void *data, size_t data_size) {
    struct bytes file = {NULL, 0};
    unsigned char length[8];
    write_length(length, strlen(header));
    bytes_append(&file, length, 8);
    bytes_append(&file, header, strlen(header));
    bytes_append(&file, data, data_size);
    return file;
}

/* The header that such parts make. */
static inline char *header_of(const char *description, const char *arrays) {
    char *header = buffer_new(2 * strlen(description) + strlen(arrays) + 100);
    char *to = header + sprintf(header, "%s", metadata_begin);
    const char *at;
    for (at = description; *at != 0; at++) {
        if (*at == '"' || *at == '\\') {
            *to++ = '\\';
        }
        *to++ = *at;
    }
    sprintf(to, "%s%08lx\"}%s", metadata_end, (unsigned long)crc32_of(description, strlen(description)), arrays);
    return header;
}

/* With another text in place of one in the description. */
static inline struct bytes with_description(const struct parts *parts, const char *from, const char *to) {
    char *description = replaced(parts->description, from, to);
    char *header = header_of(description, parts->arrays);
    struct bytes file = with_header(header, parts->data, parts->data_size);
    free(description);
    free(header);
    return file;
}

/* With another text in place of one in the header, outside of the description or not. */
static inline struct bytes with_changed_header(const struct parts *parts, const char *from, const char *to) {
    char *header = header_of(parts->description, parts->arrays);
    char *changed = replaced(header, from, to);
    struct bytes file = with_header(changed, parts->data, parts->data_size);
    free(header);
    free(changed);
    return file;
}

#endif
