#include "network.hpp"

#include <dlfcn.h>
#include <poll.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include <cstdlib>
#include <cstring>
#include <jalapeno_driver/log.hpp>
#include <type_traits>

#include "error.hpp"

namespace jalapeno::runtime {
namespace {

constexpr const char* kProviders[] = {"efa", "cxi", "verbs;ofi_rxm", "net", "tcp", "tcp;ofi_rxm"};
constexpr uint32_t kVersion = FI_VERSION(1, 17);
constexpr size_t kContexts = 4096;  // writes in flight

// What of libfabric is no inline function. Loaded when ranks on another host first appear: the drivers that come with
// the library take a fifth of a second before main() to measure clocks, which nobody else is to pay for.
struct Libfabric {
  decltype(&fi_getinfo) getinfo;
  decltype(&fi_freeinfo) freeinfo;
  decltype(&fi_dupinfo) dupinfo;
  decltype(&fi_fabric) fabric;
  decltype(&fi_strerror) strerror;
  static const Libfabric& get() {
    static const Libfabric loaded = load();  // throws Error
    return loaded;
  }

 private:
  static Libfabric load() {
    void* library = dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
      fail(jalErrorNotSupported,
           std::string("ranks on several hosts need libfabric (package libfabric1): ") + dlerror());
    Libfabric f{};
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (function == nullptr) fail(jalErrorNotSupported, std::string("libfabric.so.1 has no ") + name);
    };
    find(f.getinfo, "fi_getinfo"), find(f.freeinfo, "fi_freeinfo"), find(f.dupinfo, "fi_dupinfo");
    find(f.fabric, "fi_fabric"), find(f.strerror, "fi_strerror");
    return f;
  }
};

struct FreeInfo {
  void operator()(fi_info* i) const { Libfabric::get().freeinfo(i); }
};
using Info = std::unique_ptr<fi_info, FreeInfo>;

std::string reason(long error) { return Libfabric::get().strerror(static_cast<int>(-error)); }

Info ask(const char* provider, const std::string& source, std::string& why) {
  Info hints(Libfabric::get().dupinfo(nullptr));
  hints->caps = FI_MSG | FI_RMA | FI_WRITE | FI_REMOTE_WRITE;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
  hints->domain_attr->threading = FI_THREAD_SAFE;
  hints->domain_attr->cq_data_size = 4;
  hints->fabric_attr->prov_name = strdup(provider);
  fi_info* found = nullptr;
  // Without a source address the tcp provider of 1.17 takes loopback and never connects.
  const int error = Libfabric::get().getinfo(kVersion, source.c_str(), nullptr, FI_SOURCE, hints.get(), &found);
  if (error != 0) why += std::string(why.empty() ? "" : ", ") + provider + ": " + reason(error);
  return Info(found);
}

template <class T>
void close_fid(T*& f) {
  if (f != nullptr) fi_close(&f->fid);
  f = nullptr;
}

}  // namespace

struct Network::Handles {
  Info info;
  fid_fabric* fabric = nullptr;
  fid_domain* domain = nullptr;
  fid_cq* queue = nullptr;
  fid_av* addresses = nullptr;
  fid_ep* endpoint = nullptr;
  fid_mr* memory = nullptr;
  bool can_wait = true;  // for completions
  std::byte* base = nullptr;
  std::vector<fi_context2> contexts{kContexts};
  std::vector<uint32_t> context_peer = std::vector<uint32_t>(kContexts);  // whom the write with that context is for
  size_t next = 0;
  ~Handles() {
    close_fid(endpoint), close_fid(memory), close_fid(addresses), close_fid(queue), close_fid(domain),
        close_fid(fabric);
  }
};

Network::Network(const std::string& source) : h_(std::make_unique<Handles>()) {
  const char* wanted = std::getenv("JAL_COLL_PROVIDER");
  std::string why;
  if (wanted != nullptr && *wanted != 0) {
    h_->info = ask(wanted, source, why);
  } else {
    for (const char* p : kProviders)
      if ((h_->info = ask(p, source, why)) != nullptr) break;
  }
  if (h_->info == nullptr)
    fail(jalErrorNotSupported,
         "no libfabric provider with reliable datagrams and remote writes at " + source + ": " + why);
  provider_ = h_->info->fabric_attr->prov_name;
  auto must = [&](int error, const char* what) {
    if (error != 0)
      fail(jalErrorOperatingSystem, "libfabric " + provider_ + " at " + source + ": " + what + ": " + reason(error));
  };
  must(Libfabric::get().fabric(h_->info->fabric_attr, &h_->fabric, nullptr), "fi_fabric");
  must(fi_domain(h_->fabric, h_->info.get(), &h_->domain, nullptr), "fi_domain");
  fi_cq_attr cq{};
  cq.size = kContexts, cq.format = FI_CQ_FORMAT_DATA, cq.wait_obj = FI_WAIT_FD;
  if (fi_cq_open(h_->domain, &cq, &h_->queue, nullptr) != 0) {
    cq.wait_obj = FI_WAIT_NONE, h_->can_wait = false;
    must(fi_cq_open(h_->domain, &cq, &h_->queue, nullptr), "fi_cq_open");
  }
  fi_av_attr av{};
  av.type = FI_AV_TABLE;
  must(fi_av_open(h_->domain, &av, &h_->addresses, nullptr), "fi_av_open");
  must(fi_endpoint(h_->domain, h_->info.get(), &h_->endpoint, nullptr), "fi_endpoint");
  must(fi_ep_bind(h_->endpoint, &h_->addresses->fid, 0), "binding addresses");
  must(fi_ep_bind(h_->endpoint, &h_->queue->fid, FI_TRANSMIT | FI_RECV), "binding the completion queue");
  must(fi_enable(h_->endpoint), "fi_enable");
}

Network::~Network() = default;

Network::Address Network::address() const {
  Address a{};
  size_t size = sizeof a.bytes;
  if (const int error = fi_getname(&h_->endpoint->fid, a.bytes, &size); error != 0)
    fail(jalErrorOperatingSystem, "libfabric " + provider_ + ": fi_getname: " + reason(error));
  a.size = static_cast<uint32_t>(size);
  return a;
}

Network::Exposed Network::expose(void* data, size_t bytes) {
  if (const int error = fi_mr_reg(h_->domain, data, bytes, FI_WRITE | FI_REMOTE_WRITE, 0, 1, 0, &h_->memory, nullptr);
      error != 0)
    fail(jalErrorOperatingSystem, "libfabric " + provider_ + ": registering " + std::to_string(bytes) +
                                      " bytes of device memory: " + reason(error));
  h_->base = static_cast<std::byte*>(data);
  const bool by_address = h_->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR;
  return {by_address ? reinterpret_cast<uint64_t>(data) : 0, fi_mr_key(h_->memory)};
}

void Network::connect(uint32_t peer, const Address& address, const Exposed& memory) {
  fi_addr_t at = FI_ADDR_UNSPEC;
  if (fi_av_insert(h_->addresses, address.bytes, 1, &at, 0, nullptr) != 1)
    fail(jalErrorOperatingSystem,
         "libfabric " + provider_ + ": the address of rank " + std::to_string(peer) + " is not accepted");
  if (peers_.size() <= peer) peers_.resize(peer + 1, FI_ADDR_UNSPEC), memory_.resize(peer + 1);
  peers_[peer] = at, memory_[peer] = memory;
}

bool Network::write(uint32_t peer, const void* data, size_t bytes, uint64_t offset, uint32_t word) {
  const ssize_t n =
      fi_writedata(h_->endpoint, data, bytes, fi_mr_desc(h_->memory), word, peers_[peer],
                   memory_[peer].address + offset, memory_[peer].key, &h_->contexts[h_->next % kContexts]);
  if (n == -FI_EAGAIN) return false;
  if (n != 0)
    throw Lost(peer, "libfabric " + provider_ + ": writing " + std::to_string(bytes) + " bytes to it: " + reason(n));
  h_->context_peer[h_->next++ % kContexts] = peer;
  begun_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

size_t Network::progress(int timeout_ms, const std::function<void(uint32_t word)>& arrived) {
  fi_cq_data_entry entries[32];
  for (int turn = 0;; ++turn) {
    // The second turn waits, with the provider's own call: the net provider of 1.17 leaves a completion queue's
    // descriptor readable for ever once something came, whatever fi_trywait says.
    const ssize_t n =
        turn == 0 ? fi_cq_read(h_->queue, entries, 32) : fi_cq_sread(h_->queue, entries, 32, nullptr, timeout_ms);
    if (n > 0) {
      for (ssize_t k = 0; k < n; ++k)
        if (entries[k].flags & FI_REMOTE_CQ_DATA)
          arrived(static_cast<uint32_t>(entries[k].data));
        else
          out_.fetch_add(1, std::memory_order_relaxed);
      return static_cast<size_t>(n);
    }
    if (n == -FI_EAVAIL) {
      fi_cq_err_entry e{};
      (void)fi_cq_readerr(h_->queue, &e, 0);
      const std::string text = "libfabric " + provider_ + ": a write to it failed: " + reason(-e.err);
      const auto* context = static_cast<const fi_context2*>(e.op_context);
      if (context >= h_->contexts.data() && context < h_->contexts.data() + kContexts) {
        out_.fetch_add(1, std::memory_order_relaxed);
        throw Lost(h_->context_peer[static_cast<size_t>(context - h_->contexts.data())], text);
      }
      fail(jalErrorPeerLost, text);
    }
    if (turn > 0 && (n == -FI_ENOSYS || n == -FI_EOPNOTSUPP)) {
      h_->can_wait = false;
      return 0;
    }
    if (n != -FI_EAGAIN && n != -FI_EINTR)
      fail(jalErrorOperatingSystem, "libfabric " + provider_ + ": fi_cq_read: " + reason(n));
    if (turn > 0 || timeout_ms == 0) return 0;
    if (!h_->can_wait) {
      (void)poll(nullptr, 0, 1);
      return 0;
    }
  }
}

}  // namespace jalapeno::runtime
