#include "launcher.hpp"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <poll.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>

#include "error.hpp"

namespace jalapeno::runtime {
namespace {

std::string env(const char* name) {
  const char* v = std::getenv(name);
  return v != nullptr ? v : "";
}

int env_number(const char* name, int low, int high) {
  const std::string text = env(name);
  char* end = nullptr;
  const long v = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != 0 || v < low || v > high)
    fail(jalErrorIllegalState, std::string(name) + "=\"" + text + "\": expected a number from " + std::to_string(low) +
                                   " to " + std::to_string(high));
  return static_cast<int>(v);
}

std::string hex(const UniqueId& id) {
  static const char kDigits[] = "0123456789abcdef";
  std::string out;
  for (size_t k = 0; k < sizeof id; ++k) {
    const auto byte = reinterpret_cast<const unsigned char*>(&id)[k];
    out += kDigits[byte >> 4], out += kDigits[byte & 15];
  }
  return out;
}

UniqueId from_hex(const std::string& text) {
  UniqueId id{};
  if (text.size() != 2 * sizeof id)
    fail(jalErrorIllegalState, "the launcher handed on " + std::to_string(text.size()) +
                                   " characters of an id, expected " + std::to_string(2 * sizeof id));
  for (size_t k = 0; k < sizeof id; ++k)
    reinterpret_cast<unsigned char*>(&id)[k] =
        static_cast<unsigned char>(std::strtoul(text.substr(2 * k, 2).c_str(), nullptr, 16));
  return id;
}

// A launcher with a store of keys and a barrier: rank 0 puts an id into it.
class StoreLauncher : public Launcher {
 public:
  UniqueId agree() override {
    const std::string key = "jalapeno-id-" + std::to_string(next_++);
    UniqueId id{};
    if (rank == 0) id = make_unique_id(), put(key, hex(id));
    fence();
    return rank == 0 ? id : from_hex(get(key));
  }

 protected:
  virtual void put(const std::string& key, const std::string& value) = 0;
  virtual void fence() = 0;
  virtual std::string get(const std::string& key) = 0;

 private:
  int next_ = 0;
};

// PMIx 3 and 4, as mpirun of OpenMPI, srun --mpi=pmix, PRRTE and Flux speak it. Only what is used of its ABI.
class Pmix : public StoreLauncher {
 public:
  struct Proc {
    char nspace[256];
    uint32_t rank;
  };
  struct Value {
    uint16_t type;
    union {
      char* string;
      uint16_t u16;
      uint32_t u32;
      uint64_t words[3];
    } data;
  };

  Pmix() {
    library_ = dlopen("libpmix.so.2", RTLD_NOW | RTLD_GLOBAL);
    if (library_ == nullptr)
      fail(jalErrorIllegalState, "a PMIx launcher started this process (PMIX_NAMESPACE=" + env("PMIX_NAMESPACE") +
                                     "), but its library cannot be loaded: " + dlerror() +
                                     "; install libpmix2, or pass an id to jalCommInitRank");
    load(init_, "PMIx_Init"), load(finalize_, "PMIx_Finalize"), load(put_, "PMIx_Put"), load(commit_, "PMIx_Commit");
    load(fence_, "PMIx_Fence"), load(get_, "PMIx_Get");
    check(init_(&self_, nullptr, 0), "PMIx_Init");
    rank = static_cast<int>(self_.rank);
    ranks = static_cast<int>(job("pmix.job.size"));
    local_rank = static_cast<int>(job("pmix.lrank", true));
  }
  ~Pmix() override { (void)finalize_(nullptr, 0); }
  std::string name() const override { return "PMIx"; }

 private:
  static constexpr uint16_t kString = 3, kUint16 = 13;
  static constexpr uint8_t kGlobal = 3;
  static constexpr uint32_t kWildcard = 0xFFFFFFFE;

  template <class F>
  void load(F& function, const char* name) {
    function = reinterpret_cast<F>(dlsym(library_, name));
    if (function == nullptr) fail(jalErrorIllegalState, std::string("libpmix.so.2 has no ") + name);
  }
  static void check(int status, const std::string& what) {
    if (status != 0) fail(jalErrorIllegalState, what + " failed with status " + std::to_string(status));
  }
  uint32_t job(const char* key, bool own = false) {
    Proc p = self_;
    if (!own) p.rank = kWildcard;
    Value* v = nullptr;
    check(get_(&p, key, nullptr, 0, &v), std::string("PMIx_Get of ") + key);
    return v->type == kUint16 ? v->data.u16 : v->data.u32;  // values stay the library's to the end of the process
  }
  void put(const std::string& key, const std::string& value) override {
    Value v{};
    v.type = kString, v.data.string = const_cast<char*>(value.c_str());
    check(put_(kGlobal, key.c_str(), &v), "PMIx_Put");
  }
  void fence() override {
    check(commit_(), "PMIx_Commit");
    check(fence_(nullptr, 0, nullptr, 0), "PMIx_Fence");
  }
  std::string get(const std::string& key) override {
    Proc p = self_;
    p.rank = 0;
    Value* v = nullptr;
    check(get_(&p, key.c_str(), nullptr, 0, &v), "PMIx_Get of " + key);
    return v->type == kString ? v->data.string : "";
  }

  void* library_;
  Proc self_{};
  int (*init_)(Proc*, const void*, size_t) = nullptr;
  int (*finalize_)(const void*, size_t) = nullptr;
  int (*put_)(uint8_t, const char*, Value*) = nullptr;
  int (*commit_)() = nullptr;
  int (*fence_)(const Proc*, size_t, const void*, size_t) = nullptr;
  int (*get_)(const Proc*, const char*, const void*, size_t, Value**) = nullptr;
};

// PMI-1's wire protocol, as MPICH's mpiexec speaks it: lines of key=value on a descriptor.
class Pmi1 : public StoreLauncher {
 public:
  Pmi1() : fd_(env_number("PMI_FD", 0, 1 << 20)) {
    rank = env_number("PMI_RANK", 0, 1 << 20), ranks = env_number("PMI_SIZE", 1, 1 << 20);
    const std::string local = env("MPI_LOCALRANKID");
    local_rank = local.empty() ? 0 : std::atoi(local.c_str());
    ask("cmd=init pmi_version=1 pmi_subversion=1", "response_to_init");
    store_ = ask("cmd=get_my_kvsname", "my_kvsname")["kvsname"];
  }
  ~Pmi1() override {
    try {
      ask("cmd=finalize", "finalize_ack");
    } catch (const std::exception&) {
      // The launcher has gone first.
    }
  }
  std::string name() const override { return "PMI-1"; }

 private:
  using Words = std::map<std::string, std::string>;
  // A value of at most 1 KiB: an id in hexadecimal has 256 characters.
  Words ask(const std::string& line, const char* expected) {
    const std::string out = line + "\n";
    for (size_t at = 0; at < out.size();) {
      const ssize_t n = write(fd_, out.data() + at, out.size() - at);
      if (n <= 0)
        fail(jalErrorIllegalState, "PMI_FD=" + std::to_string(fd_) + ": the launcher does not read \"" + line + "\"");
      at += static_cast<size_t>(n);
    }
    std::string in;
    for (char c = 0; c != '\n';) {
      pollfd p{fd_, POLLIN, 0};
      if (poll(&p, 1, 60'000) <= 0 || read(fd_, &c, 1) != 1)
        fail(jalErrorIllegalState, "PMI_FD=" + std::to_string(fd_) + ": the launcher does not answer \"" + line + "\"");
      if (c != '\n') in += c;
    }
    Words words;
    std::stringstream text(in);
    for (std::string word; text >> word;)
      if (const size_t equals = word.find('='); equals != std::string::npos)
        words[word.substr(0, equals)] = word.substr(equals + 1);
    if (words["cmd"] != expected || (words.count("rc") != 0 && words["rc"] != "0"))
      fail(jalErrorIllegalState, "the launcher answered \"" + line + "\" with \"" + in + "\"");
    return words;
  }
  void put(const std::string& key, const std::string& value) override {
    ask("cmd=put kvsname=" + store_ + " key=" + key + " value=" + value, "put_result");
  }
  void fence() override { ask("cmd=barrier_in", "barrier_out"); }
  std::string get(const std::string& key) override {
    return ask("cmd=get kvsname=" + store_ + " key=" + key, "get_result")["value"];
  }

  int fd_;
  std::string store_;
};

// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them. Rank 0 listens on the port behind the master's,
// which is the launcher's own store.
class Variables : public Launcher {
 public:
  Variables() {
    ranks = env_number("WORLD_SIZE", 1, 1 << 20), rank = env_number("RANK", 0, ranks - 1);
    local_rank = env("LOCAL_RANK").empty() ? 0 : env_number("LOCAL_RANK", 0, 1 << 20);
    port_ = env_number("MASTER_PORT", 1, 65000);
    addrinfo hints{}, *found = nullptr;
    hints.ai_family = AF_INET, hints.ai_socktype = SOCK_STREAM;
    const std::string address = env("MASTER_ADDR");
    if (const int error = getaddrinfo(address.c_str(), nullptr, &hints, &found); error != 0 || found == nullptr)
      fail(jalErrorIllegalState, "MASTER_ADDR=\"" + address + "\": " + gai_strerror(error));
    address_ = reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_addr.s_addr;
    freeaddrinfo(found);
  }
  std::string name() const override { return "RANK and WORLD_SIZE"; }
  UniqueId agree() override {
    // One port for each communicator: a late one of the last must not meet the next.
    const auto port = static_cast<uint16_t>(port_ + 1 + next_ % 200);
    const uint64_t key = std::hash<std::string>{}(env("TORCHELASTIC_RUN_ID") + "/" + std::to_string(next_++)) | 1;
    if (rank == 0) {
      uint16_t listening = port;
      serve_unique_id(listen_anywhere(listening), key);
    }
    return unique_id_at(address_, port, key);
  }

 private:
  int port_, next_ = 0;
  uint32_t address_ = 0;
};

class Alone : public Launcher {
 public:
  std::string name() const override { return "none"; }
  UniqueId agree() override { return make_unique_id(); }
};

std::unique_ptr<Launcher> find() {
  if (!env("PMIX_NAMESPACE").empty()) return std::make_unique<Pmix>();
  if (!env("PMI_FD").empty()) return std::make_unique<Pmi1>();
  if (!env("RANK").empty() || !env("WORLD_SIZE").empty()) return std::make_unique<Variables>();
  // Visible, but it says nothing that could be used: N processes that each think they are alone would be worse.
  for (const auto& [name, size] :
       {std::pair{"Slurm", "SLURM_NTASKS"}, {"Open MPI", "OMPI_COMM_WORLD_SIZE"}, {"MPICH", "PMI_SIZE"}})
    if (const std::string n = env(size);
        !n.empty() && n != "1" && !(std::string(name) == "Slurm" && env("SLURM_PROCID").empty()))
      fail(jalErrorIllegalState, std::string(name) + " started this process as one of " + n + " (" + size +
                                     "), but offers neither PMIx nor PMI-1; with srun use --mpi=pmix, or set RANK, "
                                     "WORLD_SIZE, MASTER_ADDR and MASTER_PORT");
  return std::make_unique<Alone>();
}

}  // namespace

Launcher& Launcher::get() {
  static std::mutex mutex;
  static std::unique_ptr<Launcher> found;  // ends with the program: then the launcher is told
  std::lock_guard lock(mutex);
  if (found == nullptr) found = find();
  return *found;
}

}  // namespace jalapeno::runtime
