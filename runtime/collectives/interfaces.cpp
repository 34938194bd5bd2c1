#include "interfaces.hpp"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <jalapeno_driver/log.hpp>
#include <jalapeno_driver/os.hpp>
#include <memory>
#include <sstream>

#include "error.hpp"

namespace jalapeno::runtime {

std::vector<Interface> interfaces() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) fail(jalErrorOperatingSystem, std::string("getifaddrs: ") + std::strerror(errno));
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, &freeifaddrs);
  std::vector<Interface> out;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next)
    if (i->ifa_addr != nullptr && i->ifa_addr->sa_family == AF_INET && (i->ifa_flags & IFF_UP))
      out.push_back({i->ifa_name, reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr.s_addr,
                     (i->ifa_flags & IFF_LOOPBACK) != 0});
  return out;
}

std::string text_of(uint32_t address) {
  char text[INET_ADDRSTRLEN] = {};
  const in_addr a{address};
  inet_ntop(AF_INET, &a, text, sizeof text);
  return text;
}

std::vector<std::string> rail_addresses() {
  const char* wanted = std::getenv("JAL_COLL_RAILS");
  if (wanted == nullptr || *wanted == 0) return {};
  const std::vector<Interface> all = interfaces();
  std::vector<std::string> out;
  std::stringstream names(wanted);
  for (std::string name; std::getline(names, name, ',');) {
    if (name.empty()) continue;
    const auto found = std::find_if(all.begin(), all.end(), [&](const Interface& i) { return i.name == name; });
    if (found == all.end()) invalid("JAL_COLL_RAILS: " + name + ": no such interface with IPv4 is up");
    out.push_back(text_of(found->address));
  }
  return out;
}

LinkWatch::LinkWatch() : socket_(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE)) {
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK, a.nl_groups = RTMGRP_LINK;
  if (socket_.fd >= 0 && bind(socket_.fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) socket_ = {};
  try {
    for (const Interface& i : interfaces())
      if (!i.loopback) names_[static_cast<int>(if_nametoindex(i.name.c_str()))] = i.name;
  } catch (const Error& e) {
    driver::runtime_log().debug("no news of links: {}", e.what());
  }
}

void LinkWatch::update() {
  alignas(nlmsghdr) char buffer[16384];
  // After an overrun (ENOBUFS) news is missing; what comes next says again how its link is.
  for (ssize_t n; (n = recv(socket_.fd, buffer, sizeof buffer, 0)) > 0;) {
    int left = static_cast<int>(n);
    for (auto* h = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
      if (h->nlmsg_type != RTM_NEWLINK && h->nlmsg_type != RTM_DELLINK) continue;
      const auto* link = static_cast<const ifinfomsg*>(NLMSG_DATA(h));
      const auto known = names_.find(link->ifi_index);
      if (known == names_.end() || link->ifi_family != AF_UNSPEC) continue;  // a bridge tells of its ports so
      const bool up = h->nlmsg_type == RTM_NEWLINK && (link->ifi_flags & IFF_UP) && (link->ifi_flags & IFF_RUNNING);
      if (up ? down_.erase(link->ifi_index) > 0 : down_.try_emplace(link->ifi_index, driver::monotonic_ns()).second)
        driver::runtime_log().warn("interface {} {}", known->second, up ? "has its link again" : "lost its link");
    }
  }
}

std::string LinkWatch::cuts() const {
  std::string out;
  for (const auto& [index, since_ns] : down_)
    out += (out.empty() ? "interface " : ", interface ") + names_.at(index) + " lost its link " +
           std::to_string((driver::monotonic_ns() - since_ns) / 1'000'000) + " ms ago";
  return out;
}

}  // namespace jalapeno::runtime
