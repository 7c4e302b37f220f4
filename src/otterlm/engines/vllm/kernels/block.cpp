// Moves h' through a widened block on a CPU, in two calls: `attend` and `feed`. The maths is that of
// `otterlm.stream.InsertedLayer`; sums are float32. Nothing of the base is written to.
//
// Shapes: T tokens of all requests in a row, d and d' the widths of h and h'.

#include <limits>
#include <omp.h>
#include <vector>

#include "products.h"

extern "C" {

struct Layer {  // as in `block.py`
    int64_t base, inserted, heads, kv_heads, head_dim, base_heads, units, base_units;
    float scaling, epsilon, head_epsilon;
    int32_t narrow;  // weights are bf16
    const void *qkv, *out, *gate_up, *down;
    const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
    const float *attention_norm, *ffn_norm, *query_norm, *key_norm;
};

struct Batch {  // as in `block.py`
    int64_t requests, table_stride;
    const int32_t *starts, *lengths, *table;  // [requests + 1], [requests], [requests, table_stride]
    const int64_t* slots;                     // [T]
};

struct Cache {  // as in `block.py`: of one layer; strides count numbers
    void* numbers;
    const float* rotary;  // [positions, rotary_dim]: cosines, then sines
    int64_t block_stride, head_stride, block_size, window, rotary_dim;
};

}  // extern "C"

namespace {

// x' = h' / RMS(h) * w', `[T, d']`
template <typename E>
Part normalized(const Layer& layer, const E* hidden, const E* inserted, const float* weight, int64_t tokens,
                float*& buffer) {
    float* out = buffer;
    buffer += tokens * layer.inserted;
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        const E* row = hidden + token * layer.base;
        Vec sums{};
        int64_t i = 0;
        for (; i + LANES <= layer.base; i += LANES) sums += load(row + i) * load(row + i);
        float square = total(sums);
        for (; i < layer.base; ++i) square += get(row[i]) * get(row[i]);
        const float scale = 1 / std::sqrt(square / layer.base + layer.epsilon);
        for (i = 0; i < layer.inserted; ++i)
            out[token * layer.inserted + i] = get(inserted[token * layer.inserted + i]) * scale * weight[i];
    }
    return {out, layer.inserted, layer.inserted};
}

// h' + what was added to it, `[T, d']`
template <typename E>
void add(const Layer& layer, const E* inserted, const float* added, int64_t tokens, E* out) {
    const int64_t width = padded(layer.inserted);
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token)
        for (int64_t i = 0; i < layer.inserted; ++i)
            put(out[token * layer.inserted + i], get(inserted[token * layer.inserted + i]) + added[token * width + i]);
}

// -- attention -----------------------------------------------------------------------------------------------------
// A block of the cache holds, for each head, the keys as `[block_size / PANEL, head_dim, PANEL]` and then the values as
// `[block_size, head_dim]`.

void turn(const Layer& layer, int64_t rotary_dim, float* head, const float* weight, const float* rotary) {
    if (weight) {
        float square = 0;
        for (int64_t i = 0; i < layer.head_dim; ++i) square += head[i] * head[i];
        const float scale = 1 / std::sqrt(square / layer.head_dim + layer.head_epsilon);
        for (int64_t i = 0; i < layer.head_dim; ++i) head[i] *= scale * weight[i];
    }
    const int64_t half = rotary_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float x = head[i], y = head[half + i], cosine = rotary[i], sine = rotary[half + i];
        head[i] = x * cosine - y * sine;
        head[half + i] = y * cosine + x * sine;
    }
}

// Turns queries and keys in place, and writes keys and values to the cache.
template <typename E>
void remember(const Layer& layer, const Batch& batch, const Cache& cache, float* qkv, const int64_t* positions,
              int64_t tokens) {
    const int64_t width = padded((layer.heads + 2 * layer.kv_heads) * layer.head_dim), size = cache.block_size;
#pragma omp for schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        float* head = qkv + token * width;
        const float* rotary = cache.rotary + positions[token] * cache.rotary_dim;
        for (int64_t i = 0; i < layer.heads + layer.kv_heads; ++i)
            turn(layer, cache.rotary_dim, head + i * layer.head_dim, i < layer.heads ? layer.query_norm : layer.key_norm,
                 rotary);
        const int64_t slot = batch.slots[token];
        if (slot < 0) continue;
        for (int64_t i = 0; i < layer.kv_heads; ++i) {
            const float* key = head + (layer.heads + i) * layer.head_dim;
            const float* value = key + layer.kv_heads * layer.head_dim;
            E* keys = static_cast<E*>(cache.numbers) + slot / size * cache.block_stride + i * cache.head_stride;
            E* values = keys + size * layer.head_dim + slot % size * layer.head_dim;
            for (int64_t d = 0; d < layer.head_dim; ++d) {
                put(keys[slot % size / PANEL * PANEL * layer.head_dim + d * PANEL + slot % PANEL], key[d]);
                put(values[d], value[d]);
            }
        }
    }
}

// Attends with some queries of one request and one head of the cache; rows are heads of tokens.
template <typename E>
void attend_rows(const Layer& layer, const Batch& batch, const Cache& cache, int64_t request, int64_t kv_head,
                 int64_t first, int64_t count, const float* qkv, float* extra, std::vector<float>& buffer) {
    const int64_t group = layer.heads / layer.kv_heads, dim = layer.head_dim, size = cache.block_size;
    const int64_t begin = batch.starts[request], width = padded((layer.heads + 2 * layer.kv_heads) * dim);
    const int64_t before = batch.lengths[request] - (batch.starts[request + 1] - begin);
    const int32_t* table = batch.table + request * batch.table_stride;
    const E* numbers = static_cast<const E*>(cache.numbers) + kv_head * cache.head_stride;
    const float* query[QUERIES];
    float* target[QUERIES];
    int64_t from[QUERIES], to[QUERIES];  // the keys that a row sees
    for (int i = 0; i < QUERIES; ++i) {
        const int64_t row = first + std::min<int64_t>(i, count - 1), token = row / group;
        const int64_t head = kv_head * group + row % group;
        query[i] = qkv + (begin + token) * width + head * dim;
        target[i] = extra + (begin + token) * layer.heads * dim + head * dim;
        to[i] = before + token + 1;
        from[i] = cache.window < 0 ? 0 : std::max<int64_t>(0, to[i] - cache.window);
    }
    const int64_t least = from[0], most = to[QUERIES - 1];
    const int64_t start = least / PANEL * PANEL, stride = padded(most - start);
    buffer.resize(QUERIES * stride);
    for (int64_t key = start; key < most; key += PANEL) {
        const E* keys = numbers + table[key / size] * cache.block_stride + key % size * dim;
        Vec left[QUERIES]{}, right[QUERIES]{};
        for (int64_t d = 0; d < dim; ++d, keys += PANEL) {
            const Vec one = load(keys), other = load(keys + LANES);
#pragma GCC unroll 4
            for (int i = 0; i < QUERIES; ++i) {
                const Vec value = Vec{} + query[i][d];
                left[i] += value * one;
                right[i] += value * other;
            }
        }
        for (int i = 0; i < QUERIES; ++i) {
            store(&buffer[i * stride + key - start], left[i] * layer.scaling);
            store(&buffer[i * stride + key - start + LANES], right[i] * layer.scaling);
        }
    }
    float sums[QUERIES];
    for (int i = 0; i < QUERIES; ++i) {
        float* scores = &buffer[i * stride];
        std::fill(scores, scores + from[i] - start, -std::numeric_limits<float>::infinity());
        std::fill(scores + to[i] - start, scores + stride, -std::numeric_limits<float>::infinity());
        float highest = -std::numeric_limits<float>::max();
        for (int64_t j = from[i] - start; j < to[i] - start; ++j) highest = std::max(highest, scores[j]);
        Vec sum{};
        for (int64_t j = 0; j < stride; j += LANES) {
            const Vec share = exponential(load(scores + j) - highest);
            store(scores + j, share);
            sum += share;
        }
        sums[i] = total(sum);
    }
    for (int64_t d = 0; d < dim; d += LANES) {
        Vec mean[QUERIES]{};
        for (int64_t key = least; key < most;) {
            const E* values = numbers + table[key / size] * cache.block_stride + size * dim + key % size * dim + d;
            for (const int64_t end = std::min(most, (key / size + 1) * size); key < end; ++key, values += dim) {
                const Vec value = load(values);
#pragma GCC unroll 4
                for (int i = 0; i < QUERIES; ++i) mean[i] += buffer[i * stride + key - start] * value;
            }
        }
        for (int i = 0; i < count; ++i) store(target[i] + d, mean[i] / sums[i]);
    }
}

template <typename E>
void attend_all(const Layer& layer, const Batch& batch, const Cache& cache, const float* qkv, float* extra) {
    const int64_t group = layer.heads / layer.kv_heads, threads = omp_get_num_threads();
    int64_t turn = omp_get_thread_num();  // counts down to this thread's next tile
    std::vector<float> buffer;
    for (int64_t request = 0; request < batch.requests; ++request) {
        const int64_t rows = (batch.starts[request + 1] - batch.starts[request]) * group;
        for (int64_t head = 0; head < layer.kv_heads; ++head)
            for (int64_t first = 0; first < rows; first += QUERIES) {
                if (turn-- != 0) continue;
                turn = threads - 1;
                attend_rows<E>(layer, batch, cache, request, head, first, std::min<int64_t>(QUERIES, rows - first),
                               qkv, extra, buffer);
            }
    }
#pragma omp barrier
}

template <typename E, typename W>
void attend(const Layer& layer, const Batch& batch, const Cache& cache, int64_t tokens, const E* x, const E* hidden,
            const E* inserted, const E* heads, const int64_t* positions, float* buffer, E* out) {
    const int64_t width = padded((layer.heads + 2 * layer.kv_heads) * layer.head_dim);
    const int64_t extras = layer.heads * layer.head_dim;
#pragma omp parallel
    {
        float* free = buffer;
        const Part own = normalized(layer, hidden, inserted, layer.attention_norm, tokens, free);
        const Part read = widened(x, tokens, layer.base, layer.base, free);
        const Part attended = widened(heads, tokens, layer.base_heads, layer.base_heads, free);
        float* qkv = free;
        float* extra = qkv + tokens * width;
        product<W>(read, own, layer.qkv, layer.qkv_bias, tokens, width, qkv);
        remember<E>(layer, batch, cache, qkv, positions, tokens);
        attend_all<E>(layer, batch, cache, qkv, extra);
        float* added = extra + tokens * extras;
        product<W>(attended, {extra, extras, extras}, layer.out, layer.out_bias, tokens, padded(layer.inserted), added);
        add(layer, inserted, added, tokens, out);
    }
}

template <typename E, typename W>
void feed(const Layer& layer, int64_t tokens, const E* x, const E* hidden, const E* inserted, const E* units,
          float* buffer, E* out) {
    const int64_t width = padded(2 * layer.units), stride = padded(layer.units);
#pragma omp parallel
    {
        float* free = buffer;
        const Part own = normalized(layer, hidden, inserted, layer.ffn_norm, tokens, free);
        const Part read = widened(x, tokens, layer.base, layer.base, free);
        const Part fed = widened(units, tokens, layer.base_units, layer.base_units, free);
        float* gate_up = free;
        float* extra = gate_up + tokens * width + PANEL;  // the last row's last vector may end beyond it
        float* added = extra + tokens * stride;
        product<W>(read, own, layer.gate_up, layer.gate_up_bias, tokens, width, gate_up);
#pragma omp for schedule(static)
        for (int64_t token = 0; token < tokens; ++token)
            for (int64_t i = 0; i < layer.units; i += LANES) {
                const Vec gate = load(gate_up + token * width + i);
                const Vec up = load(gate_up + token * width + layer.units + i);
                store(extra + token * stride + i, gate / (1.f + exponential(-gate)) * up);
            }
        product<W>(fed, {extra, layer.units, stride}, layer.down, layer.down_bias, tokens, padded(layer.inserted),
                   added);
        add(layer, inserted, added, tokens, out);
    }
}

template <typename W>
void pack_as(const float* weight, int64_t outputs, int64_t channels, W* packed) {
    for (int64_t output = 0; output < padded(outputs); ++output)
        for (int64_t channel = 0; channel < channels; ++channel)
            put(packed[(output / PANEL * channels + channel) * PANEL + output % PANEL],
                output < outputs ? weight[output * channels + channel] : 0);
}

}  // namespace

extern "C" {

// Returns how many outputs a panel has.
int64_t otter_panel() { return PANEL; }

// Orders a weight, `[outputs, channels]`, as products read it: bf16 if narrow, else float32.
void otter_pack(const float* weight, int64_t outputs, int64_t channels, int32_t narrow, void* packed) {
    if (narrow) pack_as(weight, outputs, channels, static_cast<bf16*>(packed));
    else pack_as(weight, outputs, channels, static_cast<float*>(packed));
}

#define DEFINE(NAME, E)                                                                                              \
    void otter_attend_##NAME(const Layer* layer, const Batch* batch, const Cache* cache, int64_t tokens, const E* x, \
                             const E* hidden, const E* inserted, const E* heads, const int64_t* positions,           \
                             float* buffer, E* out) {                                                                \
        (layer->narrow ? attend<E, bf16> : attend<E, float>)(*layer, *batch, *cache, tokens, x, hidden, inserted,    \
                                                             heads, positions, buffer, out);                         \
    }                                                                                                                \
    void otter_feed_##NAME(const Layer* layer, int64_t tokens, const E* x, const E* hidden, const E* inserted,       \
                           const E* units, float* buffer, E* out) {                                                  \
        (layer->narrow ? feed<E, bf16> : feed<E, float>)(*layer, tokens, x, hidden, inserted, units, buffer, out);   \
    }

DEFINE(float32, float)
DEFINE(bfloat16, bf16)

}  // extern "C"
