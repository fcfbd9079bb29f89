/* Heat spreads by explicit steps: the 5-point Laplacian of a plane (f64) and the 7-point one of a volume (f32).
 *
 *     heat2d      u[y~1,x~1] -> v[y,x]
 *     heat3d      u[z~1,y~1,x~1] -> v[z,y,x]
 *     difference  u[y,x], v[y,x] -> residual[]    the largest |v - u| of the tile; combine = "max"
 *
 * The job's `boundary` says what lies beyond the edges; a kernel reads it like any neighbour.
 */
#include "exuvia.h"
#include "exuvia_math.h"

/* Is `in` the tile that `out` is, and has each row room for a neighbour on both sides? Without `~1` it has not. */
static int has_halo(const exuvia_view *in, const exuvia_view *out)
{
    uint32_t last = out->rank - 1;
    for (uint32_t i = 0; i <= last; i++)
        if (in->extent[i] != out->extent[i])
            return 0;
    return in->stride[last] == 1 && in->stride[last - 1] >= (int64_t)out->extent[last] + 2;
}

EXUVIA_EXPORT(heat2d) int32_t heat2d(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_F64, 2) || !exuvia_is(&views[1], EXUVIA_F64, 2))
        return 1;
    if (!has_halo(&views[0], &views[1]))
        return 2;
    const double *u = exuvia_data(&views[0]);
    double *v = exuvia_data(&views[1]);
    int32_t row = views[0].stride[0];
    uint32_t height = views[1].extent[0], width = views[1].extent[1];
    for (uint32_t y = 0; y < height; y++, u += row, v += width) {
        const double *above = u - row, *below = u + row, *west = u - 1, *east = u + 1;
        for (uint32_t x = 0; x < width; x++)
            v[x] = u[x] + 0.2 * (above[x] + below[x] + west[x] + east[x] - 4.0 * u[x]);
    }
    return 0;
}

EXUVIA_EXPORT(heat3d) int32_t heat3d(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_F32, 3) || !exuvia_is(&views[1], EXUVIA_F32, 3))
        return 1;
    if (!has_halo(&views[0], &views[1]))
        return 2;
    float *v = exuvia_data(&views[1]);
    int32_t plane = views[0].stride[0], row = views[0].stride[1];
    uint32_t depth = views[1].extent[0], height = views[1].extent[1], width = views[1].extent[2];
    for (uint32_t z = 0; z < depth; z++) {
        const float *u = (const float *)exuvia_data(&views[0]) + (int64_t)z * plane;
        for (uint32_t y = 0; y < height; y++, u += row, v += width) {
            const float *before = u - plane, *behind = u + plane, *above = u - row, *below = u + row;
            const float *west = u - 1, *east = u + 1;
            for (uint32_t x = 0; x < width; x++)
                v[x] = u[x] + 0.125f * (before[x] + behind[x] + above[x] + below[x] + west[x] + east[x] - 6.0f * u[x]);
        }
    }
    return 0;
}

EXUVIA_EXPORT(difference) int32_t difference(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F64, 2) || !exuvia_is(&views[1], EXUVIA_F64, 2) ||
        !exuvia_is(&views[2], EXUVIA_F64, 0))
        return 1;
    const double *u = exuvia_data(&views[0]), *v = exuvia_data(&views[1]);
    double largest = 0;
    uint32_t size = views[0].extent[0] * views[0].extent[1];
    if (views[1].extent[0] != views[0].extent[0] || views[1].extent[1] != views[0].extent[1])
        return 2;
    for (uint32_t i = 0; i < size; i++)
        largest = exuvia_max(largest, __builtin_fabs(v[i] - u[i]));
    *(double *)exuvia_data(&views[2]) = largest;
    return 0;
}
