/* Matrix product: a[m,k], b[k,n] -> c[m,n], f32, rows of c from rows of a. */
#include "exuvia.h"

EXUVIA_EXPORT(matmul) int32_t matmul(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F32, 2) || !exuvia_is(&views[1], EXUVIA_F32, 2) ||
        !exuvia_is(&views[2], EXUVIA_F32, 2))
        return 1;
    const float *a = exuvia_data(&views[0]), *b = exuvia_data(&views[1]);
    float *c = exuvia_data(&views[2]);
    uint32_t m = views[0].extent[0], k = views[0].extent[1], n = views[1].extent[1];
    if (views[1].extent[0] != k || views[2].extent[0] != m || views[2].extent[1] != n)
        return 2;
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t j = 0; j < n; j++)
            c[i * n + j] = 0;
        for (uint32_t l = 0; l < k; l++)
            for (uint32_t j = 0; j < n; j++)
                c[i * n + j] += a[i * k + l] * b[l * n + j];
    }
    return 0;
}
