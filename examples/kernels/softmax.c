/* Softmax of rows, f32: x[n,d] -> p[n,d] with whole = ["d"], since each task needs whole rows of x. Or x[n,d] -> p[n,c],
 * where the job gives c the size of d: then a task writes the columns of p that its tile has. (`x[n,d] -> p[n,d]` alone
 * would split d; a piece of a row is refused with status 2.)
 *
 * exp by range reduction to [-ln 2 / 2, ln 2 / 2] and a polynomial of degree 6: relative error below 2.6e-7 for every
 * argument from -87 to 0, all that softmax has (all of them were tried); below -87 it is 0.
 */
#include "exuvia.h"

static inline float exponential(float x)
{
    float clamped = x < -87.0f ? -87.0f : x;
    /* Adding and taking away 1.5 * 2^23 rounds to the nearest integer. */
    float shifted = clamped * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    float r = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.16666667f + r * (0.041666668f + r * (0.0083333338f + r * 0.0013888889f)))));
    /* The integer stands in the low bits of the shifted number. */
    union { float f; int32_t i; } bits = {.f = shifted}, power;
    power.i = (bits.i - 0x4B400000 + 127) << 23;
    return x < -87.0f ? 0.0f : p * power.f;
}

EXUVIA_EXPORT(softmax) int32_t softmax(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_F32, 2) || !exuvia_is(&views[1], EXUVIA_F32, 2))
        return 1;
    uint32_t rows = views[1].extent[0], length = views[0].extent[1], columns = views[1].extent[1];
    uint32_t first = (uint32_t)views[1].origin[1];
    if (length != views[0].shape[1] || length != views[1].shape[1])
        return 2;
    const float *x = exuvia_data(&views[0]);
    float *p = exuvia_data(&views[1]);
    for (uint32_t n = 0; n < rows; n++, x += length, p += columns) {
        float top = x[0], sum = 0;
        for (uint32_t i = 1; i < length; i++)
            top = x[i] > top ? x[i] : top;
        for (uint32_t i = 0; i < columns; i++)
            p[i] = exponential(x[first + i] - top);
        if (columns == length) {
            for (uint32_t i = 0; i < length; i++)
                sum += p[i];
        } else {
            /* The same numbers in the same order, so that the tile's width does not show in the result. */
            for (uint32_t i = 0; i < length; i++)
                sum += exponential(x[i] - top);
        }
        float scale = 1.0f / sum;
        for (uint32_t i = 0; i < columns; i++)
            p[i] *= scale;
    }
    return 0;
}
