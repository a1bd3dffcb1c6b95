// 3x3 convolutions of channels_last pictures by Winograd's minimal filtering.
//
// Tiles are taken in blocks whose transformed inputs stay in the cache. Numbers are read and written as float or
// bfloat16; transforms and sums are float. Each tile is computed by itself, in one order of summation, so that a picture
// does not depend on the batch or on the threads.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "winograd.h"

#ifdef DDPM_PRODUCTS_FLOAT32

namespace {

constexpr int64_t kCache = 256 << 10;  // bytes of transformed inputs in a block

// Numbers from one place to the next: not a multiple of 4096 bytes, which would share a few lines of the cache.
template <typename T>
int64_t apart(int64_t count, int64_t width) {
    return count * width + 64 / int64_t(sizeof(T));
}

// A^T m A.
inline void transform_output(const __m512 m[16], __m512 y[4]) {
    __m512 h[8];
    for (int j = 0; j < 4; ++j) {
        h[j] = _mm512_add_ps(_mm512_add_ps(m[j], m[4 + j]), m[8 + j]);
        h[4 + j] = _mm512_sub_ps(_mm512_sub_ps(m[4 + j], m[8 + j]), m[12 + j]);
    }
    for (int i = 0; i < 2; ++i) {
        y[2 * i] = _mm512_add_ps(_mm512_add_ps(h[4 * i], h[4 * i + 1]), h[4 * i + 2]);
        y[2 * i + 1] = _mm512_sub_ps(_mm512_sub_ps(h[4 * i + 1], h[4 * i + 2]), h[4 * i + 3]);
    }
}

// v [places, count, in], transformed inputs of the tiles from `first` on.
template <typename T, bool Doubled>
void gather(const T* x, const Shape& s, int64_t first, int64_t count, const T* zeros, T* v) {
    const int64_t step = apart<T>(count, s.in);
    for (int64_t t = 0; t < count; ++t) {
        const T* pixel[16];
        const Tile tile(s, first + t);
        for (int i = 0; i < 16; ++i) pixel[i] = pixel_of<T, Doubled>(x, s, tile, i / 4, i % 4, zeros);
        for (int64_t c = 0; c < s.in; c += kLanes) {
            __m512 d[16], transformed[16];
            T* to = v + t * s.in + c;
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) d[i] = load(pixel[i] + c);
            transform_input(d, transformed);
#pragma GCC unroll 16
            for (int i = 0; i < kPlaces<Doubled>; ++i) store(to + i * step, transformed[place<Doubled>(i)]);
        }
    }
}

// Write kWidth channels of the tiles from `first` on, plus bias and residual.
template <typename T, bool Doubled>
void scatter(const float* m, const Shape& s, int64_t first, int64_t count, int64_t channel, const float* bias,
             const T* residual, T* y) {
    const int64_t step = apart<float>(count, kWidth);
    for (int64_t t = 0; t < count; ++t) {
        const Tile tile(s, first + t);
        for (int64_t c = 0; c < kWidth; c += kLanes) {
            __m512 products[16], outputs[4];
            const float* from = m + t * kWidth + c;
            for (auto& vector : products) vector = _mm512_setzero_ps();
#pragma GCC unroll 16
            for (int i = 0; i < kPlaces<Doubled>; ++i) products[place<Doubled>(i)] = _mm512_loadu_ps(from + i * step);
            transform_output(products, outputs);
            const __m512 b = bias ? _mm512_loadu_ps(bias + channel + c) : _mm512_setzero_ps();
            for (int i = 0; i < 4; ++i) {
                const int64_t row = tile.y + i / 2, column = tile.x + i % 2;
                if (row >= s.height || column >= s.width) continue;
                const int64_t at = ((tile.picture * s.height + row) * s.width + column) * s.out + channel + c;
                __m512 sum = _mm512_add_ps(outputs[i], b);
                if (residual) sum = _mm512_add_ps(sum, load(residual + at));
                store(y + at, sum);
            }
        }
    }
}

template <typename T, bool Doubled>
void convolve(const T* x, const T* u, const float* bias, const T* residual, T* y, const Shape& s, int threads) {
    constexpr int places = kPlaces<Doubled>;
    const int64_t fit = kCache / (16 * s.in * int64_t(sizeof(T))) / kRows * kRows;
    const int64_t block = std::max<int64_t>(kRows, fit), blocks = (s.tiles() + block - 1) / block;
    const int64_t matrix = s.in * kWidth, wide = s.out / kWidth;
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> zeros(s.in), v(places * apart<T>(block, s.in));
        std::vector<float> m(places * apart<float>(block, kWidth));
#pragma omp for schedule(dynamic)
        for (int64_t number = 0; number < blocks; ++number) {
            const int64_t first = number * block, count = std::min(block, s.tiles() - first);
            gather<T, Doubled>(x, s, first, count, zeros.data(), v.data());
            for (int64_t k = 0; k < wide; ++k) {
                for (int i = 0; i < places; ++i)
                    product(v.data() + i * apart<T>(count, s.in), count, s.in,
                            u + (place<Doubled>(i) * wide + k) * matrix, s.in,
                            m.data() + i * apart<float>(count, kWidth), kWidth);
                scatter<T, Doubled>(m.data(), s, first, count, k * kWidth, bias, residual, y);
            }
        }
    }
}

// Strides of the weights, in numbers, as the convolution reads them: of output channel, input channel, row, column.
struct Strides {
    int64_t out, in, row, column;
};

// Exchange rows and columns, by exchanging those whose numbers differ in one bit, bit by bit.
inline void transpose(__m512 rows[kLanes]) {
#pragma GCC unroll 4
    for (int bit = 1; bit < kLanes; bit *= 2) {
        int32_t lower[kLanes], upper[kLanes];
        for (int n = 0; n < kLanes; ++n) {
            lower[n] = n & bit ? kLanes + (n ^ bit) : n;
            upper[n] = n & bit ? kLanes + n : n ^ bit;
        }
        const __m512i low = _mm512_loadu_si512(lower), high = _mm512_loadu_si512(upper);
#pragma GCC unroll 16
        for (int n = 0; n < kLanes; ++n)
            if (!(n & bit)) {
                const __m512 first = rows[n], second = rows[n | bit];
                rows[n] = _mm512_permutex2var_ps(first, low, second);
                rows[n | bit] = _mm512_permutex2var_ps(first, high, second);
            }
    }
}

// The weights of kLanes input and kWidth output channels, whichever of them lie side by side.
void read_weights(const float* from, const Strides& s, float to[kLanes][9][kWidth]) {
    for (int i = 0; i < 9; ++i)
        for (int k = 0; k < kWidth; k += kLanes) {
            const float* place = from + (i / 3) * s.row + (i % 3) * s.column + k * s.out;
            if (s.out == 1) {
                for (int c = 0; c < kLanes; ++c) store(to[c][i] + k, load(place + c * s.in));
            } else if (s.in == 1) {
                __m512 rows[kLanes];
                for (int n = 0; n < kLanes; ++n) rows[n] = load(place + n * s.out);
                transpose(rows);
                for (int c = 0; c < kLanes; ++c) store(to[c][i] + k, rows[c]);
            } else {
                for (int c = 0; c < kLanes; ++c)
                    for (int n = 0; n < kLanes; ++n) to[c][i][k + n] = place[n * s.out + c * s.in];
            }
        }
}

// G g G^T of one input channel and kLanes output channels; g [9, kWidth].
inline void transform_weight(const float* g, __m512 to[16]) {
    const __m512 part = _mm512_set1_ps(0.5f);
    __m512 h[12];
    for (int j = 0; j < 3; ++j) {
        const __m512 a = load(g + j * kWidth), b = load(g + (3 + j) * kWidth), d = load(g + (6 + j) * kWidth);
        const __m512 sum = _mm512_add_ps(a, d);
        h[j] = a;
        h[3 + j] = _mm512_mul_ps(part, _mm512_add_ps(sum, b));
        h[6 + j] = _mm512_mul_ps(part, _mm512_sub_ps(sum, b));
        h[9 + j] = d;
    }
    for (int i = 0; i < 4; ++i) {
        const __m512 a = h[3 * i], b = h[3 * i + 1], d = h[3 * i + 2], sum = _mm512_add_ps(a, d);
        to[4 * i] = a;
        to[4 * i + 1] = _mm512_mul_ps(part, _mm512_add_ps(sum, b));
        to[4 * i + 2] = _mm512_mul_ps(part, _mm512_sub_ps(sum, b));
        to[4 * i + 3] = d;
    }
}

// u [16, out / kWidth, in / pair, kWidth, pair], the transformed weights.
template <typename T>
void transform_weights(const float* weights, const Strides& s, int64_t in, int64_t out, T* u, int threads) {
    constexpr int pair = kPair<T>;
    const int64_t wide = out / kWidth;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t k = 0; k < wide; ++k)
        for (int64_t start = 0; start < in; start += kLanes) {
            float g[kLanes][9][kWidth];
            read_weights(weights + start * s.in + k * kWidth * s.out, s, g);
            for (int c = 0; c < kLanes; c += pair)
                for (int half = 0; half < kWidth; half += kLanes) {
                    __m512 transformed[pair][16];
                    for (int p = 0; p < pair; ++p)
                        transform_weight(g[c + p][0] + half, transformed[p]);
                    for (int i = 0; i < 16; ++i) {
                        __m512 neighbours[pair];
                        for (int p = 0; p < pair; ++p) neighbours[p] = transformed[p][i];
                        store_pair(u + ((i * wide + k) * in + start + c) * kWidth + half * pair, neighbours);
                    }
                }
        }
}

}  // namespace

#define DDPM_WINOGRAD(NAME, TYPE)                                                                                     \
    extern "C" void winograd_weights_##NAME(const float* weights, int64_t out_stride, int64_t in_stride, int64_t row, \
                                            int64_t column, int64_t in, int64_t out, TYPE* u, int threads) {          \
        transform_weights(weights, Strides{out_stride, in_stride, row, column}, in, out, u, threads);                 \
    }                                                                                                                 \
    extern "C" void winograd_##NAME(const TYPE* x, const TYPE* u, const float* bias, const TYPE* residual, TYPE* y,   \
                                    int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out,            \
                                    int doubled, int threads) {                                                       \
        (doubled ? convolve<TYPE, true> : convolve<TYPE, false>)(x, u, bias, residual, y,                             \
                                                                 Shape{batch, height, width, in, out}, threads);      \
    }

DDPM_WINOGRAD(float32, float)
#ifdef DDPM_PRODUCTS_BFLOAT16
DDPM_WINOGRAD(bfloat16, bfloat16)
#endif

#endif
