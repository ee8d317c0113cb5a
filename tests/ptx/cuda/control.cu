// Control flow: loops of different lengths, jump tables, calls, local arrays.

extern "C" __global__ void collatz(const unsigned *x, int *steps, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long value = x[i];
    int count = 0;
    while (value != 1) {
        value = value % 2 ? 3 * value + 1 : value / 2;
        ++count;
    }
    steps[i] = count;
}

extern "C" __global__ void dispatch(const int *operation, const int *x, int *y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i];
    switch (operation[i]) {
        case 0: v += 17; break;
        case 1: v = v * v - x[0]; break;
        case 2: v ^= 0x5a5a; break;
        case 3: v = v > 10 ? v - 10 : 10 - v;  // falls through
        case 4: v <<= 3; break;
        case 5: for (int k = 0; k < x[1]; ++k) v = v * 3 + k; break;
        case 6: v = __popc(v); break;
        case 7: v = -v; break;
        default: v = 0;
    }
    y[i] = v;
}

struct Complex {
    float re, im;
};

__device__ __noinline__ Complex square_plus(Complex z, Complex c) {
    return {z.re * z.re - z.im * z.im + c.re, 2.0f * z.re * z.im + c.im};
}

extern "C" __global__ void mandelbrot(int *iterations, int width, int height, int limit) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    const Complex c = {-2.0f + 2.5f * x / width, -1.25f + 2.5f * y / height};
    Complex z = {0.0f, 0.0f};
    int k = 0;
    for (; k < limit && z.re * z.re + z.im * z.im < 4.0f; ++k) z = square_plus(z, c);
    iterations[y * width + x] = k;
}

__device__ __noinline__ unsigned greatest_common_divisor(unsigned a, unsigned b) {
    return b == 0 ? a : greatest_common_divisor(b, a % b);
}

extern "C" __global__ void common_divisors(const unsigned *a, const unsigned *b, unsigned *out,
                                           int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = greatest_common_divisor(a[i], b[i]);
}

// A true recursion: two calls a level, each with a frame of its own.
__device__ __noinline__ int binomial(int n, int k) {
    if (k == 0 || k == n) return 1;
    return binomial(n - 1, k - 1) + binomial(n - 1, k);
}

extern "C" __global__ void binomials(int *out) { out[threadIdx.x] = binomial(6, threadIdx.x % 7); }

extern "C" __global__ void local_array(const int *x, int *y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int counts[16];
    for (int k = 0; k < 16; ++k) counts[k] = 0;
    for (int k = 0; k < 24; ++k) ++counts[x[(i + k * 7) % n] & 15];
    int best = 0;
    for (int k = 1; k < 16; ++k)
        if (counts[k] > counts[best]) best = k;
    y[i] = best * 100 + counts[best];
}

// Nested divergence with an early return: threads leave a loop in a loop at different times.
extern "C" __global__ void first_zero(const int *matrix, int *found, int rows, int columns) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int *mine = matrix + i * rows * columns;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c)
            if (mine[r * columns + c] == 0) {
                found[i] = r * 1000 + c;
                return;
            }
    found[i] = -1;
}
