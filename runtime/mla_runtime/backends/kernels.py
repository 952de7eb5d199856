"""The kernels beside an engine: new rows onto the cache, and the best logits of a row.

Numbers that change from step to step are read from device memory, so that a step can be recorded once and
done again. `append` copies row s of sequence b to row `past[b] + s` of the cache, for all cache tensors at
once; rows that do not count are left out, and none is written past the stride. `best` sorts a window of a
row's logits as 64-bit keys, `merge` sorts the best keys of several windows, `decode` makes ids and logits of
the best of all. A key holds the logit in an order-preserving form above the inverted id, so that all keys
differ, the larger is the better, and ties go to the lower id; -0 is 0 there, as it is to `argmax`.
"""

from __future__ import annotations

THREADS = 1024
WINDOW = 2 * THREADS  # keys that a block sorts, a pair a thread
NAMES = ("append", "best", "merge", "decode")
# What `append` is told of a cache tensor: where its rows are, where the new ones are, bytes of a row.
TABLE_ENTRY = 3 * 8

SOURCE = (
    f"#define THREADS {THREADS}\n#define WINDOW {WINDOW}\n"
    + r"""
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;

struct Rows { char* cache; const char* fresh; i64 bytes; };

template <typename T> __device__ void copy_row(char* to, const char* from, i64 bytes) {
  for (i64 i = threadIdx.x; i < bytes / (i64)sizeof(T); i += blockDim.x) ((T*)to)[i] = ((const T*)from)[i];
}

extern "C" __global__ void append(const Rows* table, const i64* past, const i64* counts, i64 width,
                                  i64 stride) {
  const Rows rows = table[blockIdx.y];
  const i64 place = blockIdx.x, b = place / width, s = place % width;
  const i64 row = past[b] + s;
  if (s >= counts[b] || row < 0 || row >= stride) return;
  char* to = rows.cache + (b * stride + row) * rows.bytes;
  const char* from = rows.fresh + place * rows.bytes;
  if (rows.bytes % 16 == 0) copy_row<uint4>(to, from, rows.bytes);
  else if (rows.bytes % 4 == 0) copy_row<u32>(to, from, rows.bytes);
  else copy_row<char>(to, from, rows.bytes);
}

__device__ u64 key_of(float x, u32 id) {
  u32 bits = x == 0.0f ? 0u : __float_as_uint(x);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return ((u64)bits << 32) | (0xFFFFFFFFu - id);
}

// Bitonic, the largest first.
__device__ void sort(u64* keys) {
  __syncthreads();
  for (u32 size = 2; size <= WINDOW; size *= 2)
    for (u32 apart = size / 2; apart; apart /= 2) {
      const u32 i = 2 * threadIdx.x - (threadIdx.x & (apart - 1)), j = i + apart;
      const u64 a = keys[i], b = keys[j];
      if ((a < b) == ((i & size) == 0)) { keys[i] = b; keys[j] = a; }
      __syncthreads();
    }
}

__device__ void keep(const u64* keys, u64* kept, i64 count) {
  u64* to = kept + ((i64)blockIdx.y * gridDim.x + blockIdx.x) * count;
  for (i64 i = threadIdx.x; i < count; i += THREADS) to[i] = keys[i];
}

extern "C" __global__ void best(const float* logits, i64 vocab, u64* kept, i64 count, int* bad) {
  __shared__ u64 keys[WINDOW];
  for (u32 i = threadIdx.x; i < WINDOW; i += THREADS) {
    const i64 id = (i64)blockIdx.x * WINDOW + i;
    const float x = id < vocab ? logits[blockIdx.y * vocab + id] : 0.0f;
    keys[i] = id < vocab ? key_of(x, (u32)id) : 0;
    if ((__float_as_uint(x) & 0x7F800000u) == 0x7F800000u) bad[blockIdx.y] = 1;
  }
  sort(keys);
  keep(keys, kept, count);
}

extern "C" __global__ void merge(const u64* found, i64 number, u64* kept, i64 count) {
  __shared__ u64 keys[WINDOW];
  for (u32 i = threadIdx.x; i < WINDOW; i += THREADS) {
    const i64 place = (i64)blockIdx.x * WINDOW + i;
    keys[i] = place < number ? found[blockIdx.y * number + place] : 0;
  }
  sort(keys);
  keep(keys, kept, count);
}

extern "C" __global__ void decode(const u64* keys, i64 count, i64* ids, float* logits) {
  for (i64 i = threadIdx.x; i < count; i += THREADS) {
    const i64 place = blockIdx.y * count + i;
    const u64 key = keys[place];
    const u32 bits = (u32)(key >> 32);
    ids[place] = (i64)(0xFFFFFFFFu - (u32)key);
    logits[place] = __uint_as_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
  }
}
"""
)


def windows(number: int) -> int:
    """Give how many blocks sort `number` keys of a row."""
    return -(-number // WINDOW)
