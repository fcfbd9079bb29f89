/* Softmax regression on images of 64 u8 pixels from 0 to 16, f32: gradient descent on the mean loss.
 *     error     images[n,o,a,b], labels[n], weights[k,a,b] -> error[n,c]    the job gives c the size of k
 *     gradient  images[n,o,a,b], error[n,c] -> slope[c,a,b]                 combine = "sum"
 *     update    weights[c,a,b], slope[c,a,b], rate[] -> better[c,a,b]
 *     predict   test[q,a,b], weights[c,a,b] -> predicted[q]
 */
#include "exuvia.h"
#include "exuvia_math.h"

enum { CLASSES = 10, PIXELS = 64 };
#define IS(view, dtype, rank) exuvia_is(&views[view], EXUVIA_##dtype, rank)

/* The score of each class, and the first among the best. */
static uint32_t scores(const uint8_t *image, const float *weights, float *score)
{
    uint32_t best = 0;
    for (uint32_t k = 0; k < CLASSES; k++) {
        score[k] = 0;
        for (uint32_t i = 0; i < PIXELS; i++)
            score[k] += *weights++ * (image[i] / 16.0f);
        best = score[k] > score[best] ? k : best;
    }
    return best;
}

EXUVIA_EXPORT(error) int32_t error(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !IS(0, U8, 4) || !IS(1, U8, 1) || !IS(2, F32, 3) || !IS(3, F32, 2) ||
        views[2].extent[0] != CLASSES || views[2].extent[1] * views[2].extent[2] != PIXELS)
        return 1;
    uint32_t first = (uint32_t)views[3].origin[1], columns = views[3].extent[1];
    const uint8_t *image = exuvia_data(&views[0]), *label = exuvia_data(&views[1]);
    float *out = exuvia_data(&views[3]), score[CLASSES];
    for (uint32_t n = 0; n < views[3].extent[0]; n++, image += PIXELS, out += columns) {
        float top = score[scores(image, exuvia_data(&views[2]), score)], sum = 0;
        for (uint32_t k = 0; k < CLASSES; k++)
            sum += score[k] = exuvia_expf(score[k] - top);
        for (uint32_t c = 0; c < columns; c++)
            out[c] = (score[first + c] / sum - (label[n] == first + c)) / (float)views[0].shape[0];
    }
    return 0;
}

EXUVIA_EXPORT(gradient) int32_t gradient(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !IS(0, U8, 4) || !IS(1, F32, 2) || !IS(2, F32, 3))
        return 1;
    uint32_t classes = views[2].extent[0], pixels = views[2].extent[1] * views[2].extent[2];
    const uint8_t *image = exuvia_data(&views[0]);
    float *error = exuvia_data(&views[1]), *slope = exuvia_data(&views[2]);
    __builtin_memset(slope, 0, classes * pixels * sizeof *slope);
    for (uint32_t n = 0; n < views[0].extent[0]; n++, image += pixels, error += classes)
        for (uint32_t c = 0; c < classes; c++)
            for (uint32_t i = 0; i < pixels; i++)
                slope[c * pixels + i] += error[c] * (image[i] / 16.0f);
    return 0;
}

EXUVIA_EXPORT(update) int32_t update(const exuvia_view *views, uint32_t count)
{
    if (count != 4 || !IS(0, F32, 3) || !IS(1, F32, 3) || !IS(2, F32, 0) || !IS(3, F32, 3))
        return 1;
    const float *weights = exuvia_data(&views[0]), *slope = exuvia_data(&views[1]), *rate = exuvia_data(&views[2]);
    float *better = exuvia_data(&views[3]);
    for (uint32_t i = 0; i < views[3].extent[0] * views[3].extent[1] * views[3].extent[2]; i++)
        better[i] = weights[i] - *rate * slope[i];
    return 0;
}

EXUVIA_EXPORT(predict) int32_t predict(const exuvia_view *views, uint32_t count)
{
    if (count != 3 || !IS(0, U8, 3) || !IS(1, F32, 3) || !IS(2, U8, 1) || views[1].extent[0] != CLASSES ||
        views[1].extent[1] * views[1].extent[2] != PIXELS)
        return 1;
    uint8_t *test = exuvia_data(&views[0]), *predicted = exuvia_data(&views[2]);
    float score[CLASSES];
    for (uint32_t q = 0; q < views[2].extent[0]; q++, test += PIXELS)
        predicted[q] = (uint8_t)scores(test, exuvia_data(&views[1]), score);
    return 0;
}
