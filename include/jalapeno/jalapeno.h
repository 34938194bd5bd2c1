/* libjalapeno: the runtime's C API.
 *
 * Verbs and semantics are CUDA's where CUDA is right; names differ where semantics do. There is no current device
 * and no default stream: a device is an argument of create and alloc, and everything else infers it.
 *
 * Rules that hold for every function, unless its comment says otherwise:
 *  - Thread-safe. Two threads may use one stream; their calls are ordered one after the other.
 *  - Returns jalSuccess or an error; jalGetLastErrorDetail() tells the calling thread what was attempted and what
 *    was expected. Out-parameters are written on success only.
 *  - "Async" functions enqueue and return; they block only while the stream's ring is full.
 *  - Timeouts are in nanoseconds; JAL_FOREVER waits without end. jalErrorWaitTimeout is not a failure: everything
 *    goes on and the wait may be repeated. Waits without a timeout use JAL_WAIT_TIMEOUT_MS (default 60000).
 *  - Handles are checked: null, freed and foreign handles give jalErrorInvalidHandle. Destroying an object that
 *    another thread is using at that moment is the caller's error.
 *  - After fork() the child gets jalErrorForkedChild from every function; the parent is not affected.
 */
#ifndef JALAPENO_JALAPENO_H
#define JALAPENO_JALAPENO_H
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define JAL_API __attribute__((visibility("default")))
#else
#define JAL_API
#endif
#ifdef __cplusplus
extern "C" {
#endif

#define JAL_VERSION_MAJOR 0
#define JAL_VERSION_MINOR 1
#define JAL_VERSION_PATCH 0
#define JAL_FOREVER UINT64_MAX

/* Numbers equal CUDA's where the meaning does. They never change. */
typedef enum jalError_t {
  jalSuccess = 0,
  jalErrorInvalidValue = 1,
  jalErrorOutOfMemory = 2, /* of the device; the host's is jalErrorOutOfHostMemory */
  jalErrorNoDevice = 100,
  jalErrorInvalidDevice = 101,
  jalErrorInvalidImage = 200,
  jalErrorEccUncorrectable = 214,
  jalErrorOperatingSystem = 304,
  jalErrorInvalidHandle = 400,
  jalErrorIllegalState = 401,
  jalErrorNotFound = 500,
  jalErrorNotReady = 600,
  jalErrorIllegalAddress = 700,
  jalErrorLaunchTimeout = 702, /* the watchdog ended a kernel */
  jalErrorAssert = 710,        /* the kernel executed TRAP */
  jalErrorIllegalInstruction = 715,
  jalErrorMisalignedAddress = 716,
  jalErrorLaunchFailure = 719,
  jalErrorNotSupported = 801,
  jalErrorStreamCaptureUnsupported = 900,
  jalErrorStreamCaptureInvalidated = 901,
  jalErrorUnknown = 999,
  jalErrorOutOfHostMemory = 2000,
  jalErrorDeviceLost = 2001,
  jalErrorWaitTimeout = 2002,
  jalErrorDependencyFailed = 2003,
  jalErrorVersionMismatch = 2004,
  jalErrorForkedChild = 2005,
  jalErrorBusy = 2006,
  jalErrorDivideByZero = 2010,
  jalErrorSemaphoreLeak = 2011,
  jalErrorDeadlock = 2012,
  jalErrorTileFault = 2013,
  jalErrorRace = 2014,
  jalErrorUninitialized = 2015,
  jalErrorOutOfBounds = 2016,
  jalErrorPeerLost = 2020,           /* a rank of the communicator is gone */
  jalErrorCollectiveMismatch = 2021, /* the ranks called for different things */
  jalErrorCommAborted = 2022,
  jalErrorCollectiveTimeout = 2023, /* a rank did not come within the communicator's deadline */
  jalErrorLinkDown = 2024           /* no fabric link is up */
} jalError_t;

typedef struct jalDevice_st* jalDevice_t;
typedef struct jalStream_st* jalStream_t;
typedef struct jalEvent_st* jalEvent_t;
typedef struct jalTimeline_st* jalTimeline_t;
typedef struct jalModule_st* jalModule_t;
typedef struct jalKernel_st* jalKernel_t;
typedef struct jalPreparedLaunch_st* jalPreparedLaunch_t;
typedef struct jalGraph_st* jalGraph_t;
typedef struct jalGraphExec_st* jalGraphExec_t;
typedef struct jalComm_st* jalComm_t;

/* ---- Library ---- */
JAL_API int jalGetVersion(void); /* major * 10000 + minor * 100 + patch */
/* Never NULL, for any value. Static. */
JAL_API const char* jalGetErrorName(jalError_t error);
JAL_API const char* jalGetErrorString(jalError_t error);
/* What the calling thread's last failed call attempted and what was expected. Never NULL; valid until that thread's
 * next failed call. */
JAL_API const char* jalGetLastErrorDetail(void);

/* ---- Devices ---- */
typedef struct jalDeviceProperties {
  size_t struct_size; /* set to sizeof(jalDeviceProperties) */
  char uri[128];
  char config_name[64]; /* of the chip configuration the rates below come from */
  int emulated;         /* 1: a software emulator */
  int assumed;          /* 1: rates and energies are assumptions, not a data sheet's */
  uint32_t cores, spm_bytes, acc_bytes, links, queues;
  uint32_t interface_version, isa_version; /* major << 16 | minor */
  uint64_t hbm_bytes;
  double core_clock_ghz, hbm_gbytes_per_second, link_gbits_per_second, peak_tflops_bf16, power_limit_watts;
  double dollars_per_hour; /* 0: unknown */
  uint64_t uuid[2];
  uint32_t function;          /* 0: the physical function, otherwise the virtual one's number */
  uint32_t virtual_functions; /* that share the chip with it; what is said above is this function's share */
} jalDeviceProperties;

/* A snapshot. Counters never go back. Energy, power, temperature and times are modelled on an emulated chip. */
typedef struct jalTelemetry {
  size_t struct_size;
  double temperature_celsius, power_watts, energy_joules;
  uint64_t device_ns, busy_cores_ns, busy_matrix_ns, busy_vector_ns, busy_dma_ns, busy_copy_ns;
  uint64_t hbm_read_bytes, hbm_write_bytes, host_bytes, packets, launches, instances, instructions, faults;
  uint64_t ecc_corrected, ecc_uncorrected;
  int healthy;
  uint32_t links_up; /* fabric links */
  uint64_t busy_fabric_ns, fabric_read_bytes, fabric_write_bytes, fabric_errors;
} jalTelemetry;

/* The devices this process would use: JAL_DEVICE_URI (several separated by ';'), else the PCI functions present, else
 * one embedded emulator. Touches no device; safe before fork(). */
JAL_API jalError_t jalGetDeviceCount(int* count);
JAL_API jalError_t jalGetDeviceUri(int index, char* uri, size_t size);
/* uri: "emu:" (embedded emulator; "emu:?hbm=1G&threads=2"), "emu:/path/to.sock", "vfio:0000:3b:00.0", or NULL for the
 * first device jalGetDeviceCount counts. The device is the caller's until jalDeviceClose. Blocks up to a few seconds.
 */
JAL_API jalError_t jalDeviceOpen(const char* uri, jalDevice_t* device);
/* Ends everything that belongs to the device: its streams, events, memory, modules and graphs become invalid handles.
 */
JAL_API jalError_t jalDeviceClose(jalDevice_t device);
JAL_API jalError_t jalDeviceGetProperties(jalDevice_t device, jalDeviceProperties* properties);
JAL_API jalError_t jalDeviceGetTelemetry(jalDevice_t device, jalTelemetry* telemetry);
JAL_API jalError_t jalDeviceGetMemoryInfo(jalDevice_t device, size_t* free_bytes, size_t* total_bytes);
/* Waits for all streams. */
JAL_API jalError_t jalDeviceSynchronize(jalDevice_t device);
JAL_API jalError_t jalDeviceSynchronizeUntil(jalDevice_t device, uint64_t timeout_ns);
/* Resets every stream: what has not run is discarded, errors are cleared, memory and modules stay. */
JAL_API jalError_t jalDeviceReset(jalDevice_t device);

/* ---- Error records ---- */
typedef struct jalErrorRecord {
  size_t struct_size;
  jalError_t code, root_code; /* root_code: what the failed dependency ended with */
  uint64_t sequence;          /* position in the stream of the operation that failed */
  char operation[32];         /* "launch", "copy", ...; "" unknown */
  char kernel[64];            /* "" when no kernel ran */
  char source_file[128];      /* of the instruction; "" unknown */
  uint32_t source_line;
  uint32_t instruction; /* UINT32_MAX: not in a kernel */
  uint32_t grid_position[3];
  uint32_t core, tile; /* tile register, 255: none */
  uint64_t address;    /* a device pointer as jalMalloc returns it, or a scratchpad offset */
  uint64_t bytes;
  uint32_t access;                       /* 1 read, 2 write, 3 execute, 0 none */
  uint64_t allocation, allocation_bytes; /* the allocation nearest to address, 0: none */
  int64_t allocation_offset;             /* of address from the allocation's begin */
  char call_site[160];                   /* "file:line" given at launch, "" unknown */
  char detail[256];
} jalErrorRecord;

/* ---- Streams ---- */
typedef struct jalStreamOptions {
  size_t struct_size;
  int priority;          /* 0 lowest .. 3 highest */
  uint32_t ring_entries; /* power of two, 16..65536; 0: 1024 */
} jalStreamOptions;

/* options may be NULL. Errors and order of a stream are independent of every other's; its speed is not: this version's
 * command processor runs one launch at a time, so a long kernel delays the launches of other streams, until it ends or
 * meets its watchdog. A device has a limited number of hardware queues (jalDeviceProperties.queues); jalErrorBusy
 * after. */
JAL_API jalError_t jalStreamCreate(jalDevice_t device, const jalStreamOptions* options, jalStream_t* stream);
/* Waits for the stream's work (default timeout), then frees it. */
JAL_API jalError_t jalStreamDestroy(jalStream_t stream);
/* jalErrorNotReady while work is left; the stream's error once it failed. Never blocks. */
JAL_API jalError_t jalStreamQuery(jalStream_t stream);
JAL_API jalError_t jalStreamSynchronize(jalStream_t stream);
JAL_API jalError_t jalStreamSynchronizeUntil(jalStream_t stream, uint64_t timeout_ns);
/* How many operations were enqueued (submitted) and are done (completed). Either may be NULL. */
JAL_API jalError_t jalStreamGetPosition(jalStream_t stream, uint64_t* submitted, uint64_t* completed);
/* Later work of the stream starts after the event's last record. An event never recorded is no wait. */
JAL_API jalError_t jalStreamWaitEvent(jalStream_t stream, jalEvent_t event);
JAL_API jalError_t jalStreamWaitTimeline(jalStream_t stream, jalTimeline_t timeline, uint64_t value);
JAL_API jalError_t jalStreamSignalTimeline(jalStream_t stream, jalTimeline_t timeline, uint64_t value);
/* Calls function(data) on a thread of the library when the work before it is done; later work waits for it. It may
 * signal timelines and write eventfds; it must not wait for the device. It is called, with the stream in error, also
 * when the work before it failed. */
JAL_API jalError_t jalLaunchHostFunc(jalStream_t stream, void (*function)(void* data), void* data);
/* Adds 1 to the caller's eventfd when the work before it is done. The descriptor must stay open until the stream has
 * passed this call. */
JAL_API jalError_t jalStreamNotifyEventfd(jalStream_t stream, int eventfd);
/* The first failure since the stream was created or reset; jalErrorNotFound when there is none. */
JAL_API jalError_t jalStreamGetErrorRecord(jalStream_t stream, jalErrorRecord* record);
/* Brings a failed (or busy) stream back, empty. What had not run is discarded; discarded (may be NULL) tells how much.
 */
JAL_API jalError_t jalStreamReset(jalStream_t stream, uint64_t* discarded);

/* ---- Events ---- */
#define JAL_EVENT_TIMING 1u
typedef struct jalElapsed {
  size_t struct_size;
  double device_ns; /* the chip's clock: modelled time on an emulated chip */
  double host_ns;   /* this machine's clock; 0 where the device cannot read it */
} jalElapsed;

JAL_API jalError_t jalEventCreate(jalDevice_t device, unsigned flags, jalEvent_t* event);
JAL_API jalError_t jalEventDestroy(jalEvent_t event);
JAL_API jalError_t jalEventRecord(jalEvent_t event, jalStream_t stream);
JAL_API jalError_t jalEventQuery(jalEvent_t event); /* jalSuccess, jalErrorNotReady, or the failure */
JAL_API jalError_t jalEventSynchronize(jalEvent_t event);
JAL_API jalError_t jalEventSynchronizeUntil(jalEvent_t event, uint64_t timeout_ns);
/* Between two completed events with JAL_EVENT_TIMING. The two clocks are never mixed: ms is this machine's time on an
 * emulated chip, and the chip's own on a real one; jalEventElapsed gives both. */
JAL_API jalError_t jalEventElapsedTime(float* ms, jalEvent_t begin, jalEvent_t end);
JAL_API jalError_t jalEventElapsed(jalElapsed* elapsed, jalEvent_t begin, jalEvent_t end);

/* ---- Timelines: monotonic 64-bit values that device and host signal and wait for ---- */
JAL_API jalError_t jalTimelineCreate(jalDevice_t device, uint64_t initial, jalTimeline_t* timeline);
JAL_API jalError_t jalTimelineDestroy(jalTimeline_t timeline); /* no stream may still wait for it */
JAL_API jalError_t jalTimelineGetValue(jalTimeline_t timeline, uint64_t* value);
/* Values only grow: a value that is not above the present one changes nothing. */
JAL_API jalError_t jalTimelineSignal(jalTimeline_t timeline, uint64_t value);
/* jalErrorDependencyFailed when the value was reached by a failure. */
JAL_API jalError_t jalTimelineWait(jalTimeline_t timeline, uint64_t value, uint64_t timeout_ns);

/* ---- Memory ----
 * A device pointer is a void* that no host pointer can equal; arithmetic on it is allowed, reading through it is not.
 */
JAL_API jalError_t jalMalloc(jalDevice_t device, void** pointer,
                             size_t bytes); /* 256-byte aligned, contents undefined */
/* Never waits: memory that enqueued work still uses is returned when that work is done. NULL is allowed. */
JAL_API jalError_t jalFree(void* pointer);
/* In the order of the stream, from the device's pool. Free returns the memory to the pool for later work of any stream.
 */
JAL_API jalError_t jalMallocAsync(void** pointer, size_t bytes, jalStream_t stream);
JAL_API jalError_t jalFreeAsync(void* pointer, jalStream_t stream);
/* Gives pooled memory beyond keep_bytes back to the device. */
JAL_API jalError_t jalMemPoolTrim(jalDevice_t device, size_t keep_bytes);
/* Pinned host memory that the device reaches directly, zeroed. Freed with jalHostFree. */
JAL_API jalError_t jalHostAlloc(jalDevice_t device, void** pointer, size_t bytes);
JAL_API jalError_t jalHostFree(void* pointer);
/* Memory of the caller's takes part in stream-ordered copies until it is unregistered. Where the transport cannot reach
 * it in place (vfio-user) the library stages each copy, in the stream's order. */
JAL_API jalError_t jalHostRegister(jalDevice_t device, void* pointer, size_t bytes);
JAL_API jalError_t jalHostUnregister(void* pointer);
/* The device pointer of pinned memory, for kernels that read it in place. */
JAL_API jalError_t jalHostGetDevicePointer(void** device_pointer, void* host_pointer);
/* The allocation that holds pointer; any out-parameter may be NULL. */
JAL_API jalError_t jalPointerGetRange(const void* pointer, void** base, size_t* bytes);

/* Copies. Each side is a device pointer (of any device), pinned, registered or plain host memory; the library sees
 * which. Plain host memory is read before the call returns; copies to it return when they are done. */
JAL_API jalError_t jalMemcpy(void* destination, const void* source, size_t bytes); /* returns when done */
JAL_API jalError_t jalMemcpyAsync(void* destination, const void* source, size_t bytes, jalStream_t stream);
JAL_API jalError_t jalMemcpy2DAsync(void* destination, size_t destination_pitch, const void* source,
                                    size_t source_pitch, size_t width_bytes, size_t height, jalStream_t stream);
/* Device and pinned memory only. */
JAL_API jalError_t jalMemcpyBatchAsync(void* const* destinations, const void* const* sources, const size_t* bytes,
                                       size_t count, jalStream_t stream);
/* Between two devices; the stream belongs to either. */
JAL_API jalError_t jalMemcpyPeerAsync(void* destination, const void* source, size_t bytes, jalStream_t stream);
JAL_API jalError_t jalMemset(void* pointer, int value, size_t bytes);
JAL_API jalError_t jalMemsetAsync(void* pointer, int value, size_t bytes, jalStream_t stream);
/* pattern of 1, 2 or 4 bytes; pointer and bytes are multiples of it. */
JAL_API jalError_t jalMemFillAsync(void* pointer, uint32_t pattern, unsigned pattern_bytes, size_t bytes,
                                   jalStream_t stream);

/* ---- Modules and kernels ---- */
typedef enum jalDType {
  jalF32 = 0,
  jalBF16 = 1,
  jalF16 = 2,
  jalI8 = 3,
  jalI32 = 4,
  jalQ8_0 = 5,
  jalQ4_0 = 6,
  jalE4M3 = 7,
  jalE5M2 = 8,
  jalI64 = 9,    /* collectives only */
  jalMXFP4 = 10, /* 32 elements in 17 bytes: a power of two (e8m0), then 4-bit floats (e2m1) */
  jalMXFP8 = 11  /* 32 elements in 33 bytes: a power of two (e8m0), then e4m3 */
} jalDType;
typedef enum jalArgKind { jalArgI32 = 0, jalArgI64 = 1, jalArgF32 = 2, jalArgTensor = 3 } jalArgKind;

typedef struct jalTensor {
  void* data; /* device pointer, or NULL when any extent is 0 */
  jalDType dtype;
  uint32_t rank;      /* 1..4 */
  uint32_t shape[4];  /* elements; shape[rank - 1] is contiguous */
  uint64_t stride[4]; /* bytes; 0: dense */
} jalTensor;

typedef struct jalArg {
  jalArgKind kind;
  union {
    int32_t i32;
    int64_t i64;
    float f32;
    jalTensor tensor;
  } value;
} jalArg;

typedef struct jalKernelInfo {
  size_t struct_size;
  char name[64];
  uint32_t arguments, argument_bytes, instructions, spm_bytes, acc_bytes;
} jalKernelInfo;

typedef struct jalArgInfo {
  size_t struct_size;
  char name[64];
  jalArgKind kind;
  int dtype;     /* tensor: a jalDType, or -1 for any; otherwise -1 */
  uint32_t rank; /* tensor: 1..4; otherwise 0 */
} jalArgInfo;

typedef struct jalLaunchConfig {
  size_t struct_size;
  uint32_t grid[3];
  uint32_t deadline_ms;  /* of a program instance (emulator: processor time); 0: the device's watchdog */
  const char* call_file; /* call site for error records; may be NULL; must outlive the launch */
  uint32_t call_line;
} jalLaunchConfig;

/* Reads and verifies the file or bytes; the image may be freed after the call. jalErrorInvalidImage names the offset
 * and the rule. */
JAL_API jalError_t jalModuleLoad(jalDevice_t device, const char* path, jalModule_t* module);
JAL_API jalError_t jalModuleLoadData(jalDevice_t device, const void* image, size_t bytes, jalModule_t* module);
/* The instructions of a module as text, one a line with its source line, as jalapeno-objdump writes them; needs no
 * device. Writes at most `size` bytes with the final zero; needed (may be NULL) is what the whole text takes. text may
 * be NULL when size is 0. */
JAL_API jalError_t jalModuleDisassemble(const void* image, size_t bytes, char* text, size_t size, size_t* needed);
JAL_API jalError_t jalModuleUnload(jalModule_t module); /* waits for launches of it (default timeout) */
JAL_API jalError_t jalModuleGetKernelCount(jalModule_t module, uint32_t* count);
JAL_API jalError_t jalModuleGetKernelByIndex(jalModule_t module, uint32_t index, jalKernel_t* kernel);
JAL_API jalError_t jalModuleGetKernel(jalModule_t module, const char* name,
                                      jalKernel_t* kernel); /* lives as long as the module */
JAL_API jalError_t jalKernelGetInfo(jalKernel_t kernel, jalKernelInfo* info);
/* The argument at `index`, in launch order; jalErrorNotFound past the last. */
JAL_API jalError_t jalKernelGetArgumentInfo(jalKernel_t kernel, uint32_t index, jalArgInfo* info);
/* A kernel of the library that comes with the runtime, such as "matmul_bf16" (docs/kernels.md lists them). Built and
 * loaded at first use; lives as long as the device. */
JAL_API jalError_t jalLibraryGetKernel(jalDevice_t device, const char* name, jalKernel_t* kernel);
/* Arguments are checked against the kernel's: number, kind, type, rank, alignment, and that a tensor lies in one
 * allocation (of HBM or pinned memory). They are copied before the call returns. */
JAL_API jalError_t jalLaunchKernel(jalKernel_t kernel, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z,
                                   const jalArg* args, uint32_t arg_count, jalStream_t stream);
JAL_API jalError_t jalLaunchKernelEx(jalKernel_t kernel, const jalLaunchConfig* config, const jalArg* args,
                                     uint32_t arg_count, jalStream_t stream);

/* A launch that is made often: arguments are checked, packed and placed in device memory once, and jalLaunchPrepared
 * only writes a packet. Copies config and args; blocks for the upload. Keeps the kernel's code; does not keep the
 * memory its tensors name. The values are fixed: for other arguments prepare another. */
JAL_API jalError_t jalLaunchPrepare(jalKernel_t kernel, const jalLaunchConfig* config, const jalArg* args,
                                    uint32_t arg_count, jalPreparedLaunch_t* launch);
/* On any stream of the kernel's device; can be captured. */
JAL_API jalError_t jalLaunchPrepared(jalPreparedLaunch_t launch, jalStream_t stream);
/* Never waits: launches in flight keep what they need. */
JAL_API jalError_t jalPreparedLaunchDestroy(jalPreparedLaunch_t launch);

/* ---- Graphs ---- */
/* From here on the stream records instead of running, until jalStreamEndCapture. Launches, copies of device and pinned
 * memory, fills, timeline waits and signals, and waits for events of the same capture can be recorded. Anything else
 * fails with jalErrorStreamCaptureUnsupported and invalidates the capture; jalStreamEndCapture then names that call. */
JAL_API jalError_t jalStreamBeginCapture(jalStream_t stream);
JAL_API jalError_t jalStreamEndCapture(jalStream_t stream, jalGraph_t* graph);
JAL_API jalError_t jalGraphDestroy(jalGraph_t graph);
JAL_API jalError_t jalGraphGetNodeCount(jalGraph_t graph, uint32_t* count);
/* Independent of graph afterwards. Keeps the code of its kernels, also when their module is unloaded; does not keep
 * memory: what its copies, fills and tensors name must stay allocated while it may be launched.
 * Takes device memory, 64 bytes a node and the arguments, from pages of 2 MiB that small graphs share. */
JAL_API jalError_t jalGraphInstantiate(jalGraph_t graph, jalGraphExec_t* exec);
/* Replaces the arguments of launch node `node` (counted in capture order over all nodes). Waits for launches in flight.
 */
JAL_API jalError_t jalGraphExecSetKernelArgs(jalGraphExec_t exec, uint32_t node, const jalArg* args,
                                             uint32_t arg_count);
JAL_API jalError_t jalGraphLaunch(jalGraphExec_t exec, jalStream_t stream);
JAL_API jalError_t jalGraphExecDestroy(jalGraphExec_t exec); /* waits for launches in flight */

/* ---- Collectives ----
 * NCCL's verbs and semantics: every rank of a communicator calls the same operations in the same order, each on its own
 * device; an operation is enqueued on a stream, can be captured into a graph, and reads and writes device memory of
 * jalMalloc. All ranks' buffers of one operation are ready when the operation begins on the device, and may be reused
 * when it is done there. Calls with a count of 0 still meet the other ranks.
 *
 * Results are a function of the inputs and the number of ranks alone: partial results of a reduction are f32 (64-bit
 * integers, wrapping, for integer types), combined in a binary tree over the ranks that is cut at powers of two, and
 * rounded once. Size, algorithm, transport, placement and in-place forms do not change a bit, and all ranks get the
 * same. docs/collectives.md holds the definition.
 *
 * A rank that dies, aborts, calls for something else or does not come in time ends the operation on every rank: the
 * stream fails with jalErrorPeerLost, jalErrorCommAborted, jalErrorCollectiveMismatch or jalErrorCollectiveTimeout, and
 * the communicator is of no use but for jalCommShrink, jalCommAbort and jalCommDestroy. Nothing waits without end. */
typedef struct jalUniqueId {
  char data[128];
} jalUniqueId;

typedef enum jalReduceOp { jalSum = 0, jalProd = 1, jalMin = 2, jalMax = 3, jalAvg = 4 } jalReduceOp;

typedef struct jalCommOptions {
  size_t struct_size;
  uint32_t deadline_ms; /* of one operation, from when it waits on the device; 0: JAL_COLL_DEADLINE_MS, else 30000 */
  uint32_t init_timeout_ms; /* until all ranks have come; 0: JAL_COLL_INIT_TIMEOUT_MS, else 60000 */
  uint32_t grace_ms;        /* how long another host may be silent before its ranks count as lost; 0: 5000 */
} jalCommOptions;

typedef struct jalCommInfo {
  size_t struct_size;
  int rank, ranks;
  int hosts;             /* on so many the ranks run */
  int fabric_ranks;      /* reached over the chips' fabric, this one included */
  uint64_t operations;   /* enqueued or captured so far */
  uint64_t memory_bytes; /* of device memory that the communicator holds */
  char launcher[64];     /* where rank and size came from: "explicit", "PMIx", "torchrun", ... */
  char transport[64];
} jalCommInfo;

/* Why a communicator failed. */
typedef struct jalCommErrorRecord {
  size_t struct_size;
  jalError_t code;
  int rank; /* whose fault it is, -1: unknown */
  int pid;  /* of that rank */
  char host[64];
  char operation[160]; /* the last one this rank enqueued */
  char evidence[256];  /* what was seen, by whom */
  uint64_t unix_ns;    /* when */
} jalCommErrorRecord;

/* An id for a new communicator. The calling process serves it until all ranks have come; any way of telling the other
 * ranks will do. */
JAL_API jalError_t jalGetUniqueId(jalUniqueId* id);
/* Joins as `rank` of `ranks`. Blocks until all have come, at most the init timeout; then every rank gets the same
 * error, which names who is missing. The communicator is the caller's until jalCommDestroy; the device must stay open
 * so long. options: NULL for the defaults. Thread-safe: several ranks of one process join from several threads, or
 * between jalGroupStart and jalGroupEnd. */
JAL_API jalError_t jalCommInitRank(jalComm_t* comm, jalDevice_t device, int ranks, const jalUniqueId* id, int rank,
                                   const jalCommOptions* options);
/* All ranks in this process: comms[i] is rank i on devices[i]. */
JAL_API jalError_t jalCommInitAll(jalComm_t* comms, const jalDevice_t* devices, int ranks,
                                  const jalCommOptions* options);
/* Rank, size and meeting point from the launcher that started this process: PMIx (mpirun, srun --mpi=pmix), PMI-1
 * (MPICH's mpiexec), or RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT (torchrun). One rank when there is none; an error
 * that names it when there is one that cannot be read. */
JAL_API jalError_t jalCommInitLauncher(jalComm_t* comm, jalDevice_t device, const jalCommOptions* options);
/* The same without joining, to choose a device first. */
JAL_API jalError_t jalLauncherGetRank(int* rank, int* ranks, int* local_rank);
/* New communicators, one for each color, ranks ordered by key and then rank. Every rank calls it; color -1 gets NULL.
 */
JAL_API jalError_t jalCommSplit(jalComm_t comm, int color, int key, jalComm_t* out);
/* The survivors go on without the ranks that are lost and without `excluded`. Called by every survivor; asks nothing of
 * the others. The old communicator stays to be destroyed. */
JAL_API jalError_t jalCommShrink(jalComm_t comm, const int* excluded, int excluded_count, jalComm_t* out);
JAL_API jalError_t jalCommGetInfo(jalComm_t comm, jalCommInfo* info);
/* jalSuccess, or why the communicator failed. Never blocks. */
JAL_API jalError_t jalCommGetAsyncError(jalComm_t comm, jalError_t* error);
JAL_API jalError_t jalCommGetErrorRecord(jalComm_t comm, jalCommErrorRecord* record); /* jalErrorNotFound: none */
/* Ends what is in flight, here and on every rank, with jalErrorCommAborted. Returns at once, from any thread. */
JAL_API jalError_t jalCommAbort(jalComm_t comm);
/* Waits until this rank's operations are done and what they sent to other hosts is out (2 s at most), and tells the
 * others that it leaves: no operation may follow, and the end of this process is no loss to them. jalCommDestroy then
 * stays until ranks of other hosts have left too, 1 s at most; alone it leaves without waiting for anybody else. */
JAL_API jalError_t jalCommFinalize(jalComm_t comm);
JAL_API jalError_t jalCommDestroy(jalComm_t comm);
/* Names the buffer for transports that must know it beforehand. Never needed; the fabric reaches all device memory. */
JAL_API jalError_t jalCommRegister(jalComm_t comm, void* buffer, size_t bytes);
JAL_API jalError_t jalCommDeregister(jalComm_t comm, void* buffer);
/* The last operations of this rank with their state, and who is late, as JSON. needed: with its final zero. */
JAL_API jalError_t jalCommDump(jalComm_t comm, char* text, size_t size, size_t* needed);
/* The algorithm that an operation of this name ("all_reduce", ...) and size would use: "one-shot", "two-shot", ... */
JAL_API jalError_t jalCommGetAlgorithm(jalComm_t comm, const char* operation, size_t bytes, char* name, size_t size);

/* counts are elements. send and receive may be the same pointer where NCCL allows it: all_reduce, broadcast, reduce;
 * and all_gather with send = receive + rank * count, reduce_scatter with receive = send + rank * count. */
JAL_API jalError_t jalAllReduce(const void* send, void* receive, size_t count, jalDType type, jalReduceOp op,
                                jalComm_t comm, jalStream_t stream);
/* receive: on the root only; elsewhere ignored. */
JAL_API jalError_t jalReduce(const void* send, void* receive, size_t count, jalDType type, jalReduceOp op, int root,
                             jalComm_t comm, jalStream_t stream);
/* send: on the root only; elsewhere ignored. */
JAL_API jalError_t jalBroadcast(const void* send, void* receive, size_t count, jalDType type, int root, jalComm_t comm,
                                jalStream_t stream);
/* count: from each rank. */
JAL_API jalError_t jalAllGather(const void* send, void* receive, size_t count, jalDType type, jalComm_t comm,
                                jalStream_t stream);
/* count: to each rank. */
JAL_API jalError_t jalReduceScatter(const void* send, void* receive, size_t count, jalDType type, jalReduceOp op,
                                    jalComm_t comm, jalStream_t stream);
/* count: from each rank to each rank; rank r's part lies at r * count on both sides. Not in place. */
JAL_API jalError_t jalAllToAll(const void* send, void* receive, size_t count, jalDType type, jalComm_t comm,
                               jalStream_t stream);
/* Counts and offsets in elements, one for each rank; host memory, read during the call. What rank a gives to b must be
 * what b expects of a. */
JAL_API jalError_t jalAllToAllV(const void* send, const size_t* send_counts, const size_t* send_offsets, void* receive,
                                const size_t* receive_counts, const size_t* receive_offsets, jalDType type,
                                jalComm_t comm, jalStream_t stream);
/* The same with tables in device memory, read when the operation runs: {offset, bytes} for each rank, 64-bit each. A
 * kernel may write them, as the routing of a mixture of experts does. */
JAL_API jalError_t jalAllToAllRanges(const void* send, const void* send_ranges, void* receive,
                                     const void* receive_ranges, jalComm_t comm, jalStream_t stream);
/* A send meets the receive of the same rank pair, in order. Both wait for the other on the device: cycles must be in
 * one group. */
JAL_API jalError_t jalSend(const void* send, size_t count, jalDType type, int peer, jalComm_t comm, jalStream_t stream);
JAL_API jalError_t jalRecv(void* receive, size_t count, jalDType type, int peer, jalComm_t comm, jalStream_t stream);
JAL_API jalError_t jalBarrier(jalComm_t comm, jalStream_t stream);
/* Between the two, this thread's collective calls are collected and then issued together: several communicators can be
 * driven by one thread, and sends and receives cannot block each other. Communicators that are made in a group are of
 * use when it has ended. May be nested. jalGroupCancel ends it like jalGroupEnd, but forgets what was collected. */
JAL_API jalError_t jalGroupStart(void);
JAL_API jalError_t jalGroupEnd(void);
JAL_API jalError_t jalGroupCancel(void);

#ifdef __cplusplus
}
#endif
#endif
