#include "batch.hpp"

namespace llm {

bool Batch::take(Sequence& sequence, uint32_t slot, int32_t token) const {
  sequence.tokens.push_back(token);
  return sequence.tokens.size() >= options_.count || (!options_.ignore_end && tokenizer_.ends_text(token)) ||
         model_.position(slot) >= model_.parameters().context;
}

uint64_t Batch::fill(const std::vector<std::vector<int32_t>>& prompts, const Done& done) {
  uint64_t tokens = 0;
  while (active_.size() < options_.parallel && next_ < prompts.size()) {
    const auto slot = static_cast<uint32_t>(active_.size());
    Sequence s{next_, {}};
    const std::vector<int32_t>& prompt = prompts[next_++];
    if (options_.count == 0) {
      done(s.prompt, s.tokens);
      continue;
    }
    model_.prefill(prompt, slot);
    tokens += prompt.size();
    if (take(s, slot, model_.first(options_.sampling, slot)))
      done(s.prompt, s.tokens);
    else
      active_.push_back(std::move(s));
  }
  return tokens;
}

uint32_t Batch::step(const Done& done) {
  const auto n = static_cast<uint32_t>(active_.size());
  const auto made = model_.step(options_.sampling, n);
  const std::vector<int32_t> tokens(made.begin(), made.end());
  // From the back, so that a sequence moved into a gap has had its token already.
  for (uint32_t s = n; s-- > 0;)
    if (take(active_[s], s, tokens[s])) {
      done(active_[s].prompt, active_[s].tokens);
      const auto last = static_cast<uint32_t>(active_.size() - 1);
      model_.exchange(s, last);
      std::swap(active_[s], active_[last]);
      active_.pop_back();
    }
  return n;
}

}  // namespace llm
