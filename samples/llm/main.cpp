// jalapeno-llm: a language model generates text on the chip.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <jalapeno/jalapeno.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "batch.hpp"
#include "model.hpp"
#include "tokenizer.hpp"

namespace {

using Clock = std::chrono::steady_clock;
double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// What one phase cost, on this machine and on the modelled chip.
struct Phase {
  double tokens = 0, host_s = 0, device_s = 0, joules = 0, fabric_s = 0;
};

class Meter {
 public:
  explicit Meter(const jalapeno::Device& device) : device_(device), begin_(device.telemetry()), start_(Clock::now()) {}
  Phase stop(double tokens) const {
    const auto end = Clock::now();
    const jalTelemetry t = device_.telemetry();
    return {tokens, seconds(start_, end), static_cast<double>(t.device_ns - begin_.device_ns) * 1e-9,
            t.energy_joules - begin_.energy_joules,
            static_cast<double>(t.busy_fabric_ns - begin_.busy_fabric_ns) * 1e-9};
  }

 private:
  const jalapeno::Device& device_;
  jalTelemetry begin_;
  Clock::time_point start_;
};

// .npy, version 1: float32, C order.
void write_npy(const std::string& path, const std::vector<float>& values, size_t rows, size_t columns) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", " +
                       std::to_string(columns) + "), }";
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  std::FILE* f = std::fopen(path.c_str(), "wb");
  if (f == nullptr) throw std::runtime_error(path + ": " + std::strerror(errno));
  const unsigned char lead[10] = {0x93,
                                  'N',
                                  'U',
                                  'M',
                                  'P',
                                  'Y',
                                  1,
                                  0,
                                  static_cast<unsigned char>(header.size() & 255),
                                  static_cast<unsigned char>(header.size() >> 8)};
  const bool good = std::fwrite(lead, 1, 10, f) == 10 &&
                    std::fwrite(header.data(), 1, header.size(), f) == header.size() &&
                    std::fwrite(values.data(), 4, values.size(), f) == values.size();
  if (std::fclose(f) != 0 || !good) throw std::runtime_error(path + ": write error");
}

std::vector<int32_t> parse_tokens(const std::string& text) {
  std::vector<int32_t> out;
  std::stringstream in(text);
  for (std::string word; std::getline(in, word, ',');) {
    char* end = nullptr;
    const long v = std::strtol(word.c_str(), &end, 10);
    if (word.empty() || *end != 0 || v < 0 || v > INT32_MAX)
      throw std::runtime_error("--tokens: \"" + word + "\" is no token id");
    out.push_back(static_cast<int32_t>(v));
  }
  return out;
}

void progress_bar(uint64_t done, uint64_t all) {
  static int last = -1;
  const int percent = static_cast<int>(done * 100 / std::max<uint64_t>(all, 1));
  if (!isatty(2) || percent == last) return;
  last = percent;
  std::fprintf(stderr, "\rloading weights [%-40.*s] %3d %%%s", percent * 40 / 100,
               "########################################", percent, percent == 100 ? "\n" : "");
}

nlohmann::json report_json(const jalDeviceProperties& p, const Phase& prefill, const Phase& decode, double load_seconds,
                           uint32_t chips, const std::string& cache_type, uint64_t cache_bytes) {
  auto phase = [&](const Phase& x) {
    // Of all chips, which do the same: rank 0's, times their number.
    const double watts = x.device_s > 0 ? x.joules * chips / x.device_s : 0;
    nlohmann::json modelled = {{"tokens_per_second", x.device_s > 0 ? x.tokens / x.device_s : 0},
                               {"joules_per_token", x.tokens > 0 ? x.joules * chips / x.tokens : 0},
                               {"watts", watts}};
    if (chips > 1) modelled["communication_share"] = x.device_s > 0 ? x.fabric_s / x.device_s : 0;
    if (p.dollars_per_hour > 0 && x.tokens > 0)
      modelled["dollars_per_million_tokens"] = p.dollars_per_hour * chips / 3600 * x.device_s / x.tokens * 1e6;
    return nlohmann::json{
        {"tokens", x.tokens},
        {"this_machine", {{"seconds", x.host_s}, {"tokens_per_second", x.host_s > 0 ? x.tokens / x.host_s : 0}}},
        {"modelled_chip", modelled}};
  };
  return {{"device", p.uri},
          {"chips", chips},
          {"emulated", p.emulated != 0},
          {"chip_configuration", p.config_name},
          {"assumed", p.assumed != 0},
          {"prefill", phase(prefill)},
          {"decode", phase(decode)},
          {"load", {{"seconds", load_seconds}}},
          {"kv_cache", {{"type", cache_type}, {"bytes", cache_bytes}}}};
}

void print_report(const nlohmann::json& r) {
  const bool emulated = r["emulated"];
  std::fprintf(
      stderr, "\n%s\n",
      emulated ? "This machine (the emulator's own speed; says nothing about the chip)" : "Measured on this machine");
  for (const char* name : {"prefill", "decode"}) {
    const auto& x = r[name];
    std::fprintf(stderr, "  %-8s %6.0f tokens  %9.1f tokens/s\n", name, x["tokens"].get<double>(),
                 x["this_machine"]["tokens_per_second"].get<double>());
  }
  std::fprintf(stderr, "  KV cache %.1f MiB of %s\n", r["kv_cache"]["bytes"].get<double>() / (1 << 20),
               r["kv_cache"]["type"].get<std::string>().c_str());
  const uint32_t chips = r["chips"];
  std::fprintf(stderr, "%s %s, configuration %s%s\n", emulated ? "Modelled" : "The",
               chips == 1 ? "chip" : (std::to_string(chips) + " chips").c_str(),
               r["chip_configuration"].get<std::string>().c_str(),
               r["assumed"].get<bool>() ? " (assumed chip: no data sheet is public, every rate is an assumption)" : "");
  for (const char* name : {"prefill", "decode"}) {
    const auto& m = r[name]["modelled_chip"];
    std::fprintf(stderr, "  %-8s %9.1f tokens/s  %.4g J/token  %.0f W", name, m["tokens_per_second"].get<double>(),
                 m["joules_per_token"].get<double>(), m["watts"].get<double>());
    if (m.contains("communication_share"))
      std::fprintf(stderr, "  %.0f %% of it communication", m["communication_share"].get<double>() * 100);
    if (m.contains("dollars_per_million_tokens"))
      std::fprintf(stderr, "  $%.4g per million tokens", m["dollars_per_million_tokens"].get<double>());
    std::fprintf(stderr, "\n");
  }
}

struct Run {
  Phase prefill, decode;
};

Run run_one(const jalapeno::Device& device, llm::Model& model, const llm::Tokenizer& tokenizer,
            const std::vector<int32_t>& tokens, const std::string& prompt, uint32_t count, bool ignore_end,
            const llm::Sampling& sampling, std::FILE* out) {
  Run run;
  Meter prefill_meter(device);
  model.prefill(tokens);
  int32_t token = count > 0 ? model.first(sampling) : 0;  // the prompt's logits tell it: no step of decoding
  run.prefill = prefill_meter.stop(static_cast<double>(tokens.size()));
  std::string pending;  // bytes of a character that is not complete yet
  std::fprintf(out, "%s", prompt.c_str());
  Meter decode_meter(device);
  uint32_t made = 0;
  while (made < count) {
    if (made > 0) {
      // The last place of the context can be predicted from, but not fed.
      if (model.position() >= model.parameters().context) {
        std::fprintf(stderr, "\nthe context of %u tokens is full\n", model.parameters().context);
        break;
      }
      token = model.step(sampling)[0];
    }
    ++made;
    if (tokenizer.ends_text(token) && !ignore_end) break;
    pending += tokenizer.decode(token);
    const size_t whole = llm::complete_utf8(pending);
    std::fwrite(pending.data(), 1, whole, out);
    std::fflush(out);
    pending.erase(0, whole);
  }
  run.decode = decode_meter.stop(made > 0 ? made - 1 : 0);
  std::fprintf(out, "%s\n", pending.c_str());
  std::fflush(out);
  return run;
}

// The texts come in the order in which they end, each with its number.
Run run_batch(const jalapeno::Device& device, llm::Model& model, const llm::Tokenizer& tokenizer,
              const std::vector<std::vector<int32_t>>& prompts, const llm::BatchOptions& options, std::FILE* out) {
  Run run;
  auto add = [](Phase& sum, const Phase& p) {
    sum.tokens += p.tokens, sum.host_s += p.host_s, sum.device_s += p.device_s, sum.joules += p.joules;
  };
  auto print = [&](size_t prompt, const std::vector<int32_t>& tokens) {
    std::string text;
    for (int32_t t : tokens)
      if (!tokenizer.ends_text(t)) text += tokenizer.decode(t);
    std::fprintf(out, "[%zu] %s\n", prompt + 1, text.c_str());
    std::fflush(out);
  };
  llm::Batch batch(model, tokenizer, options);
  while (batch.waiting(prompts) || batch.running()) {
    if (batch.waiting(prompts)) {
      Meter meter(device);
      const uint64_t tokens = batch.fill(prompts, print);
      if (tokens > 0) add(run.prefill, meter.stop(static_cast<double>(tokens)));
    }
    Meter meter(device);
    uint32_t made = 0;
    while (batch.running() && (batch.full() || !batch.waiting(prompts))) made += batch.step(print);
    add(run.decode, meter.stop(made));
  }
  return run;
}

}  // namespace

int main(int argc, char** argv) try {
  CLI::App app{"Runs a Llama-architecture GGUF model on a Jalapeno device or its emulator."};
  std::string model_path, prompt, prompts_path, tokens_text, dump_path, tokenize, uri, kv;
  uint32_t count = 128, context = 0, parallel = 1, chips = 1;
  llm::Sampling sampling;
  bool json = false, ignore_end = false;
  app.add_option("--model", model_path, "GGUF file")->required();
  auto* prompt_option = app.add_option("--prompt", prompt, "text to continue");
  app.add_option("-n", count, "how many tokens to generate")->check(CLI::Range(0, 1000000));
  app.add_option("--temperature", sampling.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--top-k", sampling.top_k, "sample among the k most likely tokens")->check(CLI::Range(1, 1024));
  app.add_option("--top-p", sampling.top_p, "sample among the most likely tokens that together have this probability")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--seed", sampling.seed, "of the random numbers (only with a temperature)");
  app.add_option("--context", context, "tokens the KV cache holds (default: the model's, at most 4096)")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--kv", kv,
                 "type of the KV cache: f32, bf16, f16 or q8_0 (default: f32 or f16 as the weights are, else bf16)");
  app.add_option("--device", uri, "device URI (default: the first device, or an embedded emulator)");
  auto* tokens_option = app.add_option("--tokens", tokens_text, "token ids instead of a prompt, as in 1,2,3");
  app.add_option("--dump-logits", dump_path, "write the logits of every position as .npy (float32, [n, vocabulary])");
  auto* tokenize_option = app.add_option("--tokenize", tokenize, "print the ids of a text and end");
  app.add_option("--parallel", parallel, "sequences decoded together (default 1); without --prompts all start alike")
      ->check(CLI::Range(1, 256));
  auto* prompts_option = app.add_option("--prompts", prompts_path, "file with one prompt a line, run in batches");
  app.add_option("--chips", chips,
                 "share the model out to so many emulated chips in this process; under a launcher (mpirun, srun) every "
                 "process is one chip")
      ->check(CLI::Range(1, 64));
  app.add_flag("--ignore-end", ignore_end, "go on after an end-of-text token");
  app.add_flag("--json", json, "print the report as JSON on standard output, after the text");
  CLI11_PARSE(app, argc, argv);

  // A range check lets a NaN pass.
  if (!(sampling.temperature >= 0)) throw std::runtime_error("--temperature is not a number");
  if (!(sampling.top_p > 0))
    throw std::runtime_error("--top-p " + std::to_string(sampling.top_p) + ": expected more than 0, at most 1");
  const llm::Gguf file(model_path);
  const auto tokenizer = llm::Tokenizer::create(file);
  if (*tokenize_option) {
    std::string line;
    for (int32_t t : tokenizer->encode(tokenize)) line += (line.empty() ? "" : ",") + std::to_string(t);
    std::printf("%s\n", line.c_str());
    return 0;
  }
  if (*prompt_option && *tokens_option) throw std::runtime_error("--prompt and --tokens exclude each other");
  if (*prompts_option && (*prompt_option || *tokens_option))
    throw std::runtime_error("--prompts excludes --prompt and --tokens");
  const std::vector<int32_t> tokens = *tokens_option ? parse_tokens(tokens_text) : tokenizer->encode(prompt);
  std::vector<std::vector<int32_t>> prompts(*prompts_option ? 0 : parallel, tokens);
  if (*prompts_option) {
    std::ifstream lines(prompts_path);
    if (!lines) throw std::runtime_error(prompts_path + ": " + std::strerror(errno));
    for (std::string line; std::getline(lines, line);)
      if (!line.empty()) prompts.push_back(tokenizer->encode(line));
    if (prompts.empty()) throw std::runtime_error(prompts_path + ": no line with a prompt");
  }

  // Every rank runs this; one of them speaks.
  auto run = [&](const jalapeno::Device& device, const jalapeno::Communicator* comm, bool speaks) {
    const auto load_start = Clock::now();
    llm::Model model(
        device, file, context, parallel, speaks ? progress_bar : [](uint64_t, uint64_t) {}, comm, kv);
    const double load_seconds = seconds(load_start, Clock::now());
    if (!dump_path.empty()) {
      if (tokens.empty()) throw std::runtime_error("--dump-logits needs at least one token");
      const std::vector<float> logits = model.logits(tokens);
      if (speaks) write_npy(dump_path, logits, tokens.size(), model.parameters().vocabulary);
      return;
    }
    struct Close {
      void operator()(std::FILE* f) const { std::fclose(f); }
    };
    const std::unique_ptr<std::FILE, Close> nowhere(speaks ? nullptr : std::fopen("/dev/null", "w"));
    std::FILE* out = speaks ? stdout : nowhere.get();
    const Run cost = *prompts_option || parallel > 1
                         ? run_batch(device, model, *tokenizer, prompts, {parallel, count, ignore_end, sampling}, out)
                         : run_one(device, model, *tokenizer, tokens, *prompt_option ? prompt : "", count, ignore_end,
                                   sampling, out);
    if (!speaks) return;
    const nlohmann::json report = report_json(device.properties(), cost.prefill, cost.decode, load_seconds,
                                              comm != nullptr ? static_cast<uint32_t>(comm->ranks()) : 1,
                                              model.cache_type(), model.cache_bytes());
    if (json)
      std::printf("%s\n", report.dump().c_str());
    else
      print_report(report);
  };

  int rank = 0, ranks = 1;
  jalapeno::check(jalLauncherGetRank(&rank, &ranks, nullptr));
  if (ranks > 1) {
    if (chips > 1)
      throw std::runtime_error("--chips " + std::to_string(chips) + ": a launcher started " + std::to_string(ranks) +
                               " processes, which are one chip each");
    const jalapeno::Device device = uri.empty() ? jalapeno::Device() : jalapeno::Device(uri);
    const auto comm = jalapeno::Communicator::from_launcher(device);
    run(device, &comm, rank == 0);
    comm.finalize();
    return 0;
  }
  if (chips == 1) {
    const jalapeno::Device device = uri.empty() ? jalapeno::Device() : jalapeno::Device(uri);
    run(device, nullptr, true);
    return 0;
  }
  std::vector<jalapeno::Device> devices;
  for (uint32_t k = 0; k < chips; ++k) devices.emplace_back(uri.empty() ? "emu:" : uri);
  const std::vector<jalapeno::Communicator> comms = jalapeno::Communicator::all(devices);
  // A rank that fails ends the others' waits.
  std::vector<std::exception_ptr> failures(chips);
  std::vector<std::thread> threads;
  for (uint32_t k = 0; k < chips; ++k)
    threads.emplace_back([&, k] {
      try {
        run(devices[k], &comms[k], k == 0);
      } catch (...) {
        failures[k] = std::current_exception();
        (void)jalCommAbort(comms[k].get());
      }
    });
  for (std::thread& t : threads) t.join();
  for (const auto& f : failures)
    if (f) std::rethrow_exception(f);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "jalapeno-llm: %s\n", e.what());
  return 1;
}
