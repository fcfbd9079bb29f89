/* One Jacobi step on each image: u[t,a,b] -> v[t,y,x], f64; borders are copied. */
#include "exuvia.h"

EXUVIA_EXPORT(stencil2d) int32_t stencil2d(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || views[0].dtype != EXUVIA_F64 || views[1].dtype != EXUVIA_F64)
        return 1;
    uint32_t images = views[1].extent[0], rows = views[0].extent[1], columns = views[0].extent[2];
    if (views[1].extent[1] != rows || views[1].extent[2] != columns)
        return 2;
    const double *u = exuvia_data(&views[0]);
    double *v = exuvia_data(&views[1]);
    for (uint32_t t = 0; t < images; t++, u += rows * columns, v += rows * columns) {
        for (uint32_t i = 0; i < rows * columns; i++)
            v[i] = u[i];
        for (uint32_t y = 1; y + 1 < rows; y++)
            for (uint32_t x = 1; x + 1 < columns; x++) {
                uint32_t i = y * columns + x;
                v[i] = 0.2 * (u[i] + u[i - 1] + u[i + 1] + u[i - columns] + u[i + columns]);
            }
    }
    return 0;
}
