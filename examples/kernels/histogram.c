/* How often each byte occurs: values[n] -> counts[v], u8 to u64; combine = "sum". The job gives v its size, 256. */
#include "exuvia.h"

#define BYTES 256

EXUVIA_EXPORT(histogram) int32_t histogram(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_U8, 1) || !exuvia_is(&views[1], EXUVIA_U64, 1))
        return 1;
    if (views[1].shape[0] != BYTES)
        return 2;
    const uint8_t *values = exuvia_data(&views[0]);
    uint64_t *counts = exuvia_data(&views[1]);
    /* All bytes are counted, and in two tables, so that runs of one byte do not wait for each other's stores. */
    uint32_t even[BYTES] = {0}, odd[BYTES] = {0}, n = views[0].extent[0], first = (uint32_t)views[1].origin[0];
    for (uint32_t i = 0; i + 1 < n; i += 2) {
        even[values[i]]++;
        odd[values[i + 1]]++;
    }
    if (n % 2)
        even[values[n - 1]]++;
    for (uint32_t v = 0; v < views[1].extent[0]; v++)
        counts[v] = (uint64_t)even[first + v] + odd[first + v];
    return 0;
}
