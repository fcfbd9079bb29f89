/* Rounds of an integer mixing function on each element: x[n] -> y[n], u32. */
#include "exuvia.h"

#define ROUNDS 8

EXUVIA_EXPORT(mix) int32_t mix(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_U32, 1) || !exuvia_is(&views[1], EXUVIA_U32, 1))
        return 1;
    const uint32_t *x = exuvia_data(&views[0]);
    uint32_t *y = exuvia_data(&views[1]), n = views[0].extent[0];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t h = x[i];
        for (uint32_t round = 0; round < ROUNDS; round++) {
            h ^= h >> 16;
            h *= 0x85ebca6bu;
            h ^= h >> 13;
            h *= 0xc2b2ae35u;
            h ^= h >> 16;
        }
        y[i] = h;
    }
    return 0;
}
