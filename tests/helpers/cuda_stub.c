/* A CUDA runtime and driver with one device that does nothing: PyTorch asks them for devices, streams and events. */
#define SUCCEEDS(name) int name(void) { return 0; }

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13020; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = (void *)1; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { *status = 0; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = (void *)1; return 0; }
const char *cudaGetErrorString(int error) { return "no error of a stub"; }
const char *cudaGetErrorName(int error) { return "stub"; }
int cuInit(unsigned flags) { return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }

SUCCEEDS(cudaSetDevice)
SUCCEEDS(cudaGetLastError)
SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaStreamSynchronize)
SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaThreadExchangeStreamCaptureMode)
SUCCEEDS(cudaFree)
SUCCEEDS(cudaFreeAsync)
