/* The Mandelbrot set: im[y], re[x], limit[] -> steps[y,x], f64 and u32. Counts the steps z = z * z + c until |z| > 2,
 * at most `limit`: a point may take one step or all of them, so that tiles of equal size take very unequal times.
 */
#include "exuvia.h"

EXUVIA_EXPORT(mandelbrot) int32_t mandelbrot(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !exuvia_is(&views[0], EXUVIA_F64, 1) || !exuvia_is(&views[1], EXUVIA_F64, 1) ||
        !exuvia_is(&views[2], EXUVIA_U32, 0) || !exuvia_is(&views[3], EXUVIA_U32, 2))
        return 1;
    const double *im = exuvia_data(&views[0]), *re = exuvia_data(&views[1]);
    uint32_t limit = *(const uint32_t *)exuvia_data(&views[2]), *steps = exuvia_data(&views[3]);
    uint32_t height = views[3].extent[0], width = views[3].extent[1];
    if (views[0].extent[0] != height || views[1].extent[0] != width)
        return 2;
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++) {
            double a = 0, b = 0;
            uint32_t step = 0;
            while (step < limit && a * a + b * b <= 4.0) {
                double next = a * a - b * b + re[x];
                b = 2.0 * a * b + im[y];
                a = next;
                step++;
            }
            *steps++ = step;
        }
    return 0;
}
