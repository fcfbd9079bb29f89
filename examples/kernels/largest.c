/* The largest element of each column, and its row: x[n,d] -> value[d], row[d], f64 and u64. For combine = "argmax". */
#include "exuvia.h"

EXUVIA_EXPORT(largest) int32_t largest(const exuvia_view *v, uint32_t count)
{
    if (count != 3 || !exuvia_is(&v[0], EXUVIA_F64, 2) || !exuvia_is(&v[1], EXUVIA_F64, 1)
        || !exuvia_is(&v[2], EXUVIA_U64, 1))
        return 1;
    const double *x = exuvia_data(&v[0]);
    double *value = exuvia_data(&v[1]);
    uint64_t *row = exuvia_data(&v[2]);
    uint32_t rows = v[0].extent[0], columns = v[0].extent[1];
    for (uint32_t d = 0; d < columns; d++) {
        value[d] = x[d];
        row[d] = v[0].origin[0];
    }
    for (uint32_t n = 1; n < rows; n++)
        for (uint32_t d = 0; d < columns; d++)
            if (x[n * columns + d] > value[d]) {
                value[d] = x[n * columns + d];
                row[d] = v[0].origin[0] + n;
            }
    return 0;
}
