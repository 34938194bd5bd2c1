// How a communicator fails: once, for a cause that every rank names alike, whatever rank notices it first.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <jalapeno_driver/log.hpp>
#include <jalapeno_driver/os.hpp>
#include <thread>
#include <utility>

#include "communicator.hpp"
#include "layout.hpp"
#include "stream.hpp"

namespace jalapeno::runtime {
namespace {

hw::Status status_of(jalError_t code) {
  switch (code) {
    case jalErrorCommAborted:
      return hw::Status::kAborted;
    case jalErrorCollectiveMismatch:
      return hw::Status::kMismatch;
    case jalErrorCollectiveTimeout:
      return hw::Status::kNoAnswer;
    case jalErrorDependencyFailed:
      return hw::Status::kDependencyFailed;
    default:
      return hw::Status::kPeerLost;
  }
}

}  // namespace

void Communicator::fail_with(jalError_t code, int64_t rank, const std::string& evidence, bool tell) {
  std::string text;
  {
    std::lock_guard lock(error_mutex_);
    if (error_) return;
    jalCommErrorRecord r{};
    r.struct_size = sizeof r;
    r.code = code, r.rank = static_cast<int>(rank), r.unix_ns = static_cast<uint64_t>(driver::unix_ns());
    if (rank >= 0 && rank < ranks()) {
      const Member& m = mesh_->members()[ranks_[static_cast<size_t>(rank)]];
      r.pid = m.pid;
      copy_text(r.host, m.name);
    }
    const uint64_t number = flight_->count();
    const std::string last = number == 0 ? "none"
                                         : signature_text(flight_->last_signature()) + ", number " +
                                               std::to_string(number) + " of this rank";
    copy_text(r.operation, last);
    const std::string name = rank >= 0 && rank < ranks() ? who(static_cast<uint32_t>(rank)) + ": " : "";
    copy_text(r.evidence, evidence.rfind(name, 0) == 0 ? evidence : name + evidence);  // told on, it begins so already
    error_ = r, text = r.evidence;
    failed_ = true;
  }
  if (block_.bytes == 0) return;  // it was never connected
  // Ends what waits on the device: the rank first, then the word that makes it count.
  auto& control = *reinterpret_cast<hw::FabricControl*>(context_->space().aperture(block_).data() + Layout::kControl);
  std::atomic_ref(control.rank)
      .store(rank < 0 ? hw::kNoInstruction : static_cast<uint32_t>(rank), std::memory_order_relaxed);
  std::atomic_ref(control.status).store(static_cast<uint32_t>(status_of(code)), std::memory_order_release);
  context_->device().wake();
  context_->device().notify();
  if (code != jalErrorCommAborted || tell)
    driver::runtime_log().error("rank {} of {}: {}: {}; operations: {}", rank_, ranks(), jalGetErrorName(code), text,
                                flight_->path());
  if (tell) mesh_->tell_failure(channel_, ranks_, rank < 0 ? UINT32_MAX : static_cast<uint32_t>(rank), code, evidence);
}

std::string Communicator::explain(const hw::FaultRecord& f) {
  const auto status = static_cast<hw::Status>(f.status);
  std::string text;
  const bool known = f.other < ranks();
  if (status == hw::Status::kMismatch && f.bytes != 0)
    text = (known ? who(f.other) : "a rank") + " called " + signature_text(f.value) + ", rank " +
           std::to_string(rank_) + " called " + signature_text(f.bytes);
  // Another rank's line says that it failed; why, it says over the control connection, a little later.
  for (int turn = 0; status == hw::Status::kDependencyFailed && !failed_ && turn < 300; ++turn)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  {
    std::lock_guard lock(error_mutex_);
    if (error_ && text.empty()) text = error_->evidence;
  }
  if (text.empty()) text = f.detail;
  Blame b{code_of(status), known ? int64_t{f.other} : -1, text};
  if ((status == hw::Status::kNoAnswer || status == hw::Status::kDependencyFailed) && known && !failed_)
    b = find_culprit(b.code, f.other, text);
  fail_with(b.code, b.rank, b.evidence, true);
  std::lock_guard lock(error_mutex_);
  const bool first = error_->code == b.code && error_->rank == b.rank;  // or another rank's word has come meanwhile
  return first ? b.evidence : error_->evidence;
}

// What a rank says of itself when another one misses it.
struct Communicator::Standing {
  uint32_t waits_for;  // of the group; kNobody: it does not wait in this communicator
  uint32_t failed;     // not 0: it has given up with this jalError_t, for the fault of waits_for
  uint64_t calls, signature;
  static constexpr uint32_t kNobody = UINT32_MAX;
};

// Called on the mesh's thread.
Mesh::Blob Communicator::standing() const {
  Standing s{Standing::kNobody, 0, flight_->count(), 0};
  if (s.calls > 0) s.signature = flight_->last_signature();
  {
    std::lock_guard lock(error_mutex_);
    if (error_ && error_->rank >= 0) {
      s.waits_for = static_cast<uint32_t>(error_->rank), s.failed = static_cast<uint32_t>(error_->code);
      return blob_of(s);
    }
  }
  each_peer([&](hw::FabricPeer& p) {
    if (std::atomic_ref(p.waiting).load(std::memory_order_relaxed) != 0) s.waits_for = p.number;
  });
  return blob_of(s);
}

// The rank that is missed, or whose queue failed, may itself have waited for another one. To blame is who waits for
// nobody, or cannot say.
Communicator::Blame Communicator::find_culprit(jalError_t code, uint32_t missed, const std::string& evidence) {
  constexpr uint32_t kPatienceMs = 1000;
  std::vector<uint32_t> asked{rank_};
  std::string story = evidence;
  for (uint32_t k = missed;;) {
    // Ranks that wait in a circle: each of them names the same one.
    if (const auto circle = std::find(asked.begin(), asked.end(), k); circle != asked.end())
      return {code, *std::min_element(circle, asked.end()), story + ": they wait for each other"};
    asked.push_back(k);
    const auto said = mesh_->ask(channel_, ranks_[k], kPatienceMs, failed_);
    const std::string name = "; " + (k == missed ? "it" : "rank " + std::to_string(k));
    if (!said && mesh_->lost_ranks().count(ranks_[k]) != 0) return {jalErrorPeerLost, k, story + name + " is gone"};
    if (!said) return {jalErrorCollectiveTimeout, k, story + name + " does not answer when asked whom it waits for"};
    if (said->size() < sizeof(Standing)) return {code, k, story + name + " has left the communicator"};
    const auto s = from_blob<Standing>(*said);
    const std::string call = s.calls == 0 ? "no operation yet" : signature_text(s.signature);
    if (s.waits_for >= ranks())
      return {code, k,
              story + name + " is alive and waits for nobody: " + std::to_string(s.calls) +
                  " operations called there, the last one " + call + "; " + std::to_string(flight_->count()) + " here"};
    if (s.failed != 0 && is_error(s.failed))
      return {static_cast<jalError_t>(s.failed), s.waits_for, story + name + " gave up for that one's fault"};
    story += name + " waits for rank " + std::to_string(s.waits_for) + " (its last call: " + call + ")";
    code = jalErrorCollectiveTimeout;
    k = s.waits_for;
  }
}

void Communicator::dropped(const std::vector<hw::DeviceAddr>& groups, bool graphs) {
  for (const hw::DeviceAddr group : groups)
    if (hw::raw(group) - hw::raw(block_.address) < block_.bytes)
      return fail_with(jalErrorCommAborted, rank_, "a stream with its operations was reset", true);
  if (graphs && captured_)
    fail_with(jalErrorCommAborted, rank_, "a stream with a graph was reset, which may hold its operations", true);
}

void Communicator::notice_streams() {
  std::vector<Fence> fences;
  {
    std::lock_guard lock(mutex_);
    fences = fences_;
  }
  for (const Fence& f : fences)
    if (auto s = f.stream.lock(); s != nullptr && s->failed()) {
      (void)s->record();  // explains itself, when the fault is of this communicator
      if (!failed_)
        fail_with(jalErrorDependencyFailed, rank_, "a stream of this rank failed before its operation", true);
    }
}

jalError_t Communicator::error() {
  if (!failed_) notice_streams();
  std::lock_guard lock(error_mutex_);
  return error_ ? error_->code : jalSuccess;
}

std::optional<jalCommErrorRecord> Communicator::record() {
  (void)error();
  std::lock_guard lock(error_mutex_);
  return error_;
}

void Communicator::abort() { fail_with(jalErrorCommAborted, rank_, "jalCommAbort was called there", true); }

// A rank that left before an operation that has been called here will never take part in it.
void Communicator::notice_missing() {
  uint32_t rank;
  {
    std::lock_guard lock(error_mutex_);
    if (captured_ || finalized_) return;
    const auto gone = std::find_if(left_.begin(), left_.end(), [&](const auto& l) { return l.second < calls_; });
    if (gone == left_.end()) return;
    rank = gone->first;
    if (!error_) keep_quiet_ = true;  // the others may have called as often as that rank
  }
  fail_with(jalErrorPeerLost, rank, "it has left the communicator without this operation", false);
}

}  // namespace jalapeno::runtime
