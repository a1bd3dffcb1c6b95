// The gradient of 3x3 convolutions with respect to weights and bias, by the transpose of Winograd's filtering: the
// gradient of the transformed weights is, place by place, a product of transformed inputs and transformed gradients.
//
// Each thread sums over blocks of tiles of its own; the sums are added in the order of the threads, so that a result
// depends on their number alone.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "winograd.h"

#ifdef DDPM_PRODUCTS_FLOAT32

namespace {

constexpr int64_t kTiles = 384;  // in a block: long products, of operands that stay in the outer cache
constexpr int kPart = 11;        // rows at once: kWidth = 11 + 11 + 10

// One number of each of `kPair` tiles, side by side for one channel after another.
inline void store_pair(float* to, const __m512* tiles) { store(to, tiles[0]); }
#ifdef DDPM_PRODUCTS_BFLOAT16
inline void store_pair(bfloat16* to, const __m512* tiles) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(tiles[0]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(tiles[1]));
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_slli_epi32(high, 16), low));
}
#endif

// Where channel c of tiles t, t + 1 lies in [channels / kWidth, kTiles / pair, kWidth, pair].
template <typename T>
int64_t at(int64_t c, int64_t t) {
    return (c / kWidth * kTiles + t) * kWidth + c % kWidth * kPair<T>;
}

// v [places, in / kWidth, kTiles / pair, kWidth, pair], transformed inputs of `count` tiles, with zeros up to a pair.
template <typename T, bool Doubled>
void gather_inputs(const T* x, const Shape& s, int64_t first, int64_t count, const T* zeros, T* v) {
    constexpr int pair = kPair<T>;
    for (int64_t t = 0; t < count; t += pair) {
        const T* pixel[pair][16];
        for (int p = 0; p < pair; ++p) {
            std::fill(pixel[p], pixel[p] + 16, zeros);
            if (t + p < count) pixels_of<T, Doubled>(x, s, Tile(s, first + t + p), zeros, pixel[p]);
        }
        for (int64_t c = 0; c < s.in; c += kLanes) {
            __m512 d[16], transformed[pair][16];
            for (int p = 0; p < pair; ++p) {
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) d[i] = load(pixel[p][i] + c);
                transform_input(d, transformed[p]);
            }
#pragma GCC unroll 16
            for (int i = 0; i < kPlaces<Doubled>; ++i) {
                __m512 both[pair];
                for (int p = 0; p < pair; ++p) both[p] = transformed[p][place<Doubled>(i)];
                store_pair(v + i * kTiles * s.in + at<T>(c, t), both);
            }
        }
    }
}

// A y A^T.
inline void transform_gradient(const __m512 y[4], __m512 g[16]) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 h[8];
    for (int j = 0; j < 2; ++j) {
        h[j] = y[j];
        h[2 + j] = _mm512_add_ps(y[j], y[2 + j]);
        h[4 + j] = _mm512_sub_ps(y[j], y[2 + j]);
        h[6 + j] = _mm512_sub_ps(zero, y[2 + j]);
    }
    for (int i = 0; i < 4; ++i) {
        g[4 * i] = h[2 * i];
        g[4 * i + 1] = _mm512_add_ps(h[2 * i], h[2 * i + 1]);
        g[4 * i + 2] = _mm512_sub_ps(h[2 * i], h[2 * i + 1]);
        g[4 * i + 3] = _mm512_sub_ps(zero, h[2 * i + 1]);
    }
}

// The same of the gradients of the outputs; adds their sums over the tiles to `d_bias` [out].
template <typename T, bool Doubled>
void gather_gradients(const T* dy, const Shape& s, int64_t first, int64_t count, const T* zeros, T* g, float* d_bias) {
    constexpr int pair = kPair<T>;
    for (int64_t t = 0; t < count; t += pair) {
        const T* pixel[pair][4];
        for (int p = 0; p < pair; ++p) {
            const Tile tile(s, std::min(first + t + p, s.tiles() - 1));
            for (int i = 0; i < 4; ++i) {
                const int64_t row = tile.y + i / 2, column = tile.x + i % 2;
                const bool inside = t + p < count && row < s.height && column < s.width;
                pixel[p][i] = inside ? dy + ((tile.picture * s.height + row) * s.width + column) * s.out : zeros;
            }
        }
        for (int64_t c = 0; c < s.out; c += kLanes) {
            __m512 y[4], transformed[pair][16], sum = _mm512_loadu_ps(d_bias + c);
            for (int p = 0; p < pair; ++p) {
                for (int i = 0; i < 4; ++i) y[i] = load(pixel[p][i] + c);
                transform_gradient(y, transformed[p]);
                sum = _mm512_add_ps(sum, transformed[p][5]);
            }
            _mm512_storeu_ps(d_bias + c, sum);
#pragma GCC unroll 16
            for (int i = 0; i < kPlaces<Doubled>; ++i) {
                __m512 both[pair];
                for (int p = 0; p < pair; ++p) both[p] = transformed[p][place<Doubled>(i)];
                store_pair(g + i * kTiles * s.out + at<T>(c, t), both);
            }
        }
    }
}

// sum [Rows, kWidth] += g^T v over `count` tiles; g and v [tiles / pair, kWidth, pair], of g the first Rows columns.
template <typename T, int Rows>
void add_product(const T* g, const T* v, int64_t count, float* sum, int64_t step) {
    __m512 part[Rows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
        for (int n = 0; n < kVectors; ++n) part[r][n] = _mm512_loadu_ps(sum + r * step + n * kLanes);
    for (int64_t t = 0; t < count; t += kPair<T>) {
        const T *rows = g + t * kWidth, *columns = v + t * kWidth;
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
            for (int n = 0; n < kVectors; ++n)
                part[r][n] = multiply_add(part[r][n], rows + r * kPair<T>, columns + n * kLanes * kPair<T>);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
        for (int n = 0; n < kVectors; ++n) _mm512_storeu_ps(sum + r * step + n * kLanes, part[r][n]);
}

// sums [places, out, in], the gradient of the transformed weights, and d_bias [out] grow by what a block of tiles adds.
template <typename T, bool Doubled>
void add_block(const T* x, const T* dy, const Shape& s, int64_t first, int64_t count, const T* zeros, T* v, T* g,
               float* sums, float* d_bias) {
    gather_inputs<T, Doubled>(x, s, first, count, zeros, v);
    gather_gradients<T, Doubled>(dy, s, first, count, zeros, g, d_bias);
    for (int i = 0; i < kPlaces<Doubled>; ++i)
        for (int64_t c = 0; c < s.in; c += kWidth)
            for (int64_t k = 0; k < s.out; k += kWidth) {
                const T *rows = g + i * kTiles * s.out + at<T>(k, 0), *columns = v + i * kTiles * s.in + at<T>(c, 0);
                float* sum = sums + (i * s.out + k) * s.in + c;
                add_product<T, kPart>(rows, columns, count, sum, s.in);
                add_product<T, kPart>(rows + kPart * kPair<T>, columns, count, sum + kPart * s.in, s.in);
                add_product<T, kWidth - 2 * kPart>(rows + 2 * kPart * kPair<T>, columns, count,
                                                   sum + 2 * kPart * s.in, s.in);
            }
}

// d_weight [out, 3, 3, in] = G^T u G, of the sums u over all threads.
template <bool Doubled>
void transform_sums(const std::vector<std::vector<float>>& sums, const Shape& s, float* d_weight, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < s.out; ++k)
        for (int64_t c = 0; c < s.in; c += kLanes) {
            __m512 u[16], h[12];
            for (auto& vector : u) vector = _mm512_setzero_ps();
            for (int i = 0; i < kPlaces<Doubled>; ++i)
                for (const auto& of_thread : sums)
                    if (!of_thread.empty())
                        u[place<Doubled>(i)] = _mm512_add_ps(
                            u[place<Doubled>(i)], _mm512_loadu_ps(of_thread.data() + (i * s.out + k) * s.in + c));
            const __m512 half = _mm512_set1_ps(0.5f);
            for (int j = 0; j < 4; ++j) {
                const __m512 a = _mm512_mul_ps(half, _mm512_add_ps(u[4 + j], u[8 + j]));
                h[j] = _mm512_add_ps(u[j], a);
                h[4 + j] = _mm512_mul_ps(half, _mm512_sub_ps(u[4 + j], u[8 + j]));
                h[8 + j] = _mm512_add_ps(u[12 + j], a);
            }
            for (int i = 0; i < 3; ++i) {
                const __m512* row = h + 4 * i;
                const __m512 a = _mm512_mul_ps(half, _mm512_add_ps(row[1], row[2]));
                float* to = d_weight + (k * 9 + 3 * i) * s.in + c;
                _mm512_storeu_ps(to, _mm512_add_ps(row[0], a));
                _mm512_storeu_ps(to + s.in, _mm512_mul_ps(half, _mm512_sub_ps(row[1], row[2])));
                _mm512_storeu_ps(to + 2 * s.in, _mm512_add_ps(row[3], a));
            }
        }
}

template <typename T, bool Doubled>
void gradient(const T* x, const T* dy, float* d_weight, float* d_bias, const Shape& s, int threads) {
    constexpr int places = kPlaces<Doubled>;
    const int64_t blocks = (s.tiles() + kTiles - 1) / kTiles;
    std::vector<std::vector<float>> sums(threads), biases(threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        const int64_t start = blocks * thread / threads, stop = blocks * (thread + 1) / threads;
        if (start == stop) continue;
        std::vector<T> zeros(std::max(s.in, s.out)), v(places * kTiles * s.in), g(places * kTiles * s.out);
        sums[thread].assign(places * s.in * s.out, 0.0f);
        biases[thread].assign(s.out, 0.0f);
        for (int64_t block = start; block < stop; ++block)
            add_block<T, Doubled>(x, dy, s, block * kTiles, std::min(kTiles, s.tiles() - block * kTiles), zeros.data(),
                                  v.data(), g.data(), sums[thread].data(), biases[thread].data());
    }
    transform_sums<Doubled>(sums, s, d_weight, threads);
    std::fill(d_bias, d_bias + s.out, 0.0f);
    for (const auto& of_thread : biases)
        for (size_t k = 0; k < of_thread.size(); ++k) d_bias[k] += of_thread[k];
}

}  // namespace

#define DDPM_WINOGRAD_GRADIENT(NAME, TYPE)                                                                          \
    extern "C" void winograd_gradient_##NAME(const TYPE* x, const TYPE* dy, float* d_weight, float* d_bias,         \
                                             int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, \
                                             int doubled, int threads) {                                            \
        (doubled ? gradient<TYPE, true> : gradient<TYPE, false>)(x, dy, d_weight, d_bias,                           \
                                                                 Shape{batch, height, width, in, out}, threads);    \
    }

DDPM_WINOGRAD_GRADIENT(float32, float)
#ifdef DDPM_PRODUCTS_BFLOAT16
DDPM_WINOGRAD_GRADIENT(bfloat16, bfloat16)
#endif

#endif
