/* Poisson's equation on two grids of f64, 4u - (the neighbours' sum) = f with u = 0 beyond the edges. A value of the
 * coarse grid stands for 2 x 2 of the fine one, which the notation says as `2*y,2*x`.
 *
 *     smooth    u[y~1,x~1], f[y,x] -> v[y,x]                  one step of damped Jacobi
 *     restrict  u[2*y~1,2*x~1], f[2*y,2*x] -> r[y,x]          what u leaves of f, summed over 2 x 2
 *     begin     r[y,x] -> e[y,x]                              that step again, from zero
 *     correct   u[2*y,2*x], e[y~1,x~1] -> v[2*y,2*x]          adds what the coarse grid found, interpolated
 *     worst     u[y~1,x~1], f[y,x] -> worst[]                 the largest residual; combine = "max"
 *
 * Halos are 0 beyond the edges (boundary = "zero").
 */
#include "exuvia.h"

#define DAMPED 0.2 /* 0.8 of Jacobi's 1/4 */

/* A plane of f64, whose tile is `scale` times that of `other`, with so many neighbours around it. */
static int is_plane(const exuvia_view *v, const exuvia_view *other, uint32_t scale, int32_t halo)
{
    return exuvia_is(v, EXUVIA_F64, 2) && v->extent[0] == scale * other->extent[0]
        && v->extent[1] == scale * other->extent[1] && v->stride[0] == (int32_t)v->extent[1] + 2 * halo;
}

static double around(const double *u, int32_t row)
{
    return u[-row] + u[row] + u[-1] + u[1];
}

EXUVIA_EXPORT(smooth) int32_t smooth(const exuvia_view *v, uint32_t count)
{
    if (count != 3 || !is_plane(&v[0], &v[2], 1, 1) || !is_plane(&v[1], &v[2], 1, 0) || !is_plane(&v[2], &v[2], 1, 0))
        return 1;
    const double *u = exuvia_data(&v[0]), *f = exuvia_data(&v[1]);
    double *out = exuvia_data(&v[2]);
    uint32_t width = v[2].extent[1];
    for (uint32_t y = 0; y < v[2].extent[0]; y++, u += v[0].stride[0], f += width, out += width)
        for (uint32_t x = 0; x < width; x++)
            out[x] = u[x] + DAMPED * (f[x] - (4.0 * u[x] - around(u + x, v[0].stride[0])));
    return 0;
}

EXUVIA_EXPORT(restrict) int32_t restrict_residual(const exuvia_view *v, uint32_t count)
{
    if (count != 3 || !is_plane(&v[0], &v[2], 2, 1) || !is_plane(&v[1], &v[2], 2, 0) || !is_plane(&v[2], &v[2], 1, 0))
        return 1;
    const double *u = exuvia_data(&v[0]), *f = exuvia_data(&v[1]);
    double *r = exuvia_data(&v[2]);
    int32_t row = v[0].stride[0], f_row = v[1].stride[0];
    for (uint32_t y = 0; y < v[2].extent[0]; y++, u += 2 * row, f += 2 * f_row, r += v[2].extent[1])
        for (uint32_t x = 0; x < v[2].extent[1]; x++) {
            double sum = 0.0;
            for (int32_t i = 0; i < 2; i++)
                for (int32_t j = 0; j < 2; j++) {
                    const double *at = u + i * row + 2 * x + j;
                    sum += f[i * f_row + 2 * x + j] - (4.0 * at[0] - around(at, row));
                }
            r[x] = sum;
        }
    return 0;
}

EXUVIA_EXPORT(begin) int32_t begin(const exuvia_view *v, uint32_t count)
{
    if (count != 2 || !is_plane(&v[0], &v[1], 1, 0) || !is_plane(&v[1], &v[1], 1, 0))
        return 1;
    const double *r = exuvia_data(&v[0]);
    double *e = exuvia_data(&v[1]);
    for (uint32_t i = 0; i < v[1].extent[0] * v[1].extent[1]; i++)
        e[i] = DAMPED * r[i];
    return 0;
}

EXUVIA_EXPORT(correct) int32_t correct(const exuvia_view *v, uint32_t count)
{
    if (count != 3 || !is_plane(&v[0], &v[1], 2, 0) || !is_plane(&v[1], &v[1], 1, 1) || !is_plane(&v[2], &v[1], 2, 0))
        return 1;
    const double *u = exuvia_data(&v[0]), *e = exuvia_data(&v[1]);
    double *out = exuvia_data(&v[2]);
    int32_t row = v[1].stride[0];
    uint32_t width = v[2].extent[1];
    for (uint32_t y = 0; y < v[2].extent[0]; y++)
        for (uint32_t x = 0; x < width; x++) {
            const double *at = e + (int32_t)(y / 2) * row + x / 2;
            /* The coarse neighbours that this element is nearest to. */
            int32_t dy = y % 2 ? row : -row, dx = x % 2 ? 1 : -1;
            out[y * width + x] = u[y * width + x]
                + (0.5625 * at[0] + 0.1875 * (at[dy] + at[dx]) + 0.0625 * at[dy + dx]);
        }
    return 0;
}

EXUVIA_EXPORT(worst) int32_t worst(const exuvia_view *v, uint32_t count)
{
    if (count != 3 || !is_plane(&v[0], &v[1], 1, 1) || !is_plane(&v[1], &v[1], 1, 0)
        || !exuvia_is(&v[2], EXUVIA_F64, 0))
        return 1;
    const double *u = exuvia_data(&v[0]), *f = exuvia_data(&v[1]);
    double most = 0.0;
    for (uint32_t y = 0; y < v[1].extent[0]; y++, u += v[0].stride[0], f += v[1].extent[1])
        for (uint32_t x = 0; x < v[1].extent[1]; x++) {
            double residual = f[x] - (4.0 * u[x] - around(u + x, v[0].stride[0]));
            residual = residual < 0 ? -residual : residual;
            most = residual > most ? residual : most;
        }
    *(double *)exuvia_data(&v[2]) = most;
    return 0;
}
