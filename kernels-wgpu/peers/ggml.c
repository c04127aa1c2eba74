// Milliseconds of products with a matrix on ggml's first GPU, best of several rounds.
//
//   npm pack @node-llama-cpp/linux-x64-vulkan && tar xzf node-llama-cpp-linux-x64-vulkan-*.tgz
//   B=package/bins/linux-x64-vulkan
//   cc -O2 ggml.c -o ggml -L$B -l:libggml-base.so -l:$(cd $B; echo libggml.vulkan*.so) -Wl,-rpath,$PWD/$B
//   GGML_VK_VISIBLE_DEVICES=0 ./ggml $B/libggml-vulkan.so [--cpu] [ROWS COLS [TYPE]]
//
// The variable makes ggml take a software driver, which it does not count as a GPU. --cpu: time of the
// processor, of all threads, in place of that of the clock.
//
// The package has no headers: what is declared here is the part of ggml.h and ggml-backend.h that is used.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct ggml_init_params {
    size_t mem_size;
    void *mem_buffer;
    bool no_alloc;
};

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q8_0 = 8, Q4_K = 12, ROUNDS = 5 };

void *ggml_init(struct ggml_init_params params);
void ggml_free(void *ctx);
void *ggml_new_tensor_2d(void *ctx, int type, int64_t ne0, int64_t ne1);
void *ggml_mul_mat(void *ctx, void *a, void *b);
void *ggml_new_graph(void *ctx);
void ggml_build_forward_expand(void *graph, void *tensor);
size_t ggml_nbytes(const void *tensor);
void *ggml_backend_load(const char *path);
size_t ggml_backend_reg_dev_count(void *reg);
void *ggml_backend_reg_dev_get(void *reg, size_t index);
const char *ggml_backend_dev_description(void *device);
void *ggml_backend_dev_init(void *device, const char *params);
void *ggml_backend_alloc_ctx_tensors(void *ctx, void *backend);
void ggml_backend_buffer_free(void *buffer);
void ggml_backend_tensor_set(void *tensor, const void *data, size_t offset, size_t size);
void ggml_backend_tensor_get(const void *tensor, void *data, size_t offset, size_t size);
int ggml_backend_graph_compute(void *backend, void *graph);

static clockid_t clock_id = CLOCK_MONOTONIC;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(clock_id, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

// Bytes whose 16-bit numbers, if they are scales, are small and finite.
static void fill(void *tensor, int type) {
    size_t bytes = ggml_nbytes(tensor);
    uint8_t *data = malloc(bytes);
    uint32_t state = 1;
    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        data[i] = (state >> 24) & 0x3b;
    }
    if (type == F32)
        for (size_t i = 0; i < bytes / 4; i++) ((float *)data)[i] = (float)(i * 37 % 251) / 125.0f - 1.0f;
    ggml_backend_tensor_set(tensor, data, 0, bytes);
    free(data);
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: %s libggml-vulkan.so [--cpu] [ROWS COLS [TYPE]]\n", argv[0]), 2;
    const char *library = argv[1];
    if (argc > 2 && !strcmp(argv[2], "--cpu")) clock_id = CLOCK_PROCESS_CPUTIME_ID, argc--, argv++;
    int64_t rows = argc > 3 ? atoll(argv[2]) : 4096, cols = argc > 3 ? atoll(argv[3]) : 4096;
    void *reg = ggml_backend_load(library);
    if (!reg || ggml_backend_reg_dev_count(reg) == 0) return fprintf(stderr, "no device\n"), 1;
    void *device = ggml_backend_reg_dev_get(reg, 0);
    void *backend = ggml_backend_dev_init(device, NULL);
    printf("ggml on %s, %lld by %lld\n", ggml_backend_dev_description(device), (long long)rows, (long long)cols);
    const struct { const char *name; int type; } types[] = {{"f32", F32}, {"f16", F16}, {"q8_0", Q8_0}, {"q4_0", Q4_0}, {"q4_K", Q4_K}};
    const int batches[] = {1, 32, 128};
    printf("%-32s %8s %9s %9s %9s\n", "form", "MB", "batch 1", "32", "128");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (argc > 4 && strcmp(argv[4], types[i].name)) continue;
        double ms[3];
        double mb = 0;
        for (int b = 0; b < 3; b++) {
            void *ctx = ggml_init((struct ggml_init_params){16 << 20, NULL, true});
            void *w = ggml_new_tensor_2d(ctx, types[i].type, cols, rows);
            void *x = ggml_new_tensor_2d(ctx, F32, cols, batches[b]);
            void *y = ggml_mul_mat(ctx, w, x);
            void *graph = ggml_new_graph(ctx);
            ggml_build_forward_expand(graph, y);
            void *buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
            if (!buffer) return fprintf(stderr, "no memory\n"), 1;
            fill(w, types[i].type);
            fill(x, F32);
            mb = ggml_nbytes(w) / 1e6;
            ms[b] = 1e30;
            for (int round = 0; round <= ROUNDS; round++) {
                double start = now_ms();
                if (ggml_backend_graph_compute(backend, graph)) return fprintf(stderr, "failed\n"), 1;
                double took = now_ms() - start;
                if (round > 0 && took < ms[b]) ms[b] = took;
            }
            float first;
            ggml_backend_tensor_get(y, &first, 0, 4);
            if (first == 0.0f) fprintf(stderr, "a product that is 0?\n");
            ggml_backend_buffer_free(buffer);
            ggml_free(ctx);
        }
        char form[32];
        snprintf(form, sizeof form, "ggml %s", types[i].name);
        printf("%-32s %8.2f %9.2f %9.2f %9.2f\n", form, mb, ms[0], ms[1], ms[2]);
        fflush(stdout);
    }
    return 0;
}
