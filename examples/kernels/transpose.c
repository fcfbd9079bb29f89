/* Transpose: a[i,j] -> b[j,i], f32, by blocks whose rows and columns both stay in the first-level cache. */
#include "exuvia.h"

#define BLOCK 32

EXUVIA_EXPORT(transpose) int32_t transpose(const exuvia_view *views, uint32_t count)
{
    if (count != 2 || !exuvia_is(&views[0], EXUVIA_F32, 2) || !exuvia_is(&views[1], EXUVIA_F32, 2))
        return 1;
    const float *a = exuvia_data(&views[0]);
    float *b = exuvia_data(&views[1]);
    uint32_t rows = views[0].extent[0], columns = views[0].extent[1];
    if (views[1].extent[0] != columns || views[1].extent[1] != rows)
        return 2;
    for (uint32_t top = 0; top < rows; top += BLOCK)
        for (uint32_t left = 0; left < columns; left += BLOCK)
            for (uint32_t j = left; j < left + BLOCK && j < columns; j++)
                for (uint32_t i = top; i < top + BLOCK && i < rows; i++)
                    b[j * rows + i] = a[i * columns + j];
    return 0;
}
