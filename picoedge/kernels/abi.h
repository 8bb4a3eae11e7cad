/* Tables of the sizes and offsets that Python mirrors: native.py compares each with its own before the
 * library's first call, so that one built from other sources is refused. */
#ifndef PICOEDGE_ABI_H
#define PICOEDGE_ABI_H

#include <stddef.h>
#include <stdint.h>

typedef struct { const char *name; int32_t offset, bytes; } field_t;

#define SIZE(NAME, VALUE) {NAME, 0, VALUE}
#define STRUCT(S) {#S, 0, sizeof(S)}
#define FIELD(S, F) {#S "." #F, offsetof(S, F), sizeof(((S *)0)->F)}
#define FIELD_AT(TABLE, I) ((I) >= 0 && (size_t)(I) < sizeof(TABLE) / sizeof *(TABLE) ? (TABLE) + (I) : NULL)

#endif
