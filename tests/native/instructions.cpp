// For instruction_budget.py, which counts the instructions of this program under valgrind:
// instructions SET FORM carries out one form of a pass, on one thread; instructions SET only makes
// its input, which is that of every form. Without arguments it says what there is, as JSON.
#include <cstdio>
#include <string>

#include "batch.h"
#include "first_keys.h"
#include "outputs.h"

using namespace grainrank;

namespace {

constexpr int64_t kRows = 64, kColumns = 4096;       // R, M
constexpr int64_t kEmbeddings = 1024, kWidth = 256;  // rows of D features, for norms and finish
constexpr int kMaxLevelHere = 3, kCount = kMaxLevelHere + 1;
constexpr int kKeyValues[kMaxLevelHere] = {20, 4, 4};  // one pair in 20 is positive
constexpr int64_t kColumnStride = kColumns + 64;       // of column tables: a vector may read on
constexpr float kScale = 1 / 0.07F;

std::vector<float> reals(int64_t size, double low, double high, Random& random) {
    return Batch<float>::reals(size, low, high, random);
}

// [rows, columns]: each row is the one before it, moved by one. A random number takes longer to
// draw than most passes take for it.
std::vector<float> matrix(int64_t rows, int64_t columns, Random& random) {
    const std::vector<float> drawn = reals(columns + rows, -1, 1, random);
    std::vector<float> values;
    values.reserve(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
        values.insert(values.end(), drawn.begin() + i, drawn.begin() + i + columns);
    return values;
}

// Tables of rows or columns as a loss may have them, and the gradients of them.
struct Upstream {
    std::vector<float> lse, d_lse, neg_lse, d_neg_lse, d_total;

    Upstream(int64_t size, Random& random)
        : lse(reals(size, 15, 20, random)),
          d_lse(reals(size, 0, 1, random)),
          neg_lse(reals(size, 15, 20, random)),
          d_neg_lse(reals(size, 0, 1, random)),
          d_total(reals(size, 0, 1, random)) {}
};

class Sample {
  public:
    explicit Sample(const Passes<float>& passes) : passes_(passes) {
        for (int64_t k = 0; k < kMaxLevelHere; ++k) {
            for (int64_t i = 0; i < kRows; ++i)
                query_keys_[i * kMaxLevelHere + k] = random_.below(kKeyValues[k]);
            for (int64_t j = 0; j < kColumns; ++j)
                candidate_keys_[k * kColumns + j] = random_.below(kKeyValues[k]);
        }
        first_keys_ = FirstKeys(query_keys_, candidate_keys_, kMaxLevelHere, kColumns);
    }

    bool tables(bool all, bool of_columns) {
        const Tables<float> columns = columns_.args(all);
        return done(passes_.tables(block(), levels(), nullptr, rows_.args(all),
                                   of_columns ? &columns : nullptr, of_columns ? kColumns : 0));
    }

    enum class Extra { kNone, kSoftplus, kMoments };

    bool gradients(bool all, bool of_columns, Extra extra) {
        Channel<float> channel{};
        channel.rows.lse = of_rows_.lse.data();
        channel.rows.d_lse = of_rows_.d_lse.data();
        if (of_columns) {
            channel.columns.lse = of_columns_.lse.data();
            channel.columns.d_lse = of_columns_.d_lse.data();
            channel.columns.stride = kColumnStride;
        }
        if (all) {
            channel.rows.neg_lse = of_rows_.neg_lse.data();
            channel.rows.d_neg_lse = of_rows_.d_neg_lse.data();
            channel.rows.d_total = of_rows_.d_total.data();
            channel.columns.neg_lse = of_columns_.neg_lse.data();
            channel.columns.d_neg_lse = of_columns_.d_neg_lse.data();
            channel.columns.d_total = of_columns_.d_total.data();
        }
        if (extra == Extra::kSoftplus) {
            channel.rows.thresholds = thresholds_.data();
            channel.rows.d_softplus = of_rows_.d_total.data();
        }
        const bool moments = extra == Extra::kMoments;  // as prefixes of normalised embeddings
        return done(passes_.gradients(block(), levels(),
                                      {&channel, 1, moments ? row_moments_.data() : nullptr,
                                       moments ? column_moments_.data() : nullptr}));
    }

    bool softplus(bool weights) {
        return done(passes_.softplus(
            block(), levels(),
            {nullptr, thresholds_.data(), 0, weights ? of_rows_.d_lse.data() : nullptr, false,
             rows_.lse.data(), rows_.total.data()}));
    }

    bool norms() {
        NormArgs<float> in{};
        in.x = embeddings_.data();
        in.row_stride = kWidth;
        in.rows = kEmbeddings;
        in.prefixes = &kWidth;
        in.num_prefixes = 1;
        in.norms = norms_.data();
        in.num_threads = 1;
        passes_.norms(in);
        return true;
    }

    bool finish() {
        FinishArgs<float> in{};
        in.d = similarities_.data();
        in.d_stride = kWidth;
        in.values = embeddings_.data();
        in.value_stride = kWidth;
        in.rows = kEmbeddings;
        in.prefixes = &kWidth;
        in.num_prefixes = 1;
        in.scale = kScale;
        in.norms = norms_.data();
        in.dots = dots_.data();
        in.num_threads = 1;
        passes_.finish(in);
        return true;
    }

  private:
    static bool done(Status status) { return status == Status::kOk; }

    Block<float> block() {
        Block<float> block{};
        block.similarities = similarities_.data();
        block.rows = kRows;
        block.columns = block.row_stride = kColumns;
        block.scale = kScale;
        block.dots = dots_.data();
        block.num_threads = 1;
        return block;
    }

    LevelArgs levels() const {
        LevelLeaf leaf{};
        leaf.kind = LevelKind::kKeysPrefix;
        leaf.max_level = kMaxLevelHere;
        leaf.num_keys = kMaxLevelHere;
        leaf.query_keys = query_keys_.data();
        leaf.candidate_keys = candidate_keys_.data();
        first_keys_.write(leaf);
        return {kMaxLevelHere, {leaf}, {}};
    }

    const Passes<float>& passes_;
    Random random_{std::mt19937(1)};
    std::vector<int32_t> query_keys_ = std::vector<int32_t>(kRows * kMaxLevelHere);
    std::vector<int32_t> candidate_keys_ = std::vector<int32_t>(kMaxLevelHere * kColumns);
    FirstKeys first_keys_;
    std::vector<float> similarities_ = matrix(kRows, kColumns, random_);
    std::vector<float> embeddings_ = matrix(kEmbeddings, kWidth, random_);
    std::vector<float> norms_ = reals(kEmbeddings, 0.5, 2, random_);
    std::vector<float> thresholds_ = reals(kRows * kCount, -5, 5, random_);
    Upstream of_rows_{kRows * kCount, random_}, of_columns_{kColumnStride * kCount, random_};
    TableMemory<float> rows_{kRows * kCount}, columns_{kColumns * kCount};
    std::vector<float> dots_ = std::vector<float>(kEmbeddings);
    std::vector<float> row_moments_ = std::vector<float>(kRows);
    std::vector<float> column_moments_ = std::vector<float>(kRows / kMomentRows * kColumns);
};

constexpr int64_t kPairs = kRows * kColumns, kFeatures = kEmbeddings * kWidth;

// Named as in docs/gpu.md.
struct Form {
    const char* name;
    int64_t elements;
    bool (*run)(Sample&);
};

using Extra = Sample::Extra;
const Form kForms[] = {
    {"tables light rows", kPairs, [](Sample& s) { return s.tables(false, false); }},
    {"tables light rows+columns", kPairs, [](Sample& s) { return s.tables(false, true); }},
    {"tables all rows", kPairs, [](Sample& s) { return s.tables(true, false); }},
    {"tables all rows+columns", kPairs, [](Sample& s) { return s.tables(true, true); }},
    {"softplus sums", kPairs, [](Sample& s) { return s.softplus(false); }},
    {"softplus with gradient", kPairs, [](Sample& s) { return s.softplus(true); }},
    {"gradients rows (lse)", kPairs,
     [](Sample& s) { return s.gradients(false, false, Extra::kNone); }},
    {"gradients rows+columns (lse)", kPairs,
     [](Sample& s) { return s.gradients(false, true, Extra::kNone); }},
    {"gradients all tables rows+columns", kPairs,
     [](Sample& s) { return s.gradients(true, true, Extra::kNone); }},
    {"gradients rows (lse, softplus)", kPairs,
     [](Sample& s) { return s.gradients(false, false, Extra::kSoftplus); }},
    {"gradients rows (lse) with moments", kPairs,
     [](Sample& s) { return s.gradients(false, false, Extra::kMoments); }},
    {"norms", kFeatures, [](Sample& s) { return s.norms(); }},
    {"finish", kFeatures, [](Sample& s) { return s.finish(); }},
};

std::vector<const InstructionSet*> instruction_sets() {
    const InstructionSet* found[kMostSets];
    const int size = available(found, kMostSets);
    return {found, found + size};
}

void describe() {
    std::printf("{\"compiler\": \"%s\", \"flags\": \"%s\"", GRAINRANK_COMPILER, GRAINRANK_FLAGS);
    std::printf(
        ", \"shape\": \"R = %d, M = %d, K = L = %d, 1 of %d pairs positive, D = %d, float32\"",
        static_cast<int>(kRows), static_cast<int>(kColumns), kMaxLevelHere, kKeyValues[0],
        static_cast<int>(kWidth));
    const char* before = ", \"sets\": [";
    for (const InstructionSet* set : instruction_sets()) {
        std::printf("%s\"%s\"", before, set->name);
        before = ", ";
    }
    before = "], \"forms\": {";
    for (const Form& form : kForms) {
        std::printf("%s\"%s\": %d", before, form.name, static_cast<int>(form.elements));
        before = ", ";
    }
    std::printf("}}\n");
}

}  // namespace

int main(int count, char** arguments) {
    if (count == 1) {
        describe();
        return 0;
    }
    const std::string name = count > 2 ? arguments[2] : "";
    const Form* chosen = nullptr;
    for (const Form& form : kForms)
        if (name == form.name) chosen = &form;
    for (const InstructionSet* set : instruction_sets()) {
        if (arguments[1] != std::string(set->name) || (count > 2 && !chosen)) continue;
        Sample sample(set->f32);
        return !chosen || chosen->run(sample) ? 0 : 1;
    }
    std::fprintf(stderr, "expected a set and a form; without arguments: which there are\n");
    return 2;
}
