// Half-precision types and arithmetic intrinsics, bit-exact where CUDA's are. The build passes
// -ffp-contract=off, so that a product and a sum stay two roundings.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) {
  return std::bit_cast<float>(uint32_t{v.bits} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if (f != f) return {0x7fff}; // CUDA's NaN
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
inline float __half2float(__half h) {
  const uint32_t sign = uint32_t{h.bits} >> 15 << 31, magnitude = h.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const float f = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -f : f;
}
inline __half __float2half_rn(float f) {
  const uint32_t whole = std::bit_cast<uint32_t>(f), u = whole & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(whole >> 16 & 0x8000u);
  const auto with_sign = [&](uint32_t v) { return __half{static_cast<uint16_t>(sign | v)}; };
  if (u > 0x7f800000u) return {0x7fff};
  if (u >= 0x477ff000u) return with_sign(0x7c00u); // rounds past 65504
  if (u < 0x38800000u)                             // subnormal: adding 0.5 rounds at 2^-24
    return with_sign(std::bit_cast<uint32_t>(std::bit_cast<float>(u) + 0.5f) - 0x3f000000u);
  return with_sign((u + 0xfffu + ((u >> 13) & 1u) - (112u << 23)) >> 13);
}

// Vector types of CUDA: names and alignment.
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline void __stwb(uint4 *p, uint4 v) { *p = v; } // cache hints change no value
inline void __stwb(float4 *p, float4 v) { *p = v; }
inline void __stwb(uint2 *p, uint2 v) { *p = v; }
inline double __ldcg(const double *p) { return *p; }
inline void __stcg(double *p, double v) { *p = v; }
inline void __pipeline_memcpy_async(void *to, const void *from, size_t bytes) {
  std::memcpy(to, from, bytes);
}
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(size_t) {}
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __floats2half2_rn(float a, float b) {
  return {__float2half_rn(a), __float2half_rn(b)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {__bfloat162float(v.x), __bfloat162float(v.y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
  return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
#define cospif(x) static_cast<float>(std::cos(3.14159265358979323846 * (x)))
#define __expf(x) std::exp(static_cast<float>(x)) // glibc declares functions of these names
#define __logf(x) std::log(static_cast<float>(x))
#define __log2f(x) std::log2(static_cast<float>(x))
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned __int128>(a) * b >> 64;
}
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
