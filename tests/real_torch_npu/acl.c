/* The part of ACL, CANN's runtime, that has to do something: device memory is the host's, all is done at once.
   Signatures are those of torch_npu's third_party/acl headers. Every other function returns 0: see stubs.py. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DONE = 0, NO_MEMORY = 207001 };

static int allocate(void **pointer, size_t size)
{
    *pointer = aligned_alloc(512, size / 512 * 512 + 1024);
    return *pointer ? DONE : NO_MEMORY;
}

static int handle(void **found)
{
    *found = malloc(1);
    return *found ? DONE : NO_MEMORY;
}

/* The device: STUB_NPUS of them, of the chip that STUB_SOC names. */

int aclrtGetDeviceCount(uint32_t *count)
{
    const char *given = getenv("STUB_NPUS");
    *count = given ? (uint32_t)atoi(given) : 0;
    return DONE;
}

const char *aclrtGetSocName(void)
{
    const char *given = getenv("STUB_SOC");
    return given ? given : "Ascend910B2";
}

const char *aclGetRecentErrMsg(void) { return "a stub of ACL"; }

static _Thread_local int32_t current;

int aclrtSetDevice(int32_t device) { current = device; return DONE; }
int aclrtGetDevice(int32_t *device) { *device = current; return DONE; }

int aclrtGetCurrentContext(void **context)
{
    static char only;
    *context = &only;
    return DONE;
}

int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) { *can = 0; return DONE; }

/* Memory. */

int aclrtMalloc(void **pointer, size_t size, int policy) { return allocate(pointer, size); }
int aclrtMallocAlign32(void **pointer, size_t size, int policy) { return allocate(pointer, size); }
int aclrtMallocHost(void **pointer, size_t size) { return allocate(pointer, size); }
int aclrtFree(void *pointer) { free(pointer); return DONE; }
int aclrtFreeHost(void *pointer) { free(pointer); return DONE; }

int aclrtGetMemInfo(int kind, size_t *available, size_t *total)
{
    *available = *total = (size_t)64 << 30;
    return DONE;
}

int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind)
{
    memmove(to, from, size);
    return DONE;
}

int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, void *stream)
{
    memmove(to, from, size);
    return DONE;
}

int aclrtMemset(void *to, size_t room, int32_t value, size_t size)
{
    memset(to, value, size);
    return DONE;
}

/* Streams and events: names of nothing. */

int aclrtCreateStream(void **stream) { return handle(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) { return handle(stream); }
int aclrtDestroyStream(void *stream) { free(stream); return DONE; }
int aclrtCreateEventExWithFlag(void **event, uint32_t flag) { return handle(event); }
int aclrtDestroyEvent(void *event) { free(event); return DONE; }
int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 0; return DONE; }

/* What torch_npu looks up by name while it runs, and does not start without. */

int aclSetCompileopt(int option, const char *value) { return DONE; }
int aclrtCtxSetSysParamOpt(int option, int64_t value) { return DONE; }
int aclrtGetSysParamOpt(int option, int64_t *value) { *value = 0; return DONE; }
int aclrtSetDeviceSatMode(int mode) { return DONE; }
int aclrtSetStreamOverflowSwitch(void *stream, uint32_t on) { return DONE; }
int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *on) { *on = 0; return DONE; }
int aclrtSetOpExecuteTimeOut(uint32_t seconds) { return DONE; }
int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t milliseconds) { return DONE; }
int aclrtDestroyStreamForce(void *stream) { return aclrtDestroyStream(stream); }
