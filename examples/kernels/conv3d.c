/* 3 x 3 x 3 convolution of volumes, valid part: v[t,d,h,w], k[a,b,c] -> o[t,z,y,x], f32. */
#include "exuvia.h"

EXUVIA_EXPORT(conv3d) int32_t conv3d(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || views[0].dtype != EXUVIA_F32 || views[1].dtype != EXUVIA_F32 || views[2].dtype != EXUVIA_F32)
        return 1;
    uint32_t d = views[0].extent[1], h = views[0].extent[2], w = views[0].extent[3];
    if (views[2].extent[1] + 2 != d || views[2].extent[2] + 2 != h || views[2].extent[3] + 2 != w)
        return 2;
    const float *v = exuvia_data(&views[0]), *k = exuvia_data(&views[1]);
    float *o = exuvia_data(&views[2]);
    for (uint32_t t = 0; t < views[2].extent[0]; t++, v += d * h * w)
        for (uint32_t z = 0; z + 2 < d; z++)
            for (uint32_t y = 0; y + 2 < h; y++, o += w - 2) {
                for (uint32_t x = 0; x + 2 < w; x++)
                    o[x] = 0;
                for (uint32_t a = 0; a < 3; a++)
                    for (uint32_t b = 0; b < 3; b++)
                        for (uint32_t c = 0; c < 3; c++) {
                            float weight = k[(a * 3 + b) * 3 + c];
                            const float *row = v + ((z + a) * h + y + b) * w + c;
                            for (uint32_t x = 0; x + 2 < w; x++)
                                o[x] += weight * row[x];
                        }
            }
    return 0;
}
