/* What a program sees of OpenCL: each platform and device, the sum of two vectors computed there ("clhello info": without that), and the
 * files named like a driver that are loaded by then. Exit status 0 if there is a device, and the sum is right. */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <stdio.h>
#include <string.h>

static const char *SOURCE = "__kernel void add(__global const int *a, __global const int *b, __global int *c)"
                            "{ int i = get_global_id(0); c[i] = a[i] + b[i]; }";

enum { LENGTH = 64 };

static int sum(cl_device_id device) {
    int a[LENGTH], b[LENGTH], c[LENGTH], total = 0;
    size_t length = LENGTH;
    cl_int error = 0;
    for (int i = 0; i < LENGTH; i++) a[i] = i, b[i] = 2 * i, c[i] = 0;
    cl_context context = clCreateContext(NULL, 1, &device, NULL, NULL, &error);
    if (error) return -1;
    cl_command_queue queue = clCreateCommandQueue(context, device, 0, &error);
    cl_program program = clCreateProgramWithSource(context, 1, &SOURCE, NULL, &error);
    if (error || clBuildProgram(program, 1, &device, "", NULL, NULL)) {
        char log[4096] = "";
        clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
        fprintf(stderr, "clhello: the kernel is not built: %s\n", log);
        return -1;
    }
    cl_kernel kernel = clCreateKernel(program, "add", &error);
    cl_mem one = clCreateBuffer(context, CL_MEM_COPY_HOST_PTR, sizeof a, a, &error);
    cl_mem two = clCreateBuffer(context, CL_MEM_COPY_HOST_PTR, sizeof b, b, &error);
    cl_mem out = clCreateBuffer(context, CL_MEM_WRITE_ONLY, sizeof c, NULL, &error);
    clSetKernelArg(kernel, 0, sizeof one, &one);
    clSetKernelArg(kernel, 1, sizeof two, &two);
    clSetKernelArg(kernel, 2, sizeof out, &out);
    error = clEnqueueNDRangeKernel(queue, kernel, 1, NULL, &length, NULL, 0, NULL, NULL);
    if (!error) error = clEnqueueReadBuffer(queue, out, CL_TRUE, 0, sizeof c, c, 0, NULL, NULL);
    if (error) return -1;
    for (int i = 0; i < LENGTH; i++) total += c[i];
    return total;
}

int main(int argc, char **argv) {
    cl_platform_id platforms[8];
    cl_uint count = 0;
    int computes = !(argc > 1 && strcmp(argv[1], "info") == 0), found = 0, wrong = 0;
    cl_int error = clGetPlatformIDs(8, platforms, &count);
    printf("platforms: %d (error %d)\n", (int)count, error);
    for (cl_uint p = 0; p < count; p++) {
        char name[256] = "", version[256] = "";
        cl_device_id devices[8];
        cl_uint there = 0;
        clGetPlatformInfo(platforms[p], CL_PLATFORM_NAME, sizeof name, name, NULL);
        clGetPlatformInfo(platforms[p], CL_PLATFORM_VERSION, sizeof version, version, NULL);
        printf("platform: %s; %s\n", name, version);
        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, 8, devices, &there)) continue;
        for (cl_uint d = 0; d < there; d++) {
            clGetDeviceInfo(devices[d], CL_DEVICE_NAME, sizeof name, name, NULL);
            int total = computes ? sum(devices[d]) : 3 * LENGTH * (LENGTH - 1) / 2;
            printf("device: %s; sum: %d\n", name, total);
            found++;
            wrong += total != 3 * LENGTH * (LENGTH - 1) / 2;
        }
    }
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4096], last[4096] = "";
    while (maps && fgets(line, sizeof line, maps)) {
        char *path = strchr(line, '/');
        if (path && (strstr(path, "libpocl") || strstr(path, "libOpenCL") || strstr(path, "libstdc++")) && strcmp(path, last)) {
            printf("loaded: %s", path);
            strcpy(last, path);
        }
    }
    return found && !wrong ? 0 : 1;
}
