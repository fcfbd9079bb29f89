/* 3 x 3 x 3 convolution of volumes, valid part: v[t,d,h,w], k[a,b,c] -> o[t,z,y,x], f32. The job gives z, y and x the
 * sizes of d, h and w less 2: a task reads whole volumes, and writes the part of o that its tile has.
 */
#include "exuvia.h"

EXUVIA_EXPORT(conv3d) int32_t conv3d(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !exuvia_is(&views[0], EXUVIA_F32, 4) || !exuvia_is(&views[1], EXUVIA_F32, 3) ||
        !exuvia_is(&views[2], EXUVIA_F32, 4))
        return 1;
    const exuvia_view *out = &views[2];
    for (uint32_t i = 0; i < 3; i++)
        if (views[0].extent[1 + i] != views[0].shape[1 + i] || views[0].shape[1 + i] != out->shape[1 + i] + 2 ||
            views[1].extent[i] != 3)
            return 2;
    uint32_t d = views[0].extent[1], h = views[0].extent[2], w = views[0].extent[3];
    uint32_t depth = out->extent[1], height = out->extent[2], width = out->extent[3];
    const float *v = exuvia_data(&views[0]), *k = exuvia_data(&views[1]);
    float *o = exuvia_data(out);
    v += ((uint32_t)out->origin[1] * h + (uint32_t)out->origin[2]) * w + (uint32_t)out->origin[3];
    for (uint32_t t = 0; t < out->extent[0]; t++, v += d * h * w)
        for (uint32_t z = 0; z < depth; z++)
            for (uint32_t y = 0; y < height; y++, o += width) {
                for (uint32_t x = 0; x < width; x++)
                    o[x] = 0;
                for (uint32_t a = 0; a < 3; a++)
                    for (uint32_t b = 0; b < 3; b++)
                        for (uint32_t c = 0; c < 3; c++) {
                            float weight = k[(a * 3 + b) * 3 + c];
                            const float *row = v + ((z + a) * h + y + b) * w + c;
                            for (uint32_t x = 0; x < width; x++)
                                o[x] += weight * row[x];
                        }
            }
    return 0;
}
