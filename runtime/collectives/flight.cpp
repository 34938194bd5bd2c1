#include "flight.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <jalapeno_driver/log.hpp>
#include <jalapeno_driver/os.hpp>

#include "error.hpp"

namespace jalapeno::runtime {
namespace {

// Of this user only; JAL_COLL_FLIGHT_DIR says another place.
std::filesystem::path folder() {
  const char* text = std::getenv("JAL_COLL_FLIGHT_DIR");
  std::filesystem::path p =
      text != nullptr && *text != 0 ? text : "/dev/shm/jalapeno-coll-" + std::to_string(geteuid());
  std::error_code ignored;
  std::filesystem::create_directories(p, ignored);
  std::filesystem::permissions(p, std::filesystem::perms::owner_all, ignored);
  return p;
}

// Of crashed processes some files stay to be read; not for ever.
void remove_old(const std::filesystem::path& where) {
  std::error_code error;
  const auto now = std::filesystem::file_time_type::clock::now();
  for (const auto& f : std::filesystem::directory_iterator(where, error)) {
    const pid_t pid = static_cast<pid_t>(std::atol(f.path().filename().c_str()));
    if (pid > 0 && kill(pid, 0) != 0 && errno == ESRCH && now - f.last_write_time(error) > std::chrono::minutes(10))
      std::filesystem::remove(f.path(), error);
  }
}

}  // namespace

Flight::Flight(const std::string& name, uint32_t rank, uint32_t ranks) {
  constexpr size_t kBytes = sizeof(Header) + kEntries * sizeof(Entry);
  const auto where = folder();
  remove_old(where);
  path_ = (where / (std::to_string(getpid()) + "." + name + ".rank" + std::to_string(rank))).string();
  const int fd = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  void* p = MAP_FAILED;
  if (fd >= 0 && ftruncate(fd, kBytes) == 0 && posix_fallocate(fd, 0, kBytes) == 0)
    p = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (p == MAP_FAILED) {  // a full /dev/shm must not stop anybody: only the file is missed
    driver::runtime_log().warn("flight recorder {}: {}; it will not outlive this process", path_, std::strerror(errno));
    p = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fd >= 0) unlink(path_.c_str());
  }
  if (fd >= 0) close(fd);
  if (p == MAP_FAILED) fail(jalErrorOutOfHostMemory, "flight recorder of " + std::to_string(kBytes) + " bytes");
  header_ = static_cast<Header*>(p);
  entries_ = reinterpret_cast<Entry*>(header_ + 1);
  header_->version = 1, header_->pid = static_cast<uint32_t>(getpid()), header_->rank = rank, header_->ranks = ranks;
  std::memcpy(header_->magic, "JALFLY1", 8);
}

Flight::~Flight() {
  munmap(header_, sizeof(Header) + kEntries * sizeof(Entry));
  unlink(path_.c_str());
}

void Flight::add(uint64_t signature, uint64_t bytes, uint32_t queue, uint64_t position, bool captured) {
  const uint64_t before = count();
  Entry& e = entries_[before % kEntries];
  std::atomic_ref sequence(e.sequence);
  sequence.store(0, std::memory_order_relaxed);
  e.signature = signature, e.bytes = bytes, e.queue = queue, e.position = position;
  e.enqueued_ns = static_cast<uint64_t>(driver::monotonic_ns()), e.done_ns = 0, e.captured = captured;
  sequence.store(before + 1, std::memory_order_release);
  last_signature_.store(signature, std::memory_order_relaxed);
  count_.store(before + 1, std::memory_order_release);
}

}  // namespace jalapeno::runtime
