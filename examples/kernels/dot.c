/* Inner product of rows: x[n,d], y[n,d] -> s[n], f32, added in order. */
#include "exuvia.h"

EXUVIA_EXPORT(dot) int32_t dot(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F32, 2) || !exuvia_is(&views[1], EXUVIA_F32, 2) ||
        !exuvia_is(&views[2], EXUVIA_F32, 1))
        return 1;
    const float *x = exuvia_data(&views[0]), *y = exuvia_data(&views[1]);
    float *s = exuvia_data(&views[2]);
    uint32_t rows = views[0].extent[0], length = views[0].extent[1];
    for (uint32_t n = 0; n < rows; n++, x += length, y += length) {
        float sum = 0;
        for (uint32_t i = 0; i < length; i++)
            sum += x[i] * y[i];
        s[n] = sum;
    }
    return 0;
}
