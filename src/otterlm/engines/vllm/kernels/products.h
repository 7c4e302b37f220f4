// Vectors of the processor, and products of weights in panels, `[panel][channel][PANEL]`, see `otter_pack`. Their results
// are `[rows, outputs padded to PANEL]`. Sums are float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;  // 16 of 32 registers hold sums
#else
constexpr int LANES = 8, ROWS = 4;
#endif
constexpr int PANEL = 2 * LANES;
constexpr int QUERIES = 4;  // so many rows share what is read of the cache
constexpr int AHEAD = 3072;  // bytes of a weight that are asked for early: they come from memory in every pass

struct bf16 {
    uint16_t bits;
};
typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline Vec load(const bf16* p) {
    return reinterpret_cast<Vec>(__builtin_convertvector(*reinterpret_cast<const Half*>(p), Bits) << 16);
}
inline void store(float* p, Vec value) { *reinterpret_cast<Vec*>(p) = value; }

inline float get(float value) { return value; }
inline float get(bf16 value) {
    union { uint32_t bits; float number; } both{uint32_t(value.bits) << 16};
    return both.number;
}
inline void put(float& target, float value) { target = value; }
inline void put(bf16& target, float value) {  // rounds to even
    union { float number; uint32_t bits; } both{value};
    target.bits = std::isnan(value) ? 0x7fc0 : (both.bits + 0x7fff + (both.bits >> 16 & 1)) >> 16;
}

inline int64_t padded(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

inline float total(Vec sums) {
    float result = 0;
    for (int lane = 0; lane < LANES; ++lane) result += sums[lane];
    return result;
}

// exp, by the polynomial of the Cephes library (expf); 0 below the smallest normal number.
inline Vec exponential(Vec x) {
    Vec capped = x > 88.f ? Vec{} + 88.f : x;
    Vec scaled = capped * 1.44269504f;
    Ints power = __builtin_convertvector(scaled + (scaled < 0.f ? Vec{} - .5f : Vec{} + .5f), Ints);
    Vec whole = __builtin_convertvector(power, Vec), r = capped - whole * .693359375f + whole * 2.12194440e-4f;
    Vec p = Vec{} + 1.9875691500e-4f;
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + term;
    Vec result = (p * r * r + r + 1.f) * reinterpret_cast<Vec>((power + 127) << 23);
    return x < -87.f ? Vec{} : result;
}

// -- products ------------------------------------------------------------------------------------------------------

struct Part {  // of what a product reads: some channels of each row
    const float* rows;
    int64_t channels, stride;
};

template <int M, typename W>
inline void accumulate(Vec (&left)[M], Vec (&right)[M], const Part& part, int64_t row, const W* panel) {
    const float* x[M];
    for (int m = 0; m < M; ++m) x[m] = part.rows + (row + m) * part.stride;
    for (int64_t channel = 0; channel < part.channels; ++channel, panel += PANEL) {
        __builtin_prefetch(panel + AHEAD / sizeof(W));
        const Vec first = load(panel), second = load(panel + LANES);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec value = Vec{} + x[m][channel];
            left[m] += value * first;
            right[m] += value * second;
        }
    }
}

template <int M, typename W>
void tile(int m, const Part& base, const Part& inserted, const W* panel, const float* bias, int64_t row, float* out,
          int64_t width) {
    if constexpr (M > 1) {
        if (m < M) return tile<M - 1>(m, base, inserted, panel, bias, row, out, width);
    }
    Vec left[M], right[M];
    for (int i = 0; i < M; ++i) {
        left[i] = bias ? load(bias) : Vec{};
        right[i] = bias ? load(bias + LANES) : Vec{};
    }
    accumulate<M>(left, right, base, row, panel);
    accumulate<M>(left, right, inserted, row, panel + base.channels * PANEL);
    for (int i = 0; i < M; ++i) {
        store(out + (row + i) * width, left[i]);
        store(out + (row + i) * width + LANES, right[i]);
    }
}

// Writes [base, inserted] W^T + bias to out, `[rows, width]`. All threads of a parallel region call it together.
template <typename W>
void product(const Part& base, const Part& inserted, const void* weight, const float* bias, int64_t rows,
             int64_t width, float* out) {
    const int64_t blocks = (rows + ROWS - 1) / ROWS, size = (base.channels + inserted.channels) * PANEL;
#pragma omp for collapse(2) schedule(static)
    for (int64_t panel = 0; panel < width / PANEL; ++panel)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t row = block * ROWS;
            tile<ROWS>(int(std::min<int64_t>(ROWS, rows - row)), base, inserted,
                       static_cast<const W*>(weight) + panel * size, bias ? bias + panel * PANEL : nullptr, row,
                       out + panel * PANEL, width);
        }
}

// Returns float32 rows: those that are given, or a copy in the buffer, which moves on.
inline Part widened(const float* rows, int64_t, int64_t channels, int64_t stride, float*&) {
    return {rows, channels, stride};
}
inline Part widened(const bf16* rows, int64_t count, int64_t channels, int64_t stride, float*& buffer) {
    float* copy = buffer;
    buffer += count * channels;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < count; ++row)
        for (int64_t i = 0; i < channels; ++i) copy[row * channels + i] = get(rows[row * stride + i]);
    return {copy, channels, channels};
}

}  // namespace
