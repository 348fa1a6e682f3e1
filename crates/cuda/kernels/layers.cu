// What a layer does between its matmuls, forward and backward, in one pass each. crates/kernel has the specification:
// its `layers` and `gradients`, whose formulas these are. Each kernel exists in fp32 and in bf16. In bf16, the
// arithmetic is fp32. A forward pass rounds to bf16 where libtorch's operations do.

struct Float {
    typedef float Stored;
    __device__ static float load(float x) { return x; }
    __device__ static float store(float x) { return x; }
    __device__ static float rounded(float x) { return x; }
};

struct Bfloat16 {
    typedef uint16 Stored;
    __device__ static float load(uint16 x) { return of_bits((unsigned)x << 16); }
    // To the nearest, to even between two. NaN stays NaN.
    __device__ static uint16 store(float x) {
        unsigned bits = bits_of(x);
        if (x != x) return (uint16)((bits >> 16) | 0x40u);
        return (uint16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
    __device__ static float rounded(float x) { return load(store(x)); }
};

// Rows whose contributions to a weight's gradient one block sums in fp32.
static const int BLOCK_ROWS = 32;

// 1 / sqrt(mean of the squares of a row + eps).
template <class T>
__device__ float scale_of(const typename T::Stored *x, int width, float eps) {
    double squares = 0.0;
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        float number = T::load(x[j]);
        squares += (double)(number * number);
    }
    float mean = (float)(over_block<Add>(squares) / width);
    return 1.0f / sqrtf(mean + eps);
}

template <class T>
__device__ void norm(const typename T::Stored *x, const typename T::Stored *weight, int width, float eps,
                     typename T::Stored *out) {
    float scale = scale_of<T>(x, width, eps);
    for (int j = threadIdx.x; j < width; j += blockDim.x) {
        out[j] = T::store(T::load(x[j]) * scale * T::load(weight[j]));
    }
}

// sum = x + added, and its norm. Without `added`, the norm of x alone. One block per row.
template <class T>
__device__ void rms_norm(const typename T::Stored *x, const typename T::Stored *added, const typename T::Stored *weight,
                         int width, float eps, typename T::Stored *sum, typename T::Stored *out) {
    size_t start = (size_t)blockIdx.x * width;
    if (added) {
        for (int j = threadIdx.x; j < width; j += blockDim.x) {
            sum[start + j] = T::store(T::load(x[start + j]) + T::load(added[start + j]));
        }
        // Each thread reads only what it has written.
        x = sum;
    }
    norm<T>(x + start, weight, width, eps, out + start);
}

// The gradient of the rows, and the sums of the weight's gradient over the rows of each block: `sums` is
// [blocks x width]. Without `residual`, nothing is added to the gradient of the rows.
template <class T>
__device__ void norm_backward(const typename T::Stored *x, const typename T::Stored *weight,
                              const typename T::Stored *gradient, const typename T::Stored *residual, int rows,
                              int width, float eps, typename T::Stored *x_gradient, float *sums) {
    sums += (size_t)blockIdx.x * width;
    for (int j = threadIdx.x; j < width; j += blockDim.x) sums[j] = 0.0f;
    int end = min(rows, (int)(blockIdx.x + 1) * BLOCK_ROWS);
    for (int row = blockIdx.x * BLOCK_ROWS; row < end; row++) {
        size_t start = (size_t)row * width;
        float scale = scale_of<T>(x + start, width, eps);
        // The part of the gradient along the row, which a norm takes out.
        double products = 0.0;
        for (int j = threadIdx.x; j < width; j += blockDim.x) {
            float normed = T::load(x[start + j]) * scale;
            products += (double)(normed * T::load(gradient[start + j]) * T::load(weight[j]));
        }
        float along = (float)(over_block<Add>(products) / width);
        for (int j = threadIdx.x; j < width; j += blockDim.x) {
            float normed = T::load(x[start + j]) * scale, of_out = T::load(gradient[start + j]);
            sums[j] += of_out * normed;
            float of_x = scale * (of_out * T::load(weight[j]) - normed * along);
            x_gradient[start + j] = T::store(residual ? of_x + T::load(residual[start + j]) : of_x);
        }
    }
}

// Adds the sums of all blocks in order: one thread per column.
template <class T>
__device__ void norm_weight(const float *sums, int blocks, int width, typename T::Stored *weight_gradient) {
    int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= width) return;
    double total = 0.0;
    for (int block = 0; block < blocks; block++) total += sums[(size_t)block * width + j];
    weight_gradient[j] = T::store((float)total);
}

// The number that this thread takes first, and how far it is from one to the next.
__device__ inline size_t first() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline size_t stride() { return (size_t)gridDim.x * blockDim.x; }

// out = silu(gate) * up.
template <class T>
__device__ void silu_mul(const typename T::Stored *gate, const typename T::Stored *up, size_t count,
                         typename T::Stored *out) {
    for (size_t at = first(); at < count; at += stride()) {
        float x = T::load(gate[at]);
        out[at] = T::store(T::rounded(x * sigmoid(x)) * T::load(up[at]));
    }
}

template <class T>
__device__ void silu_mul_backward(const typename T::Stored *gate, const typename T::Stored *up,
                                  const typename T::Stored *gradient, size_t count, typename T::Stored *gate_gradient,
                                  typename T::Stored *up_gradient) {
    for (size_t at = first(); at < count; at += stride()) {
        float x = T::load(gate[at]), of_out = T::load(gradient[at]), share = sigmoid(x), silu = x * share;
        up_gradient[at] = T::store(of_out * silu);
        gate_gradient[at] = T::store(of_out * T::load(up[at]) * (share + silu * (1.0f - share)));
    }
}

// Rotates each head of each position: x is [positions x heads x width], cos and sin are [time x width], and the times
// repeat for each sequence. `back`: the transpose, for gradients. `x` and `out` may be the same.
template <class T>
__device__ void rotate(const typename T::Stored *x, const typename T::Stored *cos, const typename T::Stored *sin,
                       size_t positions, int time, int heads, int width, int back, typename T::Stored *out) {
    int half = width / 2;
    size_t pairs = positions * heads * half;
    for (size_t pair = first(); pair < pairs; pair += stride()) {
        size_t head = pair / half, index = pair % half, one = head * width + index, other = one + half;
        size_t table = head / heads % time * width + index;
        float a = T::load(x[one]), b = T::load(x[other]);
        float cos_a = T::load(cos[table]), cos_b = T::load(cos[table + half]);
        float sin_a = T::load(sin[table]), sin_b = T::load(sin[table + half]);
        float turned_a, turned_b;
        if (back) {
            turned_a = T::rounded(a * cos_a) + T::rounded(b * sin_b);
            turned_b = T::rounded(b * cos_b) - T::rounded(a * sin_a);
        } else {
            turned_a = T::rounded(a * cos_a) - T::rounded(b * sin_a);
            turned_b = T::rounded(b * cos_b) + T::rounded(a * sin_b);
        }
        out[one] = T::store(turned_a);
        out[other] = T::store(turned_b);
    }
}

#define LAYERS(T, S, suffix)                                                                                           \
    extern "C" __global__ void ddk_rms_norm_##suffix(const S *x, const S *added, const S *weight, int width,           \
                                                     float eps, S *sum, S *out) {                                      \
        rms_norm<T>(x, added, weight, width, eps, sum, out);                                                           \
    }                                                                                                                  \
    extern "C" __global__ void ddk_norm_backward_##suffix(const S *x, const S *weight, const S *gradient,              \
                                                          const S *residual, int rows, int width, float eps,           \
                                                          S *x_gradient, float *sums) {                                \
        norm_backward<T>(x, weight, gradient, residual, rows, width, eps, x_gradient, sums);                           \
    }                                                                                                                  \
    extern "C" __global__ void ddk_norm_weight_##suffix(const float *sums, int blocks, int width,                      \
                                                        S *weight_gradient) {                                          \
        norm_weight<T>(sums, blocks, width, weight_gradient);                                                          \
    }                                                                                                                  \
    extern "C" __global__ void ddk_silu_mul_##suffix(const S *gate, const S *up, size_t count, S *out) {               \
        silu_mul<T>(gate, up, count, out);                                                                             \
    }                                                                                                                  \
    extern "C" __global__ void ddk_silu_mul_backward_##suffix(const S *gate, const S *up, const S *gradient,           \
                                                              size_t count, S *gate_gradient, S *up_gradient) {        \
        silu_mul_backward<T>(gate, up, gradient, count, gate_gradient, up_gradient);                                   \
    }                                                                                                                  \
    extern "C" __global__ void ddk_rotate_##suffix(const S *x, const S *cos, const S *sin, size_t positions, int time, \
                                                   int heads, int width, int back, S *out) {                           \
        rotate<T>(x, cos, sin, positions, time, heads, width, back, out);                                              \
    }

LAYERS(Float, float, f32)
LAYERS(Bfloat16, uint16, bf16)
