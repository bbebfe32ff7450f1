# The simulated libcuda.so.1 and libnvidia-ml.so.1, and libsimgpu.so through which the suites read the ground truth.
# Included by cuda_hook/Makefile, and usable alone: make -f cuda_hook/tests/driver/driver.mk
DRIVER_DIR := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
BUILD ?= $(DRIVER_DIR)/../../build
DRIVER_OUT := $(BUILD)/driver
DRIVER_CFLAGS := -D_GNU_SOURCE -std=gnu11 -O2 -g -fPIC -fvisibility=hidden \
    -Wall -Wextra -Wshadow -Wconversion -Werror -MMD -MP
CC ?= gcc

SIMGPU_OBJECTS := $(addprefix $(DRIVER_OUT)/,file.o record.o engine.o queue.o)
SIMCUDA_OBJECTS := $(addprefix $(DRIVER_OUT)/,context.o green.o stream.o module.o capture.o launch.o graph.o memory.o vmm.o \
    array.o copy.o lookup.o)
DRIVER_LIBRARIES := $(DRIVER_OUT)/libcuda.so.1 $(DRIVER_OUT)/libnvidia-ml.so.1 $(DRIVER_OUT)/libsimgpu.so

.PHONY: driver driver-clean
driver: $(DRIVER_LIBRARIES)

$(DRIVER_OUT):
	mkdir -p $@

$(DRIVER_OUT)/%.o: $(DRIVER_DIR)/%.c | $(DRIVER_OUT)
	$(CC) $(DRIVER_CFLAGS) -c $< -o $@

$(DRIVER_OUT)/libcuda.so.1: $(SIMGPU_OBJECTS) $(SIMCUDA_OBJECTS) $(DRIVER_DIR)/driver.map
	$(CC) -shared -Wl,-Bsymbolic -Wl,-soname,libcuda.so.1 -Wl,--version-script=$(DRIVER_DIR)/driver.map \
	    -o $@ $(filter %.o,$^) -pthread
	ln -sf libcuda.so.1 $(DRIVER_OUT)/libcuda.so

$(DRIVER_OUT)/libnvidia-ml.so.1: $(SIMGPU_OBJECTS) $(DRIVER_OUT)/nvml.o $(DRIVER_DIR)/driver.map
	$(CC) -shared -Wl,-Bsymbolic -Wl,-soname,libnvidia-ml.so.1 -Wl,--version-script=$(DRIVER_DIR)/driver.map \
	    -o $@ $(filter %.o,$^) -pthread -lm

# Hidden symbols do not leave the other libraries; this one is for them alone.
$(DRIVER_OUT)/libsimgpu.so: $(addprefix $(DRIVER_DIR)/,file.c record.c engine.c queue.c simgpu.h engine.map) | $(DRIVER_OUT)
	$(CC) $(filter-out -fvisibility=hidden -MMD -MP,$(DRIVER_CFLAGS)) -shared \
	    -Wl,--version-script=$(DRIVER_DIR)/engine.map -o $@ $(filter %.c,$^) -pthread

driver-clean:
	rm -rf $(DRIVER_OUT)

-include $(wildcard $(DRIVER_OUT)/*.d)

# The load generators of the accuracy suite, linked straight to libcuda.
ACCURACY_DIR := $(DRIVER_DIR)/../accuracy
ACCURACY_PROGRAMS := $(addprefix $(DRIVER_OUT)/,sair-load sair-overhead)

.PHONY: accuracy-programs
accuracy-programs: $(ACCURACY_PROGRAMS)
driver: $(ACCURACY_PROGRAMS)

$(DRIVER_OUT)/sair-%: $(ACCURACY_DIR)/%.c $(DRIVER_OUT)/libcuda.so.1
	$(CC) $(filter-out -fPIC -fvisibility=hidden,$(DRIVER_CFLAGS)) -o $@ $< -L$(DRIVER_OUT) \
	    -Wl,-rpath,'$$ORIGIN' -lcuda -ldl -pthread
