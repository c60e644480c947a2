// Attention between the pixels of an image, bfloat16, on a CPU with AVX512-BF16: no gradients. Built and called by
// cpu_attention.py. A head's keys and values are packed in pairs, as the processor multiplies them; a few pixels at a
// time are then scored, weighed and summed in float32 without leaving its fast caches.
//
// A head's result depends neither on the others nor on the number of threads.

#if defined(__AVX512BF16__) && defined(__AVX512DQ__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr long ROWS = 6;    // pixels at a time, with 64 sums of each in registers
constexpr long LANES = 16;  // floats in a register

// exp(x) within 8e-5 relative, a twentieth of what bfloat16 rounds; 0 where x is very low.
inline __m512 fast_exp(__m512 x) {
  __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // t less its floor
  __m512 p = _mm512_set1_ps(7.80242164e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.26066897e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.95834012e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.99925129e-1f));
  return _mm512_scalef_ps(p, t);  // times 2 to the floor of t
}

// out [R, 16 J] = a [R, pairs] b [pairs, 16 J], where a pair is two numbers that are multiplied and added.
template <long R, long J>
void product(const uint32_t* a, const uint32_t* b, long b_row, long pairs, float* out, long out_row) {
  __m512 sums[R][J];
  for (long r = 0; r < R; ++r)
    for (long j = 0; j < J; ++j) sums[r][j] = _mm512_setzero_ps();
  for (long i = 0; i < pairs; ++i) {
    __m512bh right[J];
    for (long j = 0; j < J; ++j) right[j] = (__m512bh)_mm512_loadu_si512(b + i * b_row + LANES * j);
    for (long r = 0; r < R; ++r) {
      __m512bh left = (__m512bh)_mm512_set1_epi32(int(a[r * pairs + i]));
      for (long j = 0; j < J; ++j) sums[r][j] = _mm512_dpbf16_ps(sums[r][j], left, right[j]);
    }
  }
  for (long r = 0; r < R; ++r)
    for (long j = 0; j < J; ++j) _mm512_storeu_ps(out + r * out_row + LANES * j, sums[r][j]);
}

template <long J>
void product(long rows, const uint32_t* a, const uint32_t* b, long b_row, long pairs, float* out, long out_row) {
  constexpr decltype(&product<1, J>) BY_ROWS[] = {product<1, J>, product<2, J>, product<3, J>,
                                                  product<4, J>, product<5, J>, product<6, J>};
  BY_ROWS[rows - 1](a, b, b_row, pairs, out, out_row);
}

// out [rows, width] = a [rows, pairs] b [pairs, width].
void product(long rows, const uint32_t* a, const uint32_t* b, long width, long pairs, float* out) {
  long j = 0;
  for (; j + 4 * LANES <= width; j += 4 * LANES) product<4>(rows, a, b + j, width, pairs, out + j, width);
  for (; j + 2 * LANES <= width; j += 2 * LANES) product<2>(rows, a, b + j, width, pairs, out + j, width);
  for (; j < width; j += LANES) product<1>(rows, a, b + j, width, pairs, out + j, width);
}

inline void store(uint16_t* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }

// exp(scale (s - the largest s)) in bfloat16; returns their sum.
float weigh(const float* s, long n, float scale, uint16_t* weights) {
  __m512 top = _mm512_loadu_ps(s), by = _mm512_set1_ps(scale), sum = _mm512_setzero_ps();
  for (long j = LANES; j < n; j += LANES) top = _mm512_max_ps(top, _mm512_loadu_ps(s + j));
  __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top));
  for (long j = 0; j < n; j += LANES) {
    __m512 e = fast_exp(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(s + j), most), by));
    sum = _mm512_add_ps(sum, e);
    store(weights + j, e);
  }
  return _mm512_reduce_add_ps(sum);
}

}  // namespace

// qkv: [samples, n, 3, heads, d]; out: [samples, n, heads, d]; n and d multiples of 16.
extern "C" void attend(long samples, long n, long heads, long d, const uint16_t* qkv, float scale, uint16_t* out,
                       int threads) {
  long pixel = 3 * heads * d, half = d / 2;
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint32_t> keys(half * n), values(n / 2 * d), queries(ROWS * half), weights(ROWS * n / 2);
    std::vector<float> scores(ROWS * n), sums(ROWS * d);
#pragma omp for schedule(static)
    for (long unit = 0; unit < samples * heads; ++unit) {
      const uint16_t* q = qkv + unit / heads * n * pixel + unit % heads * d;
      const uint16_t *k = q + heads * d, *v = k + heads * d;
      for (long first = 0; first < n; first += LANES)
        for (long i = 0; i < half; ++i)
          for (long j = first; j < first + LANES; ++j) std::memcpy(&keys[i * n + j], k + j * pixel + 2 * i, 4);
      for (long j = 0; j < n; j += 2)
        for (long c = 0; c < d; ++c) {
          const uint16_t* own = v + j * pixel + c;
          values[j / 2 * d + c] = uint32_t(own[0]) | uint32_t(own[pixel]) << 16;
        }
      for (long first = 0; first < n; first += ROWS) {
        long rows = std::min(ROWS, n - first);
        for (long r = 0; r < rows; ++r) std::memcpy(&queries[r * half], q + (first + r) * pixel, 2 * d);
        product(rows, queries.data(), keys.data(), n, half, scores.data());
        float totals[ROWS];
        for (long r = 0; r < rows; ++r)
          totals[r] = weigh(&scores[r * n], n, scale, (uint16_t*)&weights[r * (n / 2)]);
        product(rows, weights.data(), values.data(), d, n / 2, sums.data());
        for (long r = 0; r < rows; ++r) {
          uint16_t* to = out + (unit / heads * n + first + r) * heads * d + unit % heads * d;
          __m512 by = _mm512_set1_ps(1 / totals[r]);
          for (long c = 0; c < d; c += LANES) store(to + c, _mm512_mul_ps(_mm512_loadu_ps(&sums[r * d + c]), by));
        }
      }
    }
  }
}

#endif
