// Matrix products of vectors with 16 lanes (AVX512), in float or bfloat16 with sums in float; what the kernels build upon.

#pragma once

#if defined(__AVX512F__)
#define DDPM_PRODUCTS_FLOAT32
// Where there is AMX, the matrix library's products in bfloat16 are faster than these.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#define DDPM_PRODUCTS_BFLOAT16
#endif

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

namespace {

constexpr int kLanes = 16;                 // floats in a vector
constexpr int kVectors = 2;                // of columns at once
constexpr int kWidth = kVectors * kLanes;  // columns at once
constexpr int kRows = 14;                  // rows at once: 28 sums, two vectors of columns and one number fill 31 registers

using bfloat16 = uint16_t;

// Neighbours in a row that one instruction multiplies and adds.
template <typename T>
constexpr int kPair = sizeof(T) == 2 ? 2 : 1;

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load(const bfloat16* from) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
#ifdef DDPM_PRODUCTS_BFLOAT16
inline void store(bfloat16* to, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value));
}
#endif

// Vectors of `kPair` neighbours, side by side for one lane after another.
inline void store_pair(float* to, const __m512* neighbours) { store(to, neighbours[0]); }
#ifdef DDPM_PRODUCTS_BFLOAT16
inline void store_pair(bfloat16* to, const __m512* neighbours) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(neighbours[0]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(neighbours[1]));
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_slli_epi32(high, 16), low));
}
#endif

inline __m512 multiply_add(__m512 sum, const float* input, const float* weights) {
    return _mm512_fmadd_ps(_mm512_set1_ps(*input), _mm512_loadu_ps(weights), sum);
}
#ifdef DDPM_PRODUCTS_BFLOAT16
inline __m512 multiply_add(__m512 sum, const bfloat16* input, const bfloat16* weights) {
    int32_t pair;
    std::memcpy(&pair, input, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(weights));
}
#endif

// m [Rows, kWidth] = v [Rows, inner] u [inner / pair, kWidth, pair]; v has `step` numbers from row to row.
template <typename T, int Rows>
void product_of(const T* v, int64_t step, const T* u, int64_t inner, float* m, int64_t m_step) {
    __m512 sum[Rows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
        for (int n = 0; n < kVectors; ++n) sum[r][n] = _mm512_setzero_ps();
    for (int64_t c = 0; c < inner; c += kPair<T>) {
        const T* columns = u + c * kWidth;
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
            for (int n = 0; n < kVectors; ++n)
                sum[r][n] = multiply_add(sum[r][n], v + r * step + c, columns + n * kLanes * kPair<T>);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
        for (int n = 0; n < kVectors; ++n) _mm512_storeu_ps(m + r * m_step + n * kLanes, sum[r][n]);
}

template <typename T, int... Rows>
auto product_for(int64_t rows, std::integer_sequence<int, Rows...>) {
    using Product = void (*)(const T*, int64_t, const T*, int64_t, float*, int64_t);
    static constexpr Product products[] = {product_of<T, Rows + 1>...};
    return products[rows - 1];
}

// The same for any number of rows.
template <typename T>
void product(const T* v, int64_t rows, int64_t step, const T* u, int64_t inner, float* m, int64_t m_step) {
    for (int64_t r = 0; r < rows; r += kRows)
        product_for<T>(rows - r < kRows ? rows - r : kRows, std::make_integer_sequence<int, kRows>())(
            v + r * step, step, u, inner, m + r * m_step, m_step);
}

}  // namespace

#endif
