/* One Jacobi step on each image: u[t,a,b] -> v[t,y,x], f64; borders are copied. The job gives y and x the sizes of a and
 * b: a task reads whole images, and writes the part of v that its tile has.
 */
#include "exuvia.h"

EXUVIA_EXPORT(stencil2d) int32_t stencil2d(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_F64, 3) || !exuvia_is(&views[1], EXUVIA_F64, 3))
        return 1;
    uint32_t rows = views[0].extent[1], columns = views[0].extent[2];
    if (rows != views[0].shape[1] || columns != views[0].shape[2] || rows != views[1].shape[1] || columns != views[1].shape[2])
        return 2;
    const double *u = exuvia_data(&views[0]);
    double *v = exuvia_data(&views[1]);
    uint32_t first = (uint32_t)views[1].origin[1], height = views[1].extent[1];
    uint32_t left = (uint32_t)views[1].origin[2], width = views[1].extent[2];
    for (uint32_t t = 0; t < views[1].extent[0]; t++, u += rows * columns)
        for (uint32_t y = first; y < first + height; y++, v += width) {
            const double *here = u + y * columns + left;
            if (y == 0 || y + 1 == rows) {
                for (uint32_t x = 0; x < width; x++)
                    v[x] = here[x];
                continue;
            }
            /* Pointers, since an unsigned index less 1 would wrap: harmless in wasm, not natively. */
            const double *above = here - columns, *below = here + columns, *west = here - 1, *east = here + 1;
            uint32_t begin = left == 0, end = left + width == columns ? width - 1 : width;
            v[0] = here[0];
            v[width - 1] = here[width - 1];
            for (uint32_t x = begin; x < end; x++)
                v[x] = 0.2 * (here[x] + west[x] + east[x] + above[x] + below[x]);
        }
    return 0;
}
