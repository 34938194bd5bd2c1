# Shared by the scripts: what must be installed, and building a preset. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m== %s\033[0m\n' "$*"; }

build_packages=(g++ cmake ninja-build pkg-config ccache libspdlog-dev libfmt-dev nlohmann-json3-dev libcli11-dev libnuma-dev liburing-dev libfabric-dev)
python_packages=(pybind11-dev libdlpack-dev python3-dev python3-numpy)
test_packages=(libgtest-dev clang-format-14 clang-tidy-14 binutils python3 python3-pytest python3-hypothesis python3-matplotlib python3-pip python3-venv python3-setuptools python3-wheel mypy openmpi-bin mpich iproute2)
vm_packages=(cpio xz-utils binutils)

# Installs the named Debian packages that are missing. Works as root and with sudo.
install_packages() {
  local missing=()
  if ! command -v dpkg-query >/dev/null; then
    say "not a Debian or Ubuntu machine; install what these packages hold by hand: $*"
    return 0
  fi
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
    sudo=(sudo)
  fi
  say "installing ${missing[*]}"
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# build PRESET [cmake options...]
build() {
  local preset=$1
  shift
  say "building build/$preset"
  cmake --preset "$preset" "$@" >build-$preset.log 2>&1 || { cat build-$preset.log >&2; exit 1; }
  cmake --build --preset "$preset" || exit 1
  rm -f build-$preset.log
}
