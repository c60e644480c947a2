// Group norm, scale and shift, SiLU of channels-last tensors on a CPU, forward and backward, in two passes over memory.
// Built and called by cpu_norm.py. Statistics and sums are float32, added up in double.
//
// `threads`: as many as torch uses, or one. (Any other number would make GNU's OpenMP end threads and start them again,
// each time.)
//
// Pixels are taken in chunks whose size depends on the image alone, so a sample's result depends neither on the batch
// nor on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr long LANES = 32;  // channels summed together, in registers
constexpr long BLOCK = 64;  // channels computed before they are stored

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

struct Bfloat16 {
  uint16_t bits;
  operator float() const { return bits_to_float(uint32_t(bits) << 16); }
  Bfloat16& operator=(float value) {  // to nearest, ties to even; NaN stays NaN
    uint32_t u = float_to_bits(value);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    bits = uint16_t((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
    return *this;
  }
};

template <typename T>
inline void store(const float* from, T* to, long count) {
  for (long l = 0; l < count; ++l) to[l] = from[l];
}

#ifdef __AVX512BF16__
inline __m256i narrowed(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

template <>
inline void store(const float* from, Bfloat16* to, long count) {
  long l = 0;
  for (; l + 16 <= count; l += 16)
    _mm256_storeu_si256((__m256i*)(to + l), narrowed(_mm512_loadu_ps(from + l)));
  for (; l < count; ++l) to[l] = from[l];
}
#endif

// exp(x) within 4e-6 relative, by 2^n times a polynomial; held between 2^-126 and 2^126. Not for NaN.
inline float fast_exp(float x) {
  float t = x * 1.44269504f;
  t = t < 126.0f ? t : 126.0f;
  t = t > -126.0f ? t : -126.0f;
  float whole = std::nearbyint(t);
  float f = t - whole;
  float p = 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return p * bits_to_float(uint32_t(int32_t(whole) + 127) << 23);
}

inline float sigmoid(float z) { return 1.0f / (1.0f + fast_exp(-z)); }

#ifdef __AVX512BF16__
inline __m512 widened(const Bfloat16* x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

// 1 + exp(-z) within 8e-5 relative, a twentieth of what bfloat16 rounds.
inline __m512 one_plus_exp(__m512 z) {
  __m512 t = _mm512_mul_ps(z, _mm512_set1_ps(-1.44269504f));
  __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // t less its floor; 0 of infinity
  __m512 p = _mm512_set1_ps(7.80242164e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.26066897e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.95834012e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.99925129e-1f));
  return _mm512_add_ps(_mm512_scalef_ps(p, t), _mm512_set1_ps(1.0f));  // times 2 to the floor of t
}

inline __m512 silu(__m512 z) { return _mm512_mul_ps(z, _mm512_rcp14_ps(one_plus_exp(z))); }

// Of silu. Divided, for where z is large nothing of 1 - sigmoid(z) must be left.
inline __m512 slope(__m512 z) {
  __m512 one = _mm512_set1_ps(1.0f), sg = _mm512_div_ps(one, one_plus_exp(z));
  return _mm512_mul_ps(sg, _mm512_fmadd_ps(z, _mm512_sub_ps(one, sg), one));
}
#endif

struct Shape {
  long samples, pixels, channels, groups, chunk;
  long chunks() const { return (pixels + chunk - 1) / chunk; }
  long first(long k) const { return k * chunk; }
  long count(long k) const { return std::min(chunk, pixels - k * chunk); }
};

// Each of these sums `N` channels over the pixels of a chunk; x and dy point at the first of them.

template <typename T, long N>
void moments(const T* x, long count, long stride, float* mean, float* square) {
  float center[N], s[N] = {}, r[N] = {}, q[N] = {};
  for (long p = 0; p < count; ++p)
    for (long l = 0; l < N; ++l) s[l] += x[p * stride + l];
  for (long l = 0; l < N; ++l) center[l] = s[l] / count;
  for (long p = 0; p < count; ++p)  // about the mean: no cancellation
    for (long l = 0; l < N; ++l) {
      float off = float(x[p * stride + l]) - center[l];
      r[l] += off;
      q[l] += off * off;
    }
  for (long l = 0; l < N; ++l) mean[l] = center[l] + r[l] / count, square[l] = q[l];
}

// dz, the gradient in front of the activation, goes to `kept` where there is one.
template <typename T, long N, bool ACT>
void gradients(const T* x, const T* dy, T* kept, long count, long stride, const float* a, const float* shift,
               const float* mean, float* sum_dz, float* sum_xdz) {
  float s[N] = {}, q[N] = {};
  for (long p = 0; p < count; ++p, x += stride, dy += stride, kept += stride) {
    float dz[N];
#ifdef __AVX512BF16__
    if constexpr (ACT && std::is_same_v<T, Bfloat16> && N % 16 == 0) {
      for (long l = 0; l < N; l += 16) {
        __m512 value = widened(x + l);
        __m512 z = _mm512_fmadd_ps(_mm512_loadu_ps(a + l), value, _mm512_loadu_ps(shift + l));
        __m512 d = _mm512_mul_ps(widened(dy + l), slope(z));
        _mm256_storeu_si256((__m256i*)(kept + l), narrowed(d));
        _mm512_storeu_ps(s + l, _mm512_add_ps(_mm512_loadu_ps(s + l), d));
        __m512 off = _mm512_sub_ps(value, _mm512_loadu_ps(mean + l));
        _mm512_storeu_ps(q + l, _mm512_fmadd_ps(d, off, _mm512_loadu_ps(q + l)));
      }
      continue;
    }
#endif
    for (long l = 0; l < N; ++l) {
      float value = x[l];
      dz[l] = dy[l];
      if (ACT) {
        float z = a[l] * value + shift[l], sg = sigmoid(z);
        dz[l] *= sg * (1.0f + z * (1.0f - sg));
      }
      s[l] += dz[l];
      q[l] += dz[l] * (value - mean[l]);
    }
    if (ACT) store(dz, kept, N);
  }
  for (long l = 0; l < N; ++l) sum_dz[l] = s[l], sum_xdz[l] = q[l];
}

// Calls f with the first of every run of LANES, 8 or 1 channels, as many as fit.
template <typename F>
void by_lanes(long channels, F f) {
  long l = 0;
  for (; l + LANES <= channels; l += LANES) f(l, std::integral_constant<long, LANES>());
  for (; l + 8 <= channels; l += 8) f(l, std::integral_constant<long, 8>());
  for (; l < channels; ++l) f(l, std::integral_constant<long, 1>());
}

// Calls f with the first of every block of channels, their number, and room for as many floats.
template <typename F>
void by_blocks(long channels, F f) {
  float room[BLOCK];
  for (long first = 0; first < channels; first += BLOCK) f(first, std::min(BLOCK, channels - first), room);
}

// y = act(a x + shift) of one pixel.
template <typename T, bool ACT>
void apply(const T* x, long channels, const float* a, const float* shift, T* y) {
  long done = 0;
#ifdef __AVX512BF16__
  if constexpr (ACT && std::is_same_v<T, Bfloat16>)
    for (; done + 16 <= channels; done += 16) {
      __m512 z = _mm512_fmadd_ps(_mm512_loadu_ps(a + done), widened(x + done), _mm512_loadu_ps(shift + done));
      _mm256_storeu_si256((__m256i*)(y + done), narrowed(silu(z)));
    }
#endif
  by_blocks(channels - done, [&](long first, long count, float* out) {
    for (long l = 0, k = done + first; l < count; ++l, ++k) {
      float z = a[k] * x[k] + shift[k];
      out[l] = ACT ? z * sigmoid(z) : z;
    }
    store(out, y + done + first, count);
  });
}

// a and shift, so that the output is act(a x + shift), from weight, bias and a group's mean and rstd.
void affine(const Shape& shape, long sample, const float* weight, const float* bias, const float* mean,
            const float* rstd, float* a, float* shift) {
  long per = shape.channels / shape.groups;
  for (long l = 0; l < shape.channels; ++l) {
    long g = sample * shape.groups + l / per;
    a[l] = weight[l] * rstd[g];
    shift[l] = bias[l] - mean[g] * a[l];
  }
}

// partial: [samples, chunks, 2, channels]; ab: [samples, 2, channels].
template <typename T, bool ACT>
void forward(Shape shape, const T* x, const float* weight, long weight_row, const float* bias, long bias_row, float eps,
             T* y, float* mean, float* rstd, float* partial, float* ab, int threads) {
  long c = shape.channels, per = c / shape.groups, chunks = shape.chunks();
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long unit = 0; unit < shape.samples * chunks; ++unit) {
      long k = unit % chunks;
      const T* own = x + (unit / chunks * shape.pixels + shape.first(k)) * c;
      float* sums = partial + unit * 2 * c;
      by_lanes(c, [&](long l, auto n) { moments<T, n.value>(own + l, shape.count(k), c, sums + l, sums + c + l); });
    }
#pragma omp for schedule(static)
    for (long s = 0; s < shape.samples; ++s) {
      const float* sums = partial + s * chunks * 2 * c;
      for (long g = 0; g < shape.groups; ++g) {
        double sum = 0, square = 0;
        for (long k = 0; k < chunks; ++k)
          for (long l = g * per; l < (g + 1) * per; ++l) sum += double(sums[k * 2 * c + l]) * shape.count(k);
        double center = sum / (double(shape.pixels) * per);
        for (long k = 0; k < chunks; ++k)
          for (long l = g * per; l < (g + 1) * per; ++l) {
            double off = sums[k * 2 * c + l] - center;  // law of total variance
            square += sums[(k * 2 + 1) * c + l] + off * off * shape.count(k);
          }
        mean[s * shape.groups + g] = float(center);
        rstd[s * shape.groups + g] = float(1 / std::sqrt(square / (double(shape.pixels) * per) + eps));
      }
      affine(shape, s, weight + s * weight_row, bias + s * bias_row, mean, rstd, ab + s * 2 * c, ab + (s * 2 + 1) * c);
    }
#pragma omp for schedule(static)
    for (long unit = 0; unit < shape.samples * chunks; ++unit) {
      long s = unit / chunks, k = unit % chunks, start = (s * shape.pixels + shape.first(k)) * c;
      const float *a = ab + s * 2 * c, *shift = a + c;
      for (long p = 0; p < shape.count(k); ++p) {
        apply<T, ACT>(x + start + p * c, c, a, shift, y + start + p * c);
      }
    }
  }
}

// partial: [samples, chunks, 2, channels]; room: [samples, 5, channels].
template <typename T, bool ACT>
void backward(Shape shape, const T* x, const T* dy, const float* weight, long weight_row, const float* bias,
              long bias_row, const float* mean, const float* rstd, T* dx, float* dweight, float* dbias, float* partial,
              float* room, int threads) {
  long c = shape.channels, per = c / shape.groups, chunks = shape.chunks();
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (long s = 0; s < shape.samples; ++s) {
      float *a = room + s * 5 * c, *center = a + 2 * c;
      affine(shape, s, weight + s * weight_row, bias + s * bias_row, mean, rstd, a, a + c);
      for (long l = 0; l < c; ++l) center[l] = mean[s * shape.groups + l / per];
    }
#pragma omp for schedule(static)
    for (long unit = 0; unit < shape.samples * chunks; ++unit) {
      long s = unit / chunks, k = unit % chunks, start = (s * shape.pixels + shape.first(k)) * c;
      const float *a = room + s * 5 * c, *shift = a + c, *center = a + 2 * c;
      float* sums = partial + unit * 2 * c;
      by_lanes(c, [&](long l, auto n) {
        gradients<T, n.value, ACT>(x + start + l, dy + start + l, dx + start + l, shape.count(k), c, a + l, shift + l,
                                   center + l, sums + l, sums + c + l);
      });
    }
#pragma omp for schedule(static)
    for (long s = 0; s < shape.samples; ++s) {  // dx = a dz + p (x - mean) + q
      const float *sums = partial + s * chunks * 2 * c, *w = weight + s * weight_row;
      float *p = room + (s * 5 + 3) * c, *q = p + c;
      for (long g = 0; g < shape.groups; ++g) {
        double scale = rstd[s * shape.groups + g], by_weight = 0, by_bias = 0;
        for (long l = g * per; l < (g + 1) * per; ++l) {
          double sum_dz = 0, sum_xdz = 0;
          for (long k = 0; k < chunks; ++k) sum_dz += sums[k * 2 * c + l], sum_xdz += sums[(k * 2 + 1) * c + l];
          dbias[s * c + l] = float(sum_dz);
          dweight[s * c + l] = float(sum_xdz * scale);
          by_bias += w[l] * sum_dz;
          by_weight += w[l] * sum_xdz * scale;
        }
        double share = scale / (double(shape.pixels) * per);
        for (long l = g * per; l < (g + 1) * per; ++l) {
          p[l] = float(-by_weight * share * scale);
          q[l] = float(-by_bias * share);
        }
      }
    }
#pragma omp for schedule(static)
    for (long unit = 0; unit < shape.samples * chunks; ++unit) {
      long s = unit / chunks, k = unit % chunks, start = (s * shape.pixels + shape.first(k)) * c;
      const float *a = room + s * 5 * c, *center = a + 2 * c, *p = a + 3 * c, *q = a + 4 * c;
      for (long pixel = 0; pixel < shape.count(k); ++pixel) {
        const T *in = x + start + pixel * c, *dz = (ACT ? dx : dy) + start + pixel * c;
        by_blocks(c, [&](long first, long count, float* out) {
          for (long l = 0, k = first; l < count; ++l, ++k) out[l] = a[k] * dz[k] + p[k] * (in[k] - center[k]) + q[k];
          store(out, dx + start + pixel * c + first, count);
        });
      }
    }
  }
}

}  // namespace

// One entry for each dtype and each with and without activation. x, y, dy, dx: [samples, pixels, channels] without
// gaps; weight and bias: a row of channels for each sample, rows so many floats apart (0: the same row for all).

#define ENTRIES(NAME, T, ACT)                                                                                          \
  extern "C" void forward_##NAME(long samples, long pixels, long channels, long groups, long chunk, const void* x,     \
                                 const float* weight, long weight_row, const float* bias, long bias_row, float eps,    \
                                 void* y, float* mean, float* rstd, float* partial, float* room, int threads) {        \
    forward<T, ACT>({samples, pixels, channels, groups, chunk}, (const T*)x, weight, weight_row, bias, bias_row, eps,  \
                    (T*)y, mean, rstd, partial, room, threads);                                                        \
  }                                                                                                                    \
  extern "C" void backward_##NAME(long samples, long pixels, long channels, long groups, long chunk, const void* x,    \
                                  const void* dy, const float* weight, long weight_row, const float* bias,             \
                                  long bias_row, const float* mean, const float* rstd, void* dx, float* dweight,       \
                                  float* dbias, float* partial, float* room, int threads) {                            \
    backward<T, ACT>({samples, pixels, channels, groups, chunk}, (const T*)x, (const T*)dy, weight, weight_row, bias,  \
                     bias_row, mean, rstd, (T*)dx, dweight, dbias, partial, room, threads);                            \
  }

ENTRIES(bf16, Bfloat16, false)
ENTRIES(bf16_silu, Bfloat16, true)
ENTRIES(fp32, float, false)
ENTRIES(fp32_silu, float, true)
