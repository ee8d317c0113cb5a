// Threads that work together: shared memory, barriers, shuffles, votes, atomics.

#define FULL 0xffffffffu

extern "C" __global__ void block_sum(const float *x, float *sums, int n) {
    __shared__ float partial[256];
    const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    partial[t] = i < n ? x[i] : 0.0f;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) partial[t] += partial[t + half];
        __syncthreads();
    }
    if (t == 0) sums[blockIdx.x] = partial[0];
}

__device__ float warp_total(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(FULL, value, offset);
    return value;
}

extern "C" __global__ void warp_sum(const float *x, float *sums) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float total = warp_total(x[i]);
    if (threadIdx.x % 32 == 0) sums[i / 32] = total;
}

extern "C" __global__ void inclusive_scan(const int *x, int *y, int n) {
    extern __shared__ int buffer[];
    const int t = threadIdx.x;
    int *from = buffer, *to = buffer + blockDim.x;
    from[t] = t < n ? x[t] : 0;
    __syncthreads();
    for (int step = 1; step < blockDim.x; step *= 2) {
        to[t] = from[t] + (t >= step ? from[t - step] : 0);
        __syncthreads();
        int *const swap = from;
        from = to;
        to = swap;
    }
    if (t < n) y[t] = from[t];
}

extern "C" __global__ void histogram(const unsigned char *data, unsigned *bins, int n) {
    __shared__ unsigned local[64];
    for (int b = threadIdx.x; b < 64; b += blockDim.x) local[b] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&local[data[i] & 63], 1u);
    __syncthreads();
    for (int b = threadIdx.x; b < 64; b += blockDim.x) atomicAdd(&bins[b], local[b]);
}

// One block to a row; totals of warps meet in shared memory.
__device__ float block_total(float value, float *scratch, bool largest) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int mask = 16; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(FULL, value, mask);
        value = largest ? fmaxf(value, other) : value + other;
    }
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = scratch[0];
    for (int w = 1; w < blockDim.x / 32; ++w)
        value = largest ? fmaxf(value, scratch[w]) : value + scratch[w];
    __syncthreads();
    return value;
}

extern "C" __global__ void softmax(const float *x, float *y, int columns) {
    __shared__ float scratch[32];
    const float *row = x + blockIdx.x * columns;
    float *result = y + blockIdx.x * columns;
    float top = -INFINITY;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) top = fmaxf(top, row[j]);
    top = block_total(top, scratch, true);
    float total = 0.0f;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) total += expf(row[j] - top);
    total = block_total(total, scratch, false);
    for (int j = threadIdx.x; j < columns; j += blockDim.x) result[j] = expf(row[j] - top) / total;
}

extern "C" __global__ void layer_norm(const float *x, const float *gain, const float *bias,
                                      float *y, int columns, float epsilon) {
    __shared__ float scratch[32];
    const float *row = x + blockIdx.x * columns;
    float sum = 0.0f, squares = 0.0f;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) sum += row[j];
    const float mean = block_total(sum, scratch, false) / columns;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        const float d = row[j] - mean;
        squares += d * d;
    }
    const float scale = rsqrtf(block_total(squares, scratch, false) / columns + epsilon);
    for (int j = threadIdx.x; j < columns; j += blockDim.x)
        y[blockIdx.x * columns + j] = (row[j] - mean) * scale * gain[j] + bias[j];
}

extern "C" __global__ void bitonic_sort(int *keys) {
    __shared__ int s[256];
    const int t = threadIdx.x;
    s[t] = keys[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (int size = 2; size <= blockDim.x; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            const int partner = t ^ stride;
            if (partner > t) {
                const bool ascending = (t & size) == 0;
                const int mine = s[t], other = s[partner];
                if ((mine > other) == ascending) {
                    s[t] = other;
                    s[partner] = mine;
                }
            }
            __syncthreads();
        }
    }
    keys[blockIdx.x * blockDim.x + t] = s[t];
}

// Every lane sums as many elements as its number says: 32 different trip counts in a warp.
extern "C" __global__ void divergent_prefix(const int *x, int *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int first = i & ~31;
    int sum = 0;
    for (int j = first; j <= i; ++j) {
        if (x[j] < 0) continue;
        if (x[j] > 900) break;
        sum += x[j];
    }
    y[i] = __shfl_sync(FULL, sum, (threadIdx.x + 1) % 32);  // together again
}

extern "C" __global__ void compact_positive(const int *x, int *kept, int *count, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    const bool keep = i < n && x[i] > 0;
    const unsigned ballot = __ballot_sync(FULL, keep);
    int base = 0;
    if (lane == 0) base = atomicAdd(count, __popc(ballot));
    base = __shfl_sync(FULL, base, 0);
    if (keep) kept[base + __popc(ballot & ((1u << lane) - 1))] = x[i];
}

// The largest float by compare and swap; whatever the order, the result is one.
extern "C" __global__ void atomic_largest(const float *x, int *largest_bits, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int seen = *(volatile int *)largest_bits;
    while (__int_as_float(seen) < x[i]) {
        const int before = atomicCAS(largest_bits, seen, __float_as_int(x[i]));
        if (before == seen) break;
        seen = before;
    }
}

extern "C" __global__ void atomic_operations(int *cells, const int *x, float *sum,
                                             unsigned long long *wide, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicMax(&cells[0], x[i]);
    atomicMin(&cells[1], x[i]);
    atomicOr(&cells[2], 1 << (x[i] & 31));
    atomicXor(&cells[3], x[i]);
    atomicAnd(&cells[4], ~(1 << (i & 15)));
    atomicSub(&cells[5], 2);
    atomicInc((unsigned *)&cells[6], 9);
    atomicAdd(sum, 0.5f);
    atomicAdd(wide, 1ull << 33);
}

extern "C" __global__ void warp_votes(const int *x, int *out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    int *row = out + i * 8;
    const int v = x[i];
    row[0] = __any_sync(FULL, v > 900);
    row[1] = __all_sync(FULL, v > -10);
    row[2] = __reduce_add_sync(FULL, v);
    row[3] = __reduce_max_sync(FULL, v);
    row[4] = __shfl_up_sync(FULL, v, 3);
    row[5] = __shfl_xor_sync(FULL, v, 5, 8);
    row[6] = __match_any_sync(FULL, v & 3);
    row[7] = -1;
    if (lane >= 8 && lane < 20)  // some lanes only, and named so
        row[7] = __shfl_sync(0x000fff00u, v, 8 + (lane + 1) % 12);
}

// The block that finishes last adds up what all blocks left.
__device__ unsigned finished = 0;

extern "C" __global__ void sum_in_one_launch(const int *x, volatile int *partial, int *total) {
    __shared__ bool last;
    __shared__ int sums[4];
    const int t = threadIdx.x;
    int value = __reduce_add_sync(FULL, x[blockIdx.x * blockDim.x + t]);
    if (t % 32 == 0) sums[t / 32] = value;
    __syncthreads();
    if (t == 0) {
        partial[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
        __threadfence();
        last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && t == 0) {
        int sum = 0;
        for (int b = 0; b < gridDim.x; ++b) sum += partial[b];
        *total = sum;
    }
}
