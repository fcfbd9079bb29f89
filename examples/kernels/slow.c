/* Doubles, and takes its time: x[n,d], spin[] -> y[n,d], f64 and u32. A row takes `spin` steps: for trying out what happens to
 * long jobs. It fails at a negative number.
 */
#include "exuvia.h"

EXUVIA_EXPORT(slow) int32_t slow(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F64, 2) || !exuvia_is(&views[1], EXUVIA_U32, 0) ||
        !exuvia_is(&views[2], EXUVIA_F64, 2))
        return 1;
    const double *x = exuvia_data(&views[0]);
    double *y = exuvia_data(&views[2]);
    uint32_t spin = *(const uint32_t *)exuvia_data(&views[1]);
    for (uint32_t row = 0; row < views[0].extent[0]; row++) {
        for (volatile uint32_t left = spin; left; left--)
            ;
        for (uint32_t d = 0; d < views[0].extent[1]; d++, x++) {
            if (*x < 0)
                return 2;
            *y++ = 2 * *x;
        }
    }
    return 0;
}
