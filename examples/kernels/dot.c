/* Inner product of rows: x[n,d], y[n,d] -> s[n], f32; sixteen partial sums, added in order, so that it vectorizes. */
#include "exuvia.h"

#define LANES 16

EXUVIA_EXPORT(dot) int32_t dot(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || views[0].dtype != EXUVIA_F32 || views[1].dtype != EXUVIA_F32 || views[2].dtype != EXUVIA_F32)
        return 1;
    const float *x = exuvia_data(&views[0]), *y = exuvia_data(&views[1]);
    float *s = exuvia_data(&views[2]);
    uint32_t rows = views[0].extent[0], length = views[0].extent[1];
    for (uint32_t n = 0; n < rows; n++, x += length, y += length) {
        float part[LANES] = {0}, sum = 0;
        uint32_t i = 0;
        for (; i + LANES <= length; i += LANES)
            for (uint32_t lane = 0; lane < LANES; lane++)
                part[lane] += x[i + lane] * y[i + lane];
        for (uint32_t lane = 0; lane < LANES; lane++)
            sum += part[lane];
        for (; i < length; i++)
            sum += x[i] * y[i];
        s[n] = sum;
    }
    return 0;
}
