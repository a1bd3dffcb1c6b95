// Softmax attention of the pixels of a picture: for a few queries at once all scores, their softmax and the weighted mean
// of the values, without a pass over memory between them. Scores and softmax are float, whatever is read and written.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "products.h"

#ifdef DDPM_PRODUCTS_FLOAT32

namespace {

struct Shape {
    int64_t batch, pixels, heads, width;  // queries, keys and values lie side by side: [batch, pixels, 3, heads, width]
    int64_t step() const { return 3 * heads * width; }
    int64_t padded() const { return (pixels + kWidth - 1) / kWidth * kWidth; }
};

// [padded / kWidth, width / pair, kWidth, pair], so that products run over the width; zeros behind the last pixel.
template <typename T>
void pack_keys(const T* k, const Shape& s, T* to) {
    constexpr int pair = kPair<T>;
    for (int64_t n = 0; n < s.padded(); ++n) {
        T* column = to + (n / kWidth) * kWidth * s.width + (n % kWidth) * pair;
        for (int64_t d = 0; d < s.width; d += pair)
            for (int p = 0; p < pair; ++p) column[d * kWidth + p] = n < s.pixels ? k[n * s.step() + d + p] : T(0);
    }
}

// [width / kWidth, padded / pair, kWidth, pair], so that products run over the pixels.
template <typename T>
void pack_values(const T* v, const Shape& s, T* to) {
    constexpr int pair = kPair<T>;
    for (int64_t n = 0; n < s.padded(); ++n)
        for (int64_t d = 0; d < s.width; ++d)
            to[((d / kWidth) * s.padded() + n - n % pair) * kWidth + (d % kWidth) * pair + n % pair] =
                n < s.pixels ? v[n * s.step() + d] : T(0);
}

// e^x for x <= 0, by 2^n times a polynomial on [-0.5, 0.5].
inline __m512 exponential(__m512 x) {
    const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(y, 0), f = _mm512_sub_ps(y, whole);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    for (const float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, whole);
}

// The softmax of one row of scores; zeros behind the last pixel.
template <typename T>
void softmax(float* scores, const Shape& s, float scale, T* to) {
    for (int64_t n = s.pixels; n < s.padded(); ++n) scores[n] = -INFINITY;
    __m512 most = _mm512_loadu_ps(scores), sum = _mm512_setzero_ps();
    for (int64_t n = kLanes; n < s.padded(); n += kLanes) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + n));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most)), factor = _mm512_set1_ps(scale);
    for (int64_t n = 0; n < s.padded(); n += kLanes) {
        const __m512 e = exponential(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + n), top), factor));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(scores + n, e);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (int64_t n = 0; n < s.padded(); n += kLanes) store(to + n, _mm512_mul_ps(_mm512_loadu_ps(scores + n), inverse));
}

// y [batch, pixels, heads, width]; weights [batch, heads, pixels, pixels] of the values, or none to keep them not.
template <typename T>
void attend(const T* qkv, T* y, T* weights, const Shape& s, float scale, int threads) {
    const int64_t all = s.heads * s.width, padded = s.padded();
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> keys(padded * s.width), values(padded * s.width), shares(kRows * padded);
        std::vector<float> scores(kRows * padded), means(kRows * s.width);
#pragma omp for schedule(dynamic)
        for (int64_t number = 0; number < s.batch * s.heads; ++number) {
            const int64_t picture = number / s.heads, head = number % s.heads;
            const T* q = qkv + picture * s.pixels * s.step() + head * s.width;
            pack_keys(q + all, s, keys.data());
            pack_values(q + 2 * all, s, values.data());
            for (int64_t first = 0; first < s.pixels; first += kRows) {
                const int64_t rows = std::min<int64_t>(kRows, s.pixels - first);
                for (int64_t n = 0; n < padded; n += kWidth)
                    product(q + first * s.step(), rows, s.step(), keys.data() + n * s.width, s.width,
                            scores.data() + n, padded);
                for (int64_t r = 0; r < rows; ++r) {
                    T* share = shares.data() + r * padded;
                    softmax(scores.data() + r * padded, s, scale, share);
                    if (weights)
                        std::copy(share, share + s.pixels, weights + (number * s.pixels + first + r) * s.pixels);
                }
                for (int64_t d = 0; d < s.width; d += kWidth)
                    product(shares.data(), rows, padded, values.data() + d * padded, padded, means.data() + d, s.width);
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t d = 0; d < s.width; d += kLanes)
                        store(y + ((picture * s.pixels + first + r) * s.heads + head) * s.width + d,
                              _mm512_loadu_ps(means.data() + r * s.width + d));
            }
        }
    }
}

}  // namespace

#define DDPM_ATTENTION(NAME, TYPE)                                                                              \
    extern "C" void attention_##NAME(const TYPE* qkv, TYPE* y, TYPE* weights, int64_t batch, int64_t pixels,    \
                                     int64_t heads, int64_t width, double scale, int threads) {                 \
        attend(qkv, y, weights, Shape{batch, pixels, heads, width}, static_cast<float>(scale), threads);        \
    }

DDPM_ATTENTION(float32, float)
#ifdef DDPM_PRODUCTS_BFLOAT16
DDPM_ATTENTION(bfloat16, bfloat16)
#endif

#endif
