// Runs the passes of one instruction set over a batch of similarities.
#pragma once

#include "upstream.h"

namespace grainrank {

template <class T>
View<T> run_tables(const Passes<T>& passes, const Batch<T>& batch, bool plain, int channel,
                   bool full, int num_threads, Results& results) {
    const Case& c = batch.c;
    const int levels = c.max_level + 1;
    Overwritten<T> s(batch.similarities, c.columns, batch.stride);
    View<T> view{TableMemory<T>(c.rows * levels), TableMemory<T>(c.table_columns * levels)};
    const Tables<T> columns = view.columns.args(full);
    passes.tables(batch.block(s.data(), plain, num_threads), batch.levels(),
                  batch.factors(channel, plain), view.rows.args(full),
                  c.table_columns > 0 ? &columns : nullptr, c.table_columns);
    const std::string name = std::string(plain ? "plain " : "") + (full ? "full " : "light ");
    const auto terms = s.largest_sums(false);
    view.rows.collect(name + "row ", full, c.scale, c.scale * terms.row, results);
    view.columns.collect(name + "column ", full, c.scale, c.scale * terms.column, results);
    s.collect_unchanged(name + "tables", results);
    return view;
}

template <class T>
void run_plain_gradients(const Passes<T>& passes, const Batch<T>& batch,
                         const Upstream<T>& upstream, int num_threads, Results& results) {
    Overwritten<T> s(batch.similarities, batch.c.columns, batch.stride);
    const Channel<T> channel = upstream.args(nullptr, false, nullptr);
    passes.gradients(batch.block(s.data(), true, num_threads), batch.levels(),
                     {&channel, 1, nullptr, nullptr});
    s.collect("plain gradient", results);
}

// The channels' gradients are added up, and may cancel: of each alone.
template <class T>
struct LargestOfChannels {
    double gradient = 0, row = 0, column = 0;

    LargestOfChannels(const Passes<T>& passes, const Batch<T>& batch,
                      const std::vector<Channel<T>>& channels) {
        for (Channel<T> channel : channels) {
            channel.moments = nullptr;
            Overwritten<T> s(batch.similarities, batch.c.columns, batch.stride);
            passes.gradients(batch.block(s.data(), false, 1), batch.levels(),
                             {&channel, 1, nullptr, nullptr});
            const auto moments = s.largest_sums(true);
            gradient += s.largest();
            row += batch.c.scale * moments.row;
            column += batch.c.scale * moments.column;
        }
    }
};

template <class T>
void run_gradients(const Passes<T>& passes, const Batch<T>& batch,
                   const std::vector<Upstream<T>>& upstreams, int num_threads, Results& results) {
    const Case& c = batch.c;
    Overwritten<T> s(batch.similarities, c.columns, batch.stride);
    const int64_t pieces = (c.rows + kMomentRows - 1) / kMomentRows;
    Output<T> row_moments(c.row_moments ? c.rows : 0);
    Output<T> column_moments(c.column_moments ? pieces * c.columns : 0);
    std::vector<Output<T>> moments(c.channels,
                                   Output<T>(c.moments ? c.rows * (c.max_level + 1) : 0));
    std::vector<Channel<T>> channels;
    for (int k = 0; k < c.channels; ++k)
        channels.push_back(upstreams[k].args(batch.factors(k, false), c.softplus,
                                             c.moments ? moments[k].data() : nullptr));
    passes.gradients(batch.block(s.data(), false, num_threads), batch.levels(),
                     {channels.data(), c.channels, c.row_moments ? row_moments.data() : nullptr,
                      c.column_moments ? column_moments.data() : nullptr});
    const LargestOfChannels<T> terms(passes, batch, channels);
    s.collect("gradient", results, terms.gradient);
    for (const Output<T>& m : moments) m.collect("moments", results, terms.row);
    row_moments.collect("row_moments", results, terms.row);
    column_moments.collect("column_moments", results, terms.column);
}

template <class T>
void run_softplus(const Passes<T>& passes, const Batch<T>& batch, bool positives, bool weights,
                  int num_threads, Results& results) {
    const Case& c = batch.c;
    const int levels = c.max_level + 1;
    Overwritten<T> s(batch.similarities, c.columns, batch.stride);
    Output<T> value(c.rows * levels), slope(c.rows * levels);
    passes.softplus(
        batch.block(s.data(), false, num_threads), batch.levels(),
        {batch.factors(0, false), batch.thresholds.data(), c.shared_thresholds ? 0 : levels,
         weights ? batch.weights.data() : nullptr, positives, value.data(), slope.data()});
    const std::string name = std::string("softplus of ") + (positives ? "positives " : "all ") +
                             (weights ? "weighted " : "");
    value.collect(name + "value", results);
    slope.collect(name + "slope", results);
    if (weights)
        s.collect(name + "gradient", results);
    else
        s.collect_unchanged(name, results);
}

template <class T>
struct Upstreams {
    std::vector<Upstream<T>> plain, all;
};

// All results of a set. The gradients of a set are taken from the tables of the scalar one, of
// which the first run makes `upstreams`.
template <class T>
Results run_batch(const Passes<T>& p, const Batch<T>& batch, int num_threads,
                  Upstreams<T>& upstreams) {
    Results results;
    run_tables(p, batch, true, 0, false, num_threads, results);
    run_tables(p, batch, false, 0, false, num_threads, results);
    const bool first = upstreams.plain.empty();
    Random random{std::mt19937(batch.c.number + 2000000)};
    const View<T> plain = run_tables(p, batch, true, 0, true, num_threads, results);
    if (first) upstreams.plain.emplace_back(batch, plain, random);
    for (int channel = 0; channel < batch.c.channels; ++channel) {
        const View<T> view = run_tables(p, batch, false, channel, true, num_threads, results);
        if (first) upstreams.all.emplace_back(batch, view, random);
    }
    run_plain_gradients(p, batch, upstreams.plain[0], num_threads, results);
    run_gradients(p, batch, upstreams.all, num_threads, results);
    run_softplus(p, batch, true, false, num_threads, results);
    run_softplus(p, batch, false, false, num_threads, results);
    run_softplus(p, batch, false, true, num_threads, results);
    return results;
}

// The light tables, or what the full ones have in their place.
inline Results light_tables(const Results& results, bool from_full) {
    Results found;
    for (const Result& light : results) {
        const size_t at = light.name.find("light ");
        if (at == std::string::npos) continue;
        const std::string name = std::string(light.name).replace(at, 5, "full");
        const auto twin = [&](const Result& full) { return full.name == name; };
        found.push_back(from_full ? *std::find_if(results.begin(), results.end(), twin) : light);
        found.back().name = light.name;
    }
    return found;
}

}  // namespace grainrank
