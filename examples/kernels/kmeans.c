/* Lloyd's k-means: f32 points and centres, u32 labels and sizes, f64 totals.
 *
 *     assign   x[n,d], centres[k,d] -> label[n]                   the nearest centre; the first among equally near ones
 *     sums     x[n,d], label[n] -> total[k,d], size[k]            combine = "sum"; the job gives k its size
 *     move     total[k,d], size[k], centres[k,d] -> moved[k,d]    to the mean; a centre without points stays
 *     changes  old[n], label[n] -> changed[]                      points that changed clusters, u64; combine = "sum"
 */
#include "exuvia.h"

#define IS(view, dtype, rank) exuvia_is(&views[view], EXUVIA_##dtype, rank)

EXUVIA_EXPORT(assign) int32_t assign(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !IS(0, F32, 2) || !IS(1, F32, 2) || !IS(2, U32, 1))
        return 1;
    uint32_t points = views[2].extent[0], clusters = views[1].extent[0], width = views[1].extent[1];
    if (clusters != views[1].shape[0] || width != views[1].shape[1] || width != views[0].extent[1])
        return 2;
    const float *x = exuvia_data(&views[0]), *centres = exuvia_data(&views[1]);
    uint32_t *label = exuvia_data(&views[2]);
    for (uint32_t n = 0; n < points; n++, x += width) {
        float nearest = __builtin_inff();
        label[n] = 0;
        for (uint32_t k = 0; k < clusters; k++) {
            float distance = 0;
            for (uint32_t d = 0; d < width; d++)
                distance += (x[d] - centres[k * width + d]) * (x[d] - centres[k * width + d]);
            label[n] = distance < nearest ? k : label[n];
            nearest = distance < nearest ? distance : nearest;
        }
    }
    return 0;
}

EXUVIA_EXPORT(sums) int32_t sums(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !IS(0, F32, 2) || !IS(1, U32, 1) || !IS(2, F64, 2) || !IS(3, U32, 1))
        return 1;
    const float *x = exuvia_data(&views[0]);
    const uint32_t *label = exuvia_data(&views[1]);
    double *total = exuvia_data(&views[2]);
    uint32_t *size = exuvia_data(&views[3]), first = (uint32_t)views[3].origin[0];
    uint32_t clusters = views[3].extent[0], width = views[2].extent[1];
    __builtin_memset(size, 0, clusters * sizeof *size);
    __builtin_memset(total, 0, clusters * width * sizeof *total);
    for (uint32_t n = 0; n < views[0].extent[0]; n++, x += width) {
        uint32_t k = label[n] - first; /* wraps to a large number when the cluster is before `first` */
        if (k >= clusters)
            continue;
        size[k]++;
        for (uint32_t d = 0; d < width; d++)
            total[k * width + d] += x[d];
    }
    return 0;
}

EXUVIA_EXPORT(move) int32_t move(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !IS(0, F64, 2) || !IS(1, U32, 1) || !IS(2, F32, 2) || !IS(3, F32, 2))
        return 1;
    const double *total = exuvia_data(&views[0]);
    const uint32_t *size = exuvia_data(&views[1]), width = views[3].extent[1];
    const float *centres = exuvia_data(&views[2]);
    float *moved = exuvia_data(&views[3]);
    for (uint32_t i = 0; i < views[3].extent[0] * width; i++)
        moved[i] = size[i / width] > 0 ? (float)(total[i] / size[i / width]) : centres[i];
    return 0;
}

EXUVIA_EXPORT(changes) int32_t changes(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !IS(0, U32, 1) || !IS(1, U32, 1) || !IS(2, U64, 0))
        return 1;
    const uint32_t *old = exuvia_data(&views[0]), *label = exuvia_data(&views[1]);
    uint32_t changed = 0;
    for (uint32_t n = 0; n < views[0].extent[0]; n++)
        changed += old[n] != label[n];
    *(uint64_t *)exuvia_data(&views[2]) = changed;
    return 0;
}
