// Matrices: tiles in shared memory, asynchronous copies, tensor cores by inline PTX.

#include <cuda_pipeline.h>

#define TILE 16

extern "C" __global__ void tiled_matmul(const float *a, const float *b, float *c, int m, int n,
                                        int k) {
    __shared__ float left[TILE][TILE], right[TILE][TILE];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.y * TILE + ty, column = blockIdx.x * TILE + tx;
    float sum = 0.0f;
    for (int base = 0; base < k; base += TILE) {
        left[ty][tx] = row < m && base + tx < k ? a[row * k + base + tx] : 0.0f;
        right[ty][tx] = column < n && base + ty < k ? b[(base + ty) * n + column] : 0.0f;
        __syncthreads();
        for (int j = 0; j < TILE; ++j) sum += left[ty][j] * right[j][tx];
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = sum;
}

extern "C" __global__ void transpose(const float *x, float *y, int rows, int columns) {
    __shared__ float tile[32][33];  // one more column: no bank conflicts
    const int column = blockIdx.x * 32 + threadIdx.x;
    for (int r = threadIdx.y; r < 32; r += blockDim.y) {
        const int row = blockIdx.y * 32 + r;
        if (row < rows && column < columns) tile[r][threadIdx.x] = x[row * columns + column];
    }
    __syncthreads();
    const int target = blockIdx.y * 32 + threadIdx.x;
    for (int r = threadIdx.y; r < 32; r += blockDim.y) {
        const int row = blockIdx.x * 32 + r;
        if (row < columns && target < rows) y[row * rows + target] = tile[threadIdx.x][r];
    }
}

// Five points, with a halo in shared memory and zeros outside.
extern "C" __global__ void stencil(const float *x, float *y, int width, int height) {
    __shared__ float s[10][18];
    const int gx = blockIdx.x * 16, gy = blockIdx.y * 8;
    for (int i = threadIdx.y * 16 + threadIdx.x; i < 180; i += 128) {
        const int px = gx + i % 18 - 1, py = gy + i / 18 - 1;
        const bool inside = px >= 0 && px < width && py >= 0 && py < height;
        s[i / 18][i % 18] = inside ? x[py * width + px] : 0.0f;
    }
    __syncthreads();
    const int tx = threadIdx.x + 1, ty = threadIdx.y + 1;
    const int px = gx + threadIdx.x, py = gy + threadIdx.y;
    if (px < width && py < height)
        y[py * width + px] =
            0.5f * s[ty][tx] +
            0.125f * (s[ty - 1][tx] + s[ty + 1][tx] + s[ty][tx - 1] + s[ty][tx + 1]);
}

// Blocks copied ahead while the last one is summed: two stages of asynchronous copies.
extern "C" __global__ void pipelined_sum(const float4 *x, float *sums, int tiles) {
    __shared__ float4 stage[2][64];
    const int t = threadIdx.x;
    const float4 *mine = x + (size_t)blockIdx.x * tiles * 64;
    __pipeline_memcpy_async(&stage[0][t], mine + t, sizeof(float4));
    __pipeline_commit();
    float total = 0.0f;
    for (int k = 0; k < tiles; ++k) {
        if (k + 1 < tiles)
            __pipeline_memcpy_async(&stage[(k + 1) % 2][t], mine + (k + 1) * 64 + t, sizeof(float4));
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        const float4 v = stage[k % 2][63 - t];  // what another thread copied
        total += v.x + 2.0f * v.y + 3.0f * v.z + 4.0f * v.w;
        __syncthreads();
    }
    sums[blockIdx.x * 64 + t] = total;
}

// cp.async of 4 bytes and with fewer source bytes than it writes: the rest are zeros.
extern "C" __global__ void copy_with_zeros(const int *x, int *y, int n) {
    __shared__ __align__(16) int s[128];
    const int t = threadIdx.x;
    const unsigned to = (unsigned)__cvta_generic_to_shared(&s[t * 4]);
    const int bytes = max(0, min(16, (n - t * 4) * 4));
    const int *from = x + (bytes > 0 ? t * 4 : 0);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
    asm volatile("cp.async.wait_all;");
    __syncthreads();
    for (int j = t; j < 128; j += 32) y[j] = s[(j + 1) % 128];
}

// -- one warp, one tile: fragments are read from row-major A and column-major B in words ---------

#define WORDS(a, row, word, width) ((a)[(row) * (width) + (word)])

__device__ void load_fragments(const unsigned *a, const unsigned *b, int width, unsigned (&fa)[4],
                               unsigned (&fb)[2]) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    fa[0] = WORDS(a, g, t, width);
    fa[1] = WORDS(a, g + 8, t, width);
    fa[2] = WORDS(a, g, t + 4, width);
    fa[3] = WORDS(a, g + 8, t + 4, width);
    fb[0] = WORDS(b, g, t, width);
    fb[1] = WORDS(b, g, t + 4, width);
}

template <typename T>
__device__ void store_tile(T *c, const T (&d)[4]) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    c[g * 8 + t * 2] = d[0];
    c[g * 8 + t * 2 + 1] = d[1];
    c[(g + 8) * 8 + t * 2] = d[2];
    c[(g + 8) * 8 + t * 2 + 1] = d[3];
}

#define MMA(name, type, constraint, instruction)                                              \
    extern "C" __global__ void name(const unsigned *a, const unsigned *b, type *c, int steps) { \
        type d[4] = {0, 0, 0, 0};                                                             \
        for (int k = 0; k < steps; ++k) {                                                     \
            unsigned fa[4], fb[2];                                                            \
            load_fragments(a + k * 8, b + k * 8, steps * 8, fa, fb);                          \
            asm volatile(instruction                                                          \
                         " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"             \
                         : "+" constraint(d[0]), "+" constraint(d[1]), "+" constraint(d[2]),  \
                           "+" constraint(d[3])                                               \
                         : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]),        \
                           "r"(fb[1]));                                                       \
        }                                                                                     \
        store_tile(c, d);                                                                     \
    }

MMA(mma_b1, int, "r", "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc")
MMA(mma_s4, int, "r", "mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32")
MMA(mma_s8, int, "r", "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32")
MMA(mma_f16, float, "f", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_bf16, float, "f", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma_tf32, float, "f", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")

// A row-major and B row-major (k x n), both through shared memory and ldmatrix.
extern "C" __global__ void mma_through_shared(const uint4 *a, const uint4 *b, float *c) {
    __shared__ uint4 left[16][2], right[16];
    const int lane = threadIdx.x;
    left[lane / 2][lane % 2] = a[lane];
    if (lane < 16) right[lane] = b[lane];
    __syncwarp();
    unsigned fa[4], fb[2];
    const unsigned from_a = (unsigned)__cvta_generic_to_shared(&left[lane % 16][lane / 16]);
    const unsigned from_b = (unsigned)__cvta_generic_to_shared(&right[lane % 16]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                 : "r"(from_a));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(fb[0]), "=r"(fb[1])
                 : "r"(from_b));
    float d[4] = {0, 0, 0, 0};
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
    store_tile(c, d);
}
