/* Table look-up: table[m], index[n] -> y[n]; f32 by u32; an index beyond the table is status 2. */
#include "exuvia.h"

EXUVIA_EXPORT(gather) int32_t gather(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F32, 1) || !exuvia_is(&views[1], EXUVIA_U32, 1) ||
        !exuvia_is(&views[2], EXUVIA_F32, 1))
        return 1;
    const float *table = exuvia_data(&views[0]);
    const uint32_t *index = exuvia_data(&views[1]);
    float *y = exuvia_data(&views[2]);
    uint32_t size = views[0].extent[0], n = views[1].extent[0], largest = 0;
    for (uint32_t i = 0; i < n; i++)
        largest = index[i] > largest ? index[i] : largest;
    if (n > 0 && largest >= size)
        return 2;
    for (uint32_t i = 0; i < n; i++)
        y[i] = table[index[i]];
    return 0;
}
