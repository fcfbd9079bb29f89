/* a * x + y: a[], x[n], y[n] -> z[n], f64. */
#include "exuvia.h"

EXUVIA_EXPORT(axpy) int32_t axpy(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !exuvia_is(&views[0], EXUVIA_F64, 0) || !exuvia_is(&views[1], EXUVIA_F64, 1) ||
        !exuvia_is(&views[2], EXUVIA_F64, 1) || !exuvia_is(&views[3], EXUVIA_F64, 1))
        return 1;
    double a = *(const double *)exuvia_data(&views[0]);
    const double *x = exuvia_data(&views[1]), *y = exuvia_data(&views[2]);
    double *z = exuvia_data(&views[3]);
    uint32_t n = views[3].extent[0];
    for (uint32_t i = 0; i < n; i++)
        z[i] = a * x[i] + y[i];
    return 0;
}
