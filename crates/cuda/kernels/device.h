// What every kernel uses. The file compiles as CUDA C++ by NVRTC, and as C++ after twin.h, which defines its keywords.
// Sums are in double. Nothing depends on the order in which threads run, so a launch of the same size has the same
// bits.

#ifdef __CUDACC_RTC__
#define INFINITY __int_as_float(0x7f800000)
typedef unsigned short uint16;
#endif

// Threads of a block: a power of two, at most this.
static const unsigned MOST_THREADS = 1024;

__device__ inline unsigned bits_of(float x) {
#ifdef __CUDACC_RTC__
    return __float_as_uint(x);
#else
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

__device__ inline float of_bits(unsigned bits) {
#ifdef __CUDACC_RTC__
    return __uint_as_float(bits);
#else
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

// exp(x) for x up to 0, within a relative error of 1e-7, and 0 below -87.3. The same steps as in crates/kernel.
__device__ inline float exp_of(float x) {
    const float round = 12582912.0f;
    float rounded = fmaf(x, 1.44269504088896340736f, round);
    float whole = rounded - round;
    float rest = fmaf(whole, 2.1219444e-4f, fmaf(whole, -0.6933594f, x));
    float polynomial = 1.9875691e-4f;
    polynomial = fmaf(polynomial, rest, 1.3982e-3f);
    polynomial = fmaf(polynomial, rest, 8.333452e-3f);
    polynomial = fmaf(polynomial, rest, 4.1665796e-2f);
    polynomial = fmaf(polynomial, rest, 0.16666666f);
    polynomial = fmaf(polynomial, rest, 0.5f);
    float mantissa = fmaf(polynomial, rest * rest, rest) + 1.0f;
    float power = of_bits((bits_of(rounded) << 23) + 0x3f800000u);
    // NaN passes through.
    return x < -87.3f ? 0.0f : mantissa * power;
}

// 1 / (1 + exp(-x)). A large number never overflows.
__device__ inline float sigmoid(float x) {
    float small = exp_of(-fabsf(x));
    return (x < 0.0f ? small : 1.0f) / (1.0f + small);
}

// ln(1 + y) for y from 0 to 1, within a relative error of 2.5e-7.
__device__ inline float ln_1p(float y) {
    float z = y / (2.0f + y);
    float square = z * z;
    float series = 1.0f / 15.0f;
    series = fmaf(series, square, 1.0f / 13.0f);
    series = fmaf(series, square, 1.0f / 11.0f);
    series = fmaf(series, square, 1.0f / 9.0f);
    series = fmaf(series, square, 1.0f / 7.0f);
    series = fmaf(series, square, 0.2f);
    series = fmaf(series, square, 1.0f / 3.0f);
    return 2.0f * z * fmaf(series, square, 1.0f);
}

// ln(exp(a) + exp(b)); finite if one of the two is.
__device__ inline float log_add(float a, float b) {
    float high = a > b ? a : b, low = a > b ? b : a;
    return high + ln_1p(exp_of(low - high));
}

struct Add {
    template <class T>
    __device__ static T of(T a, T b) { return a + b; }
};

// Combines a value of each thread of the block, in an order that depends on the size of the block alone. All threads
// must call it.
template <class Combine, class T>
__device__ T over_block(T mine) {
    __shared__ T values[MOST_THREADS];
    values[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            values[threadIdx.x] = Combine::of(values[threadIdx.x], values[threadIdx.x + half]);
        }
        __syncthreads();
    }
    T all = values[0];
    // The next call writes here.
    __syncthreads();
    return all;
}
