/* Doubles, and takes its time: x[n,d], spin[] -> y[n,d], u32 and f64 (slow) or f32
 * (slow_f32). A row takes `spin` steps of a generator of random numbers (Marsaglia's xorshift, which is never 0): for trying
 * out what happens to long jobs.
 */
#include "exuvia.h"

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
            uint32_t state = 1;                                                                                        \
            for (uint32_t step = 0; step < spin; step++) {                                                             \
                state ^= state << 13;                                                                                  \
                state ^= state >> 17;                                                                                  \
                state ^= state << 5;                                                                                   \
            }                                                                                                          \
            for (uint32_t d = 0; d < views[0].extent[1]; d++, x++)                                                     \
                *y++ = state ? 2 * *x : *x;                                                                            \
        }                                                                                                              \
        return 0;                                                                                                      \
    }

SLOW(slow, double, EXUVIA_F64)
SLOW(slow_f32, float, EXUVIA_F32)
