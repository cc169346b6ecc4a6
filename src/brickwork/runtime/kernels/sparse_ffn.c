/* One FFN over chosen neurons only, from one record of weights per neuron.
 *
 * A record is [gate | up | down] (vanilla: [up | down]), each part `hidden` numbers long. Neurons
 * are taken four at a time, a block: their dot products with the inputs, then their four output
 * rows together, so that the sum is read and written once per four. What a block reads is asked
 * for while the block before it is computed, at the same place of the record: chosen records are
 * scattered, and the hardware's own prefetch starts anew at every one. The hint says L2; L1 holds
 * the inputs and the sum.
 *
 * The end of this file is a template: the file includes itself once for each width of vectors and
 * each type of weights. Sums are in float32. The caller has checked every pointer and number.
 */
#ifndef TEMPLATE

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#define X86
#include <immintrin.h>
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define BF16_DOTS
#endif
#endif

enum { BLOCK = 4, MOST_THREADS = 64, CHUNK = 1024 };

typedef uint16_t bf16;

static inline float float_of_float(float from) { return from; }

static inline float float_of_bf16(bf16 from) {
    uint32_t bits = (uint32_t)from << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline bf16 to_bf16(float from) {
    uint32_t bits;
    memcpy(&bits, &from, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) /* not a number stays one */
        return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16); /* to nearest, ties to even */
}

/* What a level does for one type of weights, with four rows at a time. `ahead` is what to ask for
 * meanwhile, at the same places. */
typedef struct {
    /* out += the rows times x, which is float, or bf16 if `raw` */
    void (*dot4)(float *out, const void *const *rows, const void *const *ahead, const void *x,
                 int64_t n);
    /* y += the rows, each times its h */
    void (*add4)(float *y, const void *const *rows, const void *const *ahead, const float *h,
                 int64_t n);
    int raw;
} kernels;

#define JOIN_(a, b, c) a##_##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define TEMPLATE

#define LEVEL scalar
#define TARGET
#define LANES 1
#define WIDEN(from) (uint32_t)*(from)
#include __FILE__

#define LEVEL base /* vectors that every machine of the kind has: SSE2, NEON */
#define TARGET
#define LANES 4
#define WIDEN(from) widened(from)
typedef uint16_t halves __attribute__((vector_size(8)));
typedef uint32_t words __attribute__((vector_size(16)));
static inline words widened(const bf16 *from) {
    halves found;
    memcpy(&found, from, sizeof found);
    return __builtin_convertvector(found, words);
}
#include __FILE__

#ifdef X86
#define LEVEL avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define WIDEN(from) _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from)))
#include __FILE__

#define LEVEL avx512
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#define LANES 16
#define WIDEN(from) _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from)))
#include __FILE__
#endif

#ifdef BF16_DOTS
#define PAIRS __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

PAIRS static inline __m512bh pairs_at(const bf16 *from) {
    return (__m512bh)_mm512_loadu_si512(from);
}

PAIRS static void pairs_dot4(float *out, const void *const *rows, const void *const *ahead,
                             const void *x_, int64_t n) {
    const bf16 *x = x_;
    __m512 s[BLOCK];
    int64_t i = 0;
    for (int j = 0; j < BLOCK; j++)
        s[j] = _mm512_setzero_ps();
    for (; i + 32 <= n; i += 32) {
        __m512bh pairs = pairs_at(x + i);
        for (int j = 0; j < BLOCK; j++) {
            __builtin_prefetch((const bf16 *)ahead[j] + i, 0, 2);
            s[j] = _mm512_dpbf16_ps(s[j], pairs_at((const bf16 *)rows[j] + i), pairs);
        }
    }
    for (int j = 0; j < BLOCK; j++) {
        out[j] += _mm512_reduce_add_ps(s[j]);
        for (int64_t k = i; k < n; k++)
            out[j] += float_of_bf16(((const bf16 *)rows[j])[k]) * float_of_bf16(x[k]);
    }
}

static const kernels pairs_bf16 = {pairs_dot4, avx512_bf16_add4, 1};
#endif

/* The numbers are those of the caller's table, worst first. */
enum { SCALAR, BASE, AVX2, AVX512, AVX512_BF16 };

#ifdef X86
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

/* None where this machine, or the compiler, lacks the level. */
static const kernels *kernels_of(int level, int is_bf16) {
    switch (level) {
    case SCALAR: return is_bf16 ? &scalar_bf16_kernels : &scalar_float_kernels;
    case BASE: return is_bf16 ? &base_bf16_kernels : &base_float_kernels;
#ifdef X86
    case AVX2:
        if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
            return NULL;
        return is_bf16 ? &avx2_bf16_kernels : &avx2_float_kernels;
    case AVX512:
        if (!has_avx512())
            return NULL;
        return is_bf16 ? &avx512_bf16_kernels : &avx512_float_kernels;
#endif
#ifdef BF16_DOTS
    case AVX512_BF16:
        if (!has_avx512() || !__builtin_cpu_supports("avx512bf16"))
            return NULL;
        return is_bf16 ? &pairs_bf16 : &avx512_float_kernels;
#endif
    default: return NULL;
    }
}

int brickwork_level_available(int level) { return kernels_of(level, 1) != NULL; }

typedef struct {
    const void *weights, *gate_bias, *up_bias, *down_bias, *x;
    const int64_t *neurons;
    const uint8_t *keep; /* tokens x chosen, or none */
    void *y;
    int64_t hidden, chosen, tokens;
    int32_t gated, activation, is_bf16, level, threads, spare;
} job;

int64_t brickwork_job_size(void) { return (int64_t)sizeof(job); }

static float number_at(const job *work, const void *numbers, int64_t index) {
    if (!numbers)
        return 0.0f;
    return work->is_bf16 ? float_of_bf16(((const bf16 *)numbers)[index])
                         : ((const float *)numbers)[index];
}

/* Of what is no number, no number. */
static float activate(int which, float v) {
    switch (which) { /* the numbers are those of the caller's table */
    case 0: return v / (1.0f + expf(-v));                     /* silu */
    case 1: return 0.5f * v * (1.0f + erff(v * 0.70710678f)); /* gelu */
    case 2:                                                   /* gelu_tanh */
        return 0.5f * v * (1.0f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
    case 3: return v < 0.0f ? 0.0f : v;      /* relu */
    default: return v < 0.0f ? 0.0f : v * v; /* relu2 */
    }
}

/* What one thread does: the chosen neurons from `first` up to `last`. */
typedef struct {
    const job *work;
    const kernels *use;
    const char *x; /* as `use` wants it */
    int64_t first, last;
    float *y;     /* tokens x hidden, zero at the start */
    float *h;     /* tokens x BLOCK: activations */
    float *other; /* tokens x BLOCK: what the gates multiply */
} share;

/* Some numbers of four rows, from number `first` on. */
static void move(const void **to, const char *const *rows, int64_t first, int64_t size) {
    for (int j = 0; j < BLOCK; j++)
        to[j] = rows[j] + first * size;
}

/* The rows' dot products with all tokens; a chunk of the rows stays in L1 for all of them. Only
 * the first token asks for what is ahead. */
static void dots(const share *own, const char *const *rows, const char *const *ahead, float *out) {
    int64_t hidden = own->work->hidden, tokens = own->work->tokens;
    int64_t size = own->work->is_bf16 ? 2 : 4, x_size = own->use->raw ? 2 : 4;
    int64_t chunk = tokens > 1 ? CHUNK : hidden;
    memset(out, 0, (size_t)(tokens * BLOCK) * sizeof *out);
    for (int64_t c = 0; c < hidden; c += chunk) {
        int64_t n = hidden - c < chunk ? hidden - c : chunk;
        const void *from[BLOCK], *next[BLOCK];
        move(from, rows, c, size);
        move(next, ahead, c, size);
        for (int64_t t = 0; t < tokens; t++)
            own->use->dot4(out + t * BLOCK, from, t ? from : next,
                           own->x + (t * hidden + c) * x_size, n);
    }
}

/* Add the rows, each times its activation, to every token's sum. */
static void outputs(const share *own, const char *const *rows, const char *const *ahead) {
    int64_t hidden = own->work->hidden, tokens = own->work->tokens;
    int64_t size = own->work->is_bf16 ? 2 : 4, chunk = tokens > 1 ? CHUNK : hidden;
    for (int64_t c = 0; c < hidden; c += chunk) {
        int64_t n = hidden - c < chunk ? hidden - c : chunk;
        const void *from[BLOCK], *next[BLOCK];
        move(from, rows, c, size);
        move(next, ahead, c, size);
        for (int64_t t = 0; t < tokens; t++)
            own->use->add4(own->y + t * hidden + c, from, t ? from : next, own->h + t * BLOCK, n);
    }
}

/* From dot products to the activations of one chosen neuron, in its column of h; none speaks at a
 * place beyond the last. */
static void say(const share *own, int64_t place, int column) {
    const job *work = own->work;
    int here = place < own->last;
    int64_t neuron = here ? work->neurons[place] : 0;
    float gate_bias = number_at(work, work->gate_bias, neuron);
    float up_bias = number_at(work, work->up_bias, neuron);
    for (int64_t t = 0; t < work->tokens; t++) {
        float *said = own->h + t * BLOCK + column, up = own->other[t * BLOCK + column] + up_bias;
        if (!here || (work->keep && !work->keep[t * work->chosen + place]))
            *said = 0.0f;
        else if (work->gated)
            *said = activate(work->activation, *said + gate_bias) * up;
        else
            *said = activate(work->activation, *said + up_bias);
    }
}

/* The next part of every record. */
static void advance(const char **rows, const char **ahead, int64_t part) {
    for (int j = 0; j < BLOCK; j++) {
        rows[j] += part;
        ahead[j] += part;
    }
}

/* A block that is not full has the last record again, with activation 0. */
static void *run_share(void *share_) {
    const share *own = share_;
    const job *work = own->work;
    int64_t part = work->hidden * (work->is_bf16 ? 2 : 4), parts = work->gated ? 3 : 2;
    for (int64_t b = own->first; b < own->last; b += BLOCK) {
        const char *rows[BLOCK], *ahead[BLOCK];
        for (int j = 0; j < BLOCK; j++) {
            int64_t most = own->last - 1, place = b + j, next = b + BLOCK + j;
            int64_t here = work->neurons[place < most ? place : most];
            int64_t there = work->neurons[next < most ? next : most];
            rows[j] = (const char *)work->weights + here * parts * part;
            ahead[j] = (const char *)work->weights + there * parts * part;
        }
        dots(own, rows, ahead, own->h);
        advance(rows, ahead, part);
        if (work->gated) {
            dots(own, rows, ahead, own->other);
            advance(rows, ahead, part);
        }
        for (int j = 0; j < BLOCK; j++)
            say(own, b + j, j);
        outputs(own, rows, ahead);
    }
    return NULL;
}

static void write_sum(const job *work, const share *shares, int threads) {
    for (int64_t t = 0; t < work->tokens; t++)
        for (int64_t i = 0; i < work->hidden; i++) {
            int64_t at = t * work->hidden + i;
            float sum = number_at(work, work->down_bias, i);
            for (int k = 0; k < threads; k++)
                sum += shares[k].y[at];
            if (work->is_bf16)
                ((bf16 *)work->y)[at] = to_bf16(sum);
            else
                ((float *)work->y)[at] = sum;
        }
}

/* Threads are made for the call: it costs less than their share of the smallest call that has
 * several, and nothing is left that a fork could break. One that cannot be made is done here. */
static void run_shares(share *shares, int threads) {
    pthread_t made[MOST_THREADS];
    int is_made[MOST_THREADS];
    for (int k = 1; k < threads; k++)
        is_made[k] = pthread_create(&made[k], NULL, run_share, &shares[k]) == 0;
    run_share(&shares[0]);
    for (int k = 1; k < threads; k++) {
        if (is_made[k])
            pthread_join(made[k], NULL);
        else
            run_share(&shares[k]);
    }
}

/* 0; 1 without memory; 2 for a level that is not there. */
int brickwork_sparse_ffn(const job *work) {
    const kernels *use = kernels_of(work->level, work->is_bf16);
    if (!use)
        return 2;
    int64_t size = work->tokens * work->hidden, blocks = (work->chosen + BLOCK - 1) / BLOCK;
    int64_t small = work->tokens * BLOCK;
    int threads = work->threads < MOST_THREADS ? work->threads : MOST_THREADS;
    int converts = work->is_bf16 && !use->raw;
    float *memory = calloc((size_t)((size + 2 * small) * threads + (converts ? size : 0)),
                           sizeof(float));
    if (!memory)
        return 1;
    float *x = memory + (size + 2 * small) * threads;
    for (int64_t i = 0; converts && i < size; i++)
        x[i] = float_of_bf16(((const bf16 *)work->x)[i]);
    share shares[MOST_THREADS];
    for (int k = 0; k < threads; k++) {
        float *own = memory + (size + 2 * small) * k;
        int64_t first = blocks * k / threads * BLOCK, last = blocks * (k + 1) / threads * BLOCK;
        shares[k] = (share){work, use, converts ? (const char *)x : work->x, first,
                            last < work->chosen ? last : work->chosen, own, own + size,
                            own + size + small};
    }
    run_shares(shares, threads);
    write_sum(work, shares, threads);
    free(memory);
    return 0;
}

#elif !defined(TYPE) /* the template, for both types of one level */

#if LANES == 1
typedef float JOIN(LEVEL, float, vector);
typedef uint32_t JOIN(LEVEL, word, vector);
#else
typedef float JOIN(LEVEL, float, vector) __attribute__((vector_size(4 * LANES)));
typedef uint32_t JOIN(LEVEL, word, vector) __attribute__((vector_size(4 * LANES)));
#endif
#define VECTOR JOIN(LEVEL, float, vector)

TARGET static inline VECTOR JOIN(LEVEL, float, at)(const float *from) {
    VECTOR found;
    memcpy(&found, from, sizeof found);
    return found;
}

TARGET static inline VECTOR JOIN(LEVEL, bf16, at)(const bf16 *from) {
    JOIN(LEVEL, word, vector) bits = (JOIN(LEVEL, word, vector))WIDEN(from) << 16;
    VECTOR found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

TARGET static inline float JOIN(LEVEL, float, sum)(VECTOR of) {
    float lanes[LANES], sum = 0.0f;
    memcpy(lanes, &of, sizeof lanes);
    for (int i = 0; i < LANES; i++)
        sum += lanes[i];
    return sum;
}

#define TYPE float
#include __FILE__
#undef TYPE
#define TYPE bf16
#include __FILE__
#undef TYPE
#undef VECTOR
#undef LANES
#undef WIDEN
#undef TARGET
#undef LEVEL

#else /* the template, for one type */

#define AT JOIN(LEVEL, TYPE, at)
#define X_AT JOIN(LEVEL, float, at)
#define SUM JOIN(LEVEL, float, sum)
#define NUMBER JOIN(float, of, TYPE)
#define LINE (64 / (int)sizeof(TYPE))

TARGET static void JOIN(LEVEL, TYPE, dot4)(float *out, const void *const *rows,
                                           const void *const *ahead, const void *x_, int64_t n) {
    const float *x = x_;
    VECTOR s[BLOCK] = {0};
    int64_t i = 0;
    for (; i + LINE <= n; i += LINE) {
        for (int j = 0; j < BLOCK; j++)
            __builtin_prefetch((const TYPE *)ahead[j] + i, 0, 2);
        for (int64_t k = i; k < i + LINE; k += LANES) {
            VECTOR inputs = X_AT(x + k);
            for (int j = 0; j < BLOCK; j++)
                s[j] += AT((const TYPE *)rows[j] + k) * inputs;
        }
    }
    for (int j = 0; j < BLOCK; j++) {
        out[j] += SUM(s[j]);
        for (int64_t k = i; k < n; k++)
            out[j] += NUMBER(((const TYPE *)rows[j])[k]) * x[k];
    }
}

TARGET static void JOIN(LEVEL, TYPE, add4)(float *y, const void *const *rows_,
                                           const void *const *ahead_, const float *h, int64_t n) {
    const TYPE *r0 = rows_[0], *r1 = rows_[1], *r2 = rows_[2], *r3 = rows_[3];
    const TYPE *a0 = ahead_[0], *a1 = ahead_[1], *a2 = ahead_[2], *a3 = ahead_[3];
    float h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
    int64_t i = 0;
    for (; i + LINE <= n; i += LINE) {
        __builtin_prefetch(a0 + i, 0, 2);
        __builtin_prefetch(a1 + i, 0, 2);
        __builtin_prefetch(a2 + i, 0, 2);
        __builtin_prefetch(a3 + i, 0, 2);
        for (int64_t k = i; k < i + LINE; k += LANES) {
            VECTOR sum = X_AT(y + k);
            sum += AT(r0 + k) * h0;
            sum += AT(r1 + k) * h1;
            sum += AT(r2 + k) * h2;
            sum += AT(r3 + k) * h3;
            memcpy(y + k, &sum, sizeof sum);
        }
    }
    for (; i < n; i++)
        y[i] += NUMBER(r0[i]) * h0 + NUMBER(r1[i]) * h1 + NUMBER(r2[i]) * h2 + NUMBER(r3[i]) * h3;
}

static const kernels JOIN(LEVEL, TYPE, kernels) = {JOIN(LEVEL, TYPE, dot4), JOIN(LEVEL, TYPE, add4), 0};

#undef AT
#undef X_AT
#undef SUM
#undef NUMBER
#undef LINE
#endif
