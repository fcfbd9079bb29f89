/* Enlarges a set of 8 x 8 images: images[n,o,a,b] -> enlarged[n,t,h,w]
 *
 * Variant t is shifted by (t % 9 - 4) / 4 pixels down and (t / 9 % 9 - 4) / 4 to the right, and turned by 0, -5, 5, -10,
 * .. 20 degrees for t / 81 = 0, 1, .. 8, with bilinear interpolation in integers: the same bytes everywhere.
 */
#include "exuvia.h"

#define SIDE 8
#define ONE 8192 /* a pixel */

static const int32_t COS[5] = {4096, 4080, 4034, 3956, 3849}; /* of 0, 5, .. 20 degrees, times 4096 */
static const int32_t SIN[5] = {0, 357, 711, 1060, 1401};

EXUVIA_EXPORT(enlarge) int32_t enlarge(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_U8, 4) || !exuvia_is(&views[1], EXUVIA_U8, 4))
        return 1;
    if (views[0].extent[2] != SIDE || views[0].extent[3] != SIDE || views[1].shape[1] > 9 * 81)
        return 2;
    const exuvia_view *out = &views[1];
    const uint8_t *images = exuvia_data(&views[0]);
    uint8_t *enlarged = exuvia_data(out);

    for (uint32_t n = 0; n < out->extent[0]; n++) {
        const uint8_t *image = images + n * SIDE * SIDE;
        for (uint32_t t = 0; t < out->extent[1]; t++) {
            int32_t variant = (int32_t)(out->origin[1] + t), turn = (variant / 81 + 1) / 2;
            int32_t cosine = COS[turn], sine = variant / 81 % 2 ? -SIN[turn] : SIN[turn];
            int32_t shift_y = variant % 9 - 4, shift_x = variant / 9 % 9 - 4;
            for (uint32_t h = 0; h < out->extent[2]; h++) {
                int32_t y = 2 * (int32_t)(out->origin[2] + h) - 7;
                for (uint32_t w = 0; w < out->extent[3]; w++) {
                    int32_t x = 2 * (int32_t)(out->origin[3] + w) - 7;
                    int32_t from_y = cosine * y + sine * x + 7 * 4096 + shift_y * 2048;
                    int32_t from_x = cosine * x - sine * y + 7 * 4096 + shift_x * 2048;
                    int32_t row = from_y >> 13, column = from_x >> 13, wy = from_y & (ONE - 1), wx = from_x & (ONE - 1);
                    int64_t sum = 0;
                    for (int32_t dy = 0; dy < 2; dy++)
                        for (int32_t dx = 0; dx < 2; dx++) {
                            int32_t r = row + dy, c = column + dx;
                            if (r < 0 || r >= SIDE || c < 0 || c >= SIDE)
                                continue;
                            int64_t weight = (int64_t)(dy ? wy : ONE - wy) * (dx ? wx : ONE - wx);
                            sum += weight * image[r * SIDE + c];
                        }
                    *enlarged++ = (uint8_t)((sum + (1 << 25)) >> 26);
                }
            }
        }
    }
    return 0;
}
