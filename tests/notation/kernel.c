/* One kernel for the stages of random jobs: `interpreter.py` says what it computes. A scalar describes the stage, one more
 * each of its operands; then come the inputs and the outputs themselves. All arithmetic is that of 64-bit integers.
 *
 * It also checks its tile: operands must agree on each index, and whole indices must be there as wholes.
 */
#include "exuvia.h"

enum { SUM, PROD, MIN, MAX };
enum { FOLD, PLACE, AFFINE };
enum { INDICES = 12, OPERANDS = 6 };

typedef struct {
    const exuvia_view *view;
    uint32_t index[8], scale[8], halo[8];
} operand;

static operand operands[OPERANDS];
static uint32_t inputs, outputs, op, op2, kind, no_boundary, reduced, whole, rows;
static int64_t extent[INDICES], origin[INDICES], shape[INDICES], point[INDICES];
static const int64_t prime[INDICES] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};

static int is_small(uint32_t dtype) { return dtype == EXUVIA_F16 || dtype == EXUVIA_BF16; }
static int is_float(uint32_t dtype) { return dtype <= EXUVIA_F64; }

static int64_t wrap(uint32_t dtype, int64_t x)
{
    switch (dtype) {
    case EXUVIA_I8: return (int8_t)x;
    case EXUVIA_I16: return (int16_t)x;
    case EXUVIA_I32: return (int32_t)x;
    case EXUVIA_U8: return (uint8_t)x;
    case EXUVIA_U16: return (uint16_t)x;
    case EXUVIA_U32: return (uint32_t)x;
    }
    return x;
}

/* A term as the dtype has it, small where floats would have to round. */
static int64_t cast(uint32_t dtype, uint32_t how, int64_t x)
{
    if (is_float(dtype))
        return how == PROD ? (x & 1 ? -1 : 1) : x & 7;
    return dtype == EXUVIA_U64 ? x & INT64_MAX : wrap(dtype, x);
}

static int64_t load(const exuvia_view *view, int64_t at)
{
    const char *data = exuvia_data(view);
    switch (view->dtype) {
    case EXUVIA_F16: {
        uint32_t bits = ((const uint16_t *)data)[at], exponent = bits >> 10 & 31;
        if (exponent == 0)
            return 0;
        int64_t magnitude = (1024 | (bits & 1023)) << 5 >> (30 - exponent);
        return bits >> 15 ? -magnitude : magnitude;
    }
    case EXUVIA_BF16: {
        union { uint32_t bits; float f; } word = {(uint32_t)((const uint16_t *)data)[at] << 16};
        return (int64_t)word.f;
    }
    case EXUVIA_F32: return (int64_t)((const float *)data)[at];
    case EXUVIA_F64: return (int64_t)((const double *)data)[at];
    case EXUVIA_I8: return ((const int8_t *)data)[at];
    case EXUVIA_I16: return ((const int16_t *)data)[at];
    case EXUVIA_I32: return ((const int32_t *)data)[at];
    case EXUVIA_U8: return ((const uint8_t *)data)[at];
    case EXUVIA_U16: return ((const uint16_t *)data)[at];
    case EXUVIA_U32: return ((const uint32_t *)data)[at];
    }
    return ((const int64_t *)data)[at];
}

static void store(const exuvia_view *view, int64_t at, int64_t x)
{
    char *data = exuvia_data(view);
    switch (view->dtype) {
    case EXUVIA_F16: {
        uint32_t exponent = 0;
        for (x &= 7; x >> exponent > 1; exponent++)
            ;
        ((uint16_t *)data)[at] = x == 0 ? 0 : (15 + exponent) << 10 | ((x << (10 - exponent)) & 1023);
        return;
    }
    case EXUVIA_BF16: {
        union { float f; uint32_t bits; } word = {(float)(x & 7)};
        ((uint16_t *)data)[at] = word.bits >> 16;
        return;
    }
    case EXUVIA_F32: ((float *)data)[at] = (float)x; return;
    case EXUVIA_F64: ((double *)data)[at] = (double)x; return;
    case EXUVIA_I8: case EXUVIA_U8: ((uint8_t *)data)[at] = x; return;
    case EXUVIA_I16: case EXUVIA_U16: ((uint16_t *)data)[at] = x; return;
    case EXUVIA_I32: case EXUVIA_U32: ((uint32_t *)data)[at] = x; return;
    default: ((int64_t *)data)[at] = x;
    }
}

/* Goes to the next of `count` numbers below `limit`; 0 after the last. */
static int next(int64_t *at, const int64_t *limit, const uint32_t *which, uint32_t count)
{
    while (count-- > 0) {
        uint32_t i = which ? which[count] : count;
        if (++at[i] < limit[i])
            return 1;
        at[i] = 0;
    }
    return 0;
}

/* What an input has at the point: its elements and neighbours, weighted by their distance. */
static int64_t neighbourhood(const operand *input)
{
    const exuvia_view *view = input->view;
    int64_t off[8] = {0}, width[8], sum = 0;
    for (uint32_t d = 0; d < view->rank; d++)
        width[d] = input->scale[d] + 2 * input->halo[d];
    do {
        int64_t at = 0, weight = 1;
        for (uint32_t d = 0; d < view->rank; d++) {
            int64_t position = input->scale[d] * point[input->index[d]] + off[d] - input->halo[d];
            int64_t global = (int64_t)view->origin[d] + position;
            at += position * view->stride[d];
            weight *= off[d] + 1;
            if (no_boundary && (global < 0 || global >= (int64_t)view->shape[d]))
                weight = 0;
        }
        if (weight)
            sum += weight * load(view, at);
    } while (next(off, width, 0, view->rank));
    return sum;
}

static int64_t term(void)
{
    int64_t sum = 0, product = 1;
    for (uint32_t t = 0; t < inputs; t++) {
        int64_t value = neighbourhood(&operands[t]);
        sum += (2 * t + 3) * value;
        product *= value;
    }
    for (uint32_t i = 0; i < INDICES; i++)
        if (extent[i] >= 0)
            sum += prime[i] * (origin[i] + point[i]);
    return sum + product;
}

static int64_t fold(uint32_t how, int first, int64_t a, int64_t b)
{
    switch (how) {
    case SUM: return a + b;
    case PROD: return a * b;
    case MIN: return first || b < a ? b : a;
    default: return first || b > a ? b : a;
    }
}

/* The value of an output element at the point, which the loops over `list` move. */
static int64_t inner(uint32_t dtype, int64_t times, const uint32_t *list, uint32_t count)
{
    int64_t sum = op2 == PROD;
    int empty = 0;
    for (uint32_t i = 0; i < count; i++) {
        point[list[i]] = 0;
        empty |= extent[list[i]] == 0;
    }
    for (int first = 1, more = !empty; more; first = 0, more = next(point, extent, list, count))
        sum = fold(op2, first, sum, cast(dtype, op2, term() * times));
    return cast(dtype, op, sum);
}

static void element(const operand *output, const operand *second, int64_t at, int64_t times)
{
    uint32_t outer[INDICES], rest[INDICES], outers = 0, rests = 0, mine = 0;
    for (uint32_t d = 0; d < output->view->rank; d++)
        mine |= 1u << output->index[d];
    int empty = 0;
    for (uint32_t i = 0; i < INDICES; i++) {
        if (extent[i] < 0 || mine >> i & 1)
            continue;
        point[i] = 0;
        if (reduced >> i & 1) {
            outer[outers++] = i;
            empty |= extent[i] == 0;
        } else
            rest[rests++] = i;
    }
    uint32_t dtype = output->view->dtype;
    int64_t sum = kind == AFFINE || (kind == FOLD && op == PROD), other = 0;
    for (int first = 1, more = !empty; more; first = 0, more = next(point, extent, outer, outers)) {
        int64_t value = inner(dtype, times, rest, rests);
        if (kind == FOLD) {
            sum = fold(op, first, sum, value);
        } else if (kind == AFFINE) {
            int64_t factor = outers == 1 ? value | 1 : 1;
            sum *= factor;
            other = other * factor + value;
        } else {
            int64_t place = 0;
            for (uint32_t i = 0; i < outers; i++)
                place = place * shape[outer[i]] + origin[outer[i]] + point[outer[i]];
            if (first || (op == MIN ? value < sum : value > sum)) {
                sum = value;
                other = place;
            }
        }
    }
    store(output->view, at, sum);
    if (second)
        store(second->view, at, other);
}

/* To each element of a row 3 times the sum of the row; rows lie along whole indices. */
static void add_rows(const operand *output)
{
    const exuvia_view *view = output->view;
    uint32_t along[8], across[8], alongs = 0, acrosses = 0;
    int64_t limit[8], at[8] = {0};
    for (uint32_t d = 0; d < view->rank; d++) {
        limit[d] = view->extent[d];
        if (limit[d] == 0)
            return;
        if (rows >> output->index[d] & 1)
            along[alongs++] = d;
        else
            across[acrosses++] = d;
    }
    if (alongs == 0)
        return;
    do {
        int64_t sum = 0;
        for (int pass = 0; pass < 2; pass++)
            do {
                int64_t place = 0;
                for (uint32_t d = 0; d < view->rank; d++)
                    place += at[d] * view->stride[d];
                if (pass == 0)
                    sum += load(view, place);
                else
                    store(view, place, load(view, place) + 3 * sum);
            } while (next(at, limit, along, alongs));
    } while (next(at, limit, across, acrosses));
}

static void compute(const operand *output, const operand *second)
{
    const exuvia_view *view = output->view;
    int64_t at[8] = {0}, limit[8];
    for (uint32_t d = 0; d < view->rank; d++) {
        limit[d] = view->extent[d];
        if (limit[d] == 0)
            return;
    }
    int64_t place = 0;
    do {
        int64_t times = 1;
        for (uint32_t d = 0; d < view->rank; d++) {
            point[output->index[d]] = at[d] / output->scale[d];
            times += at[d] % output->scale[d] * (2 * d + 1);
        }
        element(output, second, place++, times);
    } while (next(at, limit, 0, view->rank));
    add_rows(output);
}

/* The extents of indices, on which all operands agree. */
static int32_t bind(void)
{
    for (uint32_t i = 0; i < INDICES; i++)
        extent[i] = -1;
    for (uint32_t o = 0; o < inputs + outputs; o++) {
        const operand *one = &operands[o];
        int64_t packed = 1;
        for (uint32_t d = one->view->rank; d-- > 0;) {
            uint32_t i = one->index[d], scale = one->scale[d];
            int64_t e = one->view->extent[d], from = one->view->origin[d], all = one->view->shape[d];
            if (e % scale || from % scale || all % scale || from + e > all)
                return 11;
            if (extent[i] >= 0 && (extent[i] != e / scale || origin[i] != from / scale || shape[i] != all / scale))
                return 12;
            extent[i] = e / scale, origin[i] = from / scale, shape[i] = all / scale;
            if ((whole >> i & 1) && extent[i] != shape[i])
                return 13;
            if (one->view->stride[d] != packed && one->view->extent[d] > 0)
                return 14;
            packed *= e + 2 * one->halo[d];
        }
    }
    return 0;
}

EXUVIA_EXPORT(stage) int32_t stage(const exuvia_view *views, uint32_t count)
{
    uint64_t word = *(const uint64_t *)exuvia_data(&views[0]);
    inputs = word & 7, outputs = word >> 3 & 7, op = word >> 6 & 3, op2 = word >> 8 & 3, kind = word >> 10 & 3;
    no_boundary = word >> 12 & 1, reduced = word >> 16 & 4095, whole = word >> 28 & 4095, rows = word >> 40 & 4095;
    uint32_t all = inputs + outputs;
    if (count != 1 + 2 * all || all > OPERANDS)
        return 1;
    for (uint32_t o = 0; o < all; o++) {
        uint64_t dims = *(const uint64_t *)exuvia_data(&views[1 + o]);
        operands[o].view = &views[1 + all + o];
        if ((operands[o].view->flags & EXUVIA_OUTPUT) != (o >= inputs ? EXUVIA_OUTPUT : 0))
            return 2;
        for (uint32_t d = 0; d < operands[o].view->rank; d++, dims >>= 8) {
            operands[o].index[d] = dims & 15;
            operands[o].scale[d] = 1 + (dims >> 4 & 3);
            operands[o].halo[d] = dims >> 6 & 3;
        }
    }
    int32_t status = bind();
    if (status)
        return status;
    const operand *out = &operands[inputs];
    if (kind != FOLD)
        compute(&out[0], &out[1]);
    else
        for (uint32_t o = 0; o < outputs; o++)
            compute(&out[o], 0);
    return 0;
}

static int64_t elements(const exuvia_view *view)
{
    int64_t all = 1;
    for (uint32_t d = 0; d < view->rank; d++)
        all *= view->extent[d];
    return all;
}

/* Two affine maps, one after the other: the later one is the input. */
EXUVIA_EXPORT(chain) int32_t chain(const exuvia_view *v, uint32_t count)
{
    for (int64_t i = 0; i < elements(&v[0]); i++) {
        int64_t factor = load(&v[0], i);
        store(&v[2], i, load(&v[2], i) * factor);
        store(&v[3], i, load(&v[3], i) * factor + load(&v[1], i));
    }
    return count != 4;
}

EXUVIA_EXPORT(add) int32_t add(const exuvia_view *v, uint32_t count)
{
    for (uint32_t o = 0; o < count / 2; o++)
        for (int64_t i = 0; i < elements(&v[o]); i++)
            store(&v[count / 2 + o], i, load(&v[count / 2 + o], i) + load(&v[o], i));
    return 0;
}
