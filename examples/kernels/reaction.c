/* A fluid spreads and reacts. The reaction is stiff in some rows: these take more and shorter steps of time than others, so
 * that rows differ in cost, and by as much in every iteration.
 *
 *     react     u[y~1,x~1], steps[y] -> v[y,x]     one step of spreading, then steps[y] of reacting
 *     released  v[y,x], steps[y] -> heat[]         what another time of reacting would release; combine = "sum"
 */
#include "exuvia.h"

/* The time of an iteration. */
#define TIME 0.5

/* Logistic growth of *u for that time, in `steps` steps; returns what it grew by. */
static double grow(double *u, uint32_t steps)
{
    double value = *u, step = TIME / steps, sum = 0;
    for (uint32_t i = 0; i < steps; i++) {
        double rate = value * (1.0 - value);
        value += step * rate;
        sum += step * rate;
    }
    *u = value;
    return sum;
}

EXUVIA_EXPORT(react) int32_t react(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F64, 2) || !exuvia_is(&views[1], EXUVIA_U32, 1) ||
        !exuvia_is(&views[2], EXUVIA_F64, 2))
        return 1;
    uint32_t height = views[2].extent[0], width = views[2].extent[1];
    int32_t row = views[0].stride[0];
    if (views[1].extent[0] != height || row < (int64_t)width + 2)
        return 2;
    const double *u = exuvia_data(&views[0]);
    const uint32_t *steps = exuvia_data(&views[1]);
    double *v = exuvia_data(&views[2]);
    for (uint32_t y = 0; y < height; y++, u += row, v += width)
        for (uint32_t x = 0; x < width; x++) {
            const double *at = u + x;
            v[x] = at[0] + 0.1 * (at[-row] + at[row] + at[-1] + at[1] - 4.0 * at[0]);
            grow(&v[x], steps[y]);
        }
    return 0;
}

EXUVIA_EXPORT(released) int32_t released(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F64, 2) || !exuvia_is(&views[1], EXUVIA_U32, 1) ||
        !exuvia_is(&views[2], EXUVIA_F64, 0))
        return 1;
    const double *v = exuvia_data(&views[0]);
    const uint32_t *steps = exuvia_data(&views[1]);
    uint32_t height = views[0].extent[0], width = views[0].extent[1];
    if (views[1].extent[0] != height)
        return 2;
    double heat = 0;
    for (uint32_t y = 0; y < height; y++)
        for (uint32_t x = 0; x < width; x++) {
            double value = v[y * width + x];
            heat += grow(&value, steps[y]);
        }
    *(double *)exuvia_data(&views[2]) = heat;
    return 0;
}
