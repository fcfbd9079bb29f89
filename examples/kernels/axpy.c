/* a * x + y: a[], x[n], y[n] -> z[n], f64. */
#include "exuvia.h"

EXUVIA_EXPORT(axpy) int32_t axpy(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || views[0].dtype != EXUVIA_F64 || views[1].dtype != EXUVIA_F64 || views[2].dtype != EXUVIA_F64 ||
        views[3].dtype != EXUVIA_F64)
        return 1;
    double a = *(const double *)exuvia_data(&views[0]);
    const double *x = exuvia_data(&views[1]), *y = exuvia_data(&views[2]);
    double *z = exuvia_data(&views[3]);
    uint32_t n = views[3].extent[0];
    for (uint32_t i = 0; i < n; i++)
        z[i] = a * x[i] + y[i];
    return 0;
}
