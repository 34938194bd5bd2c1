// The peers themselves; what the build found decides which exist.
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "bench.hpp"
#include "peers.hpp"
#ifdef BENCH_OPENCL
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#endif
#ifdef BENCH_DNNL
#include <omp.h>

#include <oneapi/dnnl/dnnl.hpp>
#endif
#ifdef BENCH_OPENBLAS
#include <cblas.h>
#endif

namespace bench {
namespace {

// Small numbers of both signs, the same for every type.
[[maybe_unused]] float value(size_t i) {
  return static_cast<float>(static_cast<int>((i * 2654435761u >> 16) & 255) - 128) / 128;
}

#ifdef BENCH_OPENCL
class OpenCl {
 public:
  OpenCl() {
    cl_platform_id platform{};
    cl_uint count = 0;
    if (clGetPlatformIDs(1, &platform, &count) != CL_SUCCESS || count == 0) return;
    cl_device_id device{};
    if (clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 1, &device, nullptr) != CL_SUCCESS) return;
    cl_int e{};
    context_ = clCreateContext(nullptr, 1, &device, nullptr, nullptr, &e);
    if (e == CL_SUCCESS) queue_ = clCreateCommandQueue(context_, device, 0, &e);
    const char* source = "kernel void nothing(global int* p) { if (get_global_id(0) == 0x7fffffff) p[0] = 1; }";
    cl_program program{};
    if (e == CL_SUCCESS) program = clCreateProgramWithSource(context_, 1, &source, nullptr, &e);
    if (e == CL_SUCCESS) e = clBuildProgram(program, 1, &device, "", nullptr, nullptr);
    if (e == CL_SUCCESS) kernel_ = clCreateKernel(program, "nothing", &e);
    cl_mem memory{};
    if (e == CL_SUCCESS) memory = clCreateBuffer(context_, CL_MEM_READ_WRITE, 64, nullptr, &e);
    if (e == CL_SUCCESS) e = clSetKernelArg(kernel_, 0, sizeof(cl_mem), static_cast<const void*>(&memory));
    good_ = e == CL_SUCCESS;
    if (good_) enqueue(), clFinish(queue_);
  }
  bool good() const { return good_; }
  void enqueue() {
    const size_t one = 1;
    if (clEnqueueNDRangeKernel(queue_, kernel_, 1, nullptr, &one, &one, 0, nullptr, nullptr) != CL_SUCCESS)
      throw std::runtime_error("clEnqueueNDRangeKernel failed");
  }
  void finish() { clFinish(queue_); }

 private:
  cl_context context_{};
  cl_command_queue queue_{};
  cl_kernel kernel_{};
  bool good_ = false;
};
#endif

#ifdef BENCH_DNNL
class Dnnl : public PeerMultiply {
 public:
  Dnnl(Type type, uint32_t m, uint32_t n, uint32_t k, int threads) : threads_(threads) {
    using dnnl::memory;
    using Tag = memory::format_tag;
    using Kind = memory::data_type;
    omp_set_num_threads(threads);
    const bool bf16 = type == Type::kBf16;
    const Kind a = bf16 ? Kind::bf16 : Kind::u8, w = bf16 ? Kind::bf16 : Kind::s8, c = bf16 ? Kind::f32 : Kind::s32;
    const memory::desc ma({m, k}, a, Tag::ab), mw({k, n}, w, Tag::any), mc({m, n}, c, Tag::ab),
        plain({k, n}, w, Tag::ba);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc pd(engine_, ma, mw, mc);
#else
    const dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(ma, mw, mc), engine_);
#endif
    primitive_ = dnnl::matmul(pd);
    memory source(ma, engine_), weights(pd.weights_desc(), engine_), raw(plain, engine_);
    fill(source, size_t{m} * k, bf16), fill(raw, size_t{n} * k, bf16);
    dnnl::reorder(raw, weights).execute(stream_, raw, weights);
    stream_.wait();
    arguments_ = {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, memory(mc, engine_)}};
  }
  void run() override {
    omp_set_num_threads(threads_);
    primitive_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  static void fill(const dnnl::memory& memory, size_t count, bool bf16) {
    if (bf16) {
      auto* p = static_cast<uint16_t*>(memory.get_data_handle());
      for (size_t i = 0; i < count; ++i) {
        const float f = value(i);
        uint32_t bits;
        std::memcpy(&bits, &f, 4);
        p[i] = static_cast<uint16_t>(bits >> 16);
      }
    } else {
      auto* p = static_cast<int8_t*>(memory.get_data_handle());
      for (size_t i = 0; i < count; ++i) p[i] = static_cast<int8_t>(value(i) * 63);
    }
  }
  int threads_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};
#endif

#ifdef BENCH_OPENBLAS
class Blas : public PeerMultiply {
 public:
  Blas(uint32_t m, uint32_t n, uint32_t k, int threads)
      : m_(static_cast<int>(m)),
        n_(static_cast<int>(n)),
        k_(static_cast<int>(k)),
        threads_(threads),
        a_(size_t{m} * k),
        w_(size_t{n} * k),
        c_(size_t{m} * n) {
    for (size_t i = 0; i < a_.size(); ++i) a_[i] = value(i);
    for (size_t i = 0; i < w_.size(); ++i) w_[i] = value(i + 7);
  }
  void run() override {
    openblas_set_num_threads(threads_);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m_, n_, k_, 1, a_.data(), k_, w_.data(), k_, 0, c_.data(), n_);
  }

 private:
  int m_, n_, k_, threads_;
  std::vector<float> a_, w_, c_;
};
#endif

class Found : public Peers {
 public:
  double round_trip_ns([[maybe_unused]] int launches) override {
#ifdef BENCH_OPENCL
    if (OpenCl& cl = opencl(); cl.good()) {
      return seconds([&] {
               for (int i = 0; i < launches; ++i) cl.enqueue(), cl.finish();
             }) *
             1e9 / launches;
    }
#endif
    return -1;
  }
  double in_a_row_ns([[maybe_unused]] int launches) override {
#ifdef BENCH_OPENCL
    if (OpenCl& cl = opencl(); cl.good()) {
      return seconds([&] {
               for (int i = 0; i < launches; ++i) cl.enqueue();
               cl.finish();
             }) *
             1e9 / launches;
    }
#endif
    return -1;
  }
  std::unique_ptr<PeerMultiply> multiply([[maybe_unused]] Type type, [[maybe_unused]] uint32_t m,
                                         [[maybe_unused]] uint32_t n, [[maybe_unused]] uint32_t k,
                                         [[maybe_unused]] int threads) override {
#ifdef BENCH_OPENBLAS
    if (type == Type::kF32) return std::make_unique<Blas>(m, n, k, threads);
#endif
#ifdef BENCH_DNNL
    if (type != Type::kF32) return std::make_unique<Dnnl>(type, m, n, k, threads);
#endif
    return nullptr;
  }

 private:
#ifdef BENCH_OPENCL
  static OpenCl& opencl() {  // built when first asked for
    static OpenCl cl;
    return cl;
  }
#endif
};

}  // namespace
}  // namespace bench

extern "C" __attribute__((visibility("default"))) bench::Peers* bench_peers() {
  static bench::Found found;
  return &found;
}
