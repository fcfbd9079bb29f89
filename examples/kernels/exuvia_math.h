/* What kernels need of libm, in freestanding C. */
#ifndef EXUVIA_MATH_H
#define EXUVIA_MATH_H

#include <stdint.h>

/* exp(x) for x <= 0: by range reduction to [-ln 2 / 2, ln 2 / 2] and a polynomial of degree 6, with a relative error
 * below 2.6e-7 for every argument from -87 to 0; below -87 it is 0. As in softmax.c.
 */
static inline float exuvia_expf(float x)
{
    float clamped = x < -87.0f ? -87.0f : x;
    /* Adding and taking away 1.5 * 2^23 rounds to the nearest integer. */
    float shifted = clamped * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    float r = clamped - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 0.0083333338f + r * 0.0013888889f;
    p = 1.0f + r * (1.0f + r * (0.5f + r * (0.16666667f + r * (0.041666668f + r * p))));
    /* The integer stands in the low bits of the shifted number. */
    union { float f; int32_t i; } bits = {.f = shifted}, power;
    power.i = (bits.i - 0x4B400000 + 127) << 23;
    return x < -87.0f ? 0.0f : p * power.f;
}

/* The larger of the two, and NaN when either is: a residual that becomes NaN must not look converged. */
static inline double exuvia_max(double a, double b)
{
    return b > a || b != b ? b : a;
}

#endif
