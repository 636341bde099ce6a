/* Copyright: gpufleet.vllm contributors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later */

/* libnvidia-ml.so.1 for the GPUs of a data file. Each nvmlInit asks the program "gpusim", which lies beside this library,
 * for the state: lines of key=value. A key that is not there is something that the GPU does not have. Without that program,
 * as in a container that was given only the library, there is no driver.
 *
 * It is built once and runs on older systems too, so it uses no function that a newer glibc renames (strtol, sscanf). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, MEMORY = 20, VERSION_MISMATCH = 25
};
enum { MAX_GPUS = 64, NO_INSTANCE = 0xFFFFFFFF };

typedef int nvmlReturn_t;
typedef struct device { unsigned int index; } *nvmlDevice_t;

static struct device devices[MAX_GPUS];
static char *state;    /* the text, each line ended by a NUL */
static size_t length;
static int users;

/* ---- the state ---- */

static const char *find(const char *key)
{
    size_t size = strlen(key);
    for (char *line = state; line && line < state + length; line += strlen(line) + 1)
        if (!strncmp(line, key, size) && line[size] == '=')
            return line + size + 1;
    return NULL;
}

static unsigned long long number(const char *text)
{
    unsigned long long value = 0;
    for (; text && *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (unsigned long long)(*text - '0');
    return value;
}

static const char *find_of(nvmlDevice_t device, const char *name)
{
    char key[96];
    snprintf(key, sizeof key, "%u.%s", device->index, name);
    return find(key);
}

static void forget(void)
{
    free(state);
    state = NULL;
    length = 0;
}

static nvmlReturn_t load(void)
{
    Dl_info info;
    char path[4096], command[4352], *slash;
    forget();
    if (!dladdr((void *)load, &info) || !realpath(info.dli_fname, path) || !(slash = strrchr(path, '/')))
        return DRIVER_NOT_LOADED;
    *slash = 0;
    snprintf(command, sizeof command, "'%s/gpusim' state </dev/null 2>/dev/null", path);
    FILE *stream = popen(command, "r");
    if (!stream)
        return DRIVER_NOT_LOADED;
    for (;;) {
        char *larger = realloc(state, length + 4097);
        if (!larger) {
            pclose(stream);
            return MEMORY;
        }
        state = larger;
        size_t count = fread(state + length, 1, 4096, stream);
        if (!count)
            break;
        length += count;
    }
    state[length] = 0;
    if (pclose(stream))
        return DRIVER_NOT_LOADED;
    for (size_t position = 0; position < length; position++)
        if (state[position] == '\n')
            state[position] = 0;
    return SUCCESS;
}

/* ---- start and end ---- */

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    if (users) {
        users++;
        return SUCCESS;
    }
    nvmlReturn_t result = load();
    while (result == SUCCESS && number(find("hang"))) {
        sleep(1);
        result = load();
    }
    if (result == SUCCESS)
        result = (nvmlReturn_t)number(find("error"));
    if (result != SUCCESS) {
        forget();
        return result;
    }
    for (unsigned int index = 0; index < MAX_GPUS; index++)
        devices[index].index = index;
    users = 1;
    return SUCCESS;
}

nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void)
{
    if (!users)
        return UNINITIALIZED;
    if (!--users)
        forget();
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found";
    case 14: return "Corrupted infoROM";
    case GPU_IS_LOST: return "GPU is lost";
    case 16: return "GPU requires restart";
    case 18: return "RM has detected an NVML/RM version mismatch.";
    case MEMORY: return "Insufficient Memory";
    case VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

/* ---- copying values out ---- */

static nvmlReturn_t put_text(const char *value, char *text, unsigned int size)
{
    if (!users)
        return UNINITIALIZED;
    if (!text)
        return INVALID_ARGUMENT;
    if (!value)
        return NOT_SUPPORTED;
    if (strlen(value) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(text, value);
    return SUCCESS;
}

static nvmlReturn_t usable(nvmlDevice_t device)
{
    if (!users)
        return UNINITIALIZED;
    if (device < devices || device >= devices + number(find("gpus")))
        return INVALID_ARGUMENT;
    return find_of(device, "lost") ? GPU_IS_LOST : SUCCESS;
}

static nvmlReturn_t put_text_of(nvmlDevice_t device, const char *name, char *text, unsigned int size)
{
    nvmlReturn_t result = usable(device);
    return result ? result : put_text(find_of(device, name), text, size);
}

static nvmlReturn_t put_large(nvmlDevice_t device, const char *name, unsigned long long *value)
{
    nvmlReturn_t result = usable(device);
    if (result)
        return result;
    const char *text = find_of(device, name);
    if (!text)
        return NOT_SUPPORTED;
    if (!value)
        return INVALID_ARGUMENT;
    *value = number(text);
    return SUCCESS;
}

static nvmlReturn_t put(nvmlDevice_t device, const char *name, unsigned int *value)
{
    unsigned long long large = 0;
    nvmlReturn_t result = value ? put_large(device, name, &large) : INVALID_ARGUMENT;
    if (!result)
        *value = (unsigned int)large;
    return result;
}

static nvmlReturn_t put_two(nvmlDevice_t device, const char *one, unsigned int *a, const char *two, unsigned int *b)
{
    nvmlReturn_t result = put(device, one, a);
    return result ? result : put(device, two, b);
}

/* ---- the system ---- */

nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned int size) { return put_text(find("driver"), text, size); }
nvmlReturn_t nvmlSystemGetNVMLVersion(char *text, unsigned int size) { return put_text(find("nvml"), text, size); }

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    if (!users)
        return UNINITIALIZED;
    *version = (int)number(find("cuda"));
    return SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *text, unsigned int size)
{
    char key[32];
    snprintf(key, sizeof key, "process.%u", pid);
    const char *name = find(key);
    return users && !name ? NOT_FOUND : put_text(name, text, size);
}

/* ---- handles ---- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    if (!users)
        return UNINITIALIZED;
    *count = (unsigned int)number(find("gpus"));
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    if (!users)
        return UNINITIALIZED;
    if (index >= number(find("gpus")) || index >= MAX_GPUS)
        return INVALID_ARGUMENT;
    *device = &devices[index];
    return usable(*device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

/* "0000:19:00.0" is "00000000:19:00.0": the domain has four digits in the older form. */
static int same(const char *value, const char *wanted)
{
    size_t have = strlen(value), want = strlen(wanted);
    return have >= want && want && !strcasecmp(value + have - want, wanted) && (have == want || have - want == 4);
}

static nvmlReturn_t handle_by(const char *name, const char *wanted, nvmlDevice_t *device)
{
    unsigned int count = 0;
    nvmlReturn_t result = nvmlDeviceGetCount_v2(&count);
    if (result)
        return result;
    for (unsigned int index = 0; index < count && index < MAX_GPUS; index++) {
        const char *value = find_of(&devices[index], name);
        if (value && same(value, wanted)) {
            *device = &devices[index];
            return usable(*device);
        }
    }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) { return handle_by("uuid", uuid, device); }
nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *text, nvmlDevice_t *device) { return handle_by("serial", text, device); }
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus, nvmlDevice_t *device) { return handle_by("pci", bus, device); }
nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus, nvmlDevice_t *device) { return handle_by("pci", bus, device); }

/* ---- one value each ---- */

#define TEXT(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned int size) { return put_text_of(device, key, text, size); }
#define UINT(function, key) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *value) { return put(device, key, value); }

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
UINT(nvmlDeviceGetArchitecture, "architecture")
UINT(nvmlDeviceGetComputeMode, "compute_mode")
UINT(nvmlDeviceGetPersistenceMode, "persistence")
UINT(nvmlDeviceGetDisplayMode, "display_mode")
UINT(nvmlDeviceGetPerformanceState, "performance_state")
UINT(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending")
UINT(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen")
UINT(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen")
UINT(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width_current")
UINT(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width")
UINT(nvmlDeviceGetPowerUsage, "power_draw")
UINT(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
UINT(nvmlDeviceGetPowerManagementLimit, "power_limit")
UINT(nvmlDeviceGetPowerManagementDefaultLimit, "power_default")
UINT(nvmlDeviceGetFanSpeed, "fan")

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *value)
{
    nvmlReturn_t result = usable(device);
    if (!result)
        *value = device->index;
    return result;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *value) { return nvmlDeviceGetIndex(device, value); }

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    return put_two(device, "capability_major", (unsigned int *)major, "capability_minor", (unsigned int *)minor);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    return put_two(device, "ecc", current, "ecc", pending);
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    return put_two(device, "mig", current, "mig", pending);
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    nvmlReturn_t result = put(device, "mig", count);
    if (!result)
        *count = *count ? 7 : 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *found)
{
    unsigned int mode;
    nvmlReturn_t result = put(device, "mig", &mode);
    (void)index;
    (void)found;
    return result ? result : NOT_FOUND;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    nvmlReturn_t result = usable(device);
    if (!result)
        *is_mig = 0;
    return result;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, int type, int counter, unsigned long long *count)
{
    (void)counter;
    return put_large(device, type ? "ecc_uncorrected" : "ecc_corrected", count);
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *pending, unsigned int *failure)
{
    nvmlReturn_t result = put(device, "remapped", uncorrected);
    if (result)
        return result;
    *corrected = 0;
    return put_two(device, "remapped_pending", pending, "remapped_failure", failure);
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned int *value)
{
    return sensor ? INVALID_ARGUMENT : put(device, "temperature", value);
}

typedef struct { unsigned int version; int sensor; int temperature; } nvmlTemperature_t;

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *reading)
{
    return nvmlDeviceGetTemperature(device, reading->sensor, (unsigned int *)&reading->temperature);
}

typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    return put_two(device, "utilization", &rates->gpu, "utilization_memory", &rates->memory);
}

/* Only the slowdown threshold is simulated. */
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, int threshold, unsigned int *value)
{
    return threshold == 1 ? put(device, "slowdown", value) : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *mask)
{
    return put_large(device, "reasons", mask);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *mask)
{
    return put_large(device, "reasons", mask);
}

/* ---- topology ---- */

static nvmlReturn_t put_between(nvmlDevice_t one, nvmlDevice_t other, const char *name, unsigned int *value)
{
    char key[32];
    nvmlReturn_t result = usable(one);
    if (!result)
        result = usable(other);
    if (result)
        return result;
    if (one->index > other->index) {
        nvmlDevice_t swapped = one;
        one = other;
        other = swapped;
    }
    snprintf(key, sizeof key, "%s.%u", name, other->index);
    return put(one, key, value);
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, unsigned int *level)
{
    return put_between(one, other, "level", level);
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, int capability, unsigned int *status)
{
    (void)capability;
    return put_between(one, other, "p2p", status);
}

/* Every NVLink leads to a switch. */
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, unsigned int *active)
{
    unsigned int count;
    nvmlReturn_t result = put(device, "nvlinks", &count);
    if (result)
        return result;
    if (!count)
        return NOT_SUPPORTED;
    *active = link < count;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link, unsigned int *type)
{
    (void)link;
    *type = 2;
    return usable(device);
}

/* ---- memory ---- */

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    if (memory->version != (sizeof *memory | 2u << 24))
        return VERSION_MISMATCH;
    nvmlReturn_t result = put_large(device, "memory_total", &memory->total);
    if (!result)
        result = put_large(device, "memory_reserved", &memory->reserved);
    if (!result)
        result = put_large(device, "memory_free", &memory->free);
    return result ? result : put_large(device, "memory_used", &memory->used);
}

/* The first version counts the driver's reserve as used. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    nvmlMemory_v2_t newer = {.version = sizeof newer | 2u << 24};
    nvmlReturn_t result = nvmlDeviceGetMemoryInfo_v2(device, &newer);
    if (!result)
        *memory = (nvmlMemory_t){newer.total, newer.free, newer.used + newer.reserved};
    return result;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    nvmlReturn_t result = put_large(device, "bar1_total", &memory->total);
    if (!result)
        result = put_large(device, "bar1_used", &memory->used);
    if (!result)
        memory->free = memory->total - memory->used;
    return result;
}

/* ---- PCI ---- */

typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} nvmlPciInfo_t;

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    memset(pci, 0, sizeof *pci);
    nvmlReturn_t result = put_text_of(device, "pci", pci->bus_id, sizeof pci->bus_id);
    if (result)
        return result;
    memcpy(pci->legacy, pci->bus_id + 4, strlen(pci->bus_id) - 4);
    result = put(device, "bus", &pci->bus);
    return result ? result : put_two(device, "pci_device_id", &pci->device_id, "pci_subsystem_id", &pci->subsystem_id);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci) { return nvmlDeviceGetPciInfo_v3(device, pci); }

/* ---- processes ---- */

typedef struct { unsigned int pid; unsigned long long memory; } nvmlProcessInfo_v1_t;
typedef struct { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; } nvmlProcessInfo_t;

static nvmlReturn_t processes(nvmlDevice_t device, const char *kind, int version, unsigned int *room, void *list)
{
    char key[32];
    unsigned int count = 0;
    nvmlReturn_t result = usable(device);
    if (result)
        return result;
    for (;; count++) {
        snprintf(key, sizeof key, "%s.%u.pid", kind, count);
        const char *pid = find_of(device, key);
        if (!pid)
            break;
        if (count >= *room || !list)
            continue;
        snprintf(key, sizeof key, "%s.%u.memory", kind, count);
        unsigned long long memory = number(find_of(device, key));
        if (version == 1)
            ((nvmlProcessInfo_v1_t *)list)[count] = (nvmlProcessInfo_v1_t){(unsigned int)number(pid), memory};
        else
            ((nvmlProcessInfo_t *)list)[count] =
                (nvmlProcessInfo_t){(unsigned int)number(pid), memory, NO_INSTANCE, NO_INSTANCE};
    }
    result = count > *room ? INSUFFICIENT_SIZE : SUCCESS;
    *room = count;
    return result;
}

#define PROCESSES(function, kind, version) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *count, void *list) \
    { return processes(device, kind, version, count, list); }

PROCESSES(nvmlDeviceGetComputeRunningProcesses, "C", 1)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "C", 2)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "C", 3)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses, "G", 1)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, "G", 2)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "G", 3)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses, "M", 1)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, "M", 2)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "M", 3)

/* ---- fabric ---- */

typedef struct {
    unsigned int version;
    unsigned char cluster[16];
    nvmlReturn_t status;
    uint32_t clique;
    unsigned char state;
    uint32_t health;
} nvmlGpuFabricInfo_v2_t;

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfo_v2_t *info)
{
    unsigned int fabric;
    nvmlReturn_t result = put(device, "fabric", &fabric);
    if (result)
        return result;
    memset((char *)info + sizeof info->version, 0, sizeof *info - sizeof info->version);
    info->state = (unsigned char)fabric;
    return SUCCESS;
}
