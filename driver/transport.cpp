// From a URI to a transport. A new way to reach a device is a class and a line here.
#include "transport.hpp"

#include <atomic>
#include <filesystem>

#include "error.hpp"
#include "vfio.hpp"
#include "vfio_user.hpp"

namespace jalapeno::driver {
namespace {
std::atomic<EmbeddedLauncher> embedded_launcher{nullptr};
}

void set_embedded_launcher(EmbeddedLauncher launcher) { embedded_launcher.store(launcher); }

std::string full_uri(const std::string& uri) {
  if (uri.rfind("emu:", 0) != 0 || uri.size() == 4 || uri[4] == '?') return uri;
  std::error_code none;
  const auto path = std::filesystem::weakly_canonical(std::filesystem::absolute(uri.substr(4), none), none);
  return none ? uri : "emu:" + path.string();
}

std::unique_ptr<Transport> open_transport(const std::string& uri) {
  if (uri == "emu:" || uri.rfind("emu:?", 0) == 0) {
    EmbeddedLauncher launch = embedded_launcher.load();
    if (launch == nullptr) throw Error(Code::kNotSupported, uri + ": this build has no embedded emulator");
    Embedded emulator = launch(uri.size() > 5 ? uri.substr(5) : "");
    return std::make_unique<VfioUserTransport>(emulator.socket, uri, std::move(emulator.keep));
  }
  if (uri.rfind("emu:", 0) == 0) {
    const size_t options = uri.find('?');
    if (options != std::string::npos)
      throw Error(Code::kInvalidValue, "device URI \"" + uri + "\": \"" + uri.substr(options) +
                                           "\" is for an embedded emulator (emu:?...); give the options of one in its "
                                           "own process to jalapeno-emulator when it starts");
    return VfioUserTransport::connect(uri.substr(4));
  }
  if (uri.rfind("vfio:", 0) == 0) return std::make_unique<VfioTransport>(uri.substr(5));
  throw Error(Code::kInvalidValue, "device URI \"" + uri + "\": expected emu:, emu:/path/to.sock or vfio:DDDD:BB:DD.F");
}

}  // namespace jalapeno::driver
