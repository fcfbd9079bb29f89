/* The first principal component of the rows of x by power iteration, f64.
 *
 *     column_sums   x[n,d] -> sum[d]                  combine = "sum"
 *     project       x[n,d], sum[d], v[d] -> y[n]      each row, less the mean, times v
 *     project_back  x[n,d], sum[d], y[n] -> w[d]      combine = "sum"
 *     normalise     w[e] -> u[d]                      the job gives d the size of e: every task needs the whole of w
 *     difference    v[d], u[d] -> change[]            the largest |u - v|; combine = "max"
 */
#include "exuvia.h"
#include "exuvia_math.h"

#define IS(view, rank) exuvia_is(&views[view], EXUVIA_F64, rank)

EXUVIA_EXPORT(column_sums) int32_t column_sums(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !IS(0, 2) || !IS(1, 1))
        return 1;
    const double *x = exuvia_data(&views[0]);
    double *sum = exuvia_data(&views[1]);
    uint32_t rows = views[0].extent[0], width = views[1].extent[0];
    __builtin_memset(sum, 0, width * sizeof *sum);
    for (uint32_t n = 0; n < rows; n++, x += width)
        for (uint32_t d = 0; d < width; d++)
            sum[d] += x[d];
    return 0;
}

EXUVIA_EXPORT(project) int32_t project(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !IS(0, 2) || !IS(1, 1) || !IS(2, 1) || !IS(3, 1) || views[0].extent[1] != views[0].shape[1])
        return 1;
    const double *x = exuvia_data(&views[0]), *sum = exuvia_data(&views[1]), *v = exuvia_data(&views[2]);
    double *y = exuvia_data(&views[3]), number = (double)views[0].shape[0];
    uint32_t rows = views[3].extent[0], width = views[0].extent[1];
    for (uint32_t n = 0; n < rows; n++, x += width) {
        y[n] = 0;
        for (uint32_t d = 0; d < width; d++)
            y[n] += (x[d] - sum[d] / number) * v[d];
    }
    return 0;
}

EXUVIA_EXPORT(project_back) int32_t project_back(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !IS(0, 2) || !IS(1, 1) || !IS(2, 1) || !IS(3, 1))
        return 1;
    const double *x = exuvia_data(&views[0]), *sum = exuvia_data(&views[1]), *y = exuvia_data(&views[2]);
    double *w = exuvia_data(&views[3]), number = (double)views[0].shape[0];
    uint32_t rows = views[0].extent[0], width = views[3].extent[0];
    __builtin_memset(w, 0, width * sizeof *w);
    for (uint32_t n = 0; n < rows; n++, x += width)
        for (uint32_t d = 0; d < width; d++)
            w[d] += (x[d] - sum[d] / number) * y[n];
    return 0;
}

EXUVIA_EXPORT(normalise) int32_t normalise(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !IS(0, 1) || !IS(1, 1) || views[0].extent[0] != views[1].shape[0])
        return 1;
    const double *w = exuvia_data(&views[0]);
    double *u = exuvia_data(&views[1]), square = 0;
    for (uint32_t d = 0; d < views[0].extent[0]; d++)
        square += w[d] * w[d];
    for (uint32_t d = 0; d < views[1].extent[0]; d++)
        u[d] = w[views[1].origin[0] + d] / __builtin_sqrt(square);
    return 0;
}

EXUVIA_EXPORT(difference) int32_t difference(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !IS(0, 1) || !IS(1, 1) || !IS(2, 0))
        return 1;
    const double *v = exuvia_data(&views[0]), *u = exuvia_data(&views[1]);
    double largest = 0;
    for (uint32_t d = 0; d < views[0].extent[0]; d++)
        largest = exuvia_max(largest, __builtin_fabs(u[d] - v[d]));
    *(double *)exuvia_data(&views[2]) = largest;
    return 0;
}
