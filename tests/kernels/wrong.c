/* Kernels that go wrong, each in one way, and some that look alike and are right. */
#include "exuvia.h"

#define KERNEL(name) EXUVIA_EXPORT(name) int32_t name(const exuvia_view *v, uint32_t count)
#define D(i) ((double *)exuvia_data(&v[i]))
#define EACH for (uint32_t i = 0; i < v[1].extent[0]; i++)

KERNEL(right) { EACH D(1)[i] = 2 * D(0)[i]; return 0; }
KERNEL(write_behind) { for (uint32_t i = 0; i <= v[1].extent[0]; i++) D(1)[i] = 1; return 0; }
KERNEL(write_before) { EACH D(1)[i] = D(0)[i]; D(1)[-1] = 1; return 0; }
KERNEL(read_behind) { EACH D(1)[i] = D(0)[i + 3]; return 0; }
KERNEL(read_before) { EACH D(1)[i] = D(0)[(int)i - 2]; return 0; }
KERNEL(write_input) { EACH { D(1)[i] = D(0)[i]; if (v[0].origin[0] + i == 7) D(0)[i] = -1; } return 0; }
KERNEL(rewrite_input) { EACH { volatile double *x = D(0); x[i] = x[i]; D(1)[i] = x[i]; } return 0; }
KERNEL(null_pointer) { volatile int *p = 0; *p = 5; EACH D(1)[i] = *p; return 0; }
KERNEL(far) { D(1)[100000000] = 1; return 0; }
KERNEL(first_only) { D(1)[0] = 7; return 0; }
KERNEL(narrow) { float *x = exuvia_data(&v[0]), *y = exuvia_data(&v[1]); EACH y[i] = x[i]; return 0; }
KERNEL(adds) { EACH D(1)[i] += D(0)[i]; return 0; }
static double calls;
KERNEL(counts) { EACH D(1)[i] = calls; calls++; return 0; }
KERNEL(tile_mean) { double sum = 0; EACH sum += D(0)[i]; EACH D(1)[i] = sum / v[1].extent[0]; return 0; }
KERNEL(refuses) { if (v[1].extent[0] < v[1].shape[0]) return 42; EACH D(1)[i] = D(0)[i]; return 0; }
KERNEL(forever) { volatile int x = 1; while (x) { } return 0; }

/* A table from the usual bump allocator that ends 400 bytes beyond the module's own pages. */
extern unsigned char __heap_base;
KERNEL(heap)
{
    uintptr_t base = ((uintptr_t)&__heap_base + 15) & ~15u, end = (base + 65535) & ~65535u;
    double *table = (double *)base;
    for (uint32_t i = 0; i < (end + 400 - base) / 8; i++) table[i] = 3;
    EACH D(1)[i] = D(0)[i] + table[i % 50];
    return 0;
}

/* u[y~1,x~1] -> w[y,x], but two to the left. */
KERNEL(wide_stencil)
{
    for (int32_t y = 0; y < (int32_t)v[1].extent[0]; y++)
        for (int32_t x = 0; x < (int32_t)v[1].extent[1]; x++)
            D(1)[y * v[1].stride[0] + x] = D(0)[(y - 1) * v[0].stride[0] + x - 2];
    return 0;
}

/* x[n] -> s[]: a mean, where partial results are added up; the largest element, which is right for "max". */
KERNEL(mean) { double sum = 0; for (uint32_t i = 0; i < v[0].extent[0]; i++) sum += D(0)[i]; *D(1) = sum / v[0].extent[0]; return 0; }
KERNEL(sum) { double sum = 0; for (uint32_t i = 0; i < v[0].extent[0]; i++) sum += D(0)[i]; *D(1) = sum; return 0; }
/* Merges as if there were nothing before. */
KERNEL(forget) { *D(1) = *D(0); return 0; }
KERNEL(merge_behind) { D(1)[0] += D(0)[0]; D(1)[1] = 0; return 0; }
