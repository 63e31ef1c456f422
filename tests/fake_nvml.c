/* As much of NVML as the server uses. What it answers stands in the file that FAKE_NVML names, which
 * the test writes while this runs: tests/nvml_machine.py has the same layout. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_FOUND = 6, SMALL = 7 };

typedef struct {
    char bus_id[32], name[32];
    uint64_t total, others, own;
    uint32_t error, processes_error, pid, divided;
} Card;

typedef struct {
    uint32_t error;      /* of every call; 0: the driver is there */
    uint32_t count;
    uint32_t boot;       /* handles of an earlier one are void */
    uint32_t sessions;
    uint32_t reads;
    uint32_t hang;       /* while not 0, reads of memory do not return */
    Card cards[4];
} Machine;

typedef struct { uint64_t total, free, used; } Memory;
typedef struct { uint32_t pid; uint64_t used; uint32_t gpu, compute; } Process;
typedef struct {
    char legacy[16];
    uint32_t domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;

static volatile Machine *machine;

static int enter(void) {
    if (!machine || !machine->sessions) return UNINITIALIZED;
    return machine->error;
}

static int find(uintptr_t handle, volatile Card **card) {
    int code = enter();
    if (code) return code;
    uint32_t index = handle & 0xff;
    if (handle >> 8 != machine->boot + 1 || index >= machine->count) return INVALID;
    *card = &machine->cards[index];
    return (*card)->error;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("FAKE_NVML");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return 9;
    if (machine) munmap((void *)machine, sizeof *machine);
    machine = mmap(NULL, sizeof *machine, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (machine == MAP_FAILED) {
        machine = NULL;
        return 999;
    }
    if (machine->error) return machine->error;
    machine->sessions++;
    return OK;
}

int nvmlShutdown(void) {
    if (!machine || !machine->sessions) return UNINITIALIZED;
    machine->sessions--;
    return machine->error;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case UNINITIALIZED: return "Uninitialized";
    case INVALID: return "Invalid Argument";
    case NOT_FOUND: return "Not Found";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    int code = enter();
    if (!code) snprintf(text, length, "570.00");
    return code;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = enter();
    if (!code) *count = machine->count;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, uintptr_t *handle) {
    int code = enter();
    if (code) return code;
    if (index >= machine->count) return INVALID;
    *handle = (uintptr_t)(machine->boot + 1) << 8 | index;
    return machine->cards[index].error;
}

/* The real one takes `0000:3b:00.0` and `00000000:3B:00.0` for the same card. */
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, uintptr_t *handle) {
    int code = enter();
    if (code) return code;
    for (uint32_t index = 0; index < machine->count; index++) {
        const char *known = (const char *)machine->cards[index].bus_id;
        if (!strcasecmp(known + strlen(known) - strlen(bus_id), bus_id))
            return nvmlDeviceGetHandleByIndex_v2(index, handle);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(uintptr_t handle, char *name, unsigned length) {
    volatile Card *card;
    int code = find(handle, &card);
    if (!code) snprintf(name, length, "%s", (const char *)card->name);
    return code;
}

int nvmlDeviceGetPciInfo_v3(uintptr_t handle, Pci *pci) {
    volatile Card *card;
    int code = find(handle, &card);
    if (!code) snprintf(pci->bus_id, sizeof pci->bus_id, "%s", (const char *)card->bus_id);
    return code;
}

int nvmlDeviceGetCudaComputeCapability(uintptr_t handle, int *major, int *minor) {
    volatile Card *card;
    int code = find(handle, &card);
    *major = 8, *minor = 9;
    return code;
}

int nvmlDeviceGetMigMode(uintptr_t handle, unsigned *current, unsigned *pending) {
    volatile Card *card;
    int code = find(handle, &card);
    if (!code) *current = *pending = card->divided;
    return code;
}

int nvmlDeviceGetMemoryInfo(uintptr_t handle, Memory *memory) {
    volatile Card *card;
    int code = find(handle, &card);
    while (machine && machine->hang) usleep(1000);
    if (code) return code;
    uint64_t used = card->others + card->own;
    *memory = (Memory){card->total, card->total - used, used};
    machine->reads++;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(uintptr_t handle, unsigned *count, Process *found) {
    volatile Card *card;
    int code = find(handle, &card);
    if (!code) code = card->processes_error;
    if (code) return code;
    unsigned room = *count, there = 1 + (card->pid != 0);
    *count = there;
    if (room < there || !found) return SMALL;
    found[0] = (Process){1, card->others, 0, 0};
    if (card->pid) found[1] = (Process){card->pid, card->own, 0, 0};
    return OK;
}
