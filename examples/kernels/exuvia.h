/* The kernel interface of Exuvia; docs/kernel-interface.md specifies it.
 *
 * A kernel computes one tile. It is an exported function
 *     int32_t kernel(const exuvia_view *views, uint32_t count);
 * that returns 0, or a status of its own that ends the run. Views come in the order of the job's notation: inputs from
 * left to right, then outputs. Tiles are packed, row-major, and 64-byte aligned; those of inputs with a halo lie in padded
 * rows, which the strides span.
 */
#ifndef EXUVIA_H
#define EXUVIA_H

#include <stdint.h>

enum exuvia_dtype {
    EXUVIA_F16 = 1, EXUVIA_BF16, EXUVIA_F32, EXUVIA_F64,
    EXUVIA_I8, EXUVIA_I16, EXUVIA_I32, EXUVIA_I64,
    EXUVIA_U8, EXUVIA_U16, EXUVIA_U32, EXUVIA_U64
};

#define EXUVIA_MAX_RANK 8
#define EXUVIA_OUTPUT 1u /* in flags: the kernel writes this operand */

typedef struct exuvia_view {
    uint32_t data;                     /* address of the tile's first element */
    uint32_t dtype;                    /* enum exuvia_dtype */
    uint32_t rank;                     /* dimensions, 0 for a scalar */
    uint32_t flags;
    uint32_t extent[EXUVIA_MAX_RANK];  /* of this tile */
    int32_t stride[EXUVIA_MAX_RANK];   /* in elements */
    uint64_t origin[EXUVIA_MAX_RANK];  /* of this tile in the whole tensor */
    uint64_t shape[EXUVIA_MAX_RANK];   /* of the whole tensor */
} exuvia_view;

#ifdef __cplusplus
static_assert(sizeof(exuvia_view) == 208, "the layout is part of the interface");
#define EXUVIA_EXPORT_LINKAGE extern "C"
#else
_Static_assert(sizeof(exuvia_view) == 208, "the layout is part of the interface");
#define EXUVIA_EXPORT_LINKAGE
#endif

#ifdef __wasm__
#define EXUVIA_EXPORT(name) EXUVIA_EXPORT_LINKAGE __attribute__((export_name(#name)))
#define exuvia_data(view) ((void *)(uintptr_t)(view)->data)
#else
/* Compiled natively, for comparison, addresses are offsets into an arena that the caller owns. */
extern unsigned char *exuvia_base;
#define EXUVIA_EXPORT(name) EXUVIA_EXPORT_LINKAGE
#define exuvia_data(view) ((void *)(exuvia_base + (view)->data))
#endif

/* A job names dtypes and dimensions without knowing the kernel: check each view, or the result may be silently wrong. */
static inline int exuvia_is(const exuvia_view *view, enum exuvia_dtype dtype, uint32_t rank)
{
    return view->dtype == (uint32_t)dtype && view->rank == rank;
}

#endif
