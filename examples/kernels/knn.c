/* k nearest neighbours: test[q,h,w], train[n,t,h,w], labels[n], k[] -> predicted[q]
 *
 * u8 images and labels, u32 k; squared Euclidean distance in integers. The training set may hold several variants t of
 * each labelled image. Among equally near images the earlier one counts; among labels of equal votes the nearer one.
 */
#include "exuvia.h"

#define MAX_K 32
#define MAX_PIXELS 65536 /* a distance fits in 32 bits */
#define LABELS 256

EXUVIA_EXPORT(knn) int32_t knn(const exuvia_view *views, uint32_t count)
{
    if (count != 5 || !exuvia_is(&views[0], EXUVIA_U8, 3) || !exuvia_is(&views[1], EXUVIA_U8, 4) ||
        !exuvia_is(&views[2], EXUVIA_U8, 1) || !exuvia_is(&views[3], EXUVIA_U32, 0) ||
        !exuvia_is(&views[4], EXUVIA_U8, 1))
        return 1;
    const uint8_t *test = exuvia_data(&views[0]), *train = exuvia_data(&views[1]), *labels = exuvia_data(&views[2]);
    uint8_t *predicted = exuvia_data(&views[4]);
    uint32_t k = *(const uint32_t *)exuvia_data(&views[3]);
    uint32_t queries = views[0].extent[0], pixels = views[0].extent[1] * views[0].extent[2];
    uint32_t labelled = views[1].extent[0], variants = views[1].extent[1];
    if (k == 0 || k > MAX_K || k > labelled * variants || pixels > MAX_PIXELS || views[2].extent[0] != labelled ||
        views[1].extent[2] * views[1].extent[3] != pixels)
        return 2;

    for (uint32_t q = 0; q < queries; q++) {
        uint32_t best[MAX_K], whose[MAX_K], found = 0;
        const uint8_t *image = test + q * pixels;
        for (uint32_t i = 0; i < labelled * variants; i++) {
            const uint8_t *other = train + i * pixels;
            uint32_t distance = 0;
            for (uint32_t p = 0; p < pixels; p++) {
                int32_t d = (int32_t)image[p] - (int32_t)other[p];
                distance += (uint32_t)(d * d);
            }
            if (found == k && distance >= best[k - 1])
                continue;
            uint32_t at = found < k ? found++ : k - 1;
            while (at > 0 && best[at - 1] > distance) {
                best[at] = best[at - 1];
                whose[at] = whose[at - 1];
                at--;
            }
            best[at] = distance;
            whose[at] = labels[i / variants];
        }
        uint32_t votes[LABELS], winner = whose[0];
        for (uint32_t l = 0; l < LABELS; l++)
            votes[l] = 0;
        for (uint32_t i = 0; i < k; i++)
            votes[whose[i]]++;
        for (uint32_t i = 0; i < k; i++)
            if (votes[whose[i]] > votes[winner])
                winner = whose[i];
        predicted[q] = (uint8_t)winner;
    }
    return 0;
}
