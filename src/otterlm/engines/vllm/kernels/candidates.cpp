// Finds the plausible next tokens of rows of logits, and rules out the others where they are, see `candidates.py`. A row
// fits the processor's cache, so memory is read and written once. `otterlm.decoding.steering` says what is plausible.

#include <limits>

#include "products.h"

namespace {

constexpr int64_t CHUNK = 16 * LANES;
constexpr float NEVER = -std::numeric_limits<float>::infinity();

inline bool any(Ints marks) {
    int32_t marked = 0;
    for (int lane = 0; lane < LANES; ++lane) marked |= marks[lane];
    return marked != 0;
}

// Returns the highest number of a row, or NaN if one of them is.
float highest_of(const float* row, int64_t vocabulary) {
    Vec highest = Vec{} + NEVER;
    Ints broken{};
    int64_t i = 0;
    for (; i + LANES <= vocabulary; i += LANES) {
        const Vec values = load(row + i);
        highest = values > highest ? values : highest;
        broken |= values != values;
    }
    float result = NEVER;
    for (int lane = 0; lane < LANES; ++lane) result = std::max(result, highest[lane]);
    bool nan = any(broken);
    for (; i < vocabulary; ++i) {
        nan |= std::isnan(row[i]);
        result = std::max(result, row[i]);
    }
    return nan ? std::numeric_limits<float>::quiet_NaN() : result;
}

struct Found {
    int64_t count, most;
    int64_t* tokens;  // [most]
    float* scores;    // [most]
};

void look_closely(float* row, int64_t begin, int64_t end, float least, Found& found) {
    for (int64_t i = begin; i < end; ++i) {
        if (!(row[i] >= least)) {
            row[i] = NEVER;
            continue;
        }
        if (found.count < found.most) {
            found.tokens[found.count] = i;
            found.scores[found.count] = row[i];
        }
        ++found.count;
    }
}

// Returns how many tokens are plausible. Of a row with a NaN none is, and it stays as it is.
int64_t rule_out(float* row, int64_t vocabulary, float log_share, Found found) {
    const float least = highest_of(row, vocabulary) + log_share;
    if (std::isnan(least)) return 0;
    int64_t begin = 0;
    for (; begin + CHUNK <= vocabulary; begin += CHUNK) {  // most chunks have no plausible token
        Ints marks{};
        for (int64_t i = begin; i < begin + CHUNK; i += LANES) marks |= load(row + i) >= least;
        if (any(marks)) {
            look_closely(row, begin, begin + CHUNK, least, found);
        } else {
            for (int64_t i = begin; i < begin + CHUNK; i += LANES) store(row + i, Vec{} + NEVER);
        }
    }
    look_closely(row, begin, vocabulary, least, found);
    for (int64_t i = found.count; i < found.most; ++i) {
        found.tokens[i] = found.tokens[0];
        found.scores[i] = found.scores[0];
    }
    return found.count;
}

}  // namespace

extern "C" {

// Rules out what is not plausible in some rows of logits, `[N, stride]`, and writes the plausible tokens of each row and
// their scores, `[n, most]` both. A row with fewer repeats its first. Returns how many the row with the most has; 0 if
// that is more than `most`, or if a row has none.
int32_t otter_rule_out(int64_t count, int64_t stride, int64_t vocabulary, int64_t most, float log_share, float* logits,
                       const int64_t* rows, int64_t* tokens, float* scores) {
    int64_t least = most, highest = 0;
#pragma omp parallel for schedule(static) reduction(min : least) reduction(max : highest) if (count > 1)
    for (int64_t i = 0; i < count; ++i) {
        const int64_t found = rule_out(logits + rows[i] * stride, vocabulary, log_share,
                                       {0, most, tokens + i * most, scores + i * most});
        least = std::min(least, found);
        highest = std::max(highest, found);
    }
    return least == 0 || highest > most ? 0 : int32_t(highest);
}

}  // extern "C"
