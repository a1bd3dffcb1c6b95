// Winograd's minimal filtering F(2x2, 3x3) (Lavin & Gray 2016): 2x2 outputs from 4x4 inputs with 16 products of transformed
// numbers a pair of channels, in place of 36. What the convolution and its gradient have in common.

#pragma once

#include "products.h"

#ifdef DDPM_PRODUCTS_FLOAT32

namespace {

struct Shape {
    int64_t batch, height, width, in, out;  // height and width of the output; those of the input are half if doubled
    int64_t rows() const { return (height + 1) / 2; }
    int64_t columns() const { return (width + 1) / 2; }
    int64_t tiles() const { return batch * rows() * columns(); }
};

struct Tile {
    int64_t picture, y, x;  // of its upper left output
    Tile(const Shape& s, int64_t number) {
        const int64_t in_picture = number % (s.rows() * s.columns());
        picture = number / (s.rows() * s.columns());
        y = 2 * (in_picture / s.columns());
        x = 2 * (in_picture % s.columns());
    }
};

// Of doubled pixels the two in the middle are equal, so that a third row and column of the transform are zero.
template <bool Doubled>
constexpr int kPlaces = Doubled ? 9 : 16;
template <bool Doubled>
constexpr int place(int i) {
    return Doubled ? 4 * (i / 3 == 2 ? 3 : i / 3) + (i % 3 == 2 ? 3 : i % 3) : i;
}

// Channels of the input pixel that a tile sees in a row and column of its 4x4; outside of the picture, zeros.
template <typename T, bool Doubled>
const T* pixel_of(const T* x, const Shape& s, const Tile& tile, int i, int j, const T* zeros) {
    constexpr int shift = Doubled ? 1 : 0;
    const int64_t row = tile.y - 1 + i, column = tile.x - 1 + j;
    if (row < 0 || row >= s.height || column < 0 || column >= s.width) return zeros;
    const int64_t line = tile.picture * (s.height >> shift) + (row >> shift);
    return x + (line * (s.width >> shift) + (column >> shift)) * s.in;
}

// B^T d B.
inline void transform_input(const __m512 d[16], __m512 v[16]) {
    __m512 h[16];
    for (int j = 0; j < 4; ++j) {
        h[j] = _mm512_sub_ps(d[j], d[8 + j]);
        h[4 + j] = _mm512_add_ps(d[4 + j], d[8 + j]);
        h[8 + j] = _mm512_sub_ps(d[8 + j], d[4 + j]);
        h[12 + j] = _mm512_sub_ps(d[4 + j], d[12 + j]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_sub_ps(h[i], h[i + 2]);
        v[i + 1] = _mm512_add_ps(h[i + 1], h[i + 2]);
        v[i + 2] = _mm512_sub_ps(h[i + 2], h[i + 1]);
        v[i + 3] = _mm512_sub_ps(h[i + 1], h[i + 3]);
    }
}

}  // namespace

#endif
