// Philox-4x32-10 (Salmon et al., SC 2011), the first of its four words. Included once for each instruction set (see
// variant.h), inside its namespace; wfkernels/philox.py says what the counter and the key are.

typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
constexpr int64_t kWords = kVectorBytes / int64_t(sizeof(uint64_t));

// Fills keep[0 ... count) for the columns from `column` on: 1 where an element is kept, else 0.
WFKERNELS_FUNCTION void keep_row(
    uint64_t seed, int64_t site, uint32_t sequence, uint32_t head, uint32_t row, int64_t column, int64_t count,
    uint64_t threshold, uint8_t* keep) {
  constexpr uint64_t kWord = 0xFFFFFFFFu, kMultiply0 = 0xD2511F53u, kMultiply1 = 0xCD9E8D57u;
  const uint32_t key0 = static_cast<uint32_t>(seed);
  const uint32_t key1 = static_cast<uint32_t>((seed >> 32) + static_cast<uint64_t>(site));
  for (int64_t done = 0; done < count; done += kWords) {
    Words c0, c1, c2, c3;
    for (int64_t i = 0; i < kWords; ++i) c0[i] = static_cast<uint32_t>(column + done + i);
    c1 = row - Words{};
    c2 = head - Words{};
    c3 = sequence - Words{};
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < 10; ++round) {
      const Words first = c0 * kMultiply0, second = c2 * kMultiply1;
      c0 = (second >> 32) ^ c1 ^ uint64_t(k0);
      c1 = second & kWord;
      c2 = (first >> 32) ^ c3 ^ uint64_t(k1);
      c3 = first & kWord;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const int64_t rest = count - done < kWords ? count - done : kWords;
    for (int64_t i = 0; i < rest; ++i) keep[done + i] = c0[i] >= threshold;
  }
}
