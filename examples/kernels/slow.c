/* Doubles, and takes its time: x[n,d], spin[] -> y[n,d], u32 and f64 (slow) or f32
 * (slow_f32). A row takes `spin` steps of a generator of random numbers (Marsaglia's xorshift, which is never 0): for trying
 * out what happens to long jobs.
 */
#include "exuvia.h"

static uint32_t spin_for(uint32_t steps)
{
    uint32_t state = 1;
    for (uint32_t step = 0; step < steps; step++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
    }
    return state;
}

#define SLOW(NAME, TYPE, DTYPE)                                                                                       \
    EXUVIA_EXPORT(NAME) int32_t NAME(const exuvia_view *views, uint32_t count)                                         \
    {                                                                                                                  \
        if (count != 3 || !exuvia_is(&views[0], DTYPE, 2) || !exuvia_is(&views[1], EXUVIA_U32, 0) ||                   \
            !exuvia_is(&views[2], DTYPE, 2))                                                                           \
            return 1;                                                                                                  \
        const TYPE *x = exuvia_data(&views[0]);                                                                        \
        TYPE *y = exuvia_data(&views[2]);                                                                              \
        uint32_t spin = *(const uint32_t *)exuvia_data(&views[1]);                                                     \
        for (uint32_t row = 0; row < views[0].extent[0]; row++) {                                                      \
            uint32_t state = spin_for(spin);                                                                           \
            for (uint32_t d = 0; d < views[0].extent[1]; d++, x++)                                                     \
                *y++ = state ? 2 * *x : *x;                                                                            \
        }                                                                                                              \
        return 0;                                                                                                      \
    }

SLOW(slow, double, EXUVIA_F64)
SLOW(slow_f32, float, EXUVIA_F32)

/* The sum of all rows, each of which takes as long: x[n,d], spin[] -> s[d], f64 and u32, with combine = "sum". */
EXUVIA_EXPORT(slow_sum) int32_t slow_sum(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F64, 2) || !exuvia_is(&views[1], EXUVIA_U32, 0) ||
        !exuvia_is(&views[2], EXUVIA_F64, 1))
        return 1;
    const double *x = exuvia_data(&views[0]);
    double *s = exuvia_data(&views[2]);
    uint32_t spin = *(const uint32_t *)exuvia_data(&views[1]);
    for (uint32_t d = 0; d < views[2].extent[0]; d++)
        s[d] = 0;
    for (uint32_t row = 0; row < views[0].extent[0]; row++) {
        uint32_t state = spin_for(spin);
        for (uint32_t d = 0; d < views[0].extent[1]; d++, x++)
            s[d] += state ? *x : 0;
    }
    return 0;
}
