// One thread, one element: arithmetic of every type, conversions, special functions.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define ELEMENT(i, n)                                  \
    const int i = blockIdx.x * blockDim.x + threadIdx.x; \
    if (i >= n) return;

extern "C" __global__ void vector_add(const float *__restrict__ a, const float *__restrict__ b,
                                      float *sum, int n) {
    ELEMENT(i, n)
    sum[i] = a[i] + b[i];
}

extern "C" __global__ void saxpy(float alpha, const float *x, float *y, int n) {
    const int stride = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) y[i] += alpha * x[i];
}

// Four floats at a time, four bytes at a time.
extern "C" __global__ void scale_vectors(const float4 *x, const uchar4 *weights, float4 *y, int n) {
    ELEMENT(i, n)
    const float4 v = x[i];
    const uchar4 w = weights[i];
    y[i] = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
}

extern "C" __global__ void divide_integers(const int *a, const int *b, const long long *c,
                                           const long long *d, int *quotients, int *remainders,
                                           unsigned *unsigned_quotients, long long *long_quotients,
                                           long long *long_remainders, int n) {
    ELEMENT(i, n)
    quotients[i] = a[i] / b[i];
    remainders[i] = a[i] % b[i];
    unsigned_quotients[i] = (unsigned)a[i] / (unsigned)b[i];
    long_quotients[i] = c[i] / d[i];
    long_remainders[i] = c[i] % d[i];
}

// By constants the compiler multiplies by a reciprocal and shifts.
extern "C" __global__ void divide_by_constants(const int *a, const long long *b, int *by_seven,
                                               int *by_minus_ten, long long *by_thousand, int n) {
    ELEMENT(i, n)
    by_seven[i] = a[i] / 7;
    by_minus_ten[i] = a[i] / -10;
    by_thousand[i] = b[i] / 1000;
}

// 128-bit product and 128-bit sum: carries across registers.
extern "C" __global__ void wide_arithmetic(const unsigned long long *a, const unsigned long long *b,
                                           unsigned long long *high, unsigned long long *low,
                                           unsigned long long *carry, long long *shifted, int n) {
    ELEMENT(i, n)
    const unsigned __int128 product = (unsigned __int128)a[i] * b[i];
    const unsigned __int128 sum = product + (((unsigned __int128)a[i] << 64) | b[i]);
    high[i] = (unsigned long long)(sum >> 64);
    low[i] = (unsigned long long)sum;
    carry[i] = __umul64hi(a[i], b[i]);
    shifted[i] = ((long long)a[i] >> (b[i] & 63)) ^ (long long)(a[i] << (b[i] & 31));
}

extern "C" __global__ void bit_tricks(const unsigned *a, const unsigned *b,
                                      const unsigned long long *c, unsigned *out, int n) {
    ELEMENT(i, n)
    unsigned *row = out + i * 12;
    row[0] = __popc(a[i]);
    row[1] = __clz(a[i]);
    row[2] = __ffs(a[i]);
    row[3] = __brev(a[i]);
    row[4] = __funnelshift_l(a[i], b[i], b[i]);
    row[5] = __funnelshift_r(a[i], b[i], b[i] & 15);
    row[6] = __byte_perm(a[i], b[i], 0x6172);
    row[7] = __popcll(c[i]);
    row[8] = __clzll(c[i]);
    row[9] = (a[i] >> 5) & 0x3ff;
    row[10] = (a[i] & b[i]) | (~a[i] & (unsigned)c[i]);
    row[11] = min(a[i], b[i]) + max((int)a[i], (int)b[i]) + abs((int)a[i] >> 1);
}

extern "C" __global__ void byte_dot_products(const int *a, const int *b, int *dots,
                                             unsigned *unsigned_dots, int *sums, int n) {
    ELEMENT(i, n)
    dots[i] = __dp4a(a[i], b[i], i);
    unsigned_dots[i] = __dp4a((unsigned)a[i], (unsigned)b[i], 7u);
    sums[i] = __sad(a[i], b[i], 3u);
}

extern "C" __global__ void half_arithmetic(const __half2 *a, const __half2 *b, __half2 *out,
                                           float *wide, int n) {
    ELEMENT(i, n)
    const __half2 product = __hfma2(a[i], b[i], __float2half2_rn(0.5f));
    const __half2 sum = __hadd2(a[i], __hneg2(b[i]));
    out[i] = __hmax2(product, sum);
    const __half low = __low2half(a[i]);
    wide[i] = __half2float(__hmul(low, low)) + __half2float(__high2half(b[i]));
    if (__hgt(low, __low2half(b[i]))) wide[i] = -wide[i];
}

extern "C" __global__ void bfloat_conversion(const float *x, __nv_bfloat16 *narrow, float *back,
                                             __nv_bfloat162 *pairs, int n) {
    ELEMENT(i, n)
    narrow[i] = __float2bfloat16(x[i]);
    back[i] = __bfloat162float(narrow[i]) * 3.0f;
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[i], x[i] + 1.0f);
    pairs[i] = __hfma2(pair, pair, pair);
}

extern "C" __global__ void conversions(const float *x, const int *k, int *out, float *floats,
                                       unsigned char *bytes, int n) {
    ELEMENT(i, n)
    int *row = out + i * 5;
    row[0] = __float2int_rn(x[i]);
    row[1] = (int)x[i];
    row[2] = __float2int_rd(x[i]);
    row[3] = __float2int_ru(x[i]);
    row[4] = __float_as_int(rintf(x[i]));
    floats[i] = (float)k[i] + (float)(unsigned)k[i] * 0.25f + (float)(short)k[i];
    bytes[i] = (unsigned char)(signed char)(k[i] >> 3);
}

extern "C" __global__ void math_functions(const float *x, float *out, int n) {
    ELEMENT(i, n)
    const float v = x[i], positive = fabsf(v) + 0.01f;
    out[0 * n + i] = expf(v);
    out[1 * n + i] = sinf(v);
    out[2 * n + i] = cosf(v * 1e5f);  // far enough for the slow reduction of the argument
    out[3 * n + i] = sqrtf(positive);
    out[4 * n + i] = rsqrtf(positive);
    out[5 * n + i] = erff(v);
    out[6 * n + i] = logf(positive);
    out[7 * n + i] = tanhf(v);
    out[8 * n + i] = powf(positive, v);
    out[9 * n + i] = v / positive;
    out[10 * n + i] = fmodf(v, 0.7f);
    out[11 * n + i] = exp2f(v) + log2f(positive) + floorf(v) + copysignf(2.0f, v);
}

extern "C" __global__ void fast_functions(const float *x, float *out, int n) {
    ELEMENT(i, n)
    const float v = x[i];
    out[0 * n + i] = __expf(v);
    out[1 * n + i] = __sinf(v);
    out[2 * n + i] = __logf(fabsf(v) + 0.5f);
    out[3 * n + i] = __fdividef(1.0f, v * v + 1.0f);
    out[4 * n + i] = __saturatef(v);
    out[5 * n + i] = fminf(fmaxf(v, -0.5f), 0.5f);
}

extern "C" __global__ void double_precision(const double *x, const double *y, double *out, int n) {
    ELEMENT(i, n)
    out[0 * n + i] = fma(x[i], y[i], -1.0);
    out[1 * n + i] = x[i] / y[i];
    out[2 * n + i] = sqrt(fabs(x[i]));
    out[3 * n + i] = exp(x[i]);
    out[4 * n + i] = (double)(float)x[i] + (double)(long long)(y[i] * 1e6) + floor(x[i]);
    out[5 * n + i] = sin(y[i]);
}

__constant__ float coefficients[6] = {1.0f, -0.5f, 0.25f, -0.125f, 0.0625f, 3.0f};
__device__ int calls = 5;

extern "C" __global__ void constant_polynomial(const float *x, float *y, int *count, int degree,
                                               int n) {
    ELEMENT(i, n)
    float value = coefficients[degree];
    for (int k = degree - 1; k >= 0; --k) value = value * x[i] + coefficients[k];
    y[i] = value;
    if (i == 0) *count = calls;
}
