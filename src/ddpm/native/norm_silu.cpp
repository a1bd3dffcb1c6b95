// Group norm, then scale, shift and SiLU, in one pass over channels_last activations; and its gradient in one more.
//
// A picture is a matrix [pixels, channels]. Every loop runs along channels, which lie side by side in memory, so the
// compiler can use vectors whatever the width of a group. Statistics are sums of each channel, combined to groups in double.
// Numbers are read and written as float or bfloat16, and computed as float.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kRows = 64;  // pixels summed in float before the sum is moved to double: bounds the rounding error

inline float load(const float* from, int64_t i) { return from[i]; }
inline float load(const uint16_t* from, int64_t i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline void store(float* to, int64_t i, float value) { to[i] = value; }
inline void store(uint16_t* to, int64_t i, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    to[i] = static_cast<uint16_t>(value == value ? rounded : 0x7FC0);
}

// e^-z by 2^n times a polynomial on [-0.5, 0.5]: within 3 units in the last place, without a call that stops the vectors.
inline float exp_of_minus(float z) {
    float y = -1.44269504f * z;
    y = y > 126.0f ? 126.0f : y;
    y = y < -126.0f ? -126.0f : y;
    const float whole = std::nearbyint(y);
    const float f = y - whole;
    float p = 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}
inline float sigmoid(float z) { return 1.0f / (1.0f + exp_of_minus(z)); }

struct Shape {
    int64_t batch, pixels, channels, groups;
};

// What is the same for all pixels of one picture; a missing table stands for zeros.
struct Tables {
    const float *gain, *bias;             // [C]
    const float *offset, *scale, *shift;  // [B, C] or none
    float at(const float* table, int64_t place) const { return table ? table[place] : 0.0f; }
};

// z = a x + b, where z is what SiLU reads.
void affine(const Tables& t, const Shape& s, int64_t picture, const float* mean, const float* rstd, float* a, float* b) {
    const int64_t width = s.channels / s.groups;
    for (int64_t c = 0; c < s.channels; ++c) {
        const int64_t place = picture * s.channels + c, group = picture * s.groups + c / width;
        const float scale = 1.0f + t.at(t.scale, place);
        a[c] = rstd[group] * t.gain[c] * scale;
        b[c] = (t.at(t.offset, place) - mean[group]) * a[c] + t.bias[c] * scale + t.at(t.shift, place);
    }
}

// Which activations are kept, and by how much they grow: a hash of (state of the picture, place) decides four of them.
struct Dropout {
    const int64_t *positions, *states;  // [pixels channels / 4], well-mixed; [B], or none for no dropout
    int64_t dropped;                    // of 65536
};

// The factors of one pixel after another.
class Factors {
  public:
    Factors(const Dropout& dropout, int64_t channels)
        : dropout(dropout), words(channels / 4), bits(channels), factors(channels, 1.0f) {}
    const float* of(int64_t picture, int64_t pixel) {
        if (!dropout.states) return factors.data();
        const uint64_t state = static_cast<uint64_t>(dropout.states[picture]);
        const int64_t count = static_cast<int64_t>(words.size()), *position = dropout.positions + pixel * count;
        for (int64_t w = 0; w < count; ++w) {
            uint64_t z = (static_cast<uint64_t>(position[w]) ^ state) * 0xBF58476D1CE4E5B9u;
            z = (z ^ static_cast<uint64_t>(static_cast<int64_t>(z) >> 32)) * 0x94D049BB133111EBu;
            words[w] = z + static_cast<uint64_t>(static_cast<int64_t>(z) >> 32);
        }
        std::memcpy(bits.data(), words.data(), bits.size() * sizeof(int16_t));
        const int16_t least = static_cast<int16_t>(dropout.dropped - 32768);
        const float factor = 65536.0f / static_cast<float>(65536 - dropout.dropped);
        for (size_t c = 0; c < bits.size(); ++c) factors[c] = bits[c] >= least ? factor : 0.0f;
        return factors.data();
    }

  private:
    const Dropout& dropout;
    std::vector<uint64_t> words;
    std::vector<int16_t> bits;
    std::vector<float> factors;
};

template <typename T>
void statistics(const T* x, const Tables& t, const Shape& s, int64_t picture, double eps, float* mean, float* rstd) {
    const int64_t channels = s.channels, width = channels / s.groups;
    std::vector<float> first(channels), sum(channels), square(channels);
    std::vector<double> sums(channels), squares(channels);
    for (int64_t c = 0; c < channels; ++c) first[c] = load(x, c);  // subtracted, so that squares do not cancel
    for (int64_t start = 0; start < s.pixels; start += kRows) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        std::fill(square.begin(), square.end(), 0.0f);
        for (int64_t p = start; p < std::min(start + kRows, s.pixels); ++p) {
            const T* row = x + p * channels;
            for (int64_t c = 0; c < channels; ++c) {
                const float value = load(row, c) - first[c];
                sum[c] += value;
                square[c] += value * value;
            }
        }
        for (int64_t c = 0; c < channels; ++c) {
            sums[c] += sum[c];
            squares[c] += square[c];
        }
    }
    for (int64_t group = 0; group < s.groups; ++group) {
        double total = 0.0, spread = 0.0;
        for (int64_t c = group * width; c < (group + 1) * width; ++c) {
            sums[c] = sums[c] / s.pixels;  // from here on the mean, less `first`
            squares[c] = squares[c] / s.pixels - sums[c] * sums[c];
            sums[c] += first[c] + t.at(t.offset, picture * channels + c);
            total += sums[c];
        }
        total /= width;
        for (int64_t c = group * width; c < (group + 1) * width; ++c)
            spread += squares[c] + (sums[c] - total) * (sums[c] - total);
        mean[picture * s.groups + group] = static_cast<float>(total);
        rstd[picture * s.groups + group] = static_cast<float>(1.0 / std::sqrt(spread / width + eps));
    }
}

template <typename T>
void forward(const T* x, T* y, float* mean, float* rstd, const Tables& t, const Shape& s, const Dropout& dropout,
             double eps, bool silu, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t picture = 0; picture < s.batch; ++picture) {
        const T* from = x + picture * s.pixels * s.channels;
        T* to = y + picture * s.pixels * s.channels;
        std::vector<float> a(s.channels), b(s.channels);
        Factors factors(dropout, s.channels);
        statistics(from, t, s, picture, eps, mean, rstd);
        affine(t, s, picture, mean, rstd, a.data(), b.data());
        const float *ap = a.data(), *bp = b.data();
        for (int64_t p = 0; p < s.pixels; ++p) {
            const T* row = from + p * s.channels;
            T* out = to + p * s.channels;
            const float* keep = factors.of(picture, p);
            if (silu)
                for (int64_t c = 0; c < s.channels; ++c) {
                    const float z = ap[c] * load(row, c) + bp[c];
                    store(out, c, keep[c] * z * sigmoid(z));
                }
            else
                for (int64_t c = 0; c < s.channels; ++c) store(out, c, keep[c] * (ap[c] * load(row, c) + bp[c]));
        }
    }
}

// Sums over the pixels of one picture, for each channel: of dz, of dz (x - first) and of x - first.
struct Sums {
    std::vector<double> dz, dz_x, x;
    explicit Sums(int64_t channels) : dz(channels), dz_x(channels), x(channels) {}
};

template <bool silu, typename T>
void gradient_of_z(const T* x, const T* dy, const float* a, const float* b, const float* first, const Shape& s,
                   int64_t picture, Factors& factors, float* dz, Sums& sums) {
    const int64_t channels = s.channels;
    std::vector<float> of_dz(channels), of_dz_x(channels), of_x(channels);
    for (int64_t start = 0; start < s.pixels; start += kRows) {
        std::fill(of_dz.begin(), of_dz.end(), 0.0f);
        std::fill(of_dz_x.begin(), of_dz_x.end(), 0.0f);
        std::fill(of_x.begin(), of_x.end(), 0.0f);
        float *s0 = of_dz.data(), *s1 = of_dz_x.data(), *s2 = of_x.data();
        for (int64_t p = start; p < std::min(start + kRows, s.pixels); ++p) {
            const T *row = x + p * channels, *grad = dy + p * channels;
            const float* keep = factors.of(picture, p);
            float* out = dz + p * channels;
#pragma GCC ivdep
            for (int64_t c = 0; c < channels; ++c) {
                const float value = load(row, c);
                float slope = 1.0f;
                if (silu) {
                    const float z = a[c] * value + b[c], g = sigmoid(z);
                    slope = g * (1.0f + z * (1.0f - g));
                }
                const float d = load(grad, c) * keep[c] * slope;
                out[c] = d;
                s0[c] += d;
                s1[c] += d * (value - first[c]);
                s2[c] += value - first[c];
            }
        }
        for (int64_t c = 0; c < channels; ++c) {
            sums.dz[c] += of_dz[c];
            sums.dz_x[c] += of_dz_x[c];
            sums.x[c] += of_x[c];
        }
    }
}

// Gradients of the tables of one picture, each [B, C]; and dx = p dz + q x + r for its activations.
struct Gradients {
    float *gain, *bias, *offset, *scale;  // that of the shift is that of `bias` without its scale
    float* shift;
};

void gradients(const Tables& t, const Shape& s, int64_t picture, const float* mean, const float* rstd,
               const float* first, const Sums& sums, const Gradients& out, float* p, float* q, float* r) {
    const int64_t width = s.channels / s.groups;
    const double count = static_cast<double>(width) * s.pixels;
    for (int64_t group = 0; group < s.groups; ++group) {
        const double m = mean[picture * s.groups + group], inverse = rstd[picture * s.groups + group];
        double of_dz = 0.0, of_dz_x_hat = 0.0;
        for (int64_t c = group * width; c < (group + 1) * width; ++c) {
            const int64_t place = picture * s.channels + c;
            const double scale = 1.0 + t.at(t.scale, place), k = t.gain[c] * scale;
            const double dz_x_hat = inverse * (sums.dz_x[c] + (first[c] + t.at(t.offset, place) - m) * sums.dz[c]);
            out.gain[place] = static_cast<float>(scale * dz_x_hat);
            out.bias[place] = static_cast<float>(scale * sums.dz[c]);
            out.scale[place] = static_cast<float>(t.gain[c] * dz_x_hat + t.bias[c] * sums.dz[c]);
            out.shift[place] = static_cast<float>(sums.dz[c]);
            of_dz += k * sums.dz[c];
            of_dz_x_hat += k * dz_x_hat;
        }
        of_dz /= count;
        of_dz_x_hat /= count;
        for (int64_t c = group * width; c < (group + 1) * width; ++c) {
            const int64_t place = picture * s.channels + c;
            const double offset = t.at(t.offset, place);
            const double pc = inverse * t.gain[c] * (1.0 + t.at(t.scale, place));
            const double qc = -inverse * inverse * of_dz_x_hat;
            const double rc = -inverse * of_dz + qc * (offset - m);
            out.offset[place] = static_cast<float>(pc * sums.dz[c] + qc * (sums.x[c] + first[c] * double(s.pixels)) +
                                                   rc * s.pixels);
            p[c] = static_cast<float>(pc);
            q[c] = static_cast<float>(qc);
            r[c] = static_cast<float>(rc);
        }
    }
}

template <typename T>
void backward(const T* x, const T* dy, T* dx, const float* mean, const float* rstd, const Tables& t, const Shape& s,
              const Gradients& out, const Dropout& dropout, bool silu, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> dz(s.pixels * s.channels), a(s.channels), b(s.channels), first(s.channels);
        std::vector<float> p(s.channels), q(s.channels), r(s.channels);
        Factors factors(dropout, s.channels);
#pragma omp for schedule(static)
        for (int64_t picture = 0; picture < s.batch; ++picture) {
            const int64_t start = picture * s.pixels * s.channels;
            Sums sums(s.channels);
            affine(t, s, picture, mean, rstd, a.data(), b.data());
            for (int64_t c = 0; c < s.channels; ++c) first[c] = load(x + start, c);
            (silu ? gradient_of_z<true, T> : gradient_of_z<false, T>)(x + start, dy + start, a.data(), b.data(),
                                                                       first.data(), s, picture, factors, dz.data(), sums);
            gradients(t, s, picture, mean, rstd, first.data(), sums, out, p.data(), q.data(), r.data());
            const float *pp = p.data(), *qp = q.data(), *rp = r.data();
            for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
                const T* row = x + start + pixel * s.channels;
                const float* d = dz.data() + pixel * s.channels;
                T* to = dx + start + pixel * s.channels;
                for (int64_t c = 0; c < s.channels; ++c) store(to, c, pp[c] * d[c] + qp[c] * load(row, c) + rp[c]);
            }
        }
    }
}

}  // namespace

#define DDPM_ENTRY(NAME, TYPE)                                                                                        \
    extern "C" void norm_silu_forward_##NAME(                                                                         \
        const TYPE* x, TYPE* y, float* mean, float* rstd, const float* gain, const float* bias, const float* offset,  \
        const float* scale, const float* shift, const int64_t* positions, const int64_t* states, int64_t dropped,     \
        int64_t batch, int64_t pixels, int64_t channels, int64_t groups, double eps, int silu, int threads) {         \
        forward(x, y, mean, rstd, Tables{gain, bias, offset, scale, shift}, Shape{batch, pixels, channels, groups},   \
                Dropout{positions, states, dropped}, eps, silu != 0, threads);                                        \
    }                                                                                                                 \
    extern "C" void norm_silu_backward_##NAME(                                                                        \
        const TYPE* x, const TYPE* dy, TYPE* dx, const float* mean, const float* rstd, const float* gain,             \
        const float* bias, const float* offset, const float* scale, const float* shift, float* d_gain, float* d_bias, \
        float* d_offset, float* d_scale, float* d_shift, const int64_t* positions, const int64_t* states,             \
        int64_t dropped, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, int silu, int threads) {    \
        backward(x, dy, dx, mean, rstd, Tables{gain, bias, offset, scale, shift},                                     \
                 Shape{batch, pixels, channels, groups}, Gradients{d_gain, d_bias, d_offset, d_scale, d_shift},       \
                 Dropout{positions, states, dropped}, silu != 0, threads);                                            \
    }

DDPM_ENTRY(float32, float)
DDPM_ENTRY(bfloat16, uint16_t)
