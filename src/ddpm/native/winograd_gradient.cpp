// The gradient of 3x3 convolutions with respect to weights and bias, by the transpose of Winograd's filtering: the
// gradient of the transformed weights is, place by place, a product of transformed inputs and transformed gradients.
//
// Of a block of tiles one row of places after another, whose transformed numbers stay in the outer cache. Threads share
// rows and output channels, not tiles: there is one set of sums, and results do not depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "winograd.h"

#ifdef DDPM_PRODUCTS_FLOAT32

namespace {

constexpr int64_t kCache = 768 << 10;  // bytes of the transformed numbers of a block, one row of places
constexpr int kPart = 11;              // rows at once: kWidth = 11 + 11 + 10

// How many places of a row, and rows, are not zero (see winograd.h).
template <bool Doubled>
constexpr int kSide = Doubled ? 3 : 4;

// Both transforms make a row of places of two rows of pixels: the first, plus the second with a sign; -1: of zeros.
struct Rows {
    int first, second;
    float sign;
};
constexpr Rows kInputRows[4] = {{0, 2, -1.0f}, {1, 2, 1.0f}, {2, 1, -1.0f}, {1, 3, -1.0f}};       // of B^T d B
constexpr Rows kGradientRows[4] = {{0, -1, 1.0f}, {0, 1, 1.0f}, {0, 1, -1.0f}, {-1, 1, -1.0f}};  // of A y A^T

inline void combine(const __m512 (&h)[4], __m512 to[4]) {
    to[0] = _mm512_sub_ps(h[0], h[2]);
    to[1] = _mm512_add_ps(h[1], h[2]);
    to[2] = _mm512_sub_ps(h[2], h[1]);
    to[3] = _mm512_sub_ps(h[1], h[3]);
}
inline void combine(const __m512 (&h)[2], __m512 to[4]) {
    to[0] = h[0];
    to[1] = _mm512_add_ps(h[0], h[1]);
    to[2] = _mm512_sub_ps(h[0], h[1]);
    to[3] = _mm512_sub_ps(_mm512_setzero_ps(), h[1]);
}

// Transformed numbers of a block of tiles, [places of a row, channels / kWidth, tiles / pair, kWidth, pair]. Neighbours
// are not a multiple of 4096 bytes apart, which would share a few lines of the cache.
template <typename T>
struct Block {
    int64_t channels, tiles;
    std::unique_ptr<T[]> numbers;
    Block(int64_t channels, int64_t tiles)
        : channels(channels), tiles(tiles), numbers(new T[kSide<false> * place_step()]) {}
    int64_t wide_step() const { return tiles * kWidth + 64 / int64_t(sizeof(T)); }
    int64_t place_step() const { return channels / kWidth * wide_step(); }
    T* at(int64_t i, int64_t c, int64_t t) const {
        return numbers.get() + i * place_step() + c / kWidth * wide_step() + t * kWidth + c % kWidth * kPair<T>;
    }
};

// Write tiles t, t + 1 of a block, made of pixels [first or second, tile, column]; the sum of their second place is added to
// `sums` [channels], if there are any.
template <typename T, bool Doubled, int Columns>
void transform_pair(const T* const (&pixels)[2][kPair<T>][Columns], float sign, int64_t t, const Block<T>& to,
                    float* sums) {
    constexpr int pair = kPair<T>;
    const __m512 signs = _mm512_set1_ps(sign);
    for (int64_t c = 0; c < to.channels; c += kLanes) {
        __m512 made[pair][4];
        for (int p = 0; p < pair; ++p) {
            __m512 h[Columns];
            for (int j = 0; j < Columns; ++j)
                h[j] = _mm512_fmadd_ps(signs, load(pixels[1][p][j] + c), load(pixels[0][p][j] + c));
            combine(h, made[p]);
            if (sums) _mm512_storeu_ps(sums + c, _mm512_add_ps(_mm512_loadu_ps(sums + c), made[p][1]));
        }
        for (int i = 0; i < kSide<Doubled>; ++i) {
            __m512 both[pair];
            for (int p = 0; p < pair; ++p) both[p] = made[p][place<Doubled>(i)];
            store_pair(to.at(i, c, t), both);
        }
    }
}

template <typename T, bool Doubled>
void gather_inputs(const T* x, const Shape& s, int64_t first, int64_t count, int row, const T* zeros,
                   const Block<T>& v) {
    const Rows& rows = kInputRows[row];
    for (int64_t t = 0; t < count; t += kPair<T>) {
        const T* pixels[2][kPair<T>][4];
        for (int p = 0; p < kPair<T>; ++p) {
            const Tile tile(s, std::min(first + t + p, s.tiles() - 1));
            const bool there = t + p < count;
            for (int j = 0; j < 4; ++j) {
                pixels[0][p][j] = there ? pixel_of<T, Doubled>(x, s, tile, rows.first, j, zeros) : zeros;
                pixels[1][p][j] = there ? pixel_of<T, Doubled>(x, s, tile, rows.second, j, zeros) : zeros;
            }
        }
        transform_pair<T, Doubled, 4>(pixels, rows.sign, t, v, nullptr);
    }
}

// `dy` and `d_bias` begin at the first of the channels of `g`.
template <typename T, bool Doubled>
void gather_gradients(const T* dy, const Shape& s, int64_t first, int64_t count, int row, const T* zeros,
                      const Block<T>& g, float* d_bias) {
    const Rows& rows = kGradientRows[row];
    for (int64_t t = 0; t < count; t += kPair<T>) {
        const T* pixels[2][kPair<T>][2];
        for (int p = 0; p < kPair<T>; ++p) {
            const Tile tile(s, std::min(first + t + p, s.tiles() - 1));
            for (int i = 0; i < 4; ++i) {
                const int which = i / 2 ? rows.second : rows.first;
                const int64_t line = tile.y + which, column = tile.x + i % 2;
                const bool inside = t + p < count && which >= 0 && line < s.height && column < s.width;
                pixels[i / 2][p][i % 2] =
                    inside ? dy + ((tile.picture * s.height + line) * s.width + column) * s.out : zeros;
            }
        }
        transform_pair<T, Doubled, 2>(pixels, rows.sign, t, g, row == 1 ? d_bias : nullptr);
    }
}

// sum [Rows, kWidth] = g^T v over `count` tiles, and what it was if there was any; g and v [tiles / pair, kWidth, pair], of
// g the first Rows columns.
template <typename T, int Rows>
void add_product(const T* g, const T* v, int64_t count, float* sum, bool any) {
    __m512 part[Rows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
        for (int n = 0; n < kVectors; ++n)
            part[r][n] = any ? _mm512_loadu_ps(sum + r * kWidth + n * kLanes) : _mm512_setzero_ps();
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
        for (int n = 0; n < kVectors; ++n) _mm512_storeu_ps(sum + r * kWidth + n * kLanes, part[r][n]);
}

// The gradient of the transformed weights, [places, out / kWidth, in / kWidth, kWidth, kWidth].
struct Sums {
    int64_t in, out;
    float* numbers;
    float* at(int64_t i, int64_t k, int64_t c) const {
        return numbers + ((i * out + k / kWidth * kWidth) * in + c / kWidth * kWidth * kWidth + k % kWidth * kWidth +
                          c % kWidth);
    }
};

// Of the places the rows from `top` up to `bottom`, of the output channels those from `start` up to `stop`.
struct Part {
    int top, bottom;
    int64_t start, stop;
};

template <typename T, bool Doubled>
void add_up(const T* x, const T* dy, const Shape& s, const Part& part, const Sums& sums, float* d_bias) {
    constexpr int side = kSide<Doubled>;
    const int64_t outputs = part.stop - part.start, fit = kCache / (4 * (s.in + outputs) * int64_t(sizeof(T)));
    const int64_t blocks = (s.tiles() + fit - 1) / fit, block = (s.tiles() / blocks + 2) / 2 * 2;
    const std::vector<T> zeros(std::max(s.in, s.out));
    const Block<T> v(s.in, block), g(outputs, block);
    for (int64_t first = 0; first < s.tiles(); first += block)
        for (int line = part.top; line < part.bottom; ++line) {
            const int64_t count = std::min(block, s.tiles() - first);
            const int row = place<Doubled>(side * line) / 4;
            gather_inputs<T, Doubled>(x, s, first, count, row, zeros.data(), v);
            gather_gradients<T, Doubled>(dy + part.start, s, first, count, row, zeros.data(), g, d_bias + part.start);
            for (int i = 0; i < side; ++i)
                for (int64_t k = part.start; k < part.stop; k += kWidth)
                    for (int64_t c = 0; c < s.in; c += kWidth) {
                        const T *rows = g.at(i, k - part.start, 0), *columns = v.at(i, c, 0);
                        float* sum = sums.at(line * side + i, k, c);
                        add_product<T, kPart>(rows, columns, count, sum, first > 0);
                        add_product<T, kPart>(rows + kPart * kPair<T>, columns, count, sum + kPart * kWidth, first > 0);
                        add_product<T, kWidth - 2 * kPart>(rows + 2 * kPart * kPair<T>, columns, count,
                                                           sum + 2 * kPart * kWidth, first > 0);
                    }
        }
}

// d_weight [out, 3, 3, in] = G^T u G, of the sums u.
template <bool Doubled>
void transform_sums(const Sums& sums, const Shape& s, float* d_weight, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < s.out; ++k)
        for (int64_t c = 0; c < s.in; c += kLanes) {
            __m512 u[16], h[12];
            for (auto& vector : u) vector = _mm512_setzero_ps();
            for (int i = 0; i < kPlaces<Doubled>; ++i) u[place<Doubled>(i)] = _mm512_loadu_ps(sums.at(i, k, c));
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
    const std::unique_ptr<float[]> numbers(new float[kPlaces<Doubled> * s.in * s.out]);
    const Sums sums{s.in, s.out, numbers.get()};
    constexpr int side = kSide<Doubled>;
    const int groups = std::gcd(side, threads);
    const int64_t wide = s.out / kWidth, slices = std::min<int64_t>(wide, threads / groups);
    std::fill(d_bias, d_bias + s.out, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t unit = 0; unit < groups * slices; ++unit) {
        const int group = static_cast<int>(unit / slices);
        const int64_t slice = unit % slices;
        add_up<T, Doubled>(x, dy, s,
                           Part{side * group / groups, side * (group + 1) / groups, wide * slice / slices * kWidth,
                                wide * (slice + 1) / slices * kWidth},
                           sums, d_bias);
    }
    transform_sums<Doubled>(sums, s, d_weight, threads);
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
