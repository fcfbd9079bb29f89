/* Mean and variance of each column, by merging. Both tasks and merges carry (count, mean, m2): how many rows, their
 * mean, and the sum of their squared distances from it. Sums of squares would lose every digit where the mean is large;
 * this does not. The merge is that of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
 * computing sample variances" (1979).
 *
 *     moments:  x[n,d] -> count[], mean[d], m2[d]; combine = { export = "merge" }
 *     variance: count[], m2[d] -> variance[d], of a sample
 */
#include "exuvia.h"

/* The three outputs of `moments`, which `merge` has twice. */
static int are_moments(const exuvia_view *v)
{
    return exuvia_is(&v[0], EXUVIA_U64, 0) && exuvia_is(&v[1], EXUVIA_F64, 1) && exuvia_is(&v[2], EXUVIA_F64, 1);
}

EXUVIA_EXPORT(moments) int32_t moments(const exuvia_view *v, uint32_t count)
{
    if (count != 4 || !exuvia_is(&v[0], EXUVIA_F64, 2) || !are_moments(v + 1))
        return 1;
    const double *x = exuvia_data(&v[0]);
    uint32_t rows = v[0].extent[0], columns = v[0].extent[1];
    uint64_t *n = exuvia_data(&v[1]);
    double *mean = exuvia_data(&v[2]), *m2 = exuvia_data(&v[3]);
    *n = rows;
    for (uint32_t d = 0; d < columns; d++)
        mean[d] = m2[d] = 0;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t d = 0; d < columns; d++)
            mean[d] += x[i * columns + d];
    for (uint32_t d = 0; d < columns; d++)
        mean[d] /= rows;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t d = 0; d < columns; d++) {
            double distance = x[i * columns + d] - mean[d];
            m2[d] += distance * distance;
        }
    return 0;
}

/* Inputs: the moments of some rows. Outputs: those of the rows before them, and then of both. */
EXUVIA_EXPORT(merge) int32_t merge(const exuvia_view *v, uint32_t count)
{
    if (count != 6 || !are_moments(v) || !are_moments(v + 3))
        return 1;
    const uint64_t *more = exuvia_data(&v[0]);
    const double *more_mean = exuvia_data(&v[1]), *more_m2 = exuvia_data(&v[2]);
    uint64_t *n = exuvia_data(&v[3]);
    double *mean = exuvia_data(&v[4]), *m2 = exuvia_data(&v[5]);
    double before = (double)*n, after = (double)*more, all = before + after;
    for (uint32_t d = 0; d < v[4].extent[0]; d++) {
        double distance = more_mean[d] - mean[d];
        mean[d] += distance * (after / all);
        m2[d] += more_m2[d] + distance * distance * (before * after / all);
    }
    *n += *more;
    return 0;
}

EXUVIA_EXPORT(variance) int32_t variance(const exuvia_view *v, uint32_t count)
{
    if (count != 3 || !exuvia_is(&v[0], EXUVIA_U64, 0) || !exuvia_is(&v[1], EXUVIA_F64, 1)
        || !exuvia_is(&v[2], EXUVIA_F64, 1))
        return 1;
    const uint64_t *n = exuvia_data(&v[0]);
    const double *m2 = exuvia_data(&v[1]);
    double *variance = exuvia_data(&v[2]);
    for (uint32_t d = 0; d < v[2].extent[0]; d++)
        variance[d] = m2[d] / (double)(*n - 1);
    return 0;
}
